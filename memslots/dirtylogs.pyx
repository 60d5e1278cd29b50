"""Dirty logs as Python has them.

The contract of each function is in dirtylogs.pxd.
"""

import errno

from cpython.bytearray cimport PyByteArray_AS_STRING
from libc.stdint cimport uint32_t, uint64_t

from memslots.core.dirtylog cimport dirty_clear, dirty_get, dirty_put, dirty_words
from memslots.core.machine cimport machine
from memslots.core.slot cimport slot
from memslots.core.slotset cimport slotset_by_id
from memslots.core.space cimport space_active
from memslots.refusals cimport check_id

from memslots.errors import InvalidRegionError, NoSuchSlotError


cdef slot *logging_slot(const machine *m, uint32_t id, uint32_t as_id) except NULL:
    """The slot of this id, which has a dirty log."""
    check_id(&m.lim, id, as_id)
    cdef slot *s = slotset_by_id(space_active(m.spaces[as_id]), id)
    if s is NULL:
        raise NoSuchSlotError(errno.ENOENT, f"there is no slot {id} in address space {as_id}")
    if s.dirty is NULL:
        record = <object>s.record
        raise NoSuchSlotError(errno.ENOENT, f"{record} has no dirty log")
    return s


cdef bytearray get_log(const machine *m, uint32_t id, uint32_t as_id, bint take):
    cdef bytearray log
    cdef size_t size
    cdef slot *s
    while True:
        size = 8 * dirty_words(logging_slot(m, id, as_id).npages)
        log = bytearray(size)
        # Making it may have run other Python code, and that may have changed the slot.
        s = logging_slot(m, id, as_id)
        if 8 * dirty_words(s.npages) == size:
            dirty_get(s, <unsigned char *>PyByteArray_AS_STRING(log), take)
            return log

cdef int clear_log(
    const machine *m,
    uint32_t id,
    uint32_t as_id,
    uint64_t first,
    uint64_t pages,
    const Py_buffer *bitmap,
) except -1:
    cdef slot *s = NULL
    cdef str wrong = None
    check_id(&m.lim, id, as_id)
    if first & 63:
        wrong = f"first_page {first} is not a multiple of 64"
    else:
        s = logging_slot(m, id, as_id)
        record = <object>s.record
        if first > s.npages or pages > s.npages - first:
            wrong = f"pages [{first}, {int(first) + pages}) are not all in {record}"
        elif pages & 63 and first + pages != s.npages:
            wrong = (
                f"num_pages {pages} is not a multiple of 64 and does not reach the end of"
                f" {record}"
            )
        elif <uint64_t>bitmap.len < 8 * dirty_words(pages):
            wrong = (
                f"the bitmap of {pages} pages takes {8 * dirty_words(pages)} bytes,"
                f" not {bitmap.len}"
            )
    if wrong is not None:
        raise InvalidRegionError(
            errno.EINVAL, f"clear_dirty_log, slot {id} of address space {as_id}: {wrong}"
        )
    dirty_clear(s, first, pages, <const unsigned char *>bitmap.buf)
    return 0


cdef int put_log(const machine *m, uint32_t id, uint32_t as_id, bytes log) except -1:
    cdef slot *s = logging_slot(m, id, as_id)
    cdef uint64_t npages = s.npages
    if <uint64_t>len(log) != 8 * dirty_words(npages):
        raise ValueError(f"slot {id} cannot have a dirty log of {len(log)} bytes")
    if npages & 63 and int.from_bytes(log[len(log) - 8 :], "little") >> (npages & 63):
        raise ValueError(f"slot {id}: its dirty log marks pages that it does not have")
    dirty_put(s, log)
    return 0
