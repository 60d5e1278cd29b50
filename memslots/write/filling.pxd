"""The slots of a whole map with their records, for transaction.pyx to stage. Not installed."""

from libc.stdint cimport uint32_t

from memslots.core.fill cimport fill
from memslots.core.index cimport index
from memslots.write.writer cimport Writer

# Does fill_get for an empty address space, and attaches the records. Raises if a rule refuses a
# slot or memory is out; then nothing is left allocated.
cdef int get_filled(fill *f, Writer writer, const index *ix, uint32_t as_id) except -1
# Releases the records and frees all that get_filled allocated.
cdef void drop_filled(fill *f) noexcept
# Returns the Slots of a fill, in gfn order.
cdef list filled_slots(const fill *f)
# Returns whether a map can be put in at once, and then in *ix and *number its index and its address
# space. Otherwise use create_many.
cdef bint fits_at_once(
    Writer writer, object slots, object as_id, const index **ix, uint32_t *number
) except -1
