"""The slots of an address space as one sorted array, as Linux kept them until 5.16.

Readers use the active array, which is never changed: a change copies all of it into the retired
one, changes that, and makes it the active one with the store of one pointer. The array that retires
is the memory of the next copy.

The slots themselves are in the array, without anything that a tree would want, so that a copy is as
small as can be; and an array is one piece of memory: a header, the slots, the id table.

The properties are those of slotset.pxd, as far as there is something that could break them:

  S1  the id table and the array hold the same slots
  S2  the slots are in order of base_gfn, and no two share a gfn
  S3  last-used is the number of a slot, or 0
  S4  the count of pages agrees with the slots
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from memslots.core.invariants cimport property_id
from memslots.core.slot cimport slot, slot_gfn_to_hva
from memslots.core.units cimport PAGE_SHIFT, gfn_t, gpa_t, hva_t

cdef enum:
    NO_INDEX = -1  # in an id table: the id is not in use

cdef struct array_slot:
    gfn_t base_gfn  # the first guest page
    uint64_t npages  # how many pages; 0 only in the first place of an empty array
    hva_t userspace_addr  # the first byte's host address
    uint32_t id  # the caller's number for it
    uint32_t flags  # SLOT_*
    uint64_t *dirty  # its dirty log, as in slot.pxd; copies share it
    void *record  # its Slot; the writer's reference, however many arrays it is in

cdef struct slotarray:
    # One cache line; the slots follow it, then the id table.
    uint32_t last_used  # the number of the slot found last
    uint32_t count  # slots in the array
    uint64_t generation  # as in space.pxd; no swap is ever seen under way
    int32_t *ids  # by id: the number of its slot, or NO_INDEX
    uint32_t nids  # entries of ids: one more than the greatest id in use
    uint32_t room  # for so many slots, at least 1
    uint32_t ids_room  # for so many entries of ids
    uint64_t npages  # the sum of the slots' npages
    uint64_t rest_of_line[2]

cdef struct arrayspace:
    slotarray *active  # what readers use
    slotarray *retired  # the one before it: memory for the next
    uint32_t as_id  # which address space this is
    uint32_t nspaces  # how many there are: what a change adds to the generation

# A vCPU's last-used slot.
cdef struct array_cache:
    uint64_t generation  # of the array that last_used was found in; BAD_HVA: of none
    uint32_t last_used  # the number of a slot; at any other generation it may be another's
    uint64_t hits  # look-ups that last_used answered
    uint64_t misses  # look-ups that went to the array


# Makes an empty address space. 0, or -1: no memory, and nothing to clear.
cdef int arrayspace_init(arrayspace *sp, uint32_t as_id, uint32_t nspaces) noexcept nogil
# Gives back the memory of the arrays; dirty logs and records are not their own.
cdef void arrayspace_clear(arrayspace *sp) noexcept nogil
# Gets all the memory that a change may need which leaves `count` slots with ids below `nids`. 0, or
# -1: no memory. O(1), or O(count + nids) when it grows: O(1) over many.
cdef int arrayspace_get_room(arrayspace *sp, uint32_t count, uint64_t nids) noexcept nogil
# Makes the retired array what the active one is, but that slot number `gone` (NO_INDEX: none) is
# out and `item` (NULL: none) is in. Cannot fail. O(n).
cdef void arrayspace_copy(arrayspace *sp, int32_t gone, const array_slot *item) noexcept nogil
# The same to a retired array that the active one is a copy of but for the slot `gone`: only what
# lies between the two places is moved. O(n).
cdef void arrayspace_edit(arrayspace *sp, int32_t gone, const array_slot *item) noexcept nogil
# Makes the retired array the active one, under the next generation.
cdef void arrayspace_publish(arrayspace *sp) noexcept nogil
# The first property that does not hold, with the id of the slot where there is one (otherwise ~0).
cdef property_id arrayspace_check(const arrayspace *sp, uint64_t *id) noexcept nogil


cdef inline array_slot *slotarray_slots(const slotarray *a) noexcept nogil:
    """The first slot; in an empty array one of no pages."""
    return <array_slot *>(a + 1)


cdef inline bint array_slot_has_gfn(const array_slot *s, gfn_t gfn) noexcept nogil:
    return gfn - s.base_gfn < s.npages


cdef inline void slot_from_array(const array_slot *s, uint32_t as_id, slot *out) noexcept nogil:
    """The slot in the form that the rules, the refusals and the dirty logs read.

    Its tree nodes are left as they are.
    """
    out.base_gfn = s.base_gfn
    out.npages = s.npages
    out.userspace_addr = s.userspace_addr
    out.last_hva = s.userspace_addr + (s.npages << PAGE_SHIFT) - 1
    out.guest_memfd = 0
    out.guest_memfd_offset = 0
    out.id = s.id
    out.as_id = as_id
    out.flags = s.flags
    out.dirty = s.dirty
    out.record = s.record


cdef inline array_slot *slotarray_floor(const slotarray *a, gfn_t gfn) noexcept nogil:
    """The last slot that begins at `gfn` or before it; the first one where none does.

    No branch depends on what is compared. O(log n).
    """
    cdef array_slot *s = slotarray_slots(a)
    cdef size_t left = a.count
    cdef size_t half
    while left > 1:
        half = left >> 1
        s = s + half if s[half].base_gfn <= gfn else s
        left -= half
    return s


cdef inline array_slot *slotarray_search(const slotarray *a, gfn_t gfn) noexcept nogil:
    """The slot that has the gfn, or NULL; last-used is neither asked nor told. O(log n)."""
    cdef array_slot *s = slotarray_floor(a, gfn)
    return s if array_slot_has_gfn(s, gfn) else NULL


cdef inline uint32_t slotarray_index(const slotarray *a, const array_slot *s) noexcept nogil:
    return <uint32_t>(s - slotarray_slots(a))


cdef inline array_slot *slotarray_lookup(
    slotarray *a, array_cache *own, gfn_t gfn
) noexcept nogil:
    """The slot that has the gfn, or NULL.

    By way of the vCPU's cache, or of the array's where `own` is NULL. O(log n), O(1) where it is
    the last-used slot.
    """
    cdef array_slot *s
    if own is NULL:
        s = slotarray_slots(a) + a.last_used
        if array_slot_has_gfn(s, gfn):
            return s
        s = slotarray_search(a, gfn)
        if s is not NULL:
            a.last_used = slotarray_index(a, s)
        return s
    if own.generation == a.generation:
        s = slotarray_slots(a) + own.last_used
        if array_slot_has_gfn(s, gfn):
            own.hits += 1
            return s
    own.misses += 1
    s = slotarray_search(a, gfn)
    if s is not NULL:
        own.last_used = slotarray_index(a, s)
        own.generation = a.generation
    return s


cdef inline array_slot *slotarray_by_id(const slotarray *a, uint32_t id) noexcept nogil:
    """The slot of this id, or NULL. O(1)."""
    if id >= a.nids or a.ids[id] == NO_INDEX:
        return NULL
    return slotarray_slots(a) + a.ids[id]


cdef inline uint32_t slotarray_first_from(const slotarray *a, gfn_t gfn) noexcept nogil:
    """The number of the first slot that ends after `gfn`, or how many there are. O(log n)."""
    cdef array_slot *s = slotarray_floor(a, gfn)
    return slotarray_index(a, s) + (s.base_gfn + s.npages <= gfn and a.count != 0)


# A slot other than `except_for` (may be NULL) that has a gfn in [base_gfn, base_gfn + npages), or
# NULL. O(log n).
cdef array_slot *slotarray_overlap(
    const slotarray *a, gfn_t base_gfn, uint64_t npages, const array_slot *except_for
) noexcept nogil
# The number of the first slot from number `index` on that has a host byte in [first, last], or how
# many there are. O(n).
cdef uint32_t slotarray_next_hva(
    const slotarray *a, uint32_t index, hva_t first, hva_t last
) noexcept nogil


# Many look-ups at once: as in lookup.pxd.
cdef void slotarray_ids(
    slotarray *a, array_cache *own, const gfn_t *gfns, int32_t *out, size_t count
) noexcept nogil
cdef void slotarray_hvas(
    slotarray *a, array_cache *own, const gpa_t *gpas, hva_t *out, size_t count, bint write
) noexcept nogil
cdef void slotarray_mark_dirty(
    slotarray *a, array_cache *own, const gfn_t *gfns, size_t count
) noexcept nogil
# The host address of a guest address, or BAD_HVA.
cdef hva_t slotarray_hva(slotarray *a, array_cache *own, gpa_t gpa, bint write) noexcept nogil
