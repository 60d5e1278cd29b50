"""Host memory that slots are placed on, as guestmemory.pyx reads and writes it.

Not installed: Cython code outside goes through memslots.pxd.
"""

from libc.stdint cimport uint64_t

from memslots.core.units cimport hva_t

cdef class Backing:
    cdef Py_buffer memory  # somebody's, held for as long as this is there
    cdef readonly str kind  # "anonymous", "memfd", "file" or "buffer"
    # "hugetlb" or "transparent" where the memory may be of huge pages, else None
    cdef readonly str huge_pages
    cdef int fd  # of a file or a memfd, closed with this
    cdef bint has_fd  # whether there is one: a flag, since all is 0 where __cinit__ was not reached
    cdef uint64_t file_end  # where in the file the memory ends, if somebody may shorten it; else 0
    cdef bint may_fault  # whether pages of it may go away, or never come
    # The file that it is of, so that the same memory is known by another mapping: what the kernel
    # calls it, and where the memory begins in it. inode 0: no file, or not known which.
    cdef uint64_t device
    cdef uint64_t inode
    cdef uint64_t file_offset

    cdef hva_t start(self) noexcept
    cdef bint holds(self, hva_t hva, uint64_t size) noexcept
    # Whether all of it can be touched: it cannot where its file is shorter now.
    cdef bint is_whole(self) noexcept nogil
    # Whether some of the `size` bytes from `hva` on may be the same memory as some of another's,
    # at other addresses.
    cdef bint shares(
        self, hva_t hva, uint64_t size, Backing other, hva_t other_hva, uint64_t other_size
    ) noexcept
