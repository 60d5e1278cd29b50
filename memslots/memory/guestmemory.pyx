"""Guest memory that can be read and written: slots with host memory behind them."""

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
from memslots.values.integers cimport field_of, u32, u64
from memslots.write.writer cimport Writer

from memslots.errors import (
    BusyError,
    InvalidRegionError,
    NotMappedError,
    ReadOnlyError,
)
from memslots.memslots import Memslots

cdef enum:
    # Copies of more bytes than this let the GIL go: to get it back takes as long as to copy some
    # hundred KiB, if nobody else wants it.
    LONG_COPY = 256 << 10
    # How many bytes of a file are read at a time, and no more than there is a place for.
    READ = 1 << 20


cdef object late(str module, str name):
    """A function of a module that is imported when it is first used."""
    return getattr(__import__(module, None, None, [name]), name)


cdef object snapshots():
    """memslots.memory.snapshot: with what it imports it takes a third of the package's import."""
    from memslots.memory import snapshot

    return snapshot


# no_gc_clear: the collector must not take the Memslots away while the pointers into it are there.
@cython.final
@cython.no_gc_clear
cdef class GuestMemory:
    """The memory of a guest, by guest address: what its slots hold.

    Slots get host memory by `place`. Others that are made on the Memslots itself, in a transaction
    say, are on host memory that `add` made known. A slot whose host memory is not known here can be
    looked up, and not touched.

    Nothing here touches memory that is not there: a Backing stays for as long as a slot is on it, a
    view of it exists, or a copy from it is under way.

    An access is worked out in full before it begins. One that cannot be done raises for the first
    guest address that is in the way, and has done nothing: a NotMappedError where no slot holds it,
    or none that has known host memory; a ReadOnlyError where it is a write and the slot is
    READONLY, or its host memory cannot be written. An access of 0 bytes does nothing, anywhere.

    What is written is marked in the dirty logs of the slots it was written to.

    Parameters
    ----------
    vm : Memslots
        Mirrored or not. All GuestMemorys of it know the same host memory; `address_space` gives one
        for others of its address spaces than 0.

    Raises
    ------
    TypeError
        vm is no Memslots.

    Notes
    -----
    Safe to use from any thread. What two threads do to the same bytes at a time is as with any
    memory; the numbers of `read_u16` and the like are read and written as a whole where they are
    aligned.
    """

    cdef object vm_of  # the Memslots, which keeps the machine
    cdef object reader  # of the address space
    cdef machine *m
    cdef space *sp
    cdef Backings known  # the host memory that may be touched; shared by all address spaces

    def __cinit__(self, vm, *, as_id_=0):  # by way of address_space
        if not isinstance(vm, Memslots):
            raise TypeError(f"vm must be a Memslots, not {type(vm).__name__!r}")
        self.vm_of = vm
        self.reader = vm.address_space(as_id_)
        self.m = memslots_machine(self.reader)
        self.sp = memslots_space(self.reader)
        self.known = backings_of(vm)

    def __reduce__(self):
        raise TypeError("a GuestMemory cannot be pickled or copied: dump writes what it holds")

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
        """The host memory that is known, a tuple of Backings by host address."""
        return self.known.get()

    def address_space(self, as_id):
        """The same for another address space, on the same host memory.

        InvalidRegionError where there is none of that number.
        """
        return GuestMemory(self.vm_of, as_id_=as_id)

    # Slots and their memory

    def place(self, slot, gpa, backing, offset=0, size=None, flags=0):
        """Create a slot on host memory.

        Several slots may be on the same: what is written by way of one is read by way of others.

        Parameters
        ----------
        slot : int
            The id.
        gpa : int
            The guest address of the first byte, a multiple of 4096.
        backing : Backing
        offset, size : int, optional
            The part of the backing, in bytes, multiples of 4096; without `size` all from `offset`
            on.
        flags : int or Flags
            LOG_DIRTY_PAGES, READONLY. READONLY keeps the guest and `write` from writing; for what
            is to be there fill the backing before.

        Returns
        -------
        Slot

        Raises
        ------
        InvalidRegionError
            A rule of `Memslots.create` says so, or the part is not all in the backing, or the
            backing cannot be written and the slot is not READONLY.
        OverlapError, BusyError, MemoryError
            As Memslots.create.

        Notes
        -----
        O(log n + b) for b backings that are known. `Memslots.delete` takes the slot away again.
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
            # A backend may have the slot still, to be undone with the next change.
            if new and not (<Writer>memslots_writer(self.vm_of)).owes():
                self.known.drop_unused(memory)
            raise
        # It was dropped if another thread has deleted the last slot on it meanwhile. It may be this
        # one that is gone already: then nobody else will drop it.
        if self.known.add(memory):
            self.known.drop_unused(memory)
        return made

    def add(self, backing):
        """Make host memory known, for slots that are made on the Memslots itself.

        It is known until the last slot on it is deleted, or `remove`.

        Raises
        ------
        ValueError
            It shares memory with other that is known.
        """
        cdef Backing memory = some(backing)
        self.known.add(memory)

    def remove(self, backing):
        """Let go of host memory on which no slot is. Nothing happens where it is not known.

        Raises
        ------
        BusyError
            A slot is on it.
        """
        cdef Backing memory = some(backing)
        if memory in self.known.get() and not self.known.drop_unused(memory):
            raise BusyError(errno.EBUSY, f"slots are on {memory}: delete them first")

    # Bytes

    def read(self, gpa, n):
        """`n` bytes of guest memory.

        Parameters
        ----------
        gpa, n : int
            In bytes; need not be aligned. They may be in several slots.

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
        """Read guest memory into a buffer, all of it. It may be guest memory itself.

        Parameters
        ----------
        gpa : int
        buffer : C-contiguous writable buffer
            In bytes it is what is read.

        Returns
        -------
        int
            How many bytes.

        Raises
        ------
        NotMappedError
        TypeError, BufferError, ValueError
            It is no such buffer.
        """
        cdef access a
        cdef Py_buffer view
        cdef gpa_t address = u64(gpa, "gpa")
        cdef object size
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        try:
            size = view.len  # an object, made while nothing is done
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
        """Write bytes to guest memory.

        Parameters
        ----------
        gpa : int
            In bytes; need not be aligned. The bytes may go to several slots.
        data : C-contiguous buffer
            May be guest memory, too, and the same: it is written as it was before.

        Returns
        -------
        int
            How many bytes.

        Raises
        ------
        NotMappedError, ReadOnlyError
            Then nothing is written.
        TypeError, BufferError, ValueError
            It is no such buffer.
        """
        cdef access a
        cdef Py_buffer view
        cdef gpa_t address = u64(gpa, "gpa")
        cdef object size
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            size = view.len  # an object, made while nothing is done
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
        """Write the same byte `n` times.

        Raises
        ------
        NotMappedError, ReadOnlyError
            Then nothing is written.
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
        """The byte at a guest address. NotMappedError."""
        return self.number(gpa, 1)

    def read_u16(self, gpa):
        """The little-endian number of 2 bytes at a guest address. NotMappedError.

        Where `gpa` is a multiple of its size it is read at once, before what is read later.
        """
        return self.number(gpa, 2)

    def read_u32(self, gpa):
        """As read_u16, of 4 bytes. NotMappedError."""
        return self.number(gpa, 4)

    def read_u64(self, gpa):
        """As read_u16, of 8 bytes. NotMappedError."""
        return self.number(gpa, 8)

    def write_u8(self, gpa, value):
        """Write a byte. NotMappedError, ReadOnlyError; OverflowError for what does not fit."""
        self.put_number(gpa, value, 1)

    def write_u16(self, gpa, value):
        """Write a little-endian number of 2 bytes.

        Where `gpa` is a multiple of its size it is written at once, after what was written before.
        NotMappedError, ReadOnlyError: then nothing is written. OverflowError for what does not fit.
        """
        self.put_number(gpa, value, 2)

    def write_u32(self, gpa, value):
        """As write_u16, of 4 bytes. NotMappedError, ReadOnlyError, OverflowError."""
        self.put_number(gpa, value, 4)

    def write_u64(self, gpa, value):
        """As write_u16, of 8 bytes. NotMappedError, ReadOnlyError, OverflowError."""
        self.put_number(gpa, value, 8)

    # Views

    def view(self, gpa, n):
        """Guest memory itself, not a copy of it, where one slot holds all of it.

        Parameters
        ----------
        gpa, n : int
            In bytes; need not be aligned.

        Returns
        -------
        memoryview
            Of `n` bytes; read-only where `write` would raise. It keeps the host memory, whatever
            becomes of the slot. What is written to it is in no dirty log: `mark_dirty` puts it
            there.

        Raises
        ------
        NotMappedError
        InvalidRegionError
            It is in more than one slot; `views` gives all parts.
        """
        size = u64(n, "n")
        parts = self.views(gpa, size)
        if len(parts) > 1:
            raise InvalidRegionError(
                errno.EINVAL,
                f"{size:#x} bytes from gpa {u64(gpa, 'gpa'):#x} are in {len(parts)} slots: a view"
                " is of one",
            )
        return parts[0] if parts else memoryview(b"")

    def views(self, gpa, n, *, write=False):
        """Guest memory itself, slot by slot: what os.readv and os.writev take.

        Parameters
        ----------
        gpa, n : int
        write : bool
            Whether all of it is to be written: then it must be possible.

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
        """The views to put back what the guest may not write, too: for snapshot.py."""
        return self.parts(gpa, n, ACCESS_RESTORE)

    def mark_dirty(self, gpa, n):
        """Mark `n` bytes as written, as `write` does: after writing to a view.

        Nothing happens where no slot logs.
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
        """Write a file to guest memory.

        Parameters
        ----------
        path : str or os.PathLike
        gpa : int

        Returns
        -------
        int
            How many bytes it has.

        Raises
        ------
        NotMappedError, ReadOnlyError
            Then nothing is written, and no more read of the file than shows it.
        OSError
            The file cannot be read; nothing is written.
        """
        cdef gpa_t address = u64(gpa, "gpa")
        data = bytearray()
        with open(path, "rb") as file:
            # What cannot be written is not read: a file may say how large it is, or have no end.
            fits = os.fstat(file.fileno()).st_size
            self.parts(address, fits, ACCESS_WRITE)
            while more := file.read(READ):
                data += more
                if len(data) > fits:
                    fits = len(data)
                    self.parts(address, fits, ACCESS_WRITE)
        return self.write(address, data)

    def dump(self, path, *, restart_log=False, sparse=False):
        """Write all memory, of every address space, to a snapshot file.

        See `memslots.memory.snapshot`, and `restore`. Returns how many bytes of memory are in it.

        Parameters
        ----------
        path : str or os.PathLike
        restart_log : bool
            Whether to take all marks, before the bytes are read: then the next `dump_dirty` has
            what is written from now on. Otherwise it has what was marked before, too. After an
            error the marks are there again.

        sparse : bool
            Whether to leave out pages that are zeros. Those that were never touched are not read.

        Raises
        ------
        NotMappedError
            A slot's host memory is not known. No file is made then, or after any other error, and
            one of that name stays as it was.
        OSError

        Notes
        -----
        A file of that name is replaced, and keeps its mode; a new one's follows the umask. The disk
        has it when os.fsync says so. A pipe or a device is written to as it is. Which slots there
        are, and where, is of one moment, for which changes wait; the bytes are read after it.
        """
        return snapshots().dump(self, path, bool(restart_log), bool(sparse))

    def dump_dirty(self, path):
        """Write the memory of all dirty pages to a snapshot file, and take their marks.

        What is written afterwards is marked anew, so the next one has it. After an error the marks
        are there again. `path`, result and errors are those of `dump`.
        """
        return snapshots().dump_dirty(self, path)

    def restore(self, path):
        """Write what a snapshot file has to where it was, in READONLY slots too.

        Returns how many bytes of memory it has. Slots need not be those that it was made of.

        Raises
        ------
        NotMappedError
            Something of it has no place here; nothing is written.
        ReadOnlyError
            Host memory that cannot be written is to become something else; nothing is written.
        SnapshotError
            It is no such file, or is not complete, or its segments overlap and have different
            bytes, as a process's own core has; nothing is written, unless it is made shorter
            meanwhile.
        OSError
            The file cannot be read.

        Notes
        -----
        What is written is marked, but for READONLY slots: a dump_dirty has nothing of what was
        restored to these. After an error on the way more may be marked than was written. The slots
        are not to be changed meanwhile: it is marked by guest address.
        """
        return snapshots().restore(self, path)

    # Between memory and files, and what hosts do with pages

    @staticmethod
    def open(path, *, shared=False):
        """Guest memory of a file, which is mapped and not read: ready at once, whatever its size.

        Parameters
        ----------
        path : str or os.PathLike
            An ELF core (dump's, QEMU's, another's with physical addresses), a LiME file, a full
            crash dump of 64-bit Windows, or raw memory, whose offsets are addresses.
        shared : bool
            Whether what is written goes to the file; else it is seen here alone (copy on write).

        Returns
        -------
        GuestMemory
            With a Memslots of its own, whose slots are the file's segments.

        Raises
        ------
        SnapshotError
            There is no memory in it, or it is cut off.
        OSError, OverlapError, MemoryError

        Notes
        -----
        O(k) for k segments. A segment that is not at a page of the file is copied (a LiME file's).
        """
        return late("memslots.memory.opening", "open_memory")(path, shared, GuestMemory, Memslots)

    def checkpoint(self, *, by_log=None):
        """Memorise what all memory of the machine is, to go back to it.

        Parameters
        ----------
        by_log : bool, optional
            Whether what is written from now on is found by the dirty logs: they begin anew, here
            and with each restore, and are nobody else's meanwhile. Else all memory is compared.
            Without it: by the logs if every slot that can be written has one.

        Returns
        -------
        Checkpoint
            ``checkpoint.restore()`` puts back what was written since, and says how many bytes.

        Raises
        ------
        InvalidRegionError
            by_log, and a slot that can be written has no log.
        NotMappedError, MemoryError

        Notes
        -----
        O(bytes that were ever touched). READONLY slots are left out. By the logs a restore takes as
        long as to copy the pages; what is written through a view must be marked (mark_dirty).
        """
        return late("memslots.memory.checkpoint", "Checkpoint")(self, by_log)

    def write_from(self, fd, gpa, n, *, offset=None):
        """Read from a file descriptor into guest memory, without a copy in between.

        Parameters
        ----------
        fd : int
        gpa, n : int
            In bytes.
        offset : int, optional
            Where in the file; without it where the descriptor is.

        Returns
        -------
        int
            How many bytes: less than n where the file ends before.

        Raises
        ------
        NotMappedError, ReadOnlyError, OSError
        """
        return late("memslots.memory.transfer", "write_from")(self, fd, gpa, n, offset)

    def read_into(self, fd, gpa, n, *, offset=None):
        """Write guest memory to a file descriptor, all of it, as write_from. Returns n."""
        return late("memslots.memory.transfer", "read_into")(self, fd, gpa, n, offset)

    def file_of(self, gpa, n=4096):
        """The file descriptor that memory is of, and where in the file it is: (fd, offset).

        For who maps it elsewhere (vhost-user, VFIO). Raises NotMappedError, InvalidRegionError: it
        is in several slots; ValueError: it is of no memfd.
        """
        return late("memslots.memory.transfer", "file_of")(self, gpa, n)

    def discard(self, gpa, n):
        """Make memory zeros, and give whole pages of it back to the host where it can take them.

        It is marked, as what is written. NotMappedError, ReadOnlyError.
        """
        late("memslots.memory.transfer", "discard")(self, gpa, n)

    def prefault(self, gpa, n, *, write=True):
        """Have the host's pages there, so that no access waits for them.

        NotMappedError; with `write` ReadOnlyError; OSError, MemoryError.
        """
        late("memslots.memory.transfer", "prefault")(self, gpa, n, write)

    def writing(self, gpa, n):
        """Guest memory to write to, which is marked as written at the end of a with statement.

        ``with memory.writing(gpa, n) as view:`` gives what `view` gives, and marks all of it, also
        where the body is left by an exception. NotMappedError, ReadOnlyError, InvalidRegionError.
        """
        return late("memslots.memory.transfer", "writing")(self, gpa, n)

    # Structures and devices

    def is_mapped(self, gpa, n=1):
        """Whether `read` of so many bytes would find memory."""
        try:
            self.views(gpa, n)
        except NotMappedError:
            return False
        return True

    def unpack(self, gpa, format):
        """The values of a struct at a guest address: struct.unpack of what is read.

        `format` is the module struct's: ``"<iQ"`` little-endian, ``">H"`` big-endian, letters for
        signed and unsigned. Returns a tuple. NotMappedError, struct.error.
        """
        made = compiled(format)
        return made.unpack(self.read(gpa, made.size))

    def pack(self, gpa, format, *values):
        """Write the values of a struct. NotMappedError, ReadOnlyError, struct.error."""
        self.write(gpa, compiled(format).pack(*values))

    def array(self, gpa, dtype, n):
        """Guest memory as a numpy array, where one slot holds all of it; not a copy, as `view`.

        NotMappedError; InvalidRegionError: it is in several slots, or dtype has Python objects.
        """
        return late("memslots.memory.transfer", "array")(self, gpa, dtype, n)

    def on_mmio(self, start, end, *, read=None, write=None):
        """Have functions answer for a device: accesses by number where no slot is.

        Parameters
        ----------
        start, end : int
            Guest addresses [start, end) in bytes, of this address space.
        read : callable, optional
            ``read(gpa, size)`` returns the number that read_u8 and the like, and a guest that
            ``KvmVcpu.run(memory)`` runs, are to read.
        write : callable, optional
            ``write(gpa, size, value)``. A write to a READONLY slot comes here, too.

        Returns
        -------
        MmioHandle
            ``close()`` ends it, as a with statement does.

        Raises
        ------
        ValueError, TypeError

        Notes
        -----
        Of ranges that have an access in common the smallest is asked; an access that no range has
        as a whole is a NotMappedError, as ever. What a function raises comes out.
        """
        cdef uint64_t first = u64(start, "start")
        cdef uint64_t last = u64(end, "end")
        with cython.critical_section(self.known):
            if self.known.mmio is None:
                self.known.mmio = late("memslots.memory.mmio", "Mmio")()
        return self.known.mmio.add(first, last, self.sp.as_id, read, write)

    def _mmio(self):
        """The Mmio of the machine, or None. For kvm/vcpu.py."""
        return self.known.mmio

    cdef tuple begin(self, access *a, gpa_t gpa, uint64_t size, access_kind kind):
        """Works out an access, and gives what keeps its memory: to be held until it is over.

        Then access_free is due.
        """
        cdef access_result result
        cdef section at
        cdef const span *wrong
        cdef tuple held
        cdef gpa_t bad
        if gpa + size - 1 < gpa:
            raise wraps(gpa, size)
        while True:
            # Before the slots: as long as this is held, nothing else comes to be at its addresses.
            held = self.known.get()
            at = section_enter(self.m, NULL)
            result = access_init(a, space_active(self.sp), gpa, size, kind)
            section_leave(&at)
            if result == ACCESS_NO_MEMORY:
                raise MemoryError("no memory for an access that goes through many slots")
            if result == ACCESS_BAD:
                bad = a.bad
                if bad != gpa:
                    # The host memory of what comes before may be in the way first.
                    self.begin(a, gpa, bad - gpa, kind)
                    access_free(a)
                # Raises, unless a slot has come there since; then once more.
                self.reader.gpa_to_hva(bad, kind == ACCESS_WRITE)
                continue
            wrong = find_wrong(a, held, kind)
            if wrong is NULL:
                if note_faults(a, held) and kind != ACCESS_READ:
                    # Else part of it would be written. What is in one page is all there or not.
                    if (gpa & PAGE_OFFSET_MASK) + size > PAGE_SIZE:
                        self.must_be_there(a)
                return held
            if self.known.get() is held:
                try:
                    raise self.no_memory(wrong, held, kind)
                finally:
                    access_free(a)
            # The slot may be on what has become known since: once more.
            access_free(a)

    cdef int must_be_there(self, access *a) except -1:
        """NotMappedError where memory that may go away is not there; access_free is done then."""
        cdef gpa_t bad = access_probe(a)
        if bad != ACCESS_ALL:
            access_free(a)
            self.came(bad)
        return 0

    cdef int came(self, gpa_t bad) except -1:
        """NotMappedError for what access_read and the like have found not to be there."""
        if bad != ACCESS_ALL:
            raise NotMappedError(
                errno.EFAULT,
                f"gpa {bad:#x} is in {self.reader.lookup(bad >> PAGE_SHIFT)}, whose host memory is"
                " not there: it is of a file that is shorter, or full, or has no such page",
            )
        return 0

    cdef object no_memory(self, const span *at, tuple held, access_kind kind):
        """Why the host memory of a span cannot be accessed: what find_wrong found."""
        cdef void *found = backing_at(held, at.hva)
        cdef Backing backing = None if found is NULL else <Backing>found
        cdef gpa_t gpa = at.gpa
        if backing is None:
            error, why = NotMappedError, "whose host memory is not known here"
        elif kind != ACCESS_READ and backing.memory.readonly:
            error, why = ReadOnlyError, "whose host memory cannot be written"
        elif not backing.holds(at.hva, at.size):
            gpa += backing.start() + <uint64_t>backing.memory.len - at.hva
            error, why = NotMappedError, f"whose host memory there is beyond {backing}"
        else:
            error, why = NotMappedError, "whose file is shorter now than its memory"
        return error(
            errno.EFAULT, f"gpa {gpa:#x} is in {self.reader.get(at.id, f'slot {at.id}')}, {why}"
        )

    cdef void mark(self, const access *a, gpa_t bad) noexcept:
        """Marks what was written, up to `bad` at least."""
        cdef section at
        if bad == a.spans[0].gpa:
            return  # nothing was
        at = section_enter(self.m, NULL)
        access_mark(a, space_active(self.sp))
        section_leave(&at)

    cdef int gather(self, const access *a, const Py_buffer *to, tuple held) except -1:
        """Reads what is accessed into somebody's memory of that size."""
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
        """Writes somebody's memory to what is accessed, which has that size, and marks it."""
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
        """The number of `size` bytes at a guest address."""
        cdef access a
        cdef uint64_t value
        cdef tuple _held
        try:
            _held = self.begin(&a, u64(gpa, "gpa"), size, ACCESS_READ)
        except NotMappedError:
            given = None
            if self.known.mmio is not None:
                given = self.known.mmio.read(u64(gpa, "gpa"), size, self.sp.as_id)
            if given is None:
                raise
            return given
        cdef gpa_t bad = access_load(&a, size, &value)
        access_free(&a)
        self.came(bad)
        return value

    cdef int put_number(self, object gpa, object given, int size) except -1:
        """Writes a number of `size` bytes."""
        cdef access a
        cdef gpa_t address = u64(gpa, "gpa")
        cdef uint64_t value = u64(given, "value")
        if size < 8 and value >> (8 * size):
            field_of(given, "value", 8 * size)  # raises
        cdef tuple _held
        cdef gpa_t bad
        try:
            _held = self.begin(&a, address, size, ACCESS_WRITE)
        except (NotMappedError, ReadOnlyError):
            if self.known.mmio is None or not self.known.mmio.write(
                address, size, value, self.sp.as_id
            ):
                raise
            return 0
        bad = access_store(&a, value, size)
        self.mark(&a, bad)
        access_free(&a)
        self.came(bad)
        return 0


# struct's own functions keep what they compile, but do not give its size with it.
cdef dict STRUCTS = {}


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
    """The first span that is on no memory of `held`, or on such as this access cannot touch."""
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


cdef bint note_faults(access *a, tuple held) noexcept:
    """Notes of each span whether its memory may go away; whether any may."""
    cdef size_t n
    cdef bint any = False
    for n in range(a.count):
        a.spans[n].may_fault = (<Backing>backing_at(held, a.spans[n].hva)).may_fault
        any |= a.spans[n].may_fault
    return any


cdef bint is_aliased(const access *a, const Py_buffer *memory, tuple held):
    """Whether somebody's memory may be part of what is accessed, at other addresses.

    Only memory of a file can be.
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
    # Of what is not known here, what Python itself has got is no file's.
    owner = <object>memory.obj
    while isinstance(owner, memoryview):
        owner = owner.obj
    return type(owner) not in (bytes, bytearray)


cdef gpa_t copy_out(const access *a, char *out, uint64_t size) noexcept:
    """Reads what is accessed, `size` bytes in all."""
    cdef gpa_t bad
    if size > LONG_COPY:
        with nogil:
            bad = access_read(a, out)
        return bad
    return access_read(a, out)


cdef gpa_t copy_in(const access *a, const char *data, uint64_t size) noexcept:
    """Writes what is accessed, `size` bytes in all."""
    cdef gpa_t bad
    if size > LONG_COPY:
        with nogil:
            bad = access_write(a, data)
        return bad
    return access_write(a, data)
