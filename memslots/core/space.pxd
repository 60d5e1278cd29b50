"""An address space: two sets of the same slots, one of which is active.

  P1  between changes both sets hold the same slots
  P2  between changes bit 63 of the generation is clear
  P3  a slot's data is written only while no set holds it

A swap makes the inactive set the active one. Bit 63 of its generation is set until the readers that
may still be in the other set are gone. The generation then becomes a number that this address space
never had before. Address space k of m uses k, k + m, k + 2m, and so on.
"""

from libc.stdint cimport uint32_t, uint64_t

from memslots.core.atomics cimport atomic_load_acquire_ptr, atomic_load_relaxed
from memslots.core.pool cimport pool
from memslots.core.slotset cimport slotset

cdef extern from *:
    """
    #define MEMSLOTS_SWAPPING ((uint64_t)1 << 63)
    """
    # the generation's bit while a swap waits for readers
    const uint64_t SWAPPING "MEMSLOTS_SWAPPING"

cdef struct space:
    slotset sets[2]
    slotset *active  # the set that readers use, one of the two
    pool slots  # the slots' memory; only the writer uses it
    uint32_t as_id  # the number of this address space
    uint32_t nspaces  # the number of address spaces; a swap adds it to the generation
    bint has_memfds  # whether a slot of a guest_memfd was ever made here


# Returns an empty address space, or NULL if there is no memory.
cdef space *space_new(uint32_t as_id, uint32_t nspaces) noexcept nogil
# Frees the space's own memory. The caller must free the slots in it before. NULL does nothing.
cdef void space_free(space *sp) noexcept nogil

# Makes the inactive set the active one. The caller then waits for the readers (srcu_wait) and calls
# space_swap_end. Only after that may the set that is now inactive be changed.
cdef void space_swap_begin(space *sp) noexcept nogil
cdef void space_swap_end(space *sp) noexcept nogil


cdef inline slotset *space_active(const space *sp) noexcept nogil:
    """Returns the set to read.

    Acquire: pairs with the release in space_swap_begin, so readers see all slots of the set.
    """
    return <slotset *>atomic_load_acquire_ptr(<void *const *>&sp.active)


cdef inline slotset *space_inactive(space *sp) noexcept nogil:
    """Returns the set to change. Only the writer may call this."""
    return &sp.sets[1 - sp.active.k]


cdef inline uint64_t space_generation(const space *sp) noexcept nogil:
    return atomic_load_relaxed(&space_active(sp).generation)
