"""The changes that a caller can ask for, on any Target (operations.pxd)."""

from libc.stdint cimport uint32_t, uint64_t

from memslots.core.region cimport (
    ALLOWED,
    NO_SUCH_SLOT,
    SIZE_NOT_ALIGNED,
    refusal,
    region_from_bytes,
)
from memslots.core.slot cimport SLOT_GUEST_MEMFD
from memslots.core.slot cimport slot as slot_t
from memslots.core.slot cimport slot_region
from memslots.core.units cimport gfn_t, hva_t
from memslots.values.integers cimport u32, u64
from memslots.values.records cimport record_region
from memslots.values.rules cimport check_id, check_region, refusal_error

from memslots.values.records import Change

# Indexed by change_kind.
cdef tuple CHANGES = (Change.NONE, Change.CREATE, Change.DELETE, Change.MOVE, Change.FLAGS_ONLY)


cdef object change_record(change_kind kind):
    return CHANGES[<int>kind]


cdef class Target:
    cdef int enter(self, str what) except -1:
        raise TypeError("not to be made")

    cdef void leave(self) noexcept:
        pass

    cdef slot_t *find(self, uint32_t id, uint32_t as_id) noexcept:
        return NULL

    cdef uint32_t lowest_id(self, uint32_t as_id) except? 0xFFFFFFFF:
        raise TypeError("not to be made")

    cdef object make(self, const region *r, slot_t *old, bint creates, change_kind *kind):
        raise TypeError("not to be made")


cdef slot_t *slot_of(Target to, region *r, uint32_t id, uint32_t as_id) except NULL:
    """Returns the slot of an id, and in *r its region. Raises if there is no such slot."""
    cdef slot_t *found
    check_id(to.lim, id, as_id)
    found = to.find(id, as_id)
    if found is NULL:
        r.id = id
        r.as_id = as_id
        raise refusal_error(NO_SUCH_SLOT, to.lim, r, NULL, "")
    r[0] = slot_region(found)
    return found


cdef object set_region(
    Target to, region *r, uint32_t slot_arg, uint32_t bits, object gpa, object size, object hva
):
    """Makes the change of a call in bytes. The caller has set the file of guest memory in *r."""
    cdef change_kind kind
    cdef uint64_t address = u64(gpa, "guest_phys_addr")
    cdef uint64_t length = u64(size, "memory_size")
    cdef hva_t host = u64(hva, "userspace_addr")
    cdef refusal why
    to.enter("a change")
    try:
        why = region_from_bytes(to.lim, slot_arg, bits, address, length, host, r)
        if why != ALLOWED:
            given = f"{length if why == SIZE_NOT_ALIGNED else address:#x}"
            raise refusal_error(why, to.lim, r, NULL, given)
        to.make(r, to.find(r.id, r.as_id), False, &kind)
        return change_record(kind)
    finally:
        to.leave()


cdef object operation_set_region(
    Target to, object slot, object flags, object gpa, object size, object hva
):
    cdef region r
    cdef uint32_t slot_arg = u32(slot, "slot")
    cdef uint32_t bits = u32(flags, "flags")
    r.guest_memfd = 0
    r.guest_memfd_offset = 0
    return set_region(to, &r, slot_arg, bits, gpa, size, hva)


cdef object operation_set_region2(
    Target to,
    object slot,
    object flags,
    object gpa,
    object size,
    object hva,
    object guest_memfd,
    object guest_memfd_offset,
):
    cdef region r
    cdef uint32_t slot_arg = u32(slot, "slot")
    cdef uint32_t bits = u32(flags, "flags")
    r.guest_memfd = 0
    r.guest_memfd_offset = 0
    # Rule G2: without the flag, guest_memfd and guest_memfd_offset are ignored.
    if bits & SLOT_GUEST_MEMFD:
        from memslots.values.guestmemfd import number_of

        # `_found` keeps the file until the change is made or refused.
        _found = number_of(guest_memfd)
        r.guest_memfd = _found[0]
        r.guest_memfd_offset = u64(guest_memfd_offset, "guest_memfd_offset")
    return set_region(to, &r, slot_arg, bits, gpa, size, hva)


cdef object operation_create_slot(Target to, object record):
    cdef region r
    cdef change_kind kind
    record_region(record, &r)
    to.enter("a change")
    try:
        check_region(to.lim, &r)
        return to.make(&r, to.find(r.id, r.as_id), True, &kind)
    finally:
        to.leave()


cdef object operation_create(
    Target to, object slot, object base_gfn, object npages, object hva, object flags, object as_id
):
    cdef region r
    cdef change_kind kind
    r.id = u32(slot, "slot")
    r.base_gfn = u64(base_gfn, "base_gfn")
    r.npages = u64(npages, "npages")
    r.userspace_addr = u64(hva, "userspace_addr")
    r.flags = u32(flags, "flags")
    r.as_id = u32(as_id, "as_id")
    r.guest_memfd = 0
    r.guest_memfd_offset = 0
    to.enter("a change")
    try:
        check_region(to.lim, &r)
        return to.make(&r, to.find(r.id, r.as_id), True, &kind)
    finally:
        to.leave()


cdef object remake(
    Target to, object slot, object as_id, const gfn_t *base_gfn, const uint32_t *flags
):
    """Changes one field of a slot: the argument that is not NULL."""
    cdef region r
    cdef slot_t *old
    cdef change_kind kind
    cdef uint32_t id = u32(slot, "slot")
    cdef uint32_t space_id = u32(as_id, "as_id")
    to.enter("a change")
    try:
        old = slot_of(to, &r, id, space_id)
        if base_gfn is not NULL:
            r.base_gfn = base_gfn[0]
        if flags is not NULL:
            r.flags = flags[0]
        check_region(to.lim, &r)
        return to.make(&r, old, False, &kind)
    finally:
        to.leave()


cdef object operation_move(Target to, object slot, object base_gfn, object as_id):
    cdef gfn_t base = u64(base_gfn, "base_gfn")
    return remake(to, slot, as_id, &base, NULL)


cdef object operation_set_flags(Target to, object slot, object flags, object as_id):
    cdef uint32_t bits = u32(flags, "flags")
    return remake(to, slot, as_id, NULL, &bits)


cdef object operation_delete(Target to, object slot, object as_id):
    cdef region r
    cdef slot_t *old
    cdef change_kind kind
    cdef uint32_t id = u32(slot, "slot")
    cdef uint32_t space_id = u32(as_id, "as_id")
    to.enter("a change")
    try:
        old = slot_of(to, &r, id, space_id)
        was = <object>old.record
        r.npages = 0
        to.make(&r, old, False, &kind)
        return was
    finally:
        to.leave()
