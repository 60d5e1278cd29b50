"""An access to guest memory. The contract of each function is in access.pxd."""

from libc.string cimport memmove, memset

from memslots.core.alloc cimport alloc_free, alloc_zeroed
from memslots.core.dirtylog cimport dirty_mark_range
from memslots.core.lookup cimport lookup_in, slot_usable
from memslots.core.slot cimport SLOT_READONLY
from memslots.core.slotset cimport (
    slotset_by_id,
    slotset_first_hva,
    slotset_next_hva,
    slotset_step,
)
from memslots.core.units cimport PAGE_SHIFT, gpa_to_gfn, hva_t

cdef extern from *:
    """
    #if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    #define memslots_le(value, size) (__builtin_bswap64(value) >> (64 - 8 * (size)))
    #else
    #define memslots_le(value, size) (value)
    #endif

    /* Of 1, 2, 4 or 8 bytes, aligned to as many. */
    static inline uint64_t memslots_load_number(const void *at, int size)
    {
        uint64_t value;
        switch (size) {
        case 1: value = __atomic_load_n((const uint8_t *)at, __ATOMIC_ACQUIRE); break;
        case 2: value = __atomic_load_n((const uint16_t *)at, __ATOMIC_ACQUIRE); break;
        case 4: value = __atomic_load_n((const uint32_t *)at, __ATOMIC_ACQUIRE); break;
        default: value = __atomic_load_n((const uint64_t *)at, __ATOMIC_ACQUIRE);
        }
        return memslots_le(value, size);
    }

    static inline void memslots_store_number(void *at, uint64_t value, int size)
    {
        value = memslots_le(value, size);
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


cdef size_t walk(
    slotset *set, slot *s, access *a, gpa_t gpa, uint64_t size, access_kind kind, size_t room
) noexcept nogil:
    """Puts down up to `room` pieces, and gives how many there are; 0: `bad` is no part of any."""
    cdef size_t count = 0
    cdef uint64_t offset, take
    cdef piece *at
    while True:
        if not slot_usable(s, kind == ACCESS_WRITE):
            a.bad = gpa
            return 0
        offset = gpa - (s.base_gfn << PAGE_SHIFT)
        take = min(size, (s.npages << PAGE_SHIFT) - offset)
        if count < room:
            at = &a.pieces[count]
            at.hva = s.userspace_addr + offset
            at.size = take
            at.gpa = gpa
            at.id = s.id
            at.npages = s.npages
            at.slot_hva = s.userspace_addr
            at.readonly = s.flags & SLOT_READONLY
        count += 1
        size -= take
        if size == 0:
            return count
        gpa += take
        s = slotset_step(set, s, 1)
        if s is not NULL and s.base_gfn != gpa_to_gfn(gpa):
            s = NULL


cdef access_result access_init(
    access *a, slotset *set, gpa_t gpa, uint64_t size, access_kind kind
) noexcept nogil:
    cdef slot *s = lookup_in(set, NULL, gpa_to_gfn(gpa))
    a.pieces = a.few
    a.count = walk(set, s, a, gpa, size, kind, FEW_PIECES)
    if a.count == 0:
        return ACCESS_BAD
    if a.count > FEW_PIECES:
        a.pieces = <piece *>alloc_zeroed(a.count * sizeof(piece))
        if a.pieces is NULL:
            return ACCESS_NO_MEMORY
        walk(set, s, a, gpa, size, kind, a.count)
    return ACCESS_DONE


cdef void access_free(access *a) noexcept nogil:
    if a.pieces is not a.few:
        alloc_free(a.pieces)


cdef void mark(slot *s, hva_t first, hva_t last) noexcept nogil:
    """Marks what the slot has of the host bytes [first, last]: some."""
    cdef hva_t begin = max(first, s.userspace_addr) - s.userspace_addr
    cdef hva_t end = min(last, s.last_hva) - s.userspace_addr
    dirty_mark_range(s, s.base_gfn + (begin >> PAGE_SHIFT), s.base_gfn + (end >> PAGE_SHIFT))


cdef void access_mark(const access *a, slotset *set) noexcept nogil:
    cdef const piece *at
    cdef hva_t last
    cdef slot *s
    cdef size_t n
    for n in range(a.count):
        at = &a.pieces[n]
        last = at.hva + at.size - 1
        s = slotset_by_id(set, at.id)
        if s is not NULL and s.userspace_addr == at.slot_hva and s.npages == at.npages:
            mark(s, at.hva, last)
            continue
        # Split, or merged with others: what was written must be in some log.
        s = slotset_first_hva(set, at.hva, last)
        while s is not NULL:
            mark(s, at.hva, last)
            s = slotset_next_hva(set, s, at.hva, last)


cdef bint access_meets(const access *a, const void *memory, uint64_t size) noexcept nogil:
    cdef hva_t hva = <hva_t>memory
    cdef size_t n
    if a.count == 1:
        return False  # memmove knows what to do
    for n in range(a.count):
        if a.pieces[n].hva - hva < size or hva - a.pieces[n].hva < a.pieces[n].size:
            return True
    return False


cdef void access_read(const access *a, void *out) noexcept nogil:
    cdef char *to = <char *>out
    cdef size_t n
    for n in range(a.count):
        memmove(to, <const void *>a.pieces[n].hva, a.pieces[n].size)
        to += a.pieces[n].size


cdef void access_write(const access *a, const void *data) noexcept nogil:
    cdef const char *bytes_ = <const char *>data
    cdef size_t n
    for n in range(a.count):
        memmove(<void *>a.pieces[n].hva, bytes_, a.pieces[n].size)
        bytes_ += a.pieces[n].size


cdef void access_fill(const access *a, int byte) noexcept nogil:
    cdef size_t n
    for n in range(a.count):
        memset(<void *>a.pieces[n].hva, byte, a.pieces[n].size)


cdef inline bint at_once(const access *a, int size) noexcept nogil:
    """Whether a number is in one piece, and aligned to its size."""
    return a.count == 1 and not a.pieces[0].hva & (size - 1)


cdef uint64_t access_load(const access *a, int size) noexcept nogil:
    cdef unsigned char raw[8]
    cdef uint64_t value = 0
    cdef int i
    if at_once(a, size):
        return load_number(<const void *>a.pieces[0].hva, size)
    access_read(a, raw)
    for i in range(size):
        value |= <uint64_t>raw[i] << (8 * i)
    return value


cdef void access_store(const access *a, uint64_t value, int size) noexcept nogil:
    cdef unsigned char raw[8]
    cdef int i
    if at_once(a, size):
        store_number(<void *>a.pieces[0].hva, value, size)
        return
    for i in range(size):
        raw[i] = <unsigned char>(value >> (8 * i))
    access_write(a, raw)
