"""The five changes a caller can ask for, on whatever carries them out.

A Target is a Writer, which makes each change at once, a Transaction, which stages it, or the
baseline's ArrayWriter. Not installed: Cython code outside goes through memslots.pxd.
"""

from memslots.core.region cimport CHANGE_NONE, change_kind, limits
from memslots.core.slot cimport region

# What a verb wants of the slot it names.
cdef enum demand:
    ANY
    NO_SLOT

# The Change of a kind.
cdef object change_record(change_kind kind)

cdef class Target:
    cdef const limits *lim  # what the rules allow

    # Before the first look at the slots, and after the last. BusyError, RuntimeError: it is not the
    # caller's turn.
    cdef int enter(self, str what) except -1
    cdef void leave(self) noexcept
    # The Slot of the region's id and address space as the next change finds it, or None. Where one
    # is, the rest of the region becomes what it is. For whoever has entered.
    cdef object find(self, region *r)
    # Carries out what a region that keeps rules 1 and 2 asks for, by rules 3 to 7.
    cdef change_kind make(self, const region *r, demand wants) except? CHANGE_NONE

# Each as the method of Memslots of that name; all integers are still Python's.
cdef object operation_set_region(
    Target to, object slot, object flags, object gpa, object size, object hva
)
cdef object operation_create(
    Target to, object slot, object base_gfn, object npages, object hva, object flags, object as_id
)
cdef object operation_move(Target to, object slot, object base_gfn, object as_id)
cdef object operation_set_flags(Target to, object slot, object flags, object as_id)
cdef object operation_delete(Target to, object slot, object as_id)
