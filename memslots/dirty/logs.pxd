"""Dirty logs as Python has them: a log is ceil(npages / 64) little-endian 64-bit words.

All raise InvalidRegionError (EINVAL) for an id or address space that cannot be, NoSuchSlotError
(ENOENT) where there is no such slot or it does not log.
"""

from libc.stdint cimport uint32_t, uint64_t

from memslots.core.machine cimport machine
from memslots.core.units cimport gfn_t

# The dirty log of a slot; with `take` it is clear afterwards.
cdef bytearray get_log(machine *m, uint32_t id, uint32_t as_id, bint take)
# Clears the marks that are set in `bitmap`, whose bit 0 is page `first` of the slot; unless `clear`
# only raises what that would. InvalidRegionError where the rules of the ioctl do not allow the
# pages, or the bitmap is too short.
cdef int clear_log(
    machine *m,
    uint32_t id,
    uint32_t as_id,
    uint64_t first,
    uint64_t pages,
    const Py_buffer *bitmap,
    bint clear,
) except -1
# Raises where get_log would.
cdef int check_log_of(machine *m, uint32_t id, uint32_t as_id) except -1
# Marks what is marked in `log`, as get_log gives it, of a slot that nobody else can change now.
# ValueError where it cannot be that slot's.
cdef int merge_log(machine *m, uint32_t id, uint32_t as_id, bytes log) except -1
# Marks all pages of a slot, if it logs. The id and address space can be.
cdef void mark_all(machine *m, uint32_t id, uint32_t as_id) noexcept
# Marks the pages [first, last] of an address space that there is, whatever slots have them, as
# dirty_mark does. O(log n + k + p / 64) for p pages in k slots.
cdef void mark_range(machine *m, uint32_t as_id, gfn_t first, gfn_t last) noexcept
# Marks what is marked in `log`, which get_log gave of the Slot `record`, in the slot as it is now:
# in another place, say. Nothing happens where it has no log any more or is other memory.
cdef int return_log(machine *m, object record, bytearray log) except -1
# Makes the dirty log of a slot what get_log once gave of one as large, in a machine that no other
# thread has. ValueError where it cannot have been.
cdef int put_log(const machine *m, uint32_t id, uint32_t as_id, bytes log) except -1

# What these say and check, for others that keep slots.

# Why a slot's dirty log cannot be had; a `record` of None: there is no slot.
cdef object no_log(uint32_t id, uint32_t as_id, object record)
# What is wrong with the first page, or with all the pages, of a clear_log; or None.
cdef str wrong_first(uint64_t first)
cdef str wrong_pages(
    object record, uint64_t npages, uint64_t first, uint64_t pages, Py_ssize_t bitmap_len
)
# The error for that.
cdef object cannot_clear(uint32_t id, uint32_t as_id, str wrong)
