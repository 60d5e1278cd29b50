"""The error that says why the core refused a call: which rule, which slot, which values."""

import errno

from libc.stdint cimport uint32_t

from memslots.core.region cimport (
    ALLOWED,
    BEYOND_MAX_GFN,
    FLAGS_EXCLUDE,
    GPA_NOT_ALIGNED,
    GPA_WRAPS,
    HVA_BEYOND_MAX,
    HVA_DIFFERS,
    HVA_NOT_ALIGNED,
    ID_BEYOND_MAX,
    ID_IN_USE,
    NO_MEMORY,
    NO_PAGES,
    NO_SUCH_SLOT,
    NO_SUCH_SPACE,
    NPAGES_DIFFER,
    OFFSET_NOT_ALIGNED,
    OFFSET_WRAPS,
    ONLY_DELETED,
    OVERLAPS,
    READONLY_TOGGLES,
    SIZE_NOT_ALIGNED,
    TOO_MANY_PAGES,
    UNKNOWN_FLAGS,
    region_check,
)
from memslots.core.slot cimport SLOT_GUEST_MEMFD
from memslots.core.units cimport gpa_to_gfn
from memslots.values.records cimport region_record

from memslots.errors import (
    InvalidRegionError,
    NoRoomError,
    NoSuchSlotError,
    NotMappedError,
    OverlapError,
    ReadOnlyError,
)


cdef object rule_of(refusal why):
    """Returns the number of the rule in docs/rules.md."""
    if why == FLAGS_EXCLUDE:
        return "G1"
    if why in (OFFSET_NOT_ALIGNED, OFFSET_WRAPS):
        return "G2"
    if why == ONLY_DELETED:
        return "G5"
    if why == UNKNOWN_FLAGS:
        return 1
    if why == NO_SUCH_SLOT:
        return 3
    if why == TOO_MANY_PAGES:
        return 4
    if why in (HVA_DIFFERS, NPAGES_DIFFER, READONLY_TOGGLES, ID_IN_USE):
        return 5
    if why == OVERLAPS:
        return 6
    if why == BEYOND_MAX_GFN:
        return 7
    return 2


cdef str reason(refusal why, const limits *lim, const region *r, const ruling *p, str given):
    cdef object old = <object>p.old.record if p is not NULL and p.old is not NULL else None
    if why == UNKNOWN_FLAGS:
        also = "" if r.guest_memfd else "; set_region2 knows GUEST_MEMFD (4)"
        return (
            f"unknown flag bits in {r.flags:#x}; known are LOG_DIRTY_PAGES (1) and READONLY (2)"
            f"{also if r.flags & SLOT_GUEST_MEMFD else ''}"
        )
    if why == FLAGS_EXCLUDE:
        return f"flags {r.flags:#x}: GUEST_MEMFD (4) excludes all other flags"
    if why == OFFSET_NOT_ALIGNED:
        return f"guest_memfd_offset {r.guest_memfd_offset:#x} is not a multiple of 4096"
    if why == OFFSET_WRAPS:
        return (
            f"{r.npages:#x} pages from guest_memfd_offset {r.guest_memfd_offset:#x} do not fit"
            " 64 bits"
        )
    if why == ONLY_DELETED:
        return f"with GUEST_MEMFD a slot can only be created and deleted; there is {old}"
    if why == SIZE_NOT_ALIGNED:
        return f"memory_size {given} is not a multiple of the page size, 4096"
    if why == GPA_NOT_ALIGNED:
        return f"guest_phys_addr {given} is not a multiple of the page size, 4096"
    if why == HVA_NOT_ALIGNED:
        return f"userspace_addr {r.userspace_addr:#x} is not a multiple of the page size, 4096"
    if why == HVA_BEYOND_MAX:
        return (
            f"host range [{r.userspace_addr:#x}, {r.userspace_addr + (int(r.npages) << 12):#x})"
            f" ends beyond max_hva {lim.max_hva:#x}"
        )
    if why == NO_SUCH_SPACE:
        return f"there is no address space {r.as_id}; address_spaces is {lim.nspaces}"
    if why == ID_BEYOND_MAX:
        return f"the id is not below max_slots {lim.max_slots}"
    if why == GPA_WRAPS:
        return f"{r.npages:#x} pages from gfn {r.base_gfn:#x} do not fit a 64-bit guest address"
    if why == NO_SUCH_SLOT:
        return "there is no such slot"
    if why == TOO_MANY_PAGES:
        return f"{r.npages:#x} pages are more than 2**31 - 1"
    if why == NO_PAGES:
        return "npages must be at least 1"
    if why == ID_IN_USE:
        return f"the id is in use, by {old}; delete that slot first, or use move or set_flags"
    if why == HVA_DIFFERS:
        return f"userspace_addr {r.userspace_addr:#x} differs; delete {old} and create it anew"
    if why == NPAGES_DIFFER:
        return f"npages {r.npages:#x} differs; delete {old} and create it anew"
    if why == READONLY_TOGGLES:
        return f"READONLY cannot be turned on or off; delete {old} and create it anew"
    if why == OVERLAPS:
        return (
            f"gfn [{r.base_gfn:#x}, {r.base_gfn + r.npages:#x}) overlaps"
            f" {<object>p.existing.record}"
        )
    # BEYOND_MAX_GFN
    return f"the last gfn {r.base_gfn + r.npages - 1:#x} is above max_gfn {lim.max_gfn:#x}"


cdef object refusal_error(
    refusal why, const limits *lim, const region *r, const ruling *p, str given
):
    if why == NO_MEMORY:
        return MemoryError(f"no memory for a change of slot {r.id}")
    rule = rule_of(why)
    cdef str text = f"slot {r.id} of address space {r.as_id}, rule {rule}: "
    text += reason(why, lim, r, p, given)
    if why == OVERLAPS:
        return OverlapError(
            errno.EEXIST,
            text,
            rule,
            existing=<object>p.existing.record,
            requested=region_record(r),
        )
    if why == NO_SUCH_SLOT:
        return NoSuchSlotError(errno.EINVAL, text, rule)
    return InvalidRegionError(errno.EINVAL, text, rule)


cdef int check_region(const limits *lim, const region *r) except -1:
    cdef refusal why = region_check(lim, r)
    if why != ALLOWED:
        raise refusal_error(why, lim, r, NULL, "")
    return 0


cdef int check_as_id(const limits *lim, uint32_t as_id) except -1:
    if as_id >= lim.nspaces:
        raise InvalidRegionError(
            errno.EINVAL,
            f"rule 2: there is no address space {as_id}; address_spaces is {lim.nspaces}",
            2,
        )
    return 0


cdef int check_id(const limits *lim, uint32_t id, uint32_t as_id) except -1:
    cdef region r
    r.id = id
    r.as_id = as_id
    r.flags = 0
    r.base_gfn = 0
    r.npages = 0
    r.userspace_addr = 0
    r.guest_memfd = 0
    r.guest_memfd_offset = 0
    return check_region(lim, &r)


cdef object room_for(uint32_t id, uint32_t as_id, uint32_t max_slots):
    if id >= max_slots:
        raise NoRoomError(
            errno.ENOSPC, f"address space {as_id} has no free id: max_slots is {max_slots}"
        )
    return id


cdef object access_error(
    gpa_t gpa, bint inside, bint readable, object last_record, object next_record
):
    cdef str text = f"gpa {gpa:#x} (gfn {gpa_to_gfn(gpa):#x})"
    if inside and readable:
        return ReadOnlyError(errno.EFAULT, f"{text} is in {next_record}, which cannot be written")
    if inside:
        return NotMappedError(
            errno.EFAULT, f"{text} is in {next_record}, which is being deleted or moved"
        )
    text += " is in no slot"
    if last_record is not None:
        text += f"; before it is {last_record}"
    if next_record is not None:
        text += f"; after it is {next_record}"
    return NotMappedError(errno.EFAULT, text)
