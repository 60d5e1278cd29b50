"""Walks over the slots of a range, as lists: all of one generation."""

from libc.stdint cimport uint64_t

from memslots.core.lookup cimport vcpu_cache
from memslots.core.machine cimport machine
from memslots.core.space cimport space

# What a walk takes in: the slots with a gfn, or a host byte, in [first, last].
cdef struct extent:
    bint by_hva
    uint64_t first
    uint64_t last


# Makes an extent of the half-open range [start, end); says whether there is anything in it.
# ValueError where it ends before it starts.
cdef bint set_extent(extent *e, bint by_hva, object start, object end) except -1
# The Slots that a walk takes in, by base_gfn or by userspace_addr; `own` as in sections.pxd.
# O(log n + k).
cdef list records(machine *m, const space *sp, vcpu_cache *own, const extent *e)
# Makes a list of Slots, from a walk by host address, a list of what it takes in of each: (slot,
# start_gfn, end_gfn). Gives the same list.
cdef list cut(list found, const extent *e)
