"""The dirty log of a slot: a bit for every page, set when it is written (prefix: dirty_).

  D1  a slot has a bitmap exactly if it logs (LOG_DIRTY_PAGES); bits past its last page are clear

Marks are set with an atomic or and taken with an atomic exchange. So no mark is lost, and none is
handed out twice. A slot and its copies share the bitmap. The writer frees the bitmap when it takes
the last of them out of the sets.
"""

from libc.stdint cimport uint64_t

from memslots.core.atomics cimport atomic_fence, atomic_fetch_or_release, atomic_load_relaxed
from memslots.core.slot cimport SLOT_READONLY, slot
from memslots.core.units cimport gfn_t


cdef inline uint64_t dirty_words(uint64_t npages) noexcept nogil:
    """Returns the number of 64-bit words that hold a bit for each page."""
    return (npages + 63) >> 6


# Returns a clear bitmap or, with `all_set`, a bitmap with every page's bit set. Returns NULL if
# there is no memory. O(1) clear, O(npages / 64) set.
cdef uint64_t *dirty_new(uint64_t npages, bint all_set) noexcept nogil
# Frees a bitmap. NULL does nothing.
cdef void dirty_free(uint64_t *bitmap) noexcept nogil

# Copies the bitmap into `out`, 8 * dirty_words bytes, as little-endian words. With `take`, clears
# the bits that it copies.
cdef void dirty_get(slot *s, unsigned char *out, bint take) noexcept nogil
# Sets the bitmap to `bitmap`, which dirty_get copied from a slot of the same size.
cdef void dirty_put(slot *s, const unsigned char *bitmap) noexcept nogil
# Clears the pages whose bit is set in `bitmap`, dirty_words(num_pages) little-endian words. Bit 0
# is page `first_page`, a multiple of 64. first_page + num_pages is at most npages.
cdef void dirty_clear(
    slot *s, uint64_t first_page, uint64_t num_pages, const unsigned char *bitmap
) noexcept nogil


# Marks the pages [first, last], as dirty_mark does. The slot must have them all. O(pages / 64).
cdef void dirty_mark_range(slot *s, gfn_t first, gfn_t last) noexcept nogil
# Marks the pages [first, last] of `to` that are marked in `from_`. Page `first` of `to` corresponds
# to page number `page` of `from_`, and so on; the gfns of `from_` may differ. Both slots must log.
# O(pages / 64).
cdef void dirty_copy(
    slot *to, gfn_t first, gfn_t last, const slot *from_, uint64_t page
) noexcept nogil
# If the slot logs, marks the pages whose bit is set in `bitmap`, dirty_words(npages) little-endian
# words.
cdef void dirty_merge(slot *s, const unsigned char *bitmap) noexcept nogil


cdef inline void dirty_mark(slot *s, gfn_t gfn) noexcept nogil:
    """Marks a page that the slot has, if it logs.

    Nothing writes a READONLY slot's pages: they stay clean.
    """
    cdef uint64_t page = gfn - s.base_gfn
    cdef uint64_t bit = <uint64_t>1 << (page & 63)
    if s.dirty is NULL or s.flags & SLOT_READONLY:
        return
    # Most writes hit a page that is marked already, so look before taking the line for writing.
    # The fence pairs with the fences at the end of dirty_get and dirty_clear. If this load sees the
    # bit, the thread that takes the bit reads what the caller wrote to the page. If not, the bit is
    # set again.
    atomic_fence()
    if not atomic_load_relaxed(&s.dirty[page >> 6]) & bit:
        atomic_fetch_or_release(&s.dirty[page >> 6], bit)
