"""The rules of set_region: which change a region asks for, and whether the rules allow it.

The rules have the numbers of docs/rules.md. In that order, the first rule that applies decides.
"""

from libc.stdint cimport uint32_t, uint64_t

from memslots.core.slot cimport region, slot
from memslots.core.slotset cimport slotset
from memslots.core.units cimport gfn_t, gpa_t, hva_t

cdef struct limits:
    uint32_t max_slots  # every id is below max_slots
    uint32_t nspaces  # every as_id is below nspaces
    gfn_t max_gfn  # the highest gfn that a slot may hold
    hva_t max_hva  # every slot's last host byte is below max_hva
    uint32_t manual_dirty_log  # 0, 1 or 3, as KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 takes it

cdef enum refusal:
    ALLOWED = 0
    # rule 1
    UNKNOWN_FLAGS
    # rule G1
    FLAGS_EXCLUDE  # two flags exclude each other
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
    ONLY_DELETED  # a slot of a guest_memfd can only be deleted; no other slot can become one
    # rule 5
    HVA_DIFFERS
    NPAGES_DIFFER
    READONLY_TOGGLES
    # rule 6
    OVERLAPS
    # rule 7
    BEYOND_MAX_GFN
    # only for the method create
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

# What the rules found: the change that a region asks for, and the slots that it concerns.
cdef struct ruling:
    change_kind kind
    slot *old  # the slot with this id, or NULL
    slot *existing  # with OVERLAPS: the slot in the way
    slot *before  # after rule 6 allowed a CREATE: the slot before the new one by gfn, or NULL


# Applies rules 1, 2, G1 and G2 to the call in bytes and fills in `out`. The caller must have set
# the guest_memfd members of `out` before. `slot_arg` has the address space in bits 16 to 31.
cdef refusal region_from_bytes(
    const limits *lim,
    uint32_t slot_arg,
    uint32_t flags,
    gpa_t guest_phys_addr,
    uint64_t memory_size,
    hva_t userspace_addr,
    region *out,
) noexcept nogil
# Applies rules 1, 2, G1 and G2 to a region in pages.
cdef refusal region_check(const limits *lim, const region *r) noexcept nogil
# Applies rules 3 to 5 and G5. `old` is the slot with the region's id, or NULL. With `creates`, as
# for the method create, the region must have pages and the id must be unused. O(1).
cdef refusal region_classify(
    slot *old, const region *r, bint creates, ruling *out
) noexcept nogil
# Applies rule 6 to a change that region_classify allowed. (A transaction checks rule 6 at its end,
# with slotset_clash.) O(log n).
cdef refusal region_place(const slotset *set, const region *r, ruling *p) noexcept nogil


cdef inline bint region_beyond_max_gfn(const limits *lim, const region *r) noexcept nogil:
    """Returns whether rule 7 refuses a region.

    Rule 7 comes after rule 6, and for a move after the slot was marked INVALID.
    """
    return r.base_gfn + r.npages - 1 > lim.max_gfn
