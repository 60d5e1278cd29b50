"""The Python records, as the C side makes and reads them.

Free functions only: no layout of a class is shared.
"""

from memslots.core.slot cimport region, slot

# A new Slot with the data of a slot.
cdef object slot_record(const slot *s)
# The same for a slot that was asked for and is not to be.
cdef object region_record(const region *r)
# The region that a Slot is.
cdef int record_region(object record, region *r) except -1

# Gives `out` what one of these Slots has of a guest_memfd: that which holds the first page of `r`.
# They are in gfn order. Returns whether there is one. O(log n).
cdef int memfd_of(const region *r, list records, region *out) except -1
