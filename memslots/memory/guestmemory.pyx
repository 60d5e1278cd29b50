"""Guest memory that can be read and written: slots on known host memory."""

import errno
import os

cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from memslots.core.access cimport (
    ACCESS_ALL,
    ACCESS_BAD,
    ACCESS_NO_MEMORY,
    ACCESS_READ,
    ACCESS_RESTORE,
    ACCESS_WRITE,
    access,
    access_fill,
    access_free,
    access_init,
    access_kind,
    access_load,
    access_mark,
    access_meets,
    access_probe,
    access_read,
    access_result,
    access_split,
    access_store,
    access_write,
    span,
)
from memslots.core.machine cimport machine
from memslots.core.slot cimport SLOT_READONLY
from memslots.core.space cimport space, space_active
from memslots.core.units cimport (
    PAGE_OFFSET_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    gpa_t,
    hva_t,
    page_aligned,
)
from memslots.memory.backing cimport Backing
from memslots.memory.known cimport Backings, backing_at, backings_of
from memslots.memslots cimport memslots_machine, memslots_space, memslots_writer
from memslots.read.sections cimport section, section_enter, section_leave
from memslots.values.integers cimport end_of, field_of, u32, u64
from memslots.write.writer cimport Writer

from memslots.errors import (
    BusyError,
    InvalidRegionError,
    NotMappedError,
    ReadOnlyError,
    gone,
)
from memslots.memslots import Memslots

cdef enum:
    # Copies of more bytes than this release the GIL. To take it again, uncontended, costs as much
    # as to copy some hundred KiB.
    LONG_COPY = 256 << 10
    # The number of bytes that are read from a file at a time.
    READ = 1 << 20


cdef object late(str module, str name):
    """Returns a function of a module, and imports the module at the first use."""
    return getattr(__import__(module, None, None, [name]), name)


cdef object snapshots():
    """Imports memslots.memory.snapshot, which with its imports is a third of the import time."""
    from memslots.memory import snapshot

    return snapshot


# no_gc_clear: the collector must not clear the Memslots while pointers into it exist.
@cython.final
@cython.no_gc_clear
cdef class GuestMemory:
    """GuestMemory(vm)\n--\n
    The memory of a guest, accessed by guest address.

    `place` creates a slot on host memory. If a slot is created on the Memslots itself, `add` makes
    its host memory known. A slot whose host memory is not known can be looked up but not accessed.

    No method touches memory that is not there. A Backing stays as long as a slot is on it, a view
    of it exists, or a copy from it is under way.

    An access is worked out in full before it begins. If it fails, it raises for the first guest
    address that it cannot reach, and has done nothing. NotMappedError: no slot holds the address,
    or the slot's host memory is not known or not there. ReadOnlyError: a write reaches a READONLY
    slot, or host memory that cannot be written. InvalidRegionError: the bytes go beyond the last
    guest address. An access of 0 bytes does nothing at any address.

    Writes are marked in the dirty logs of the slots they reach.

    Parameters
    ----------
    vm : Memslots
        Mirrored or not. All GuestMemorys of one Memslots know the same host memory. This one is for
        address space 0; `address_space` returns those for the others.

    Raises
    ------
    TypeError
        vm is not a Memslots.

    Notes
    -----
    Any thread may use it. Two threads that access the same bytes at a time race, as with any
    memory. `read_u16` and the like read and write an aligned number as a whole.

    Examples
    --------
    >>> memory = GuestMemory(Memslots())
    >>> ram = memory.place(0, 0x1000, Backing.anonymous(0x4000))
    >>> memory.write(0x1FFE, b"over the end of a page")
    22
    >>> memory.read(0x1FFE, 8)
    b'over the'
    """

    cdef object vm_of  # the Memslots, which keeps the machine alive
    cdef object reader  # of the address space
    cdef machine *m
    cdef space *sp
    cdef Backings known  # the host memory that may be touched; shared by all address spaces

    def __cinit__(self, vm, *, as_id_=0):  # address_space alone passes as_id_
        if not isinstance(vm, Memslots):
            raise TypeError(f"vm must be a Memslots, not {type(vm).__name__!r}")
        self.vm_of = vm
        self.reader = vm.address_space(as_id_)
        self.m = memslots_machine(self.reader)
        self.sp = memslots_space(self.reader)
        self.known = backings_of(vm)

    def __reduce__(self):
        raise TypeError("a GuestMemory cannot be pickled or copied: use dump to save it")

    def __repr__(self):
        return (
            f"<GuestMemory of address space {self.as_id}: {len(self.reader)} slots,"
            f" {len(self.known.get())} backings>"
        )

    @property
    def vm(self):
        """The Memslots."""
        return self.vm_of

    @property
    def as_id(self):
        """The number of the address space."""
        return self.sp.as_id

    @property
    def backings(self):
        """The known host memory, as a tuple of Backings in order of host address."""
        return self.known.get()

    def address_space(self, as_id):
        """Returns the GuestMemory of another address space. It knows the same host memory.

        InvalidRegionError if there is no such address space.
        """
        return GuestMemory(self.vm_of, as_id_=as_id)

    # Slots and their memory

    def place(self, slot, gpa, backing, offset=0, size=None, flags=0):
        """Creates a slot on host memory.

        Several slots may be on the same host memory: all of them see what is written through one.

        Parameters
        ----------
        slot : int
            The id.
        gpa : int
            The guest address of the first byte, a multiple of 4096.
        backing : Backing
        offset, size : int, optional
            The part of the backing, in bytes, multiples of 4096. Without `size`: all from `offset`
            on.
        flags : int or Flags
            LOG_DIRTY_PAGES, READONLY. READONLY keeps the guest and `write` from writing: fill the
            backing before.

        Returns
        -------
        Slot

        Raises
        ------
        InvalidRegionError
            A rule of `Memslots.create` refused it, or the part is not all in the backing, or the
            backing cannot be written and the slot is not READONLY.
        ValueError
            The backing shares memory with another known one.
        OverlapError, BusyError, MemoryError
            As Memslots.create.

        Notes
        -----
        O(log n + b) for b known backings. `Memslots.delete` deletes the slot.
        """
        cdef Backing memory = some(backing)
        cdef gpa_t address = u64(gpa, "gpa")
        cdef uint64_t begin = u64(offset, "offset")
        cdef uint64_t end = memory.memory.len
        cdef uint64_t length = max(begin, end) - begin if size is None else u64(size, "size")
        cdef uint32_t bits = u32(flags, "flags")
        if not (page_aligned(address) and page_aligned(begin) and page_aligned(length)):
            raise InvalidRegionError(
                errno.EINVAL,
                f"gpa {address:#x}, offset {begin:#x} and size {length:#x} must be multiples of the"
                " page size, 4096",
            )
        if begin > end or length > end - begin:
            raise InvalidRegionError(
                errno.EINVAL, f"[{begin:#x}, {int(begin) + length:#x}) is not all in {memory}"
            )
        if memory.memory.readonly and not bits & SLOT_READONLY:
            raise InvalidRegionError(
                errno.EINVAL, f"{memory} cannot be written: a slot on it must be READONLY"
            )
        new = self.known.add(memory)
        try:
            made = self.vm_of.create(
                slot,
                address >> PAGE_SHIFT,
                length >> PAGE_SHIFT,
                memory.start() + begin,
                bits,
                self.sp.as_id,
            )
        except BaseException:
            # If the backend still has the slot, the next change undoes it: keep the memory.
            if new and not (<Writer>memslots_writer(self.vm_of)).owes():
                self.known.drop_unused(memory)
            raise
        # Another thread may have deleted the last slot on the backing meanwhile, which dropped the
        # backing: add it again. If the slot made here is gone too, nobody else drops the backing.
        if self.known.add(memory):
            self.known.drop_unused(memory)
        return made

    def add(self, backing):
        """Makes host memory known, for slots that are created on the Memslots itself.

        It stays known until the last slot on it is deleted, or until `remove`.

        Raises
        ------
        ValueError
            It shares memory with another known Backing.
        """
        cdef Backing memory = some(backing)
        self.known.add(memory)

    def remove(self, backing):
        """Forgets host memory on which there is no slot. Unknown memory is ignored.

        Raises
        ------
        BusyError
            A slot is on the memory.
        """
        cdef Backing memory = some(backing)
        if memory in self.known.get() and not self.known.drop_unused(memory):
            raise BusyError(errno.EBUSY, f"slots are on {memory}: delete them first")

    # Bytes

    def read(self, gpa, n):
        """Reads `n` bytes of guest memory.

        Parameters
        ----------
        gpa, n : int
            In bytes; need not be aligned. The bytes may be in several slots.

        Returns
        -------
        bytes

        Raises
        ------
        NotMappedError

        Notes
        -----
        O(log n + k + bytes) for k slots.
        """
        cdef access a
        cdef gpa_t address = u64(gpa, "gpa")
        cdef uint64_t size = u64(n, "n")
        cdef bytes out
        if size == 0:
            return b""
        _held = self.begin(&a, address, size, ACCESS_READ)
        try:
            out = PyBytes_FromStringAndSize(NULL, size)
            self.came(copy_out(&a, PyBytes_AS_STRING(out), size))
        finally:
            access_free(&a)
        return out

    def readinto(self, gpa, buffer):
        """Fills a buffer from guest memory. The buffer may be guest memory itself.

        Parameters
        ----------
        gpa : int
        buffer : C-contiguous writable buffer
            Its size in bytes is the size of the read.

        Returns
        -------
        int
            The number of bytes.

        Raises
        ------
        NotMappedError
        TypeError, BufferError, ValueError
            The argument is not such a buffer.
        """
        cdef access a
        cdef Py_buffer view
        cdef gpa_t address = u64(gpa, "gpa")
        cdef object size
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        try:
            size = view.len  # the object is made first: that may fail
            if view.len != 0:
                _held = self.begin(&a, address, view.len, ACCESS_READ)
                try:
                    self.gather(&a, &view, _held)
                finally:
                    access_free(&a)
            return size
        finally:
            PyBuffer_Release(&view)

    def write(self, gpa, data):
        """Writes bytes to guest memory.

        Parameters
        ----------
        gpa : int
            In bytes; need not be aligned. The bytes may go to several slots.
        data : C-contiguous buffer
            May be guest memory, even the same: the bytes from before the call are written.

        Returns
        -------
        int
            The number of bytes.

        Raises
        ------
        NotMappedError, ReadOnlyError
            Nothing was written.
        TypeError, BufferError, ValueError
            The argument is not such a buffer.
        """
        cdef access a
        cdef Py_buffer view
        cdef gpa_t address = u64(gpa, "gpa")
        cdef object size
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            size = view.len  # the object is made first: that may fail
            if view.len != 0:
                _held = self.begin(&a, address, view.len, ACCESS_WRITE)
                try:
                    self.scatter(&a, &view, _held)
                finally:
                    access_free(&a)
            return size
        finally:
            PyBuffer_Release(&view)

    def fill(self, gpa, n, value=0):
        """Writes the same byte `n` times.

        Raises
        ------
        NotMappedError, ReadOnlyError
            Nothing was written.
        """
        cdef access a
        cdef uint64_t size = u64(n, "n")
        cdef int byte = field_of(value, "value", 8)
        cdef gpa_t bad
        cdef gpa_t address = u64(gpa, "gpa")
        if size == 0:
            return
        _held = self.begin(&a, address, size, ACCESS_WRITE)
        try:
            if size > LONG_COPY:
                with nogil:
                    bad = access_fill(&a, byte)
            else:
                bad = access_fill(&a, byte)
            self.mark(&a, bad)
            self.came(bad)
        finally:
            access_free(&a)

    # Numbers

    def read_u8(self, gpa):
        """Reads the byte at a guest address. NotMappedError."""
        return self.number(gpa, 1)

    def read_u16(self, gpa):
        """Reads the little-endian number of 2 bytes at a guest address. NotMappedError.

        If `gpa` is aligned to the number's size, the number is read as a whole, and before anything
        that is read later.
        """
        return self.number(gpa, 2)

    def read_u32(self, gpa):
        """Reads a number of 4 bytes, as read_u16. NotMappedError."""
        return self.number(gpa, 4)

    def read_u64(self, gpa):
        """Reads a number of 8 bytes, as read_u16. NotMappedError."""
        return self.number(gpa, 8)

    def write_u8(self, gpa, value):
        """Writes a byte. NotMappedError, ReadOnlyError; OverflowError: `value` does not fit."""
        self.put_number(gpa, value, 1)

    def write_u16(self, gpa, value):
        """Writes a little-endian number of 2 bytes.

        If `gpa` is aligned to the number's size, the number is written as a whole, and after all
        that was written before. NotMappedError, ReadOnlyError: nothing was written. OverflowError:
        `value` does not fit.
        """
        self.put_number(gpa, value, 2)

    def write_u32(self, gpa, value):
        """Writes 4 bytes, as write_u16. NotMappedError, ReadOnlyError, OverflowError."""
        self.put_number(gpa, value, 4)

    def write_u64(self, gpa, value):
        """Writes 8 bytes, as write_u16. NotMappedError, ReadOnlyError, OverflowError."""
        self.put_number(gpa, value, 8)

    # Views

    def view(self, gpa, n):
        """Returns a view of guest memory, not a copy. One slot and one Backing must hold all of it.

        Parameters
        ----------
        gpa, n : int
            In bytes; need not be aligned.

        Returns
        -------
        memoryview
            Of `n` bytes; read-only if `write` would raise. The view keeps the host memory, whatever
            happens to the slot. Writes to the view are not marked: call `mark_dirty` after them.

        Raises
        ------
        NotMappedError
        InvalidRegionError
            The memory is in more than one slot or Backing; `views` returns all parts.
        """
        size = u64(n, "n")
        address = u64(gpa, "gpa")
        parts = self.views(address, size)
        if len(parts) > 1:
            raise InvalidRegionError(
                errno.EINVAL,
                f"{size:#x} bytes from gpa {address:#x} are in {len(parts)} slots or backings: a"
                " view must be in one",
            )
        return parts[0] if parts else memoryview(bytearray())

    def views(self, gpa, n, *, write=False):
        """Returns views of guest memory, part by part, as os.readv and os.writev take them.

        A part is in one slot and one Backing.

        Parameters
        ----------
        gpa, n : int
        write : bool
            Whether the views are for writing: then all of the memory must be writable.

        Returns
        -------
        list of memoryview
            As `view`, in order; n bytes in all.

        Raises
        ------
        NotMappedError, ReadOnlyError
        """
        return self.parts(gpa, n, ACCESS_WRITE if write else ACCESS_READ)

    def _restore_views(self, gpa, n):
        """Returns writable views, of READONLY slots too. For restores."""
        return self.parts(gpa, n, ACCESS_RESTORE)

    def mark_dirty(self, gpa, n):
        """Marks `n` bytes as written, as `write` does. Call it after writing to a view.

        Pages that no logging slot holds are ignored.
        """
        cdef gpa_t first = u64(gpa, "gpa")
        cdef uint64_t size = u64(n, "n")
        cdef gpa_t last = first + size - 1
        if size != 0:
            if last < first:
                raise wraps(first, size)
            self.vm_of.mark_dirty_range(
                first >> PAGE_SHIFT, (last >> PAGE_SHIFT) + 1, self.sp.as_id
            )

    # Files

    def load(self, path, gpa):
        """Writes a file to guest memory.

        Parameters
        ----------
        path : str or os.PathLike
            A pipe or a device is read to its end. A FIFO waits for its writer, as any reader does.
        gpa : int

        Returns
        -------
        int
            The number of bytes of the file.

        Raises
        ------
        NotMappedError, ReadOnlyError
            The file does not fit. Nothing was written, and reading stopped when this was known.
        OSError
            The file cannot be read. Nothing was written.
        """
        cdef gpa_t address = u64(gpa, "gpa")
        data = bytearray()
        with open(os.fspath(path), "rb") as file:  # not a number: that would be a descriptor
            # Check the room before reading: a file may state its size, or may have no end.
            fits = os.fstat(file.fileno()).st_size
            self.parts(address, fits, ACCESS_WRITE)
            while more := file.read(READ):
                data += more
                if len(data) > fits:
                    fits = len(data)
                    self.parts(address, fits, ACCESS_WRITE)
        return self.write(address, data)

    def dump(self, path, *, restart_log=False, sparse=False):
        """Writes all memory, of every address space, to a snapshot file.

        `restore` writes it back. See `memslots.memory.snapshot`.

        Parameters
        ----------
        path : str or os.PathLike
        restart_log : bool
            Whether to take all marks before the bytes are read. Then the next `dump_dirty` has the
            writes from now on; otherwise it has the earlier marks, too. After an error the marks
            are restored.
        sparse : bool
            Whether to leave out pages of zeros. Pages that were never touched are not read.

        Returns
        -------
        int
            The number of bytes of memory in the file.

        Raises
        ------
        NotMappedError
            The host memory of a slot is not known. After any error there is no new file, and an
            existing file of that name is unchanged.
        OSError

        Notes
        -----
        An existing file is replaced and keeps its mode; a new file's mode follows the umask. It is
        not flushed to disk: call os.fsync. A pipe or a device is written directly. The list of
        slots is of one moment, for which changes wait; the bytes are read after it.
        """
        return snapshots().dump(self, path, bool(restart_log), bool(sparse))

    def dump_dirty(self, path):
        """Writes the memory of all dirty pages to a snapshot file, and takes their marks.

        Later writes are marked anew, so the next call writes them. After an error the marks are
        restored. `path`, result and errors are as in `dump`.
        """
        return snapshots().dump_dirty(self, path)

    def restore(self, path):
        """Writes the memory of a snapshot file to its guest addresses, in READONLY slots too.

        Returns the number of bytes of memory. The slots may differ from those of the snapshot.

        Raises
        ------
        NotMappedError
            A part of the snapshot has no place here; nothing was written.
        ReadOnlyError
            Host memory that cannot be written has other bytes; nothing was written.
        SnapshotError
            The file is not a snapshot, is incomplete, or has segments that overlap with different
            bytes (a process's own core). Nothing was written, unless the file shrank meanwhile.
        OSError
            The file cannot be read, or is no regular file.

        Notes
        -----
        Restored pages are marked, but not those of READONLY slots: a later dump_dirty leaves these
        out. After an error, more pages may be marked than were written. Do not change the slots
        meanwhile: the marks go by guest address.
        """
        return snapshots().restore(self, path)

    # Between memory and files, and what hosts do with pages

    @staticmethod
    def open(path, *, shared=False):
        """Opens a file as guest memory. Maps what begins at a page of the file, copies the rest.

        Parameters
        ----------
        path : str or os.PathLike
            An ELF core with physical addresses (of `dump`, QEMU or others), a LiME file, a full
            crash dump of 64-bit Windows, or raw memory, where a file offset is a guest address.
            Only a regular file can be mapped.
        shared : bool
            Whether writes go to the file. Otherwise only this process sees them (copy on write).
            A file with a part that must be copied is refused.

        Returns
        -------
        GuestMemory
            With a Memslots of its own. Its slots are the file's segments.

        Raises
        ------
        SnapshotError
            The file has no memory, is cut off or was replaced meanwhile, or `shared` is true and a
            part must be copied.
        OSError
            The file cannot be opened or mapped, or is a directory, a device or a pipe.
        OverlapError, MemoryError

        Notes
        -----
        O(k) for k segments that are page aligned in the file, of any size. A segment that is not
        aligned (LiME) is copied, in O(bytes).
        """
        return late("memslots.memory.opening", "open_memory")(path, shared, GuestMemory, Memslots)

    def checkpoint(self, *, by_log=None):
        """Copies all memory of the machine, so that it can be restored.

        Parameters
        ----------
        by_log : bool, optional
            Whether the dirty logs tell which pages are written from now on. They begin anew, here
            and with each restore, so no other code can use them meanwhile. If false, a restore
            compares all memory. By default the logs are used if every writable slot has one.

        Returns
        -------
        Checkpoint
            ``checkpoint.restore()`` undoes all later writes and returns the number of bytes.

        Raises
        ------
        InvalidRegionError
            by_log is true, and a writable slot has no log.
        ReadOnlyError
            A slot that is not READONLY is on host memory that cannot be written.
        NotMappedError, MemoryError

        Notes
        -----
        O(bytes that were ever touched). READONLY slots are left out, and slots of a guest_memfd
        without known host memory. With the logs a restore takes as long as a copy of the written
        pages, and writes through a view must be marked (mark_dirty).
        """
        return late("memslots.memory.checkpoint", "Checkpoint")(self, by_log)

    def write_from(self, fd, gpa, n, *, offset=None):
        """Reads from a file descriptor into guest memory, without a copy in between.

        Parameters
        ----------
        fd : int
        gpa, n : int
            In bytes.
        offset : int, optional
            The file offset. Without it: the descriptor's own.

        Returns
        -------
        int
            The number of bytes: less than n if the file ends before, or if the descriptor does not
            block and has no more for now.

        Raises
        ------
        NotMappedError, ReadOnlyError
        OSError
            All `n` bytes are marked, as after any error on the way. BlockingIOError: the descriptor
            does not block and has nothing.
        """
        return late("memslots.memory.transfer", "write_from")(self, fd, gpa, n, offset)

    def read_into(self, fd, gpa, n, *, offset=None):
        """Writes `n` bytes of guest memory to a file descriptor, as write_from.

        Returns n, or less if the descriptor does not block and takes no more for now.
        """
        return late("memslots.memory.transfer", "read_into")(self, fd, gpa, n, offset)

    def file_of(self, gpa, n=4096):
        """Returns (fd, offset): the descriptor of the memory's file, and its offset in the file.

        For mapping the memory elsewhere (vhost-user, VFIO). NotMappedError; InvalidRegionError: the
        memory is in several parts; ValueError: it is not of a memfd or a file.
        """
        return late("memslots.memory.transfer", "file_of")(self, gpa, n)

    def discard(self, gpa, n):
        """Zeroes memory. Whole pages go back to the host if the backing allows it.

        The pages are marked like written ones. NotMappedError, ReadOnlyError.
        """
        late("memslots.memory.transfer", "discard")(self, gpa, n)

    def prefault(self, gpa, n, *, write=True):
        """Makes the host provide all pages now, so that no access waits for them.

        NotMappedError; with `write` ReadOnlyError; OSError, MemoryError.
        """
        late("memslots.memory.transfer", "prefault")(self, gpa, n, write)

    def writing(self, gpa, n):
        """Returns a context manager: a view to write to, marked as written at the end.

        ``with memory.writing(gpa, n) as view:`` takes the view that `view` returns. At the end all
        of it is marked, even after an exception. NotMappedError, ReadOnlyError, InvalidRegionError.
        """
        return late("memslots.memory.transfer", "writing")(self, gpa, n)

    # Structures and devices

    def is_mapped(self, gpa, n=1):
        """Returns whether slots with known host memory hold all of `n` bytes.

        Then `read` succeeds, unless the memory has gone away. No page is touched to find out.
        """
        try:
            self.views(gpa, n)
        except (NotMappedError, InvalidRegionError):
            return False
        return True

    def is_private(self, gpa, n=1):
        """Returns whether any of `n` bytes is on a page that is private to the guest.

        `read` and `write` access shared memory. On a private page the guest sees other memory.
        See Memslots.set_private. O(log m + k) for k of m private runs.
        """
        cdef gpa_t first = u64(gpa, "gpa")
        cdef uint64_t size = u64(n, "n")
        cdef gpa_t last = first + min(size - 1, ~first)
        if size == 0:
            return False
        return bool(self.vm_of.private_runs(first >> PAGE_SHIFT, (last >> PAGE_SHIFT) + 1))

    def unpack(self, gpa, format):
        """Reads the values of a struct at a guest address, as struct.unpack. Returns a tuple.

        `format` is that of the module struct: ``"<iQ"`` little-endian, ``">H"`` big-endian, letters
        for signed and unsigned. NotMappedError, struct.error.
        """
        made = compiled(format)
        return made.unpack(self.read(gpa, made.size))

    def pack(self, gpa, format, *values):
        """Writes the values of a struct. NotMappedError, ReadOnlyError, struct.error."""
        self.write(gpa, compiled(format).pack(*values))

    def array(self, gpa, dtype, n):
        """Returns guest memory as a numpy array, not a copy. One slot must hold all of it.

        NotMappedError; InvalidRegionError: the memory is in several slots, or dtype has Python
        objects.
        """
        return late("memslots.memory.transfer", "array")(self, gpa, dtype, n)

    def on_mmio(self, start, end, *, read=None, write=None):
        """Registers the functions of a device. They answer accesses where there is no slot.

        The accesses are those of read_u8, write_u8 and the like, and of a guest that
        ``KvmVcpu.run(memory)`` runs.

        Parameters
        ----------
        start, end : int
            Guest addresses [start, end) in bytes, of this address space. `end` may be 2**64.
        read : callable, optional
            ``read(gpa, size)`` returns the number to be read.
        write : callable, optional
            ``write(gpa, size, value)``. Writes to READONLY slots come here, too.

        Returns
        -------
        MmioHandle
            ``close()``, or a with statement, ends the registration.

        Raises
        ------
        ValueError, TypeError

        Notes
        -----
        If several ranges hold an access, the smallest answers. An access that no range holds whole
        is a NotMappedError, as without devices. An exception of a function goes to the caller.
        """
        cdef uint64_t first = u64(start, "start")
        last = end_of(end, "end")
        if self.known.mmio is None:
            made = late("memslots.memory.mmio", "Mmio")()  # other threads run during the import
            with cython.critical_section(self.known):
                if self.known.mmio is None:
                    self.known.mmio = made
        return self.known.mmio.add(first, last, self.sp.as_id, read, write)

    def _ended_logs(self):
        """Returns how many dirty logs of the machine have ended. For checkpoint.py."""
        return self.known.ended_logs

    def _mmio(self):
        """Returns the Mmio of the machine, or None. For kvm/vcpu.py."""
        return self.known.mmio

    cdef tuple begin(self, access *a, gpa_t gpa, uint64_t size, access_kind kind):
        """Works out an access. Returns the tuple that keeps its memory: hold it until the end.

        The caller must call access_free then.
        """
        cdef access_result result
        cdef section at
        cdef const span *wrong
        cdef tuple held
        cdef gpa_t bad
        if gpa + size - 1 < gpa:
            raise wraps(gpa, size)
        while True:
            # Take the backings before the slots: while `held` exists, no other memory can be
            # mapped at its addresses.
            held = self.known.get()
            at = section_enter(self.m, NULL)
            result = access_init(a, space_active(self.sp), gpa, size, kind)
            section_leave(&at)
            if result == ACCESS_NO_MEMORY:
                raise MemoryError("no memory for an access that goes through many slots")
            if result == ACCESS_BAD:
                bad = a.bad
                if bad != gpa:
                    # The host memory before `bad` may be inaccessible: that address comes first.
                    self.begin(a, gpa, bad - gpa, kind)
                    access_free(a)
                # This raises, unless a slot was created there since: then try again.
                self.reader.gpa_to_hva(bad, kind == ACCESS_WRITE)
                continue
            wrong = find_wrong(a, held, kind)
            while wrong is not NULL and goes_on(wrong, held):
                if not access_split(a, wrong - a.spans, bytes_held(wrong, held)):
                    access_free(a)
                    raise MemoryError("no memory for an access that goes through many slots")
                wrong = find_wrong(a, held, kind)
            if wrong is NULL:
                if note_faults(a, held) and kind != ACCESS_READ:
                    # Check first: otherwise part of it might be written. A single page is either
                    # there or not.
                    if (gpa & PAGE_OFFSET_MASK) + size > PAGE_SIZE:
                        self.must_be_there(a)
                return held
            if self.known.get() is held:
                try:
                    raise self.no_memory(wrong, held, kind)
                finally:
                    access_free(a)
            # The slot may be on memory that was made known since: try again.
            access_free(a)

    cdef int must_be_there(self, access *a) except -1:
        """Raises NotMappedError, after access_free, if memory that may go away is not there."""
        cdef gpa_t bad = access_probe(a)
        if bad != ACCESS_ALL:
            access_free(a)
            self.came(bad)
        return 0

    cdef int came(self, gpa_t bad) except -1:
        """Raises NotMappedError unless `bad`, from access_read or its like, is ACCESS_ALL."""
        if bad != ACCESS_ALL:
            raise gone(bad, self.reader.lookup(bad >> PAGE_SHIFT))
        return 0

    cdef object no_memory(self, const span *at, tuple held, access_kind kind):
        """Returns the error for a span that find_wrong found: why it cannot be accessed."""
        cdef void *found = backing_at(held, at.hva)
        cdef Backing backing = None if found is NULL else <Backing>found
        cdef gpa_t gpa = at.gpa
        if backing is None:
            error, why = NotMappedError, "whose host memory is not known here"
        elif kind != ACCESS_READ and backing.memory.readonly:
            error, why = ReadOnlyError, "whose host memory cannot be written"
        elif not backing.holds(at.hva, at.size):
            gpa += bytes_held(at, held)
            error, why = NotMappedError, f"whose host memory there is beyond {backing}"
        elif backing.is_lost:
            error, why = NotMappedError, "whose host memory a fork left to the parent"
        else:
            error, why = NotMappedError, "whose file is shorter now than its memory"
        return error(
            errno.EFAULT, f"gpa {gpa:#x} is in {self.reader.get(at.id, f'slot {at.id}')}, {why}"
        )

    cdef void mark(self, const access *a, gpa_t bad) noexcept:
        """Marks the pages of the access, unless `bad` says that nothing was written."""
        cdef section at
        if bad == a.spans[0].gpa:
            return  # nothing was written
        at = section_enter(self.m, NULL)
        access_mark(a, space_active(self.sp))
        section_leave(&at)

    cdef int gather(self, const access *a, const Py_buffer *to, tuple held) except -1:
        """Reads the access into a buffer of the same size."""
        cdef bytes apart
        self.came(access_probe(a))
        if not access_meets(a, to.buf, to.len) and not is_aliased(a, to, held):
            self.came(copy_out(a, <char *>to.buf, to.len))
            return 0
        apart = PyBytes_FromStringAndSize(NULL, to.len)
        self.came(copy_out(a, PyBytes_AS_STRING(apart), to.len))
        memcpy(to.buf, PyBytes_AS_STRING(apart), to.len)
        return 0

    cdef int scatter(self, const access *a, const Py_buffer *data, tuple held) except -1:
        """Writes a buffer of the same size to the access, and marks the pages."""
        cdef bytes apart
        cdef const char *from_ = <const char *>data.buf
        cdef gpa_t bad
        if access_meets(a, from_, data.len) or is_aliased(a, data, held):
            apart = PyBytes_FromStringAndSize(from_, data.len)
            from_ = PyBytes_AS_STRING(apart)
        bad = copy_in(a, from_, data.len)
        self.mark(a, bad)
        self.came(bad)
        return 0

    cdef list parts(self, object gpa, object n, access_kind kind):
        cdef access a
        cdef uint64_t size = u64(n, "n")
        cdef gpa_t address = u64(gpa, "gpa")
        cdef uint64_t begin
        cdef Backing backing
        cdef size_t i
        found = []
        if size == 0:
            return found
        held = self.begin(&a, address, size, kind)
        try:
            for i in range(a.count):
                backing = <Backing>backing_at(held, a.spans[i].hva)
                begin = a.spans[i].hva - backing.start()
                part = memoryview(backing)[begin : begin + a.spans[i].size]
                if a.spans[i].readonly and kind == ACCESS_READ:
                    part = part.toreadonly()
                found.append(part)
        finally:
            access_free(&a)
        return found

    cdef uint64_t number(self, object gpa, int size) except? 0xFFFFFFFFFFFFFFFF:
        """Reads a number of `size` bytes. If no slot holds it, a device may answer."""
        cdef access a
        cdef gpa_t address = u64(gpa, "gpa")
        cdef uint64_t value
        cdef tuple _held
        given = None
        try:
            _held = self.begin(&a, address, size, ACCESS_READ)
        except NotMappedError:
            if self.known.mmio is not None:
                given = self.known.mmio.read(address, size, self.sp.as_id)
            if given is None:
                raise
        # Not in the except clause: if there is no memory for the traceback, Cython's return from
        # there crashes.
        if given is not None:
            return given
        cdef gpa_t bad = access_load(&a, size, &value)
        access_free(&a)
        self.came(bad)
        return value

    cdef int put_number(self, object gpa, object given, int size) except -1:
        """Writes a number of `size` bytes. If the slots refuse it, a device may take it."""
        cdef access a
        cdef gpa_t address = u64(gpa, "gpa")
        cdef uint64_t value = u64(given, "value")
        if size < 8 and value >> (8 * size):
            field_of(value, "value", 8 * size)  # raises
        cdef tuple _held = None
        cdef gpa_t bad
        try:
            _held = self.begin(&a, address, size, ACCESS_WRITE)
        except (NotMappedError, ReadOnlyError):
            if self.known.mmio is None or not self.known.mmio.write(
                address, size, value, self.sp.as_id
            ):
                raise
        if _held is None:  # a device took it; not in the except clause, as in `number`
            return 0
        bad = access_store(&a, value, size)
        self.mark(&a, bad)
        access_free(&a)
        self.came(bad)
        return 0


# The struct module caches formats too, but its functions do not return the size. Not a `cdef dict`:
# Cython's own `get` of a dict takes its reference too late if another thread clears the dict.
cdef object STRUCTS = {}


cdef object compiled(object format):
    made = STRUCTS.get(format)
    if made is None:
        from struct import Struct

        made = Struct(format)
        if len(STRUCTS) > 100:
            STRUCTS.clear()
        STRUCTS[format] = made
    return made


cdef Backing some(object backing):
    if not isinstance(backing, Backing):
        raise TypeError(f"backing must be a Backing, not {type(backing).__name__!r}")
    return backing


cdef object wraps(gpa_t gpa, uint64_t size):
    return InvalidRegionError(
        errno.EINVAL, f"{size:#x} bytes from gpa {gpa:#x} go beyond the last guest address"
    )


cdef const span *find_wrong(const access *a, tuple held, access_kind kind) noexcept:
    """Returns the first span that this access cannot touch, or NULL.

    Such a span is on no memory of `held`, beyond it, on a shortened file, or not writable.
    """
    cdef const span *at
    cdef void *found
    cdef size_t n
    for n in range(a.count):
        at = &a.spans[n]
        found = backing_at(held, at.hva)
        if (
            found is NULL
            or (kind != ACCESS_READ and (<Backing>found).memory.readonly)
            or not (<Backing>found).holds(at.hva, at.size)
            or not (<Backing>found).is_whole()
        ):
            return at
    return NULL


cdef uint64_t bytes_held(const span *at, tuple held) noexcept:
    """Returns how many bytes from the span's first on are in the Backing that holds that byte."""
    cdef Backing backing = <Backing>backing_at(held, at.hva)
    return backing.start() + <uint64_t>backing.memory.len - at.hva


cdef bint goes_on(const span *at, tuple held) noexcept:
    """Returns whether a span runs over the end of one Backing into another one."""
    if backing_at(held, at.hva) is NULL or bytes_held(at, held) >= at.size:
        return False
    return backing_at(held, at.hva + bytes_held(at, held)) is not NULL


cdef bint note_faults(access *a, tuple held) noexcept:
    """Sets may_fault of each span. Returns whether any memory may go away."""
    cdef size_t n
    cdef bint any = False
    for n in range(a.count):
        a.spans[n].may_fault = (<Backing>backing_at(held, a.spans[n].hva)).may_fault
        any |= a.spans[n].may_fault
    return any


cdef bint is_aliased(const access *a, const Py_buffer *memory, tuple held):
    """Returns whether a buffer may share memory with the access at other addresses.

    Only memory of a file can.
    """
    cdef hva_t hva = <hva_t>memory.buf
    cdef uint64_t size = memory.len
    cdef void *found
    cdef Backing backing
    cdef bint of_files = False
    cdef size_t n
    for n in range(a.count):
        backing = <Backing>backing_at(held, a.spans[n].hva)
        of_files |= backing.inode != 0 or backing.may_fault
    if not of_files:
        return False
    found = backing_at(held, hva)
    if found is not NULL and (<Backing>found).holds(hva, size):
        for n in range(a.count):
            backing = <Backing>backing_at(held, a.spans[n].hva)
            if backing.shares(a.spans[n].hva, a.spans[n].size, <Backing>found, hva, size):
                return True
        return False
    # Of memory that is not known here, only what Python itself allocated is surely not a file's.
    owner = <object>memory.obj
    while isinstance(owner, memoryview):
        owner = owner.obj
    return type(owner) not in (bytes, bytearray)


cdef gpa_t copy_out(const access *a, char *out, uint64_t size) noexcept:
    """Reads the whole access, `size` bytes."""
    cdef gpa_t bad
    if size > LONG_COPY:
        with nogil:
            bad = access_read(a, out)
        return bad
    return access_read(a, out)


cdef gpa_t copy_in(const access *a, const char *data, uint64_t size) noexcept:
    """Writes the whole access, `size` bytes."""
    cdef gpa_t bad
    if size > LONG_COPY:
        with nogil:
            bad = access_write(a, data)
        return bad
    return access_write(a, data)
