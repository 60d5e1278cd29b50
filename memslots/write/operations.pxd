"""The changes that a caller can ask for, on any Target.

A Target is a Writer, which makes each change at once, a Transaction, which stages it, or the
baseline's ArrayWriter. Not installed: Cython code outside this package uses memslots.pxd.
"""

from libc.stdint cimport uint32_t

from memslots.core.region cimport change_kind, limits
from memslots.core.slot cimport region, slot

# Returns the Change of a kind.
cdef object change_record(change_kind kind)

cdef class Target:
    cdef const limits *lim  # what the rules allow

    # Call enter before the first look at the slots, and leave after the last. BusyError,
    # RuntimeError: the caller may not change anything now.
    cdef int enter(self, str what) except -1
    cdef void leave(self) noexcept
    # Returns the slot of an id as the next change finds it, or NULL; valid until that change. The
    # caller must have entered, and the id and the address space must be valid.
    cdef slot *find(self, uint32_t id, uint32_t as_id) noexcept
    # Returns the lowest id that no slot has in an address space, which must be valid; it may be as
    # high as max_slots. The caller must have entered. O(log n) amortised.
    cdef uint32_t lowest_id(self, uint32_t as_id) except? 0xFFFFFFFF
    # Applies rules 3 to 7 to a region that keeps rules 1 and 2, and makes the change. `creates` is
    # region_classify's. `old` is the result of find for the region's id. Returns the slot's Slot
    # after the change, or None, and in *kind the kind of change.
    cdef object make(self, const region *r, slot *old, bint creates, change_kind *kind)

# Each does what the method of Memslots of the same name does. The integers are Python objects.
cdef object operation_set_region(
    Target to, object slot, object flags, object gpa, object size, object hva
)
cdef object operation_set_region2(
    Target to,
    object slot,
    object flags,
    object gpa,
    object size,
    object hva,
    object guest_memfd,
    object guest_memfd_offset,
)
# Creates a slot from a Slot, with its guest_memfd.
cdef object operation_create_slot(Target to, object record)
cdef object operation_create(
    Target to, object slot, object base_gfn, object npages, object hva, object flags, object as_id
)
cdef object operation_move(Target to, object slot, object base_gfn, object as_id)
cdef object operation_set_flags(Target to, object slot, object flags, object as_id)
cdef object operation_delete(Target to, object slot, object as_id)
