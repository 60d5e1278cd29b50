"""The dirty log of a slot.

dirtylog.pxd has the property D1 and the contract of each function.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset

from memslots.core.alloc cimport alloc_free, alloc_zeroed
from memslots.core.atomics cimport (
    atomic_exchange_acq_rel,
    atomic_fence,
    atomic_fetch_and_acq_rel,
    atomic_fetch_or_release,
    atomic_load_relaxed,
)
from memslots.core.endian cimport endian_le64


cdef uint64_t *dirty_new(uint64_t npages, bint all_set) noexcept nogil:
    cdef uint64_t words = dirty_words(npages)
    cdef uint64_t *bitmap = <uint64_t *>alloc_zeroed(words * sizeof(uint64_t))
    if bitmap is not NULL and all_set:
        memset(bitmap, 0xFF, words * sizeof(uint64_t))
        if npages & 63:
            bitmap[words - 1] = (<uint64_t>1 << (npages & 63)) - 1
    return bitmap


cdef void dirty_free(uint64_t *bitmap) noexcept nogil:
    alloc_free(bitmap)


cdef void dirty_get(slot *s, unsigned char *out, bint take) noexcept nogil:
    cdef uint64_t word
    cdef uint64_t i
    for i in range(dirty_words(s.npages)):
        word = atomic_load_relaxed(&s.dirty[i])
        if take and word != 0:
            # Acquire: the caller reads the pages only after it has taken their marks.
            word = atomic_exchange_acq_rel(&s.dirty[i], 0)
        word = endian_le64(word)
        memcpy(out + i * sizeof(word), &word, sizeof(word))
    if take:
        # Pairs with the fence of dirty_mark: if a thread still saw its page marked, it wrote to
        # the page before the caller reads the page.
        atomic_fence()


cdef void dirty_put(slot *s, const unsigned char *bitmap) noexcept nogil:
    cdef uint64_t word
    cdef uint64_t i
    for i in range(dirty_words(s.npages)):
        memcpy(&word, bitmap + i * sizeof(word), sizeof(word))
        atomic_exchange_acq_rel(&s.dirty[i], endian_le64(word))


cdef void dirty_mark_range(slot *s, gfn_t first, gfn_t last) noexcept nogil:
    cdef uint64_t start = first - s.base_gfn
    cdef uint64_t end = last - s.base_gfn
    cdef uint64_t bits
    cdef uint64_t i
    if s.dirty is NULL or s.flags & SLOT_READONLY:
        return
    atomic_fence()  # as in dirty_mark, once for all pages
    for i in range(start >> 6, (end >> 6) + 1):
        bits = ~<uint64_t>0
        if i == start >> 6:
            bits &= ~<uint64_t>0 << (start & 63)
        if i == end >> 6:
            bits &= ~<uint64_t>0 >> (63 - (end & 63))
        if bits & ~atomic_load_relaxed(&s.dirty[i]):
            atomic_fetch_or_release(&s.dirty[i], bits)


cdef void dirty_copy(
    slot *to, gfn_t first, gfn_t last, const slot *from_, uint64_t page
) noexcept nogil:
    cdef uint64_t at = first - to.base_gfn
    cdef uint64_t left = last - first + 1
    cdef uint64_t bits
    cdef uint64_t some  # how many of the next pages are in one word of each bitmap
    while left:
        some = min(left, min(64 - (at & 63), 64 - (page & 63)))
        bits = atomic_load_relaxed(&from_.dirty[page >> 6]) >> (page & 63)
        bits &= ~<uint64_t>0 >> (64 - some)
        if bits:
            atomic_fetch_or_release(&to.dirty[at >> 6], bits << (at & 63))
        at += some
        page += some
        left -= some


cdef void dirty_merge(slot *s, const unsigned char *bitmap) noexcept nogil:
    cdef uint64_t word
    cdef uint64_t i
    if s.dirty is NULL:
        return
    for i in range(dirty_words(s.npages)):
        memcpy(&word, bitmap + i * sizeof(word), sizeof(word))
        if word != 0:
            atomic_fetch_or_release(&s.dirty[i], endian_le64(word))


cdef void dirty_clear(
    slot *s, uint64_t first_page, uint64_t num_pages, const unsigned char *bitmap
) noexcept nogil:
    cdef uint64_t *dirty = s.dirty + (first_page >> 6)
    cdef uint64_t word
    cdef uint64_t i
    for i in range(dirty_words(num_pages)):
        memcpy(&word, bitmap + i * sizeof(word), sizeof(word))
        word = endian_le64(word)
        if word != 0:
            atomic_fetch_and_acq_rel(&dirty[i], ~word)
    atomic_fence()  # as in dirty_get
