# cython: language_level=3
"""Looks at the index of an address space, and has it give wrong answers."""

from libc.stdint cimport int32_t, uint32_t

from memslots.core.index cimport INDEX_FEW, index, index_row
from memslots.core.index_policy cimport (
    SINGLE_DOUBLE,
    SINGLE_PART,
    SINGLE_SEARCHES,
    index_policy_current,
)
from memslots.core.search cimport SEARCH_AVX2, SEARCH_AVX512, SEARCH_PORTABLE
from memslots.core.slotset cimport slotset
from memslots.core.space cimport space, space_active
from memslots.memslots cimport memslots_space

FEW = INDEX_FEW
PART = SINGLE_PART
KINDS = {SEARCH_PORTABLE: "portable", SEARCH_AVX2: "avx2", SEARCH_AVX512: "avx512"}


def pays(slots):
    """After how many searches by single look-ups an index of so many slots pays."""
    return slots + min(slots, SINGLE_DOUBLE) + SINGLE_SEARCHES


def current(face):
    """What searches the index of a face's slots: "portable" and so on; None: there is none."""
    cdef space *sp = memslots_space(face)
    cdef const index *ix = index_policy_current(space_active(sp))
    if ix is NULL:
        return None
    return "wide" if ix.keys.levels == 0 else KINDS[ix.keys.kind]


def is_kept(face):
    """Whether there is an index, of whichever set, or part of one."""
    cdef space *sp = memslots_space(face)
    cdef int k
    for k in range(2):
        if sp.sets[k].index is not NULL or sp.sets[k].unfinished is not NULL:
            return True
    return False


def rows_made(face):
    """How many rows of an unfinished index there are; None: none is begun."""
    cdef slotset *set = space_active(memslots_space(face))
    return None if set.unfinished is NULL else set.unfinished.count


def searches(face):
    """How many searches of the tree were counted since the active set is active."""
    return space_active(memslots_space(face)).searches


def hold_building(face, bint held):
    """As if another thread were making part of the index; or no more."""
    space_active(memslots_space(face)).building = held


def rotate(face):
    """Has each row be of the slot of the next, in all but its pages."""
    cdef index *ix = space_active(memslots_space(face)).index
    cdef index_row first = ix.rows[0]
    cdef index_row other
    cdef uint32_t i
    for i in range(ix.count):
        other = ix.rows[i + 1] if i + 1 < ix.count else first
        ix.rows[i].id = other.id
        ix.rows[i].hva = other.hva
        ix.rows[i].record = other.record


def mark_ids(face, int32_t by):
    """Adds to the id in every row, so that who asks the index is told from who asks the tree."""
    cdef space *sp = memslots_space(face)
    cdef size_t i
    for i in range(sp.active.index.count):
        sp.active.index.rows[i].id += by
