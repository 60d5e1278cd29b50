"""Walks over the slots of a range. They return lists, each of one generation."""

from libc.stdint cimport uint64_t

from memslots.core.lookup cimport vcpu_cache
from memslots.core.machine cimport machine
from memslots.core.space cimport space
from memslots.core.units cimport PAGE_SHIFT, gfn_t, hva_t

# The extent of a walk: it visits the slots with a gfn, or a host byte, in [first, last].
cdef struct extent:
    bint by_hva
    uint64_t first
    uint64_t last


# Makes an extent of the half-open range [start, end). Returns False if the range is empty. Raises
# ValueError if it ends before it starts.
cdef bint set_extent(extent *e, bint by_hva, object start, object end) except -1
# Returns the Slots of an extent, by base_gfn or by userspace_addr; `own` as in sections.pxd.
# O(log n + k).
cdef list records(machine *m, const space *sp, vcpu_cache *own, const extent *e)
# The same, each with its gfns that the extent touches: (Slot, start, end), half-open.
cdef list overlaps(machine *m, const space *sp, vcpu_cache *own, const extent *e)


cdef inline gfn_t extent_start(const extent *e, gfn_t base_gfn, hva_t hva) noexcept nogil:
    """Returns the first gfn of a slot that an extent of host addresses touches."""
    return base_gfn + ((e.first - hva) >> PAGE_SHIFT) if e.first > hva else base_gfn


cdef inline gfn_t extent_end(
    const extent *e, gfn_t base_gfn, uint64_t npages, hva_t hva
) noexcept nogil:
    """Returns the first gfn after those that the extent touches."""
    return base_gfn + min(((e.last - hva) >> PAGE_SHIFT) + 1, npages)
