"""The host memory of one machine's slots, as guestmemory.pyx uses it.

Not installed: Cython code outside goes through memslots.pxd.
"""

from memslots.core.units cimport hva_t

cdef class Backings:
    cdef object vm  # the Memslots whose slots are on them
    cdef object subscription  # its word of changes
    # the Backings by host address; replaced as a whole, never changed in place. Any thread may do
    # that: so only get and replace use it
    cdef tuple all
    cdef object mmio  # its devices, a memory.mmio.Mmio, or None: there are none

    # All there are. Whoever has the tuple has their memory.
    cdef tuple get(self)
    # Whether they were still `now`; then they are `then`.
    cdef bint replace(self, tuple now, tuple then)
    # Makes one more known; whether it was not yet. ValueError where it shares memory with another.
    cdef bint add(self, object backing) except -1
    # Forgets one on which no slot is; whether none was.
    cdef bint drop_unused(self, object backing) except -1
    # Whether any slot of the machine is on it. O(log n) for each address space.
    cdef bint is_used(self, object backing) except -1

# Those of a Memslots: the same for all that ask. They are there as long as it is.
cdef Backings backings_of(object vm)
# The one of `all` (what `get` gave) that holds a host address, or NULL; borrowed from `all`.
cdef void *backing_at(tuple all, hva_t hva) noexcept
