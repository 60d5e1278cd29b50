"""An address space: two sets of the same slots, one of which is active.

  P1  between changes both sets hold the same slots
  P2  between changes bit 63 of the generation is clear
  P3  a slot's data is written only while no set holds it

A swap makes the inactive set the active one. Its generation then has bit 63 set until the readers
who may still be in the other set are gone; after that it is a number this address space has never
had. Space k of m uses k, k + m, k + 2m, and so on.
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
    pool slots  # what the slots are taken from; the writer's
    uint32_t as_id  # which address space this is
    uint32_t nspaces  # how many there are: what a swap adds to the generation
    bint has_memfds  # a slot of a guest_memfd was made here, if only once


# An empty address space, or NULL: no memory.
cdef space *space_new(uint32_t as_id, uint32_t nspaces) noexcept nogil
# Gives back the space's own memory; the slots in it are the caller's, to free before. NULL does
# nothing.
cdef void space_free(space *sp) noexcept nogil

# Makes the inactive set the active one. Then wait for the readers (srcu_wait), then space_swap_end;
# the set that is now inactive may be changed only after that.
cdef void space_swap_begin(space *sp) noexcept nogil
cdef void space_swap_end(space *sp) noexcept nogil


cdef inline slotset *space_active(const space *sp) noexcept nogil:
    """The set to read.

    Acquire: pairs with the release in space_swap_begin, so all that was put in before is seen.
    """
    return <slotset *>atomic_load_acquire_ptr(<void *const *>&sp.active)


cdef inline slotset *space_inactive(space *sp) noexcept nogil:
    """The set to change. For the writer alone."""
    return &sp.sets[1 - sp.active.k]


cdef inline uint64_t space_generation(const space *sp) noexcept nogil:
    return atomic_load_relaxed(&space_active(sp).generation)
