"""The five changes a caller can ask for, on whatever carries them out.

A Target is a Writer, which makes each change at once, a Transaction, which stages it, or the
baseline's ArrayWriter. Not installed: Cython code outside goes through memslots.pxd.
"""

from libc.stdint cimport uint32_t

from memslots.core.region cimport change_kind, limits
from memslots.core.slot cimport region, slot

# The Change of a kind.
cdef object change_record(change_kind kind)

cdef class Target:
    cdef const limits *lim  # what the rules allow

    # Before the first look at the slots, and after the last. BusyError, RuntimeError: it is not the
    # caller's turn.
    cdef int enter(self, str what) except -1
    cdef void leave(self) noexcept
    # The slot of an id as the next change finds it, or NULL; good until then. For whoever has
    # entered, and an id and an address space that can be.
    cdef slot *find(self, uint32_t id, uint32_t as_id) noexcept
    # Carries out what a region that keeps rules 1 and 2 asks for, by rules 3 to 7; `creates` is
    # region_classify's. `old` is what find returned for its id. Returns the Slot that there is
    # then, or None, and in *kind what was changed.
    cdef object make(self, const region *r, slot *old, bint creates, change_kind *kind)

# Each as the method of Memslots of that name; all integers are still Python's.
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
# create of a slot as a Slot has it, with its guest_memfd.
cdef object operation_create_slot(Target to, object record)
cdef object operation_create(
    Target to, object slot, object base_gfn, object npages, object hva, object flags, object as_id
)
cdef object operation_move(Target to, object slot, object base_gfn, object as_id)
cdef object operation_set_flags(Target to, object slot, object flags, object as_id)
cdef object operation_delete(Target to, object slot, object as_id)
