"""The Python records, as the C side makes and reads them.

Free functions only: no layout of a class is shared.
"""

from memslots.core.slot cimport region, slot

# A new Slot with the data of a slot.
cdef object slot_record(const slot *s)
# The same for a slot that was asked for and is not to be.
cdef object region_record(const region *r)
# The region that a Slot is.
cdef void record_region(object record, region *r) noexcept
