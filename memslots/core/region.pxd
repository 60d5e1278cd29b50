"""The rules of set_region: what a caller's region asks for, and whether it may have it.

The numbers are those of docs/rules.md: in that order, the first rule that applies decides.
"""

from libc.stdint cimport uint32_t, uint64_t

from memslots.core.slot cimport region, slot
from memslots.core.slotset cimport slotset
from memslots.core.units cimport gfn_t, gpa_t, hva_t

cdef struct limits:
    uint32_t max_slots  # an id is below it
    uint32_t nspaces  # an as_id is below it
    gfn_t max_gfn  # the highest gfn a slot may hold
    hva_t max_hva  # a slot's last host byte is below it
    uint32_t manual_dirty_log  # 0, 1 or 3, as KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 takes it

cdef enum refusal:
    ALLOWED = 0
    # rule 1
    UNKNOWN_FLAGS
    # rule G1
    FLAGS_EXCLUDE  # each other
    # rule 2
    SIZE_NOT_ALIGNED
    GPA_NOT_ALIGNED
    HVA_NOT_ALIGNED
    HVA_BEYOND_MAX
    NO_SUCH_SPACE
    ID_BEYOND_MAX
    GPA_WRAPS
    # rule G2
    OFFSET_NOT_ALIGNED
    OFFSET_WRAPS
    # rule 3, and the operations that need a slot
    NO_SUCH_SLOT
    # rule 4
    TOO_MANY_PAGES
    # rule G5
    ONLY_DELETED  # a slot of a guest_memfd can be, and no other can become one
    # rule 5
    HVA_DIFFERS
    NPAGES_DIFFER
    READONLY_TOGGLES
    # rule 6
    OVERLAPS
    # rule 7
    BEYOND_MAX_GFN
    # create's own
    NO_PAGES
    ID_IN_USE
    # memory
    NO_MEMORY

cdef enum change_kind:
    CHANGE_NONE
    CHANGE_CREATE
    CHANGE_DELETE
    CHANGE_MOVE
    CHANGE_FLAGS_ONLY

# What the rules say of a region: which change it asks for, and what it is about.
cdef struct ruling:
    change_kind kind
    slot *old  # the slot of this id, or NULL
    slot *existing  # with OVERLAPS: the slot in the way
    slot *before  # once rule 6 allowed a CREATE: the slot that it comes after by gfn, or NULL


# Rules 1 and 2 for the call in bytes, and the region that it names, but for its guest_memfd, which
# `out` has. `slot_arg` has the space in bits 16 to 31.
cdef refusal region_from_bytes(
    const limits *lim,
    uint32_t slot_arg,
    uint32_t flags,
    gpa_t guest_phys_addr,
    uint64_t memory_size,
    hva_t userspace_addr,
    region *out,
) noexcept nogil
# Rules 1, 2, G1 and G2 for a region in pages.
cdef refusal region_check(const limits *lim, const region *r) noexcept nogil
# Rules 3 to 5, against the slot of the region's id, or NULL. With `creates`, as the method create
# asks: there must be pages, and the id must be in no use. O(1).
cdef refusal region_classify(
    slot *old, const region *r, bint creates, ruling *out
) noexcept nogil
# Rule 6, for what region_classify allowed. (A transaction asks it at its end, with slotset_clash.)
# O(log n).
cdef refusal region_place(const slotset *set, const region *r, ruling *p) noexcept nogil


cdef inline bint region_beyond_max_gfn(const limits *lim, const region *r) noexcept nogil:
    """Rule 7, which comes late: after rule 6, and for a move after the slot was marked INVALID."""
    return r.base_gfn + r.npages - 1 > lim.max_gfn
