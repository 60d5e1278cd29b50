"""The write side: one change of one slot, in steps.

A change goes through the inactive set. Each step that ends in a swap is three: do it, wait for the
readers (srcu_wait, the caller's part, since only the caller knows which locks to let go meanwhile),
and end it:

    update_get                 all memory the change can need; the only step that can fail
    for DELETE and MOVE        update_invalidate_begin   readers find an INVALID copy of the slot
                                 wait, update_invalidate_end
    ... the owner of the sets asks whoever may refuse ...
    then either                update_apply_begin        readers find what was asked for
                                 wait, update_apply_end    both sets hold it (P1)
    or, refused:               update_revert_begin       readers find the old slot again
                                 wait, update_revert_end   both sets hold it (P1)
    update_end                 what is left over is freed

    which slot the active and the inactive set hold, step by step (a: active, i: inactive):

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
    DIRTY_LOG_INITIALLY_SET = 1 << 1  # the bit of manual_dirty_log for it

cdef struct change:
    change_kind kind
    space *sp
    uint32_t id  # of the slot
    slot *old  # as it is before the change; NULL: there is none
    slot *new  # as it is after it; NULL: there is none
    slot *invalid  # the INVALID copy of old, for DELETE and MOVE; otherwise NULL
    slot *before  # for CREATE: the slot after which `new` comes by gfn, in both sets; NULL: none
    slot *held[2]  # [k]: which of the three set k holds now
    idtable_spare spare[2]  # [k]: for set k's id table
    bint displaced  # a transaction: whether a step took `old` from its place
    bint done  # whether it was applied: `old` is what is left over, not `new`


# Allocates all memory for a change that region_classify allowed (not CHANGE_NONE). NO_MEMORY:
# nothing is left allocated.
cdef refusal update_get(
    change *c, space *sp, const limits *lim, const region *r, const ruling *p
) noexcept nogil

cdef void update_invalidate_begin(change *c) noexcept nogil
cdef void update_invalidate_end(change *c) noexcept nogil
cdef void update_apply_begin(change *c) noexcept nogil
cdef void update_apply_end(change *c) noexcept nogil
cdef void update_revert_begin(change *c) noexcept nogil
cdef void update_revert_end(change *c) noexcept nogil

# Frees what no set holds any more; the records of those slots are the caller's, to let go before.
cdef void update_end(change *c) noexcept nogil

# A transaction is one change for each id it touches. The inactive set takes them step by step, no
# swap in between; there, and only there, slots may overlap meanwhile (S2).
#
#     update_init, once for an id        what both sets hold of it; nothing of it is changed yet
#     update_stage_get, update_stage     a step: the inactive set holds what it asks for; and so on
#     then either                        every space swaps, the readers are waited for, and
#                                        update_carry for each change: both sets hold it (P1)
#     or                                 update_unstage for each change: what it put in or replaced
#                                        first, then what it took out, which finds its place again
#     update_end
cdef void update_init(change *c, space *sp, uint32_t id, slot *old) noexcept nogil
# Gets the slot of the next step in *next (NULL for a region without pages: the id's slot goes), and
# the memory for it to go in. NO_MEMORY: nothing is staged.
cdef refusal update_stage_get(
    change *c, const limits *lim, const region *r, slot **next
) noexcept nogil
# Whether a step of this kind is the first that takes the slot which readers find from its place.
cdef bint update_displaces(const change *c, change_kind kind) noexcept nogil
# Makes the inactive set hold `next`. What c.new was before belongs to the caller: to discard,
# unless it is c.old.
cdef void update_stage(change *c, slot *next) noexcept nogil
# `spare`: for all the additions of the transaction to this set; taken by the first that needs it.
cdef void update_carry(change *c, idtable_spare *spare) noexcept nogil
# T1, for the pages that c.old had, once the readers are out of the set that held it and before it
# is freed. O(log n + k + p / 64) for p pages that k slots have now.
cdef void update_carry_marks(const change *c) noexcept nogil
cdef void update_unstage(change *c) noexcept nogil
# In the child of a fork, where the thread that was changing the space is not: what readers find is
# all there is. The inactive set is made anew, whatever it held; a swap that had begun is ended; a
# slot that was about to go (INVALID) is replaced by a copy that is not. What the other change had
# got is not given back.
#
#     update_abandon_get         all memory; NO_MEMORY: nothing was got. O(n)
#     update_abandon_begin       both sets hold the same, but for the copy. O(n log n)
#       wait, update_abandon_end
#     update_end
#
# or, instead of begin, update_abandon_drop: nothing was done.
cdef refusal update_abandon_get(change *c, space *sp) noexcept nogil
cdef void update_abandon_drop(change *c) noexcept nogil
cdef void update_abandon_begin(change *c) noexcept nogil
cdef void update_abandon_end(change *c) noexcept nogil
# Frees a slot that no set holds, unless it is one of the two kept; its bitmap, if neither has it.
cdef void update_discard(slot *s, const slot *kept, const slot *also_kept) noexcept nogil


cdef inline bint update_must_invalidate(const change *c) noexcept nogil:
    """Whether this change goes through INVALID."""
    return c.invalid is not NULL


cdef inline slot *update_leftover(const change *c) noexcept nogil:
    """The slot, besides `invalid`, that no set holds once the change has ended; may be NULL."""
    if c.old is c.new:
        return NULL
    return c.old if c.done else c.new
