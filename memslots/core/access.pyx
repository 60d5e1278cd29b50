"""An access to guest memory. The contract of each function is in access.pxd."""

from libc.string cimport memcmp, memcpy, memmove, memset

from memslots.core.alloc cimport alloc_free, alloc_zeroed
from memslots.core.dirtylog cimport dirty_mark_range
from memslots.core.endian cimport endian_le
from memslots.core.guarded cimport (
    guarded_fill,
    guarded_probe,
    guarded_read,
    guarded_write,
)
from memslots.core.index cimport INDEX_READONLY, index_row, index_usable, index_userspace_addr
from memslots.core.lookup cimport lookup_row
from memslots.core.slot cimport SLOT_READONLY, slot_usable
from memslots.core.slotset cimport (
    slotset_by_id,
    slotset_first_hva,
    slotset_next_hva,
    slotset_search,
    slotset_step,
)
from memslots.core.units cimport PAGE_SHIFT, gpa_to_gfn, hva_t

cdef extern from *:
    """
    /* Loads a number of 1, 2, 4 or 8 bytes, aligned to its size. */
    static inline uint64_t memslots_load_number(const void *at, int size)
    {
        switch (size) {
        case 1: return __atomic_load_n((const uint8_t *)at, __ATOMIC_ACQUIRE);
        case 2: return __atomic_load_n((const uint16_t *)at, __ATOMIC_ACQUIRE);
        case 4: return __atomic_load_n((const uint32_t *)at, __ATOMIC_ACQUIRE);
        default: return __atomic_load_n((const uint64_t *)at, __ATOMIC_ACQUIRE);
        }
    }

    static inline void memslots_store_number(void *at, uint64_t value, int size)
    {
        switch (size) {
        case 1: __atomic_store_n((uint8_t *)at, (uint8_t)value, __ATOMIC_RELEASE); break;
        case 2: __atomic_store_n((uint16_t *)at, (uint16_t)value, __ATOMIC_RELEASE); break;
        case 4: __atomic_store_n((uint32_t *)at, (uint32_t)value, __ATOMIC_RELEASE); break;
        default: __atomic_store_n((uint64_t *)at, value, __ATOMIC_RELEASE); break;
        }
    }
    """
    uint64_t load_number "memslots_load_number"(const void *at, int size) noexcept nogil
    void store_number "memslots_store_number"(void *at, uint64_t value, int size) noexcept nogil


cdef enum:
    TRIES = 16  # repeated reads of a number that another thread may be writing


cdef size_t find_spans(
    slotset *set, slot *s, access *a, gpa_t gpa, uint64_t size, access_kind kind, size_t room
) noexcept nogil:
    """Records at most `room` spans. Returns the number of spans the access needs, or 0 if the
    access fails at guest address `bad`.
    """
    cdef size_t count = 0
    cdef uint64_t offset, length
    cdef span *at
    while True:
        if not slot_usable(s, kind == ACCESS_WRITE):
            a.bad = gpa
            return 0
        offset = gpa - (s.base_gfn << PAGE_SHIFT)
        length = min(size, (s.npages << PAGE_SHIFT) - offset)
        if count < room:
            at = &a.spans[count]
            at.hva = s.userspace_addr + offset
            at.size = length
            at.gpa = gpa
            at.id = s.id
            at.npages = s.npages
            at.slot_hva = s.userspace_addr
            at.readonly = s.flags & SLOT_READONLY
            at.may_fault = False
        count += 1
        size -= length
        if size == 0:
            return count
        gpa += length
        s = slotset_step(set, s, 1)
        if s is not NULL and s.base_gfn != gpa_to_gfn(gpa):
            s = NULL


cdef access_result access_init(
    access *a, slotset *set, gpa_t gpa, uint64_t size, access_kind kind
) noexcept nogil:
    cdef index_row room
    cdef const index_row *row = lookup_row(set, NULL, gpa_to_gfn(gpa), &room)
    cdef uint64_t offset
    cdef slot *s
    a.spans = a.few
    if index_usable(row, kind == ACCESS_WRITE):
        offset = gpa - (row.base_gfn << PAGE_SHIFT)
        if size <= (<uint64_t>row.npages << PAGE_SHIFT) - offset:
            # Nearly all accesses are in one slot. For these the row is enough.
            a.count = 1
            a.few[0].hva = index_userspace_addr(row) + offset
            a.few[0].size = size
            a.few[0].gpa = gpa
            a.few[0].id = <uint32_t>row.id
            a.few[0].npages = row.npages
            a.few[0].slot_hva = index_userspace_addr(row)
            a.few[0].readonly = row.hva & INDEX_READONLY
            a.few[0].may_fault = False
            return ACCESS_DONE
    s = slotset_search(set, gpa_to_gfn(gpa))
    a.count = find_spans(set, s, a, gpa, size, kind, FEW_SPANS)
    if a.count == 0:
        return ACCESS_BAD
    if a.count > FEW_SPANS:
        a.spans = <span *>alloc_zeroed(a.count * sizeof(span))
        if a.spans is NULL:
            return ACCESS_NO_MEMORY
        find_spans(set, s, a, gpa, size, kind, a.count)
    return ACCESS_DONE


cdef bint access_split(access *a, size_t n, uint64_t size) noexcept nogil:
    cdef span *spans = a.spans
    if a.spans is not a.few or a.count == FEW_SPANS:
        spans = <span *>alloc_zeroed((a.count + 1) * sizeof(span))
        if spans is NULL:
            return False
        memcpy(spans, a.spans, (n + 1) * sizeof(span))
    memmove(&spans[n + 1], &a.spans[n], (a.count - n) * sizeof(span))
    if spans is not a.spans:
        access_free(a)
        a.spans = spans
    a.count += 1
    spans[n].size = size
    spans[n + 1].hva += size
    spans[n + 1].gpa += size
    spans[n + 1].size -= size
    return True


cdef void access_free(access *a) noexcept nogil:
    if a.spans is not a.few:
        alloc_free(a.spans)


cdef void mark(slot *s, hva_t first, hva_t last) noexcept nogil:
    """Marks the slot's pages that have a host byte in [first, last]. There must be such a page."""
    cdef hva_t begin = max(first, s.userspace_addr) - s.userspace_addr
    cdef hva_t end = min(last, s.last_hva) - s.userspace_addr
    dirty_mark_range(s, s.base_gfn + (begin >> PAGE_SHIFT), s.base_gfn + (end >> PAGE_SHIFT))


cdef void access_mark(const access *a, slotset *set) noexcept nogil:
    cdef const span *at
    cdef hva_t last
    cdef slot *s
    cdef size_t n
    for n in range(a.count):
        at = &a.spans[n]
        last = at.hva + at.size - 1
        s = slotset_by_id(set, at.id)
        if s is not NULL and s.userspace_addr == at.slot_hva and s.npages == at.npages:
            mark(s, at.hva, last)
            continue
        # The slot was split, or merged with others. Every slot with the written memory gets marks.
        s = slotset_first_hva(set, at.hva, last)
        while s is not NULL:
            mark(s, at.hva, last)
            s = slotset_next_hva(set, s, at.hva, last)


cdef bint access_meets(const access *a, const void *memory, uint64_t size) noexcept nogil:
    cdef hva_t hva = <hva_t>memory
    cdef size_t n
    if a.count == 1 and not a.spans[0].may_fault:
        return False  # memmove copies overlapping memory correctly
    for n in range(a.count):
        if a.spans[n].hva - hva < size or hva - a.spans[n].hva < a.spans[n].size:
            return True
    return False


cdef gpa_t access_probe(const access *a) noexcept nogil:
    cdef const span *at
    cdef uint64_t there
    cdef size_t n
    for n in range(a.count):
        at = &a.spans[n]
        if at.may_fault:
            there = guarded_probe(at.hva, at.size)
            if there < at.size:
                return at.gpa + there
    return ACCESS_ALL


cdef gpa_t access_read(const access *a, void *out) noexcept nogil:
    cdef char *to = <char *>out
    cdef const span *at
    cdef uint64_t done
    cdef size_t n
    for n in range(a.count):
        at = &a.spans[n]
        if at.may_fault:
            done = guarded_read(to, at.hva, at.size)
            if done < at.size:
                return at.gpa + done
        else:
            memmove(to, <const void *>at.hva, at.size)
        to += at.size
    return ACCESS_ALL


cdef gpa_t access_write(const access *a, const void *data) noexcept nogil:
    cdef const char *bytes_ = <const char *>data
    cdef const span *at
    cdef uint64_t done
    cdef size_t n
    for n in range(a.count):
        at = &a.spans[n]
        if at.may_fault:
            done = guarded_write(at.hva, bytes_, at.size)
            if done < at.size:
                return at.gpa + done
        else:
            memmove(<void *>at.hva, bytes_, at.size)
        bytes_ += at.size
    return ACCESS_ALL


cdef gpa_t access_fill(const access *a, int byte) noexcept nogil:
    cdef const span *at
    cdef uint64_t done
    cdef size_t n
    for n in range(a.count):
        at = &a.spans[n]
        if at.may_fault:
            done = guarded_fill(at.hva, byte, at.size)
            if done < at.size:
                return at.gpa + done
        else:
            memset(<void *>at.hva, byte, at.size)
    return ACCESS_ALL


cdef inline bint at_once(const access *a, int size) noexcept nogil:
    """Returns whether a number lies in one span and is aligned to its size."""
    return a.count == 1 and not a.spans[0].hva & (size - 1)


cdef gpa_t access_load(const access *a, int size, uint64_t *value) noexcept nogil:
    cdef unsigned char raw[8]
    cdef unsigned char before[8]
    cdef gpa_t bad
    cdef int i
    if at_once(a, size) and not a.spans[0].may_fault:
        value[0] = endian_le(load_number(<const void *>a.spans[0].hva, size), size)
        return ACCESS_ALL
    bad = access_read(a, raw)
    if at_once(a, size):
        for _ in range(TRIES):
            memcpy(before, raw, size)
            if bad == ACCESS_ALL:
                bad = access_read(a, raw)
            if bad != ACCESS_ALL or memcmp(before, raw, size) == 0:
                break
    value[0] = 0
    for i in range(size):
        value[0] |= <uint64_t>raw[i] << (8 * i)
    return bad


cdef gpa_t access_store(const access *a, uint64_t value, int size) noexcept nogil:
    cdef unsigned char raw[8]
    cdef int i
    if at_once(a, size) and not a.spans[0].may_fault:
        store_number(<void *>a.spans[0].hva, endian_le(value, size), size)
        return ACCESS_ALL
    for i in range(size):
        raw[i] = <unsigned char>(value >> (8 * i))
    return access_write(a, raw)
