"""Host memory that slots are placed on: anonymous, a memfd, a file, or what somebody has."""

import errno
import fcntl
import mmap
import os
import stat

cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE,
    PyBuffer_FillInfo,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from posix.stat cimport fstat, struct_stat
from posix.unistd cimport close

from memslots.core.units cimport PAGE_OFFSET_MASK, page_aligned
from memslots.values.integers cimport u64

cdef enum:
    HUGE_PAGE = 2 << 20  # of x86 and, with pages of 4 KiB, arm64
    # Which Python's mmap has no names for. By itself it means the system's own size, 1 GiB maybe.
    MAP_HUGETLB = 0x40000
    MAP_HUGE_2MB = 21 << 26


cdef uint64_t whole_pages(object value, str name) except? 0:
    cdef uint64_t size = u64(value, name)
    if size == 0 or not page_aligned(size):
        raise ValueError(f"{name} {size:#x} is not a multiple of the page size, 4096, above 0")
    return size


@cython.final
cdef class Backing:
    """Host memory that slots can be placed on.

    ``Backing(buffer)`` takes memory that somebody has: an mmap, a numpy array, any buffer whose
    address and length are multiples of 4096. `anonymous`, `memfd` and `file` make it.

    It is a buffer itself: ``memoryview(backing)`` reads and writes it, past GuestMemory and without
    marks in any dirty log. The memory stays where it is for as long as the Backing is there, a view
    of it, or a slot on it that GuestMemory knows of; then it goes.

    Parameters
    ----------
    buffer : C-contiguous buffer

    Raises
    ------
    ValueError
        It is empty, or its address or length is not a multiple of 4096.
    TypeError
        It is no buffer.

    Attributes
    ----------
    kind : str
        "anonymous", "memfd", "file" or "buffer".
    huge_pages : str or None
        "hugetlb" where it is of huge pages, "transparent" where the kernel was asked for them.
    """

    def __cinit__(self, buffer):
        PyObject_GetBuffer(buffer, &self.memory, PyBUF_SIMPLE)
        self.kind = "buffer"
        self.may_fault = True  # until it is known better
        if self.memory.len == 0 or (<hva_t>self.memory.buf | self.memory.len) & PAGE_OFFSET_MASK:
            raise ValueError(
                f"{self.memory.len:#x} bytes at {<hva_t>self.memory.buf:#x}: the address and the"
                " length of host memory for slots must be multiples of 4096, above 0; an mmap's are"
            )

    def __init__(self, buffer):
        # Not where __new__ alone is called: what is anonymous needs no look at all mappings.
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
        """Memory of this process alone, zeros to begin with.

        Parameters
        ----------
        size : int
            In bytes, a multiple of 4096.
        huge_pages : bool
            Whether it is to be of huge pages: from the pool (hugetlb) where it has enough of them
            and `size` is a multiple of theirs, else such as the kernel may find (transparent).
            `huge_pages` of the Backing tells what it is.

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
                pass  # the pool has not so many
            else:
                made = anonymous_of(memory)
                made.huge_pages = "hugetlb"
                return made
        # From the start of a huge page on: where a slot begins at one in guest memory too, the
        # processor's tables can map it by huge pages.
        memory = mmap.mmap(-1, length + HUGE_PAGE, flags=flags)
        skip = -<hva_t>anonymous_of(memory).start() % HUGE_PAGE
        made = anonymous_of(memoryview(memory)[skip : skip + length])
        try:
            memory.madvise(mmap.MADV_HUGEPAGE, skip, length)
            made.huge_pages = "transparent"
        except (AttributeError, OSError):
            pass  # this kernel has none
        return made

    @staticmethod
    def memfd(size, *, name="guest-memory", huge_pages=False):
        """Memory that other processes can map, by way of the descriptor that `fileno` gives.

        It is sealed: nobody can make it shorter.

        Parameters
        ----------
        size : int
            In bytes, a multiple of 4096.
        name : str
            What /proc calls it.
        huge_pages : bool
            As in `anonymous`; never transparent.

        Raises
        ------
        ValueError, OSError
        """
        cdef uint64_t length = whole_pages(size, "size")
        if huge_pages and length % HUGE_PAGE == 0:
            try:
                return memfd_of(length, name, os.MFD_HUGETLB | os.MFD_HUGE_2MB)
            except OSError:
                pass  # the pool has not so many
        return memfd_of(length, name, 0)

    @staticmethod
    def file(path, offset=0, size=None, *, shared=False, readonly=False):
        """Memory that holds a file.

        Parameters
        ----------
        path : str or os.PathLike
        offset, size : int, optional
            The part of it, in bytes, multiples of 4096; without `size` all from `offset` on.
        shared : bool
            Whether what is written goes to the file; else it is seen here alone.
        readonly : bool
            Whether it cannot be written at all: its slots must be READONLY then.

        Raises
        ------
        ValueError
            A part that is not whole pages, or that the file has not.
        OSError
            The file cannot be opened or mapped, or is none: a directory, a device, a pipe.

        Notes
        -----
        Should somebody make the file shorter, GuestMemory refuses to touch the part that is not
        whole any more, and what it is copying just then ends with an error. A view, or a guest,
        that touches it is ended by the kernel (SIGBUS, EFAULT): that is how mapped files are.
        """
        cdef uint64_t begin = u64(offset, "offset")
        cdef uint64_t length
        cdef Backing made
        if not page_aligned(begin):
            raise ValueError(f"offset {begin:#x} is not a multiple of the page size, 4096")
        mode = os.O_RDWR if shared and not readonly else os.O_RDONLY
        # Not to wait for who writes to it, should it be a pipe.
        fd = os.open(path, mode | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                code = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.ENODEV
                raise OSError(code, os.strerror(code), path)
            there = status.st_size
            left = max(there - begin, 0)
            if left == 0 and size is None:
                raise ValueError(
                    f"{os.fspath(path)!r} has {there:#x} bytes, and none from offset {begin:#x} on"
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
        """The descriptor of a memfd or a file, open for as long as this is there.

        ValueError for memory that has none.
        """
        if not self.has_fd:
            raise ValueError(f"{self.kind} memory has no file")
        return self.fd

    def advise(self, *, mergeable=None, fork=None, dump=None, numa_node=None):
        """Tell the host what it may do with the memory. What is not given stays as it is.

        Parameters
        ----------
        mergeable : bool, optional
            Whether pages that are the same may become one (KSM).
        fork : bool, optional
            Whether a child of this process has it, too.
        dump : bool, optional
            Whether it is in a core dump of this process.
        numa_node : int, optional
            Where pages that are not there yet are to come from, and from nowhere else.

        Raises
        ------
        OSError
            The kernel has refused it, or has no such thing (EINVAL, ENOSYS). What came before in
            this order is done.
        ValueError
            No kernel has so many nodes.
        """
        from memslots.memory.advice import advise

        advise(self.start(), self.memory.len, mergeable, fork, dump, numa_node)

    @property
    def hva(self):
        """The host address of its first byte."""
        return self.start()

    @property
    def size(self):
        """In bytes."""
        return self.memory.len

    @property
    def writable(self):
        """Whether it can be written."""
        return not self.memory.readonly

    def __len__(self):
        return self.memory.len

    def __getbuffer__(self, Py_buffer *view, int flags):
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
        if self.file_end == 0:
            return True
        return fstat(self.fd, &status) == 0 and <uint64_t>status.st_size >= self.file_end

    cdef bint shares(
        self, hva_t hva, uint64_t size, Backing other, hva_t other_hva, uint64_t other_size
    ) noexcept:
        cdef uint64_t first, second
        if self.inode == 0 or other.inode == 0:
            # Of a file that is not known it may be any.
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


def address_of(view):
    """The host address of a buffer's first byte. The caller keeps the buffer."""
    cdef Py_buffer memory
    PyObject_GetBuffer(view, &memory, PyBUF_SIMPLE)
    cdef hva_t address = <hva_t>memory.buf
    PyBuffer_Release(&memory)
    return address
