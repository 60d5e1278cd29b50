# cython: language_level=3
"""Looks at the index of an address space, and has it give wrong answers."""

from libc.stdint cimport int32_t

from memslots.core.index cimport index
from memslots.core.index_policy cimport index_policy_current
from memslots.core.search cimport SEARCH_AVX2, SEARCH_AVX512, SEARCH_PORTABLE
from memslots.core.space cimport space, space_active
from memslots.memslots cimport memslots_space

KINDS = {SEARCH_PORTABLE: "portable", SEARCH_AVX2: "avx2", SEARCH_AVX512: "avx512"}


def current(face):
    """What searches the index of a face's slots: "portable" and so on; None: there is none."""
    cdef space *sp = memslots_space(face)
    cdef const index *ix = index_policy_current(sp, space_active(sp))
    if ix is NULL:
        return None
    return "wide" if ix.keys.levels == 0 else KINDS[ix.keys.kind]


def is_kept(face):
    """Whether there is an index, of whatever generation, or one that is to be freed."""
    cdef space *sp = memslots_space(face)
    return sp.index.current is not NULL or sp.index.retired is not NULL


def mark_ids(face, int32_t by):
    """Adds to the id in every row, so that who asks the index is told from who asks the tree."""
    cdef space *sp = memslots_space(face)
    cdef size_t i
    for i in range(sp.index.current.count):
        sp.index.current.rows[i].id += by
