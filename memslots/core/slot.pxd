"""The slot: one run of guest pages and where the host keeps them.

It carries two of every tree node, one for each set of its address space, so that one copy of its
data is in both. Everything but the nodes is written only while no set holds the slot (P3); a slot
that must change is replaced by its copy.
"""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint32_t, uint64_t

from memslots.core.alloc cimport CACHE_LINE
from memslots.core.hvatree cimport hva_node
from memslots.core.pool cimport pool, pool_chunk
from memslots.core.rbtree cimport rb_node
from memslots.core.units cimport PAGE_SHIFT, gfn_t, hva_t

cdef enum:
    SLOT_LOG_DIRTY_PAGES = 1 << 0  # as KVM_MEM_LOG_DIRTY_PAGES
    SLOT_READONLY = 1 << 1  # as KVM_MEM_READONLY
    SLOT_INVALID = 1 << 16  # about to go or to move; never given by a caller
    SLOT_CALLER_FLAGS = (1 << 0) | (1 << 1)  # what a caller may give

cdef struct slot:
    # One cache line: all that a search by gfn reads of a slot, in either set (checked when this is
    # compiled).
    rb_node gfn_node[2]  # [k]: its place in set k's tree by base_gfn
    gfn_t base_gfn  # the first guest page
    uint64_t npages  # how many pages; at least 1, at most 2**31 - 1
    # The next line: what a search by host address climbs.
    hva_node hva_node[2]  # [k]: its place in set k's tree by host range
    # The third: the host range (the two in this order, for hvatree), and what is read once the slot
    # is found.
    hva_t userspace_addr  # the first byte's host address
    hva_t last_hva  # the last byte's
    uint32_t id  # the caller's number for it, unique in the address space
    uint32_t as_id  # the address space
    uint32_t flags  # SLOT_*
    # ceil(npages / 64) words, bit n: page base_gfn + n was written; NULL: not logging
    uint64_t *dirty
    # what the owner of the sets keeps with the slot (writer.pyx: its Slot, a reference)
    void *record
    pool_chunk *chunk  # what its memory is from


# Memory for slots.
cdef void slot_pool_init(pool *p) noexcept nogil
# A slot that no set holds, without dirty log and record, or NULL: no memory.
cdef slot *slot_new(
    pool *p,
    uint32_t id,
    uint32_t as_id,
    uint32_t flags,
    gfn_t base_gfn,
    uint64_t npages,
    hva_t userspace_addr,
) noexcept nogil
# Gives back the slot's own memory: not the dirty log, which copies share, nor the record. NULL does
# nothing.
cdef void slot_free(slot *s) noexcept nogil


cdef inline gfn_t slot_end_gfn(const slot *s) noexcept nogil:
    """The gfn after the last."""
    return s.base_gfn + s.npages


cdef inline bint slot_has_gfn(const slot *s, gfn_t gfn) noexcept nogil:
    """One comparison for both ends: below base_gfn the difference wraps to a huge number."""
    return gfn - s.base_gfn < s.npages


cdef inline hva_t slot_gfn_to_hva(const slot *s, gfn_t gfn) noexcept nogil:
    """The host address of a page that the slot has."""
    return s.userspace_addr + ((gfn - s.base_gfn) << PAGE_SHIFT)


cdef inline slot *slot_of_gfn_node(const rb_node *node, int k) noexcept nogil:
    """The slot whose place in set k's gfn tree `node` is, or NULL for NULL."""
    return <slot *>(node - k) if node is not NULL else NULL


cdef inline slot *slot_of_hva_node(const hva_node *node, int k) noexcept nogil:
    """The slot whose place in set k's hva tree `node` is, or NULL for NULL.

    The hva nodes begin the second cache line.
    """
    return <slot *>(<char *>(node - k) - CACHE_LINE) if node is not NULL else NULL


cdef inline ptrdiff_t slot_third_line(int k) noexcept nogil:
    """How far what is read of a slot that was found is from its place in set k's gfn tree."""
    return 2 * CACHE_LINE - k * <ptrdiff_t>sizeof(rb_node)
