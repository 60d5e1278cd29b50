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
    SLOT_GUEST_MEMFD = 1 << 2  # as KVM_MEM_GUEST_MEMFD
    SLOT_INVALID = 1 << 16  # about to go or to move; never given by a caller
    SLOT_CALLER_FLAGS = (1 << 0) | (1 << 1)  # what a caller may give
    SLOT_KNOWN_FLAGS = (1 << 3) - 1  # and who gives a guest_memfd

cdef enum:
    SLOT_AS_ID_SHIFT = 16  # a KVM slot number has the address space from this bit on

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
    uint32_t guest_memfd  # as in region
    uint64_t guest_memfd_offset
    # ceil(npages / 64) words, bit n: page base_gfn + n was written; NULL: not logging
    uint64_t *dirty
    # what the owner of the sets keeps with the slot (writer.pyx: its Slot, a reference)
    void *record
    pool_chunk *chunk  # what its memory is from


# The data of a slot, without what the sets and the owner keep with it.
cdef struct region:
    uint32_t id  # as in slot, and so on
    uint32_t as_id
    uint32_t flags
    gfn_t base_gfn
    uint64_t npages  # of a request: 0 if the slot is to be deleted
    hva_t userspace_addr
    # Which guest_memfd its memory is (values/guestmemfd.py has the numbers); 0: none, and then the
    # flag SLOT_GUEST_MEMFD is not known
    uint32_t guest_memfd
    uint64_t guest_memfd_offset  # where in the file the first page is, in bytes


# Prepares the pool that an address space allocates slots from.
cdef void slot_pool_init(pool *p) noexcept nogil
# Returns a slot that no set holds, without dirty log and record, or NULL: no memory.
cdef slot *slot_new(pool *p, const region *r) noexcept nogil
# Returns a copy of a slot with other flags, or NULL: no memory. It shares the dirty log and has no
# record. No set holds it.
cdef slot *slot_copy(pool *p, const slot *s, uint32_t flags) noexcept nogil
# Frees the slot's own memory: not the dirty log, which copies share, nor the record. NULL does
# nothing.
cdef void slot_free(slot *s) noexcept nogil


cdef inline region slot_region(const slot *s) noexcept nogil:
    """Returns the data of a slot."""
    cdef region r
    r.id = s.id
    r.as_id = s.as_id
    r.flags = s.flags
    r.base_gfn = s.base_gfn
    r.npages = s.npages
    r.userspace_addr = s.userspace_addr
    r.guest_memfd = s.guest_memfd
    r.guest_memfd_offset = s.guest_memfd_offset
    return r


cdef inline uint32_t slot_number(uint32_t id, uint32_t as_id) noexcept nogil:
    """Returns the `slot` of the KVM calls: the id in bits 0 to 15, the address space above.

    Both must be below 2**16.
    """
    return as_id << SLOT_AS_ID_SHIFT | id


cdef inline uint32_t slot_number_id(uint32_t number) noexcept nogil:
    """Returns the id in a KVM slot number."""
    return number & ((1 << SLOT_AS_ID_SHIFT) - 1)


cdef inline uint32_t slot_number_as_id(uint32_t number) noexcept nogil:
    """Returns the address space in a KVM slot number."""
    return number >> SLOT_AS_ID_SHIFT


cdef inline gfn_t slot_end_gfn(const slot *s) noexcept nogil:
    """The gfn after the last."""
    return s.base_gfn + s.npages


cdef inline bint slot_has_gfn(const slot *s, gfn_t gfn) noexcept nogil:
    """One comparison for both ends: below base_gfn the difference wraps to a huge number."""
    return gfn - s.base_gfn < s.npages


cdef inline bint slot_usable(const slot *s, bint write) noexcept nogil:
    """Returns whether an access may go through a slot, or NULL.

    The slot must not be INVALID, and for a write not READONLY.
    """
    return s is not NULL and not s.flags & (SLOT_INVALID | (SLOT_READONLY if write else 0))


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
