"""Slots of a whole map with their records, as transaction.pyx stages them. Not installed."""

from libc.stdint cimport uint32_t

from memslots.core.fill cimport fill
from memslots.core.index cimport index
from memslots.write.writer cimport Writer

# fill_get, with the records attached, for an address space that is empty. Raises what it refuses;
# then nothing is left of it.
cdef int get_filled(fill *f, Writer writer, const index *ix, uint32_t as_id) except -1
# Lets go of the records, and of all that get_filled got.
cdef void drop_filled(fill *f) noexcept
# The Slots of a fill, in gfn order.
cdef list filled_slots(const fill *f)
# Whether a map can be put in at once: its index and its address space. Else it is for create_many.
cdef bint fits_at_once(
    Writer writer, object slots, object as_id, const index **ix, uint32_t *number
) except -1
