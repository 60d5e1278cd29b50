"""The host memory that slots are placed on: anonymous, a memfd, a file, or a given buffer."""

import errno
import fcntl
import mmap
import os
import stat
from weakref import WeakSet

cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE,
    PyBuffer_FillInfo,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.ref cimport Py_INCREF
from posix.stat cimport fstat, struct_stat
from posix.unistd cimport close

from memslots.core.units cimport PAGE_OFFSET_MASK, page_aligned
from memslots.values.integers cimport field_of, u64

cdef enum:
    HUGE_PAGE = 2 << 20  # of x86, and of arm64 with 4 KiB pages
    # Python's mmap has no names for these. MAP_HUGETLB alone means the system's default size,
    # which may be 1 GiB.
    MAP_HUGETLB = 0x40000
    MAP_HUGE_2MB = 21 << 26


cdef uint64_t whole_pages(object value, str name) except? 0:
    cdef uint64_t size = field_of(value, name, 63)
    if size == 0 or not page_aligned(size):
        raise ValueError(f"{name} must be a multiple of 4096 above 0, not {size:#x}")
    return size


@cython.final
cdef class Backing:
    """Backing(buffer)\n--\n
    Host memory that slots can be placed on.

    ``Backing(buffer)`` uses existing memory: an mmap, a numpy array, any buffer whose address and
    length are multiples of 4096. `anonymous`, `memfd` and `file` allocate or map memory.

    A Backing is itself a buffer. ``memoryview(backing)`` reads and writes the memory directly and
    marks no dirty log. The memory stays as long as one of these exists: the Backing, a view of it,
    or a slot on it that GuestMemory knows. Then it is released.

    Parameters
    ----------
    buffer : C-contiguous buffer

    Attributes
    ----------
    kind : str
        "anonymous", "memfd", "file" or "buffer".
    huge_pages : str or None
        "hugetlb": it consists of huge pages. "transparent": the kernel was asked for them.

    Raises
    ------
    ValueError
        The buffer is empty, or its address or length is not a multiple of 4096.
    TypeError
        The argument is not a buffer.
    """

    def __cinit__(self, buffer):
        PyObject_GetBuffer(buffer, &self.memory, PyBUF_SIMPLE)
        self.kind = "buffer"
        self.may_fault = True  # the safe assumption until __init__ knows more
        if self.memory.len == 0 or (<hva_t>self.memory.buf | self.memory.len) & PAGE_OFFSET_MASK:
            raise ValueError(
                f"{self.memory.len:#x} bytes at {<hva_t>self.memory.buf:#x}: the address and the"
                " length of host memory for slots must be multiples of 4096, above 0; an mmap's are"
            )

    def __init__(self, buffer):
        # anonymous_of calls __new__ alone: anonymous memory needs no search of all mappings.
        from memslots.memory.mappings import mapping_of

        self.may_fault, self.device, self.inode, self.file_offset = mapping_of(
            <hva_t>self.memory.buf, self.memory.len
        )

    def __dealloc__(self):
        PyBuffer_Release(&self.memory)
        if self.has_fd:
            close(self.fd)

    def __reduce__(self):
        raise TypeError("a Backing cannot be pickled or copied: it is memory")

    @staticmethod
    def anonymous(size, *, huge_pages=False):
        """Allocates memory that is private to this process and filled with zeros.

        Parameters
        ----------
        size : int
            In bytes, a multiple of 4096.
        huge_pages : bool
            Whether to use huge pages. They come from the pool (hugetlb) if it has enough and `size`
            is a multiple of their size. Otherwise the kernel is asked for transparent ones. The
            attribute `huge_pages` says which it was.

        Returns
        -------
        Backing

        Raises
        ------
        ValueError, OSError
        """
        cdef uint64_t length = whole_pages(size, "size")
        cdef Backing made
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        if not huge_pages:
            return anonymous_of(mmap.mmap(-1, length, flags=flags))
        if length % HUGE_PAGE == 0:
            try:
                memory = mmap.mmap(-1, length, flags=flags | MAP_HUGETLB | MAP_HUGE_2MB)
            except OSError:
                pass  # the pool has too few
            else:
                made = anonymous_of(memory)
                made.huge_pages = "hugetlb"
                return made
        # The memory begins at a huge page. If a slot's guest address does so too, the page tables
        # can map the slot with huge pages.
        memory = mmap.mmap(-1, length + HUGE_PAGE, flags=flags)
        skip = -<hva_t>anonymous_of(memory).start() % HUGE_PAGE
        made = anonymous_of(memoryview(memory)[skip : skip + length])
        try:
            memory.madvise(mmap.MADV_HUGEPAGE, skip, length)
            made.huge_pages = "transparent"
        except (AttributeError, OSError):
            pass  # this kernel has no transparent huge pages
        return made

    @staticmethod
    def memfd(size, *, name="guest-memory", huge_pages=False):
        """Allocates memory that other processes can map through the descriptor `fileno` returns.

        The file is sealed: nobody can change its size.

        Parameters
        ----------
        size : int
            In bytes, a multiple of 4096.
        name : str
            The name in /proc.
        huge_pages : bool
            As in `anonymous`; never transparent.

        Returns
        -------
        Backing

        Raises
        ------
        ValueError, OSError
        """
        cdef uint64_t length = whole_pages(size, "size")
        if huge_pages and length % HUGE_PAGE == 0:
            try:
                return memfd_of(length, name, os.MFD_HUGETLB | os.MFD_HUGE_2MB)
            except OSError:
                pass  # the pool has too few
        return memfd_of(length, name, 0)

    @staticmethod
    def file(path, offset=0, size=None, *, shared=False, readonly=False):
        """Maps a file.

        Parameters
        ----------
        path : str or os.PathLike
        offset, size : int, optional
            The part to map, in bytes, multiples of 4096. Without `size`: all from `offset` on.
        shared : bool
            Whether writes go to the file. Otherwise only this process sees them.
        readonly : bool
            Whether the memory cannot be written. Its slots must be READONLY then.

        Returns
        -------
        Backing

        Raises
        ------
        ValueError
            The part is not whole pages, or goes beyond the file's end.
        OSError
            The file cannot be opened or mapped, or is a directory, a device or a pipe.

        Notes
        -----
        If the file is made shorter, GuestMemory refuses to touch a Backing that is no longer whole.
        A copy under way ends with an error. If a view or a guest touches the lost pages, the kernel
        ends it (SIGBUS, EFAULT), as with any mapped file.
        """
        cdef uint64_t begin = u64(offset, "offset")
        cdef uint64_t length
        cdef Backing made
        if not page_aligned(begin):
            raise ValueError(f"offset {begin:#x} is not a multiple of the page size, 4096")
        mode = os.O_RDWR if shared and not readonly else os.O_RDONLY
        fd = open_regular(path, mode)
        try:
            there = os.fstat(fd).st_size
            left = max(there - begin, 0)
            if left == 0 and size is None:
                raise ValueError(
                    f"offset {begin:#x} is not below the {there:#x} bytes of {os.fspath(path)!r}"
                )
            length = whole_pages(left if size is None else size, "size")
            if length > left:
                end = int(begin) + length  # which 64 bits may not hold
                raise ValueError(
                    f"[{begin:#x}, {end:#x}) is not all in {os.fspath(path)!r}, which has"
                    f" {there:#x} bytes"
                )
            protection = mmap.PROT_READ if readonly else mmap.PROT_READ | mmap.PROT_WRITE
            memory = mmap.mmap(
                fd,
                length,
                flags=mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE,
                prot=protection,
                offset=begin,
            )
            made = named(Backing(memory), "file")
        except BaseException:
            os.close(fd)
            raise
        take_fd(made, fd)
        made.file_end = begin + length
        return made

    def fileno(self):
        """Returns the descriptor of a memfd or a file, open as long as this Backing exists.

        ValueError if the memory has no file.
        """
        if not self.has_fd:
            raise ValueError(f"{self.kind} memory has no file")
        return self.fd

    def advise(self, *, mergeable=None, fork=None, dump=None, numa_node=None):
        """Tells the host how to treat the memory. An argument that is not given changes nothing.

        Parameters
        ----------
        mergeable : bool, optional
            Whether the kernel may merge pages with the same bytes (KSM).
        fork : bool, optional
            Whether a child of this process has the memory, too. In a child that does not have it,
            GuestMemory raises NotMappedError; a view or a Checkpoint of before ends the child.
        dump : bool, optional
            Whether a core dump of this process has the memory.
        numa_node : int, optional
            The only node that new pages may come from.

        Raises
        ------
        OSError
            The kernel refused, or does not know the advice (EINVAL, ENOSYS). The arguments before
            it, in the order above, took effect.
        ValueError
            No kernel has so many nodes.
        """
        from memslots.memory.advice import advise

        if fork is not None:
            fork = bool(fork)
        if fork is False:
            UNFORKED.add(self)  # before the kernel is told, so that no fork comes in between
        advise(self.start(), self.memory.len, mergeable, fork, dump, numa_node)
        if fork:
            UNFORKED.discard(self)

    @property
    def hva(self):
        """The host address of the first byte."""
        return self.start()

    @property
    def size(self):
        """The size in bytes."""
        return self.memory.len

    @property
    def writable(self):
        """Whether the memory can be written."""
        return not self.memory.readonly

    def __len__(self):
        return self.memory.len

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.is_lost:
            raise BufferError(f"a fork left {self} to the parent: advise(fork=False)")
        PyBuffer_FillInfo(
            view, self, self.memory.buf, self.memory.len, self.memory.readonly, flags
        )

    def __repr__(self):
        how = "" if self.huge_pages is None else f", {self.huge_pages} huge pages"
        how += "" if self.writable else ", read-only"
        return f"<Backing: {self.kind}, {self.size:#x} bytes at {self.hva:#x}{how}>"

    cdef hva_t start(self) noexcept:
        return <hva_t>self.memory.buf

    cdef bint holds(self, hva_t hva, uint64_t size) noexcept:
        cdef uint64_t length = <uint64_t>self.memory.len
        cdef uint64_t offset = hva - self.start()
        return offset < length and size <= length - offset

    cdef bint is_whole(self) noexcept nogil:
        cdef struct_stat status
        if self.is_lost:
            return False
        if self.file_end == 0:
            return True
        return fstat(self.fd, &status) == 0 and <uint64_t>status.st_size >= self.file_end

    cdef bint shares(
        self, hva_t hva, uint64_t size, Backing other, hva_t other_hva, uint64_t other_size
    ) noexcept:
        cdef uint64_t first, second
        if self.inode == 0 or other.inode == 0:
            # An unknown file may be the same file.
            return (self.may_fault and self.inode == 0) or (other.may_fault and other.inode == 0)
        if self.inode != other.inode or self.device != other.device:
            return False
        first = self.file_offset + (hva - self.start())
        second = other.file_offset + (other_hva - other.start())
        return first - second < other_size or second - first < size


cdef Backing named(Backing made, str kind):
    made.kind = kind
    return made


cdef Backing anonymous_of(object memory):
    cdef Backing made = named(Backing.__new__(Backing, memory), "anonymous")
    made.may_fault = False
    return made


cdef void take_fd(Backing made, int fd) noexcept:
    made.fd = fd
    made.has_fd = True


cdef Backing memfd_of(uint64_t length, str name, int flags):
    cdef Backing made
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    try:
        os.ftruncate(fd, length)
        fcntl.fcntl(
            fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        )
        made = named(Backing(mmap.mmap(fd, length)), "memfd")
    except BaseException:
        os.close(fd)
        raise
    take_fd(made, fd)
    made.may_fault = False  # sealed
    if flags:
        made.huge_pages = "hugetlb"
    return made


def open_regular(path, int mode):
    """Opens a regular file. Returns a descriptor. Does not wait: a pipe may never get a writer.

    Can be the opener of `open`: no signal handler runs in here once the descriptor is open.

    OSError: it cannot be opened, or is a directory (EISDIR), a device or a pipe (ENODEV).
    """
    name = os.fspath(path)  # not a number: that would be a descriptor
    fd = os.open(name, mode | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        kind = os.fstat(fd).st_mode
        if not stat.S_ISREG(kind):
            code = errno.EISDIR if stat.S_ISDIR(kind) else errno.ENODEV
            raise OSError(code, f"{os.strerror(code)}: a regular file is needed", name)
    except BaseException:
        os.close(fd)
        raise
    return fd


def address_of(view):
    """Returns the host address of a buffer's first byte. The caller keeps the buffer."""
    cdef Py_buffer memory
    PyObject_GetBuffer(view, &memory, PyBUF_SIMPLE)
    cdef hva_t address = <hva_t>memory.buf
    PyBuffer_Release(&memory)
    return address


def place_in_file(Backing backing not None, uint64_t hva):
    """Returns the descriptor of the memory's file, and the file offset of a host address in it.

    ValueError if the memory has no file.
    """
    # A memfd is mapped from its first byte on, and has no file_end.
    cdef uint64_t begin = backing.file_end - backing.memory.len if backing.file_end else 0
    return backing.fileno(), begin + (hva - backing.start())


# The Backings that a child of this process will not have.
cdef object UNFORKED = WeakSet()


def _lose_unforked():
    """Notes that this process, the child of a fork, does not have these Backings."""
    cdef Backing backing
    for backing in UNFORKED:
        backing.is_lost = True
        # It stays for ever: its end would unmap its addresses, where other memory may be then.
        Py_INCREF(backing)


os.register_at_fork(after_in_child=_lose_unforked)


def may_go_away(Backing backing not None):
    """Returns whether pages of the memory may go away, or may never come."""
    return backing.may_fault
