"""The host memory that slots are placed on, and that guestmemory.pyx reads and writes.

Not installed: Cython code outside this package uses memslots.pxd.
"""

from libc.stdint cimport uint64_t

from memslots.core.units cimport hva_t

cdef class Backing:
    cdef Py_buffer memory  # the exporter's memory, held as long as this Backing exists
    cdef readonly str kind  # "anonymous", "memfd", "file" or "buffer"
    # "hugetlb" or "transparent" if the memory may consist of huge pages, else None
    cdef readonly str huge_pages
    cdef int fd  # of a file or a memfd; closed with this Backing
    cdef bint has_fd  # whether fd is valid: if __cinit__ was not reached, fd is 0
    cdef uint64_t file_end  # the file offset where the memory ends, if the file may shrink; else 0
    cdef bint may_fault  # whether pages may go away, or may never come
    cdef bint is_lost  # whether a fork left the memory to the parent (advise)
    cdef object __weakref__
    # The kernel's numbers of the file, and the file offset where the memory begins. They tell
    # whether another mapping is the same memory. inode 0: there is no file, or it is unknown.
    cdef uint64_t device
    cdef uint64_t inode
    cdef uint64_t file_offset

    cdef hva_t start(self) noexcept
    cdef bint holds(self, hva_t hva, uint64_t size) noexcept
    # Returns whether all memory can be touched. It cannot be if the file is shorter now, or if a
    # fork left the memory to the parent.
    cdef bint is_whole(self) noexcept nogil
    # Returns whether [hva, hva + size) may share memory, at other addresses, with
    # [other_hva, other_hva + other_size) of `other`.
    cdef bint shares(
        self, hva_t hva, uint64_t size, Backing other, hva_t other_hva, uint64_t other_size
    ) noexcept
