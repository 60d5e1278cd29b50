"""The slots of an address space as one sorted array, as Linux kept them until 5.16.

Readers use the active array, which is never changed. A change copies all of it into the retired
array, changes that, and makes it the active one with the store of one pointer. The array that
retires is the memory of the next copy.

The slots themselves are in the array, without the nodes that a tree would need, so that a copy is
as small as possible. An array is one piece of memory: a header, the slots, the id table.

The properties are those of slotset.pxd that something here could break:

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
    uint64_t npages  # the number of pages; 0 only in the first place of an empty array
    hva_t userspace_addr  # the first byte's host address
    uint32_t id  # the caller's number for it
    uint32_t flags  # SLOT_*
    uint64_t *dirty  # its dirty log, as in slot.pxd; copies share it
    void *record  # its Slot; the writer holds one reference, however many arrays it is in

cdef struct slotarray:
    # One cache line; the slots follow it, then the id table.
    uint32_t last_used  # the number of the slot found last
    uint32_t count  # slots in the array
    uint64_t generation  # as in space.pxd; bit 63 is never set, since no swap waits
    int32_t *ids  # by id: the number of its slot, or NO_INDEX
    uint32_t nids  # entries of ids: one more than the greatest id in use
    uint32_t room  # the number of slots that fit, at least 1
    uint32_t ids_room  # the number of entries of ids that fit
    uint64_t npages  # the sum of the slots' npages
    uint64_t rest_of_line[2]

cdef struct arrayspace:
    slotarray *active  # what readers use
    slotarray *retired  # the array before it: memory for the next
    uint32_t as_id  # which address space this is
    uint32_t nspaces  # the number of address spaces, which a change adds to the generation

# A vCPU's last-used slot.
cdef struct array_cache:
    uint64_t generation  # of the array in which last_used was found; BAD_HVA: none
    uint32_t last_used  # the number of a slot; only valid at that generation
    uint64_t hits  # look-ups that last_used answered
    uint64_t misses  # look-ups that searched the array


# Makes an empty address space. Returns 0, or -1 if there is no memory (then there is nothing to
# clear).
cdef int arrayspace_init(arrayspace *sp, uint32_t as_id, uint32_t nspaces) noexcept nogil
# Frees the memory of the arrays. Dirty logs and records belong to others.
cdef void arrayspace_clear(arrayspace *sp) noexcept nogil
# Gets all the memory for a change that leaves `count` slots with ids below `nids`. Returns 0, or -1
# if there is no memory. O(1), or O(count + nids) when it grows: O(1) over many changes.
cdef int arrayspace_get_room(arrayspace *sp, uint32_t count, uint64_t nids) noexcept nogil
# Makes the retired array a copy of the active one, without slot number `gone` (NO_INDEX: no slot)
# and with `item` (NULL: no slot). Cannot fail. O(n).
cdef void arrayspace_copy(arrayspace *sp, int32_t gone, const array_slot *item) noexcept nogil
# Changes the retired array in the same way. The active array must be a copy of it, except for the
# slot `gone`. So only what lies between the two places is moved. O(n).
cdef void arrayspace_edit(arrayspace *sp, int32_t gone, const array_slot *item) noexcept nogil
# Makes the retired array the active one, under the next generation.
cdef void arrayspace_publish(arrayspace *sp) noexcept nogil
# Returns the first property that does not hold; `id` gets the id of its slot, or ~0 if there is
# none.
cdef property_id arrayspace_check(const arrayspace *sp, uint64_t *id) noexcept nogil


cdef inline array_slot *slotarray_slots(const slotarray *a) noexcept nogil:
    """Returns the first slot; in an empty array it has no pages."""
    return <array_slot *>(a + 1)


cdef inline bint array_slot_has_gfn(const array_slot *s, gfn_t gfn) noexcept nogil:
    return gfn - s.base_gfn < s.npages


cdef inline void slot_from_array(const array_slot *s, uint32_t as_id, slot *out) noexcept nogil:
    """Fills in `out`, the slot in the form that the rules, the refusals and the dirty logs read.

    The tree nodes of `out` are left as they are.
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
    """Returns the last slot that begins at or before `gfn`, or the first slot if none does.

    No branch depends on the comparisons. O(log n).
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
    """Returns the slot that has the gfn, or NULL, without using or setting last-used. O(log n)."""
    cdef array_slot *s = slotarray_floor(a, gfn)
    return s if array_slot_has_gfn(s, gfn) else NULL


cdef inline uint32_t slotarray_index(const slotarray *a, const array_slot *s) noexcept nogil:
    return <uint32_t>(s - slotarray_slots(a))


cdef inline array_slot *slotarray_lookup(
    slotarray *a, array_cache *own, gfn_t gfn
) noexcept nogil:
    """Returns the slot that has the gfn, or NULL.

    Uses the vCPU's cache, or the array's if `own` is NULL. O(log n), or O(1) if the slot is the
    last-used one.
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
    """Returns the slot of this id, or NULL. O(1)."""
    if id >= a.nids or a.ids[id] == NO_INDEX:
        return NULL
    return slotarray_slots(a) + a.ids[id]


cdef inline uint32_t slotarray_first_from(const slotarray *a, gfn_t gfn) noexcept nogil:
    """Returns the number of the first slot that ends after `gfn`, or a.count. O(log n)."""
    cdef array_slot *s = slotarray_floor(a, gfn)
    return slotarray_index(a, s) + (s.base_gfn + s.npages <= gfn and a.count != 0)


# Returns a slot that has a gfn in [base_gfn, base_gfn + npages), or NULL. Ignores `except_for`,
# which may be NULL. O(log n).
cdef array_slot *slotarray_overlap(
    const slotarray *a, gfn_t base_gfn, uint64_t npages, const array_slot *except_for
) noexcept nogil
# Returns the number of the first slot that has a host byte in [first, last], or a.count. The search
# starts at number `index`. O(n).
cdef uint32_t slotarray_next_hva(
    const slotarray *a, uint32_t index, hva_t first, hva_t last
) noexcept nogil


# Many look-ups at once, as in lookup.pxd.
cdef void slotarray_ids(
    slotarray *a, array_cache *own, const gfn_t *gfns, int32_t *out, size_t count
) noexcept nogil
cdef void slotarray_hvas(
    slotarray *a, array_cache *own, const gpa_t *gpas, hva_t *out, size_t count, bint write
) noexcept nogil
cdef void slotarray_mark_dirty(
    slotarray *a, array_cache *own, const gfn_t *gfns, size_t count
) noexcept nogil
# Returns the host address of a guest address, or BAD_HVA.
cdef hva_t slotarray_hva(slotarray *a, array_cache *own, gpa_t gpa, bint write) noexcept nogil
