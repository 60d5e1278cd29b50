"""The ids that no slot has: the lowest of them, under any changes. Not installed."""

from libc.stdint cimport uint32_t

from memslots.core.slotset cimport slotset

cdef class FreeIds:
    # All ids below it are in use, in `given_back`, or out on loan to a transaction
    cdef uint32_t beyond
    cdef list given_back  # a heap; an id in it may have come into use again
    cdef set known  # what is in it

    # The lowest id that no slot of a set has. O(log n) over many calls and changes.
    cdef uint32_t lowest(self, const slotset *set) except? 0xFFFFFFFF
    # Takes away the id that `lowest` gave, as if it were in use: until it is given back.
    cdef int take(self, uint32_t id) except -1
    # An id is in use no more, or maybe so: call it for every slot that is deleted. O(log n).
    cdef int give_back(self, uint32_t id) except -1
