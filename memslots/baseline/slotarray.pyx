"""The slots of an address space as one sorted array.

The properties and the contract of each function are in slotarray.pxd.
"""

from libc.string cimport memcpy, memmove, memset

from memslots.core.alloc cimport CACHE_LINE, alloc_free, alloc_lines
from memslots.core.debug cimport debug_assert
from memslots.core.dirtylog cimport dirty_mark
from memslots.core.invariants cimport D1, HOLDS, S1, S2, S3, S4
from memslots.core.slot cimport SLOT_LOG_DIRTY_PAGES, slot_usable
from memslots.core.units cimport BAD_HVA, PAGE_OFFSET_MASK, gpa_to_gfn

cdef extern from *:
    """
    #define MEMSLOTS_CHECK_ARRAY_LAYOUT(a, s, line) do { \\
        _Static_assert(sizeof(*(a)) == (line), "the header is a cache line"); \\
        _Static_assert(sizeof(*(s)) == 48, "a slot is copied with each change: no byte more"); \\
    } while (0)
    """
    void check_layout "MEMSLOTS_CHECK_ARRAY_LAYOUT"(slotarray *, array_slot *, int) noexcept nogil

cdef enum:
    LEAST_ROOM = 8  # for slots and for ids


cdef uint64_t grown(uint64_t needed) noexcept nogil:
    cdef uint64_t room = LEAST_ROOM
    while room < needed:
        room <<= 1
    return room


cdef slotarray *slotarray_new(uint64_t room, uint64_t ids_room) noexcept nogil:
    """Returns an empty array, or NULL if there is no memory."""
    cdef slotarray *a = <slotarray *>alloc_lines(
        sizeof(slotarray) + room * sizeof(array_slot) + ids_room * sizeof(int32_t)
    )
    check_layout(a, slotarray_slots(a), CACHE_LINE)
    if a is not NULL:
        a.room = <uint32_t>room
        a.ids_room = <uint32_t>ids_room
        a.ids = <int32_t *>(slotarray_slots(a) + room)
    return a


cdef int arrayspace_init(arrayspace *sp, uint32_t as_id, uint32_t nspaces) noexcept nogil:
    sp.active = slotarray_new(LEAST_ROOM, LEAST_ROOM)
    sp.retired = slotarray_new(LEAST_ROOM, LEAST_ROOM)
    if sp.active is NULL or sp.retired is NULL:
        arrayspace_clear(sp)
        return -1
    sp.active.generation = as_id
    sp.as_id = as_id
    sp.nspaces = nspaces
    return 0


cdef void arrayspace_clear(arrayspace *sp) noexcept nogil:
    alloc_free(sp.active)
    alloc_free(sp.retired)
    sp.active = NULL
    sp.retired = NULL


cdef int arrayspace_get_room(arrayspace *sp, uint32_t count, uint64_t nids) noexcept nogil:
    cdef slotarray *larger
    if count <= sp.retired.room and nids <= sp.retired.ids_room:
        return 0
    larger = slotarray_new(grown(count), grown(nids))
    if larger is NULL:
        return -1
    alloc_free(sp.retired)
    sp.retired = larger
    return 0


cdef uint32_t rank(const slotarray *a, gfn_t base_gfn) noexcept nogil:
    """Returns the number of slots that begin at a gfn or before it."""
    cdef array_slot *s = slotarray_floor(a, base_gfn)
    return slotarray_index(a, s) + (s.base_gfn <= base_gfn and a.count != 0)


cdef void shift_ids(int32_t *ids, size_t nids, int32_t gone, int32_t place) noexcept nogil:
    """Renumbers the slots that shift when one slot goes from number `gone` to number `place`.

    All entries are read in order: the compiler makes that a few instructions for several entries.
    Going from slot to slot would jump about in the table.
    """
    cdef int32_t first = gone + 1 if gone < place else place
    cdef int32_t last = place if gone < place else gone - 1
    cdef int32_t step = -1 if gone < place else 1
    cdef size_t id
    if first > last:
        return
    for id in range(nids):
        ids[id] += step * (<int32_t>(ids[id] >= first) & <int32_t>(ids[id] <= last))


cdef void put_id(slotarray *a, uint32_t id, int32_t index) noexcept nogil:
    if id >= a.nids:
        memset(a.ids + a.nids, 0xFF, (id - a.nids) * sizeof(int32_t))  # NO_INDEX
        a.nids = id + 1
    a.ids[id] = index
    while a.nids != 0 and a.ids[a.nids - 1] == NO_INDEX:
        a.nids -= 1


cdef uint32_t renumbered(uint32_t index, size_t gone, size_t place) noexcept nogil:
    """Returns the new number of slot `index` when one goes from number `gone` to `place`."""
    if index == gone:
        return <uint32_t>place
    if gone < index <= place:
        return index - 1
    return index + 1 if place <= index < gone else index


cdef void put(
    const slotarray *a, slotarray *to, int32_t gone, const array_slot *item
) noexcept nogil:
    """Makes `to` (which may be `a` itself) a copy of `a`, without slot `gone` and with `item`.

         lo        hi                 lo        hi
      ...|x|.......|...            ...|........|x|...      x: the place of `gone`, or of `item`;
         item   ◄── gone              gone ──►   item         what lies between moves by one
    """
    cdef const array_slot *old = slotarray_slots(a)
    cdef array_slot *new = slotarray_slots(to)
    cdef size_t count = a.count
    # A slot that is only added comes from past the last one; a slot that is only removed goes
    # there.
    cdef size_t leaves = count if gone == NO_INDEX else <size_t>gone
    cdef size_t place = count - 1
    cdef size_t lo
    cdef size_t hi
    cdef uint32_t gone_id = 0
    to.npages = a.npages
    if gone != NO_INDEX:
        gone_id = old[leaves].id
        to.npages -= old[leaves].npages
    if item is not NULL:
        to.npages += item.npages
        place = rank(a, item.base_gfn)
        if gone != NO_INDEX and old[leaves].base_gfn <= item.base_gfn:
            place -= 1
    lo = min(leaves, place)
    hi = max(leaves, place)
    if to is not a:
        memcpy(new, old, lo * sizeof(array_slot))
        if hi + 1 < count:
            memcpy(new + hi + 1, old + hi + 1, (count - hi - 1) * sizeof(array_slot))
        memcpy(to.ids, a.ids, a.nids * sizeof(int32_t))
        to.nids = a.nids
    if leaves < place:
        memmove(new + lo, old + lo + 1, (hi - lo) * sizeof(array_slot))
    else:
        memmove(new + lo + 1, old + lo, (hi - lo) * sizeof(array_slot))
    to.last_used = renumbered(a.last_used, leaves, place)
    shift_ids(to.ids, to.nids, <int32_t>leaves, <int32_t>place)
    to.count = <uint32_t>(count - (gone != NO_INDEX) + (item is not NULL))
    if item is not NULL:
        new[place] = item[0]
        put_id(to, item.id, <int32_t>place)
    else:
        put_id(to, gone_id, NO_INDEX)
    if to.last_used >= to.count:
        to.last_used = 0
    if to.count == 0:
        memset(new, 0, sizeof(array_slot))


cdef void arrayspace_copy(arrayspace *sp, int32_t gone, const array_slot *item) noexcept nogil:
    debug_assert(
        sp.active.count + (item is not NULL) <= sp.retired.room + (gone != NO_INDEX),
        b"arrayspace_copy: room was got for it",
    )
    put(sp.active, sp.retired, gone, item)


cdef void arrayspace_edit(arrayspace *sp, int32_t gone, const array_slot *item) noexcept nogil:
    put(sp.retired, sp.retired, gone, item)


cdef void arrayspace_publish(arrayspace *sp) noexcept nogil:
    cdef slotarray *next = sp.retired
    next.generation = sp.active.generation + sp.nspaces
    sp.retired = sp.active
    sp.active = next


cdef array_slot *slotarray_overlap(
    const slotarray *a, gfn_t base_gfn, uint64_t npages, const array_slot *except_for
) noexcept nogil:
    cdef array_slot *s = slotarray_slots(a) + slotarray_first_from(a, base_gfn)
    cdef array_slot *end = slotarray_slots(a) + a.count
    if s != end and s == except_for:
        s += 1
    return s if s != end and s.base_gfn < base_gfn + npages else NULL


cdef uint32_t slotarray_next_hva(
    const slotarray *a, uint32_t index, hva_t first, hva_t last
) noexcept nogil:
    cdef const array_slot *s = slotarray_slots(a)
    cdef hva_t hva
    while index < a.count:
        hva = s[index].userspace_addr
        if hva <= last and hva + (s[index].npages << PAGE_SHIFT) - 1 >= first:
            break
        index += 1
    return index


cdef void slotarray_ids(
    slotarray *a, array_cache *own, const gfn_t *gfns, int32_t *out, size_t count
) noexcept nogil:
    cdef array_slot *s
    cdef size_t i
    for i in range(count):
        s = slotarray_lookup(a, own, gfns[i])
        out[i] = <int32_t>s.id if s is not NULL else -1


cdef hva_t slotarray_hva(slotarray *a, array_cache *own, gpa_t gpa, bint write) noexcept nogil:
    cdef gfn_t gfn = gpa_to_gfn(gpa)
    cdef array_slot *found = slotarray_lookup(a, own, gfn)
    cdef slot s
    if found is NULL:
        return BAD_HVA
    slot_from_array(found, 0, &s)
    if not slot_usable(&s, write):
        return BAD_HVA
    return slot_gfn_to_hva(&s, gfn) + (gpa & PAGE_OFFSET_MASK)


cdef void slotarray_hvas(
    slotarray *a, array_cache *own, const gpa_t *gpas, hva_t *out, size_t count, bint write
) noexcept nogil:
    cdef size_t i
    for i in range(count):
        out[i] = slotarray_hva(a, own, gpas[i], write)


cdef void slotarray_mark_dirty(
    slotarray *a, array_cache *own, const gfn_t *gfns, size_t count
) noexcept nogil:
    cdef array_slot *found
    cdef slot s
    cdef size_t i
    for i in range(count):
        found = slotarray_lookup(a, own, gfns[i])
        if found is not NULL:
            slot_from_array(found, 0, &s)
            dirty_mark(&s, gfns[i])


cdef bint log_agrees(const array_slot *s) noexcept nogil:
    """Returns whether D1 holds for the slot."""
    if (s.dirty is not NULL) != (s.flags & SLOT_LOG_DIRTY_PAGES != 0):
        return False
    return s.dirty is NULL or s.npages & 63 == 0 or s.dirty[s.npages >> 6] >> (s.npages & 63) == 0


cdef property_id arrayspace_check(const arrayspace *sp, uint64_t *id) noexcept nogil:
    cdef const slotarray *a = sp.active
    cdef const array_slot *s = slotarray_slots(a)
    cdef uint64_t npages = 0
    cdef uint64_t end_gfn = 0
    cdef uint32_t used = 0
    cdef uint32_t n
    id[0] = ~<uint64_t>0
    if a.count > a.room or a.nids > a.ids_room:
        return S4
    if a.last_used >= max(a.count, <uint32_t>1):
        return S3
    for n in range(a.nids):
        used += a.ids[n] != NO_INDEX
    if used != a.count or (a.nids != 0 and a.ids[a.nids - 1] == NO_INDEX):
        return S1
    for n in range(a.count):
        id[0] = s[n].id
        if slotarray_by_id(a, s[n].id) != &s[n]:
            return S1
        if s[n].base_gfn < end_gfn or s[n].npages == 0:
            return S2
        if not log_agrees(&s[n]):
            return D1
        end_gfn = s[n].base_gfn + s[n].npages
        npages += s[n].npages
    id[0] = ~<uint64_t>0
    return HOLDS if npages == a.npages else S4
