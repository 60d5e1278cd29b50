# cython: language_level=3
"""Drives memslots.core.update step by step, and tells what each set holds after every step."""

from libc.string cimport memset

from memslots.core.alloc cimport CACHE_LINE
from memslots.core.dirtylog cimport dirty_free
from memslots.core.invariants cimport HOLDS, invariants_check_space, report
from memslots.core.lookup cimport lookup_in
from memslots.core.region cimport (
    ALLOWED,
    CHANGE_MOVE,
    CHANGE_NONE,
    NO_MEMORY,
    limits,
    region,
    region_check,
    region_classify,
    region_place,
    ruling,
)
from memslots.core.slot cimport SLOT_INVALID, slot, slot_free
from memslots.core.slotset cimport slotset, slotset_by_id, slotset_first, slotset_put
from memslots.core.space cimport (
    SWAPPING,
    space,
    space_active,
    space_free,
    space_generation,
    space_inactive,
    space_new,
    space_swap_begin,
)
from memslots.core.update cimport (
    change,
    update_apply_begin,
    update_apply_end,
    update_displaces,
    update_end,
    update_get,
    update_invalidate_begin,
    update_invalidate_end,
    update_must_invalidate,
    update_revert_begin,
    update_revert_end,
)

KINDS = ("NONE", "CREATE", "DELETE", "MOVE", "FLAGS_ONLY")
NAMES = ("", "R1", "R2", "R3", "R4", "R5", "H1", "S1", "S2", "S3", "S4", "P1", "P2", "D1")


def slot_layout():
    """The size of a slot, and the offsets of what a search by gfn reads with its ends."""
    cdef slot s
    return sizeof(slot), {
        "gfn_node": (<char *>&s.gfn_node - <char *>&s, <char *>(&s.gfn_node + 1) - <char *>&s),
        "base_gfn": (<char *>&s.base_gfn - <char *>&s, <char *>(&s.base_gfn + 1) - <char *>&s),
        "npages": (<char *>&s.npages - <char *>&s, <char *>(&s.npages + 1) - <char *>&s),
    }


cdef class Space:
    """An address space without Python records, changed by hand."""

    cdef space *sp
    cdef limits lim
    cdef change c
    # (step, what the active set holds, what the inactive one holds, generation)
    cdef public list steps

    def __cinit__(self, as_id=0, nspaces=1, manual_dirty_log=0):
        self.lim.max_slots = 1000
        self.lim.nspaces = nspaces
        self.lim.max_gfn = 1 << 40
        self.lim.max_hva = 1 << 47
        self.lim.manual_dirty_log = manual_dirty_log
        self.sp = space_new(as_id, nspaces)
        if self.sp is NULL:
            raise MemoryError
        self.steps = []

    def __dealloc__(self):
        cdef slot *s
        if self.sp is NULL:
            return
        while True:
            s = slotset_first(&self.sp.sets[0])
            if s is NULL:
                break
            slotset_put(&self.sp.sets[0], s, NULL, NULL)
            slotset_put(&self.sp.sets[1], s, NULL, NULL)
            dirty_free(s.dirty)
            slot_free(s)
        space_free(self.sp)

    cdef object held(self, slotset *set, id):
        cdef slot *s = slotset_by_id(set, id)
        if s is NULL:
            return None
        return hex(s.base_gfn), s.flags & ~SLOT_INVALID, bool(s.flags & SLOT_INVALID)

    cdef note(self, step, id):
        self.steps.append(
            (
                step,
                self.held(space_active(self.sp), id),
                self.held(space_inactive(self.sp), id),
                space_generation(self.sp) & ~SWAPPING,
                bool(space_generation(self.sp) & SWAPPING),
            )
        )

    def change(self, id, base_gfn, npages, hva, flags=0, refuse=False):
        """Makes a change, or has it refused after it was invalidated; notes every step. Gives
        its kind.
        """
        cdef region r
        cdef ruling p
        r.id = id
        r.as_id = self.sp.as_id
        r.flags = flags
        r.base_gfn = base_gfn
        r.npages = npages
        r.userspace_addr = hva
        assert region_check(&self.lim, &r) == ALLOWED
        assert region_classify(slotset_by_id(space_active(self.sp), r.id), &r, False, &p) == ALLOWED
        assert region_place(space_active(self.sp), &r, &p) == ALLOWED
        self.steps = []
        if p.kind == CHANGE_NONE:
            return KINDS[0]
        self.note("before", id)
        memset(&self.c, 0xFF, sizeof(change))  # a caller need not clear it
        if update_get(&self.c, self.sp, &self.lim, &r, &p) == NO_MEMORY:
            raise MemoryError
        assert update_displaces(&self.c, CHANGE_MOVE) == (p.old is not NULL)
        if update_must_invalidate(&self.c):
            update_invalidate_begin(&self.c)
            self.note("invalidate begin", id)
            update_invalidate_end(&self.c)
            self.note("invalidate end", id)
        if not refuse:
            update_apply_begin(&self.c)
            self.note("apply begin", id)
            update_apply_end(&self.c)
            self.note("apply end", id)
        elif update_must_invalidate(&self.c):
            update_revert_begin(&self.c)
            self.note("revert begin", id)
            update_revert_end(&self.c)
            self.note("revert end", id)
        update_end(&self.c)
        return KINDS[<int>p.kind]

    def find_in(self, which, gfn):
        """The id of the slot that a set has the gfn in ("active" or "inactive"), by way of its
        last-used slot.
        """
        cdef slot *s = lookup_in(
            space_active(self.sp) if which == "active" else space_inactive(self.sp), NULL, gfn
        )
        return None if s is NULL else s.id

    def last_used(self):
        """The ids of both sets' last-used slots, set 0's first."""
        return [
            None if self.sp.sets[k].last_used is NULL else self.sp.sets[k].last_used.id
            for k in range(2)
        ]

    def swap_within_a_swap(self):
        """What no caller may do: begins a swap while one has not ended."""
        space_swap_begin(self.sp)
        space_swap_begin(self.sp)

    def alignment(self, id):
        """Where in a cache line the slot begins."""
        return <size_t>slotset_by_id(space_active(self.sp), id) % CACHE_LINE

    def check(self):
        """AssertionError with the property that does not hold."""
        cdef report found
        memset(&found, 0xFF, sizeof(report))
        invariants_check_space(self.sp, &found)
        if found.broken != HOLDS:
            raise AssertionError(NAMES[<int>found.broken])
