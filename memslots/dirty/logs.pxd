"""Dirty logs for Python callers: a log is ceil(npages / 64) little-endian 64-bit words.

All functions raise InvalidRegionError (EINVAL) for an invalid id or address space. They raise
NoSuchSlotError (ENOENT) if there is no such slot or it does not log.
"""

from libc.stdint cimport uint32_t, uint64_t

from memslots.core.machine cimport machine
from memslots.core.units cimport gfn_t

# Returns the dirty log of a slot. With `take`, clears it.
cdef bytearray get_log(machine *m, uint32_t id, uint32_t as_id, bint take)
# Clears the marks that are set in `bitmap`; its bit 0 is page `first` of the slot. Without `clear`
# only checks the arguments. Raises InvalidRegionError if the rules of the ioctl do not allow the
# pages, or if the bitmap is too short.
cdef int clear_log(
    machine *m,
    uint32_t id,
    uint32_t as_id,
    uint64_t first,
    uint64_t pages,
    const Py_buffer *bitmap,
    bint clear,
) except -1
# Raises if get_log would.
cdef int check_log_of(machine *m, uint32_t id, uint32_t as_id) except -1
# Marks the pages that `log` marks; it has the form that get_log returns. No other thread may change
# the slot meanwhile. Raises ValueError if `log` cannot be that slot's.
cdef int merge_log(machine *m, uint32_t id, uint32_t as_id, bytes log) except -1
# Marks all pages of a slot, if it logs. The id and the address space must be valid.
cdef void mark_all(machine *m, uint32_t id, uint32_t as_id) noexcept
# Marks the pages [first, last] in all slots that have some of them, as dirty_mark does. The address
# space must exist. O(log n + k + p / 64) for p pages in k slots.
cdef void mark_range(machine *m, uint32_t as_id, gfn_t first, gfn_t last) noexcept
# Marks the pages that `log` marks in the current slot, which may have moved. get_log returned `log`
# for the Slot `record`. Does nothing if the slot has no log now or is on other host memory.
cdef int return_log(machine *m, object record, bytearray log) except -1
# Sets the dirty log of a slot to `log`, which get_log returned for a slot of the same size. No
# other thread may have the machine. Raises ValueError if `log` cannot be of a slot of that size.
cdef int put_log(const machine *m, uint32_t id, uint32_t as_id, bytes log) except -1

# The errors and checks of the functions above, for other modules that keep slots.

# Returns the error for a slot without a dirty log; a `record` of None means that there is no slot.
cdef object no_log(uint32_t id, uint32_t as_id, object record)
# Return what is wrong with the first page of a clear_log, or with its range of pages; or None.
cdef str wrong_first(uint64_t first)
cdef str wrong_pages(
    object record, uint64_t npages, uint64_t first, uint64_t pages, Py_ssize_t bitmap_len
)
# Returns the error of a clear_log for which one of these two returned `wrong`.
cdef object cannot_clear(uint32_t id, uint32_t as_id, str wrong)
