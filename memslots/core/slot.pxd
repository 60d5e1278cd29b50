"""The slot: one run of guest pages and where the host keeps them.

A slot has two of every tree node, one for each set of its address space. So both sets share one
copy of its data. All members but the nodes are written only while no set holds the slot (P3). To
change a slot, the writer replaces it by a changed copy.
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
    SLOT_INVALID = 1 << 16  # the slot is about to go or to move; a caller may never pass it
    SLOT_CALLER_FLAGS = (1 << 0) | (1 << 1)  # the flags that a caller may pass
    SLOT_KNOWN_FLAGS = (1 << 3) - 1  # the flags that a caller with a guest_memfd may pass

cdef enum:
    SLOT_AS_ID_SHIFT = 16  # a KVM slot number has the address space from this bit on

cdef struct slot:
    # The first cache line: all that a search by gfn reads of a slot, in either set (slot.pyx checks
    # this at compile time).
    rb_node gfn_node[2]  # [k]: its place in set k's tree by base_gfn
    gfn_t base_gfn  # the first guest page
    uint64_t npages  # the number of pages; at least 1, at most 2**31 - 1
    # The second line: the nodes that a search by host address visits.
    hva_node hva_node[2]  # [k]: its place in set k's tree by host range
    # The third line: the host range (hvatree needs its two members in this order), and the members
    # that are read after the slot is found.
    hva_t userspace_addr  # the first byte's host address
    hva_t last_hva  # the last byte's host address
    uint32_t id  # the caller's number for the slot, unique in the address space
    uint32_t as_id  # the address space
    uint32_t flags  # SLOT_*
    uint32_t guest_memfd  # as in region
    uint64_t guest_memfd_offset
    # ceil(npages / 64) words; bit n: page base_gfn + n was written; NULL: the slot does not log
    uint64_t *dirty
    # kept here for the owner of the sets (writer.pyx keeps a reference to its Slot object)
    void *record
    pool_chunk *chunk  # the chunk that its memory is from


# The data of a slot, without the members that the sets and the owner keep in it.
cdef struct region:
    uint32_t id  # this and the members below mean the same as in slot
    uint32_t as_id
    uint32_t flags
    gfn_t base_gfn
    uint64_t npages  # in a request 0 asks to delete the slot
    hva_t userspace_addr
    # The guest_memfd that backs the slot (values/guestmemfd.py assigns the numbers). 0: none, and
    # SLOT_GUEST_MEMFD is an unknown flag.
    uint32_t guest_memfd
    uint64_t guest_memfd_offset  # the first page's offset in the file, in bytes


# Prepares the pool that an address space allocates slots from.
cdef void slot_pool_init(pool *p) noexcept nogil
# Returns a slot without dirty log and record, or NULL if there is no memory. No set holds the slot.
cdef slot *slot_new(pool *p, const region *r) noexcept nogil
# Returns a copy of a slot with other flags, or NULL if there is no memory. The copy shares the
# dirty log and has no record. No set holds the copy.
cdef slot *slot_copy(pool *p, const slot *s, uint32_t flags) noexcept nogil
# Frees the slot's own memory, but not the dirty log, which copies share, nor the record. NULL does
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
    """Returns the `slot` argument of the KVM calls: id in bits 0 to 15, address space above.

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
    """Returns the first gfn after the slot."""
    return s.base_gfn + s.npages


cdef inline bint slot_has_gfn(const slot *s, gfn_t gfn) noexcept nogil:
    """Returns whether the slot has the gfn.

    One comparison covers both ends: below base_gfn the difference wraps to a huge number.
    """
    return gfn - s.base_gfn < s.npages


cdef inline bint slot_usable(const slot *s, bint write) noexcept nogil:
    """Returns whether an access may use the slot `s`; False if `s` is NULL.

    An INVALID slot refuses every access, and a READONLY slot refuses a write.
    """
    return s is not NULL and not s.flags & (SLOT_INVALID | (SLOT_READONLY if write else 0))


cdef inline hva_t slot_gfn_to_hva(const slot *s, gfn_t gfn) noexcept nogil:
    """Returns the host address of a page that the slot has."""
    return s.userspace_addr + ((gfn - s.base_gfn) << PAGE_SHIFT)


cdef inline slot *slot_of_gfn_node(const rb_node *node, int k) noexcept nogil:
    """Returns the slot that has this node in set k's gfn tree, or NULL for NULL."""
    return <slot *>(node - k) if node is not NULL else NULL


cdef inline slot *slot_of_hva_node(const hva_node *node, int k) noexcept nogil:
    """Returns the slot that has this node in set k's hva tree, or NULL for NULL.

    The hva nodes are at the start of the second cache line.
    """
    return <slot *>(<char *>(node - k) - CACHE_LINE) if node is not NULL else NULL


cdef inline ptrdiff_t slot_third_line(int k) noexcept nogil:
    """Returns the distance from a slot's node in set k's gfn tree to its third cache line."""
    return 2 * CACHE_LINE - k * <ptrdiff_t>sizeof(rb_node)
