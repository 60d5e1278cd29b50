"""The known host memory of one machine, for guestmemory.pyx.

Not installed: Cython code outside this package uses memslots.pxd.
"""

from libc.stdint cimport uint64_t

from memslots.core.units cimport hva_t

cdef class Backings:
    cdef object vm  # the Memslots whose slots are on the Backings
    cdef object subscription  # to the changes of vm
    # The Backings in order of host address. Any thread may replace the tuple, never change it in
    # place: use it only in a critical section
    cdef tuple all
    # The number of dirty logs that ended: their slot was deleted, or logs no more. Each step of a
    # transaction counts. Written by the writer
    cdef uint64_t ended_logs
    # The machine's devices, a memory.mmio.Mmio; None: there are none. Written once
    cdef object mmio

    # Returns all known Backings. The tuple keeps their memory.
    cdef tuple get(self)
    # Replaces `now` by `then`. Returns whether `now` was still the tuple; else nothing happens.
    cdef bint replace(self, tuple now, tuple then)
    # Makes a Backing known. Returns whether it was unknown before. ValueError: it shares memory
    # with another.
    cdef bint add(self, object backing) except -1
    # Forgets a Backing unless a slot is on it. Returns whether it did.
    cdef bint drop_unused(self, object backing) except -1
    # Returns whether a slot of the machine is on the Backing. O(log n) for each address space.
    cdef bint is_used(self, object backing) except -1

# Returns the Backings of a Memslots: always the same object. It lives as long as the Memslots.
cdef Backings backings_of(object vm)
# Returns the Backing of `all` (a result of `get`) that holds a host address, or NULL. The reference
# is borrowed from `all`.
cdef void *backing_at(tuple all, hva_t hva) noexcept
