"""How the C side makes and reads the Python records.

Free functions only: no layout of a class is shared.
"""

from memslots.core.slot cimport region, slot

# Returns a new Slot with the data of a slot.
cdef object slot_record(const slot *s)
# Returns a new Slot with the data of a region, which need not be that of a slot.
cdef object region_record(const region *r)
# Sets `r` to the region of a Slot.
cdef int record_region(object record, region *r) except -1

# Finds the Slot of `records`, which are in gfn order, that holds the first page of `r`. Sets the
# guest_memfd and the offset in `out` to those of that page. Returns whether there is such a Slot.
# O(log n).
cdef int memfd_of(const region *r, list records, region *out) except -1
