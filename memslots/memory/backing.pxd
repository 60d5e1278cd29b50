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

    cdef hva_t start(self) noexcept
    cdef bint holds(self, hva_t hva, uint64_t size) noexcept
    # Whether all of it can be touched: it cannot where its file is shorter now.
    cdef bint is_whole(self) noexcept nogil
