"""The write side: one change of one slot, in steps.

A change goes through the inactive set. Each step with a swap has three parts: begin, wait for the
readers (srcu_wait), end. The caller waits, since only the caller knows which locks to release
meanwhile:

    update_get                 allocates all memory for the change; the only step that can fail
    for DELETE and MOVE        update_invalidate_begin   readers find an INVALID copy of the slot
                                 wait, update_invalidate_end
    ... the owner of the sets checks rule 7 and asks its subscribers, which may refuse ...
    then either                update_apply_begin        readers find the result of the change
                                 wait, update_apply_end    both sets hold it (P1)
    or, if refused             update_revert_begin       readers find the old slot again
                                 wait, update_revert_end   both sets hold it (P1)
    update_end                 frees the slots that no set holds

    the slot that the active and the inactive set hold, step by step (a: active, i: inactive):

                    before   invalidate    apply       carried    |  revert      carried
                                                       over       |              back
        CREATE      a - i -                a n i -     a n i n    |  (nothing was done)
        FLAGS_ONLY  a o i o                a n i o     a n i n    |  (nothing was done)
        MOVE        a o i o  a x i o       a n i x     a n i n    |  a o i x     a o i o
        DELETE      a o i o  a x i o       a - i x     a - i -    |  a o i x     a o i o

        o: old, n: new, x: the INVALID copy of old
"""

from libc.stdint cimport uint32_t

from memslots.core.idtable cimport idtable_spare
from memslots.core.region cimport change_kind, limits, refusal, region, ruling
from memslots.core.slot cimport slot
from memslots.core.space cimport space

cdef enum:
    DIRTY_LOG_INITIALLY_SET = 1 << 1  # this bit of limits.manual_dirty_log

cdef struct change:
    change_kind kind
    space *sp
    uint32_t id  # of the slot
    slot *old  # the slot before the change; NULL: there is none
    slot *new  # the slot after the change; NULL: there is none
    slot *invalid  # the INVALID copy of old, for DELETE and MOVE; otherwise NULL
    slot *before  # for CREATE: the slot right before `new` by gfn, in both sets; NULL: none
    slot *held[2]  # [k]: the one of the three slots that set k holds now
    idtable_spare spare[2]  # [k]: for set k's id table
    bint displaced  # in a transaction: whether a step took `old` from its place
    bint done  # whether the change was applied: then `old` is left over, otherwise `new`


# Allocates all memory for a change that region_classify allowed (not CHANGE_NONE). If it returns
# NO_MEMORY, nothing stays allocated.
cdef refusal update_get(
    change *c, space *sp, const limits *lim, const region *r, const ruling *p
) noexcept nogil

cdef void update_invalidate_begin(change *c) noexcept nogil
cdef void update_invalidate_end(change *c) noexcept nogil
cdef void update_apply_begin(change *c) noexcept nogil
cdef void update_apply_end(change *c) noexcept nogil
cdef void update_revert_begin(change *c) noexcept nogil
cdef void update_revert_end(change *c) noexcept nogil

# Frees the slots that no set holds any more. The caller must release their records before.
cdef void update_end(change *c) noexcept nogil

# A transaction has one change for each id that it touches. The inactive set takes the steps one by
# one, without a swap between them. Only there, and only meanwhile, may slots overlap (S2).
#
#     update_init, once for an id        begins its change: both sets hold `old`
#     update_stage_get, update_stage     a step: the inactive set holds the step's slot; repeat
#     then either                        every space swaps, the caller waits for the readers and
#                                        calls update_carry for each change: both sets hold it
#                                        (P1)
#     or                                 update_unstage for each change: first for those that added
#                                        or replaced a slot, then for those that removed one, which
#                                        then has its place in the id table again
#     update_end
cdef void update_init(change *c, space *sp, uint32_t id, slot *old) noexcept nogil
# Makes the slot of the next step, in *next, and allocates the memory for adding it. *next is NULL
# for a region without pages, which deletes the id's slot. NO_MEMORY: nothing is staged.
cdef refusal update_stage_get(
    change *c, const limits *lim, const region *r, slot **next
) noexcept nogil
# Returns whether a step of this kind is the first to take the slot that readers find from its
# place.
cdef bint update_displaces(const change *c, change_kind kind) noexcept nogil
# Makes the inactive set hold `next`. The caller must discard the previous c.new, unless it is
# c.old.
cdef void update_stage(change *c, slot *next) noexcept nogil
# Makes the set that is now inactive hold c.new. `spare` is for all additions of the transaction to
# this set; the first addition that needs it takes it.
cdef void update_carry(change *c, idtable_spare *spare) noexcept nogil
# Carries marks over as T1 demands (docs/changes.md), for the pages of c.old. Call it after the
# readers have left the set that held c.old, and before c.old is freed. O(log n + k + p / 64) for p
# pages that k slots have now.
cdef void update_carry_marks(const change *c) noexcept nogil
# Makes the inactive set hold c.old again.
cdef void update_unstage(change *c) noexcept nogil
# Ends the change of a thread that does not exist: in the child of a fork the thread that was
# changing the space is gone. The slots that readers find are kept. The inactive set is made anew,
# whatever it held. A swap that had begun is ended. A slot that was about to go (INVALID) is
# replaced by a copy that is not INVALID. Memory that the abandoned change had allocated is not
# freed.
#
#     update_abandon_get         allocates all memory; NO_MEMORY: nothing stays allocated. O(n)
#     update_abandon_begin       both sets hold the same slots, except for the copy. O(n log n)
#       wait, update_abandon_end
#     update_end
#
# or, instead of update_abandon_begin, update_abandon_drop: nothing was done.
cdef refusal update_abandon_get(change *c, space *sp) noexcept nogil
cdef void update_abandon_drop(change *c) noexcept nogil
cdef void update_abandon_begin(change *c) noexcept nogil
cdef void update_abandon_end(change *c) noexcept nogil
# Frees `s`, a slot that no set holds, unless it is one of the two kept slots. Frees its bitmap
# unless a kept slot shares it.
cdef void update_discard(slot *s, const slot *kept, const slot *also_kept) noexcept nogil


cdef inline bint update_must_invalidate(const change *c) noexcept nogil:
    """Returns whether this change makes its slot INVALID first."""
    return c.invalid is not NULL


cdef inline slot *update_leftover(const change *c) noexcept nogil:
    """Returns the slot, besides `invalid`, that no set holds after the change. May be NULL."""
    if c.old is c.new:
        return NULL
    return c.old if c.done else c.new
