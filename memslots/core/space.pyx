"""An address space. The properties P1 to P3 and the contract of each function are in space.pxd."""

from memslots.core.alloc cimport alloc_free, alloc_lines
from memslots.core.atomics cimport atomic_store_relaxed, atomic_store_release_ptr
from memslots.core.debug cimport debug_assert
from memslots.core.pool cimport pool_clear
from memslots.core.slot cimport slot_pool_init
from memslots.core.slotset cimport slotset_clear, slotset_init


cdef space *space_new(uint32_t as_id, uint32_t nspaces) noexcept nogil:
    cdef space *sp = <space *>alloc_lines(sizeof(space))
    if sp is not NULL:
        slotset_init(&sp.sets[0], 0)
        slotset_init(&sp.sets[1], 1)
        slot_pool_init(&sp.slots)
        sp.active = &sp.sets[0]
        sp.active.generation = as_id
        sp.as_id = as_id
        sp.nspaces = nspaces
        sp.has_memfds = False
    return sp


cdef void space_free(space *sp) noexcept nogil:
    if sp is not NULL:
        slotset_clear(&sp.sets[0])
        slotset_clear(&sp.sets[1])
        pool_clear(&sp.slots)
        alloc_free(sp)


cdef void space_swap_begin(space *sp) noexcept nogil:
    cdef slotset *next = space_inactive(sp)
    debug_assert(not sp.active.generation & SWAPPING, b"space_swap_begin: none is under way (P2)")
    # A set must never show a generation that a cache may hold for other slots. No cache has seen
    # this generation yet.
    atomic_store_relaxed(&next.generation, sp.active.generation | SWAPPING)
    # Release: pairs with the acquire in space_active.
    atomic_store_release_ptr(<void **>&sp.active, next)


cdef void space_swap_end(space *sp) noexcept nogil:
    debug_assert(sp.active.generation & SWAPPING, b"space_swap_end: a swap has begun")
    atomic_store_relaxed(&sp.active.generation, (sp.active.generation & ~SWAPPING) + sp.nspaces)
