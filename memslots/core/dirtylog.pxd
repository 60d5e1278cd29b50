"""The dirty log of a slot: a bit for every page, set when it is written (prefix: dirty_).

  D1  a slot has a bitmap exactly if it logs (LOG_DIRTY_PAGES); bits past its last page are clear

Marks are set with an atomic or, and taken with an atomic exchange, so none is lost and none is
handed out twice. The bitmap is shared by a slot and its copies and freed by whoever takes the last
of them out of the sets.
"""

from libc.stdint cimport uint64_t

from memslots.core.atomics cimport atomic_fence, atomic_fetch_or_release, atomic_load_relaxed
from memslots.core.slot cimport SLOT_READONLY, slot
from memslots.core.units cimport gfn_t


cdef inline uint64_t dirty_words(uint64_t npages) noexcept nogil:
    """How many 64-bit words hold a bit for each page."""
    return (npages + 63) >> 6


# A clear bitmap, or with `all_set` one with a bit for every page; NULL: no memory. O(1) clear,
# O(npages / 64) set.
cdef uint64_t *dirty_new(uint64_t npages, bint all_set) noexcept nogil
# NULL is allowed and does nothing.
cdef void dirty_free(uint64_t *bitmap) noexcept nogil

# Copies the bitmap into `out`, 8 * dirty_words bytes, as little-endian words; with `take` clears
# what it copies.
cdef void dirty_get(slot *s, unsigned char *out, bint take) noexcept nogil
# Makes the bitmap what dirty_get once gave of a slot as large.
cdef void dirty_put(slot *s, const unsigned char *bitmap) noexcept nogil
# Clears the pages whose bit is set in `bitmap`, little-endian words; bit 0 is page `first_page`, a
# multiple of 64. first_page + num_pages is at most npages; `bitmap` holds dirty_words(num_pages)
# words.
cdef void dirty_clear(
    slot *s, uint64_t first_page, uint64_t num_pages, const unsigned char *bitmap
) noexcept nogil


# Marks the pages [first, last] that the slot has, as dirty_mark does. O(pages / 64).
cdef void dirty_mark_range(slot *s, gfn_t first, gfn_t last) noexcept nogil
# Marks the pages [first, last] of `to` that are marked in `from_`, whatever gfns it has them at:
# page 0 of that range is its page `page`. Both log. O(pages / 64).
cdef void dirty_copy(
    slot *to, gfn_t first, gfn_t last, const slot *from_, uint64_t page
) noexcept nogil
# Marks the pages whose bit is set in `bitmap`, dirty_words(npages) little-endian words, if the slot
# logs.
cdef void dirty_merge(slot *s, const unsigned char *bitmap) noexcept nogil


cdef inline void dirty_mark(slot *s, gfn_t gfn) noexcept nogil:
    """Marks a page that the slot has, if it logs.

    Nothing writes a READONLY slot's pages: they stay clean.
    """
    cdef uint64_t page = gfn - s.base_gfn
    cdef uint64_t bit = <uint64_t>1 << (page & 63)
    if s.dirty is NULL or s.flags & SLOT_READONLY:
        return
    # A page is written far more often than it is first written: look before taking the line for
    # writing. Pairs with the fences at the end of dirty_get and dirty_clear: whoever takes the bit
    # that is seen here reads what the caller wrote to the page before; else the bit is set again.
    atomic_fence()
    if not atomic_load_relaxed(&s.dirty[page >> 6]) & bit:
        atomic_fetch_or_release(&s.dirty[page >> 6], bit)
