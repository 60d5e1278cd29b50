"""The rules of set_region. The contract of each function is in region.pxd."""

from memslots.core.slot cimport (
    SLOT_CALLER_FLAGS,
    SLOT_GUEST_MEMFD,
    SLOT_KNOWN_FLAGS,
    SLOT_READONLY,
    slot_number_as_id,
    slot_number_id,
)
from memslots.core.slotset cimport slotset_overlap
from memslots.core.units cimport PAGE_SHIFT, gfn_range_fits, gpa_to_gfn, page_aligned

cdef enum:
    MAX_NPAGES = 0x7FFFFFFF  # rule 4


cdef refusal region_from_bytes(
    const limits *lim,
    uint32_t slot_arg,
    uint32_t flags,
    gpa_t guest_phys_addr,
    uint64_t memory_size,
    hva_t userspace_addr,
    region *out,
) noexcept nogil:
    out.id = slot_number_id(slot_arg)
    out.as_id = slot_number_as_id(slot_arg)
    out.flags = flags
    out.base_gfn = gpa_to_gfn(guest_phys_addr)
    out.npages = gpa_to_gfn(memory_size)
    out.userspace_addr = userspace_addr
    cdef refusal why = region_check(lim, out)
    if why == ALLOWED and not page_aligned(memory_size):
        why = SIZE_NOT_ALIGNED
    if why == ALLOWED and not page_aligned(guest_phys_addr):
        why = GPA_NOT_ALIGNED
    return why


cdef refusal region_check(const limits *lim, const region *r) noexcept nogil:
    cdef uint32_t known = SLOT_KNOWN_FLAGS if r.guest_memfd else SLOT_CALLER_FLAGS
    if r.flags & ~known:
        return UNKNOWN_FLAGS
    if r.flags & SLOT_GUEST_MEMFD:
        if r.flags & SLOT_CALLER_FLAGS:
            return FLAGS_EXCLUDE
        if not page_aligned(r.guest_memfd_offset):
            return OFFSET_NOT_ALIGNED
    if not page_aligned(r.userspace_addr):
        return HVA_NOT_ALIGNED
    if r.as_id >= lim.nspaces:
        return NO_SUCH_SPACE
    if r.id >= lim.max_slots:
        return ID_BEYOND_MAX
    if not gfn_range_fits(r.base_gfn, r.npages):
        return GPA_WRAPS
    # The range fits 64 bits now (rule 2), so the shift loses no bits.
    if r.userspace_addr > lim.max_hva or r.npages << PAGE_SHIFT > lim.max_hva - r.userspace_addr:
        return HVA_BEYOND_MAX
    if (
        r.flags & SLOT_GUEST_MEMFD
        and r.guest_memfd_offset + (r.npages << PAGE_SHIFT) < r.guest_memfd_offset
    ):
        return OFFSET_WRAPS
    return ALLOWED


cdef refusal region_classify(
    slot *old, const region *r, bint creates, ruling *out
) noexcept nogil:
    out.old = old
    out.existing = NULL
    out.before = NULL
    out.kind = CHANGE_NONE
    if r.npages == 0:
        if creates:
            return NO_PAGES
        out.kind = CHANGE_DELETE
        return ALLOWED if old is not NULL else NO_SUCH_SLOT
    if r.npages > MAX_NPAGES:
        return TOO_MANY_PAGES
    if old is NULL:
        out.kind = CHANGE_CREATE
    else:
        if creates:
            return ID_IN_USE
        if (r.flags | old.flags) & SLOT_GUEST_MEMFD:
            return ONLY_DELETED
        if r.userspace_addr != old.userspace_addr:
            return HVA_DIFFERS
        if r.npages != old.npages:
            return NPAGES_DIFFER
        if (r.flags ^ old.flags) & SLOT_READONLY:
            return READONLY_TOGGLES
        if r.base_gfn != old.base_gfn:
            out.kind = CHANGE_MOVE
        elif r.flags != old.flags:
            out.kind = CHANGE_FLAGS_ONLY
    return ALLOWED


cdef refusal region_place(const slotset *set, const region *r, ruling *p) noexcept nogil:
    if p.kind == CHANGE_CREATE or p.kind == CHANGE_MOVE:
        p.existing = slotset_overlap(set, r.base_gfn, r.npages, p.old, &p.before)
    return ALLOWED if p.existing is NULL else OVERLAPS
