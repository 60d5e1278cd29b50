"""Finds the lowest id that no slot has, while slots come and go. Not installed."""

from libc.stdint cimport uint32_t

from memslots.core.slotset cimport slotset

cdef class FreeIds:
    # All ids below it are in use, in `given_back`, or on loan to a transaction
    cdef uint32_t beyond
    cdef list given_back  # a heap; an id in it may be in use again
    cdef set known  # the ids in the heap

    # Returns the lowest id that no slot of a set has. O(log n) amortised.
    cdef uint32_t lowest(self, const slotset *set) except? 0xFFFFFFFF
    # Removes the id that `lowest` returned, as if it were in use. give_back undoes it.
    cdef int take(self, uint32_t id) except -1
    # Adds an id that is, or may be, no longer in use. Call it for every deleted slot. O(log n).
    cdef int give_back(self, uint32_t id) except -1
