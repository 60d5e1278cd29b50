"""Dirty logs for Python callers.

The contract of each function is in logs.pxd.
"""

import errno

from cpython.bytearray cimport PyByteArray_AS_STRING
from libc.stdint cimport uint32_t, uint64_t

from memslots.core.dirtylog cimport (
    dirty_clear,
    dirty_get,
    dirty_mark_range,
    dirty_merge,
    dirty_put,
    dirty_words,
)
from memslots.core.machine cimport machine
from memslots.core.slot cimport slot
from memslots.core.slotset cimport (
    slotset,
    slotset_by_id,
    slotset_first_from,
    slotset_step,
)
from memslots.core.space cimport space_active
from memslots.core.units cimport gfn_t, hva_t
from memslots.read.reader cimport Reader
from memslots.read.sections cimport section, section_enter, section_leave
from memslots.values.integers cimport u32
from memslots.values.rules cimport check_id

from memslots.errors import InvalidRegionError, NoSuchSlotError


cdef slot *find_slot(const machine *m, uint32_t id, uint32_t as_id) noexcept nogil:
    return slotset_by_id(space_active(m.spaces[as_id]), id)


cdef object no_log(uint32_t id, uint32_t as_id, object record):
    if record is None:
        text = f"there is no slot {id} in address space {as_id}"
    else:
        text = f"{record} has no dirty log"
    return NoSuchSlotError(errno.ENOENT, text)


cdef bytearray get_log(machine *m, uint32_t id, uint32_t as_id, bint take):
    cdef bytearray log = None
    cdef unsigned char *out = NULL
    cdef size_t size = 0
    cdef size_t needed
    cdef bint done
    cdef section at
    cdef slot *s
    check_id(&m.lim, id, as_id)
    # The loop runs at least twice. The log is made outside the section, since making it may run
    # other Python code. That code, or another thread, may change the slot.
    while True:
        record = None  # drops the last one outside the section
        at = section_enter(m, NULL)
        s = find_slot(m, id, as_id)
        record = None if s is NULL else <object>s.record
        needed = 8 * dirty_words(s.npages) if s is not NULL and s.dirty is not NULL else 0
        done = needed != 0 and needed == size
        if done:
            dirty_get(s, out, take)
        section_leave(&at)
        if done:
            return log
        if needed == 0:
            raise no_log(id, as_id, record)
        log = bytearray(needed)
        out = <unsigned char *>PyByteArray_AS_STRING(log)
        size = needed


cdef object cannot_clear(uint32_t id, uint32_t as_id, str wrong):
    return InvalidRegionError(
        errno.EINVAL, f"clear_dirty_log, slot {id} of address space {as_id}: {wrong}"
    )


cdef str wrong_first(uint64_t first):
    return f"first_page {first} is not a multiple of 64" if first & 63 else None


cdef str wrong_pages(
    object record, uint64_t npages, uint64_t first, uint64_t pages, Py_ssize_t bitmap_len
):
    if first > npages or pages > npages - first:
        return f"pages [{first}, {int(first) + pages}) are not all in {record}"
    if pages & 63 and first + pages != npages:
        return f"num_pages {pages} is not a multiple of 64 and does not reach the end of {record}"
    if <uint64_t>bitmap_len < 8 * dirty_words(pages):
        return f"the bitmap of {pages} pages takes {8 * dirty_words(pages)} bytes, not {bitmap_len}"
    return None


cdef int clear_log(
    machine *m,
    uint32_t id,
    uint32_t as_id,
    uint64_t first,
    uint64_t pages,
    const Py_buffer *bitmap,
    bint clear,
) except -1:
    cdef uint64_t checked = 0
    cdef uint64_t npages
    cdef bint done
    cdef section at
    cdef slot *s
    cdef str wrong = wrong_first(first)
    check_id(&m.lim, id, as_id)
    # The loop runs at least twice: the text of an error is made outside the section.
    while wrong is None:
        record = None  # drops the last one outside the section
        at = section_enter(m, NULL)
        s = find_slot(m, id, as_id)
        record = None if s is NULL else <object>s.record
        npages = s.npages if s is not NULL and s.dirty is not NULL else 0
        done = npages != 0 and npages == checked
        if done and clear:
            dirty_clear(s, first, pages, <const unsigned char *>bitmap.buf)
        section_leave(&at)
        if done:
            return 0
        if npages == 0:
            raise no_log(id, as_id, record)
        wrong = wrong_pages(record, npages, first, pages, bitmap.len)
        checked = npages
    raise cannot_clear(id, as_id, wrong)


cdef int check_log(uint32_t id, uint64_t npages, bytes log) except -1:
    if <uint64_t>len(log) != 8 * dirty_words(npages):
        raise ValueError(f"slot {id} cannot have a dirty log of {len(log)} bytes")
    if npages & 63 and int.from_bytes(log[len(log) - 8 :], "little") >> (npages & 63):
        raise ValueError(f"slot {id}: its dirty log marks pages that it does not have")
    return 0


cdef uint64_t pages_logged(machine *m, uint32_t id, uint32_t as_id) except? 0:
    """Returns how many pages a slot has; raises if there is no such slot or it does not log."""
    cdef uint64_t npages
    check_id(&m.lim, id, as_id)
    cdef section at = section_enter(m, NULL)
    cdef slot *s = find_slot(m, id, as_id)
    record = None if s is NULL else <object>s.record
    npages = s.npages if s is not NULL and s.dirty is not NULL else 0
    section_leave(&at)
    if npages == 0:
        raise no_log(id, as_id, record)
    return npages


cdef int check_log_of(machine *m, uint32_t id, uint32_t as_id) except -1:
    pages_logged(m, id, as_id)
    return 0


cdef int merge_log(machine *m, uint32_t id, uint32_t as_id, bytes log) except -1:
    check_log(id, pages_logged(m, id, as_id), log)
    cdef const unsigned char *bits = log
    cdef section at = section_enter(m, NULL)
    dirty_merge(find_slot(m, id, as_id), bits)
    section_leave(&at)
    return 0


cdef void mark_all(machine *m, uint32_t id, uint32_t as_id) noexcept:
    cdef section at = section_enter(m, NULL)
    cdef slot *s = find_slot(m, id, as_id)
    if s is not NULL:
        dirty_mark_range(s, s.base_gfn, s.base_gfn + s.npages - 1)
    section_leave(&at)


cdef void mark_range(machine *m, uint32_t as_id, gfn_t first, gfn_t last) noexcept:
    cdef section at = section_enter(m, NULL)
    cdef const slotset *set = space_active(m.spaces[as_id])
    cdef slot *s = slotset_first_from(set, first)
    while s is not NULL and s.base_gfn <= last:
        dirty_mark_range(s, max(first, s.base_gfn), min(last, s.base_gfn + s.npages - 1))
        s = slotset_step(set, s, 1)
    section_leave(&at)


cdef int return_log(machine *m, object record, bytearray log) except -1:
    cdef uint32_t id = record.id
    cdef uint32_t as_id = record.as_id
    cdef uint64_t npages = record.npages
    cdef hva_t userspace_addr = record.userspace_addr
    cdef const unsigned char *bits = <const unsigned char *>PyByteArray_AS_STRING(log)
    cdef section at = section_enter(m, NULL)
    cdef slot *s = find_slot(m, id, as_id)
    if s is not NULL and s.npages == npages and s.userspace_addr == userspace_addr:
        dirty_merge(s, bits)
    section_leave(&at)
    return 0


cdef int put_log(const machine *m, uint32_t id, uint32_t as_id, bytes log) except -1:
    # No other thread has the machine, so no section is needed.
    cdef slot *s = find_slot(m, id, as_id)
    if s is NULL or s.dirty is NULL:
        raise no_log(id, as_id, None if s is NULL else <object>s.record)
    check_log(id, s.npages, log)
    dirty_put(s, log)
    return 0


def take_over_log(Reader vm not None, id, as_id, log):
    """Merges a backend's log of a slot into the slot's own. If that fails, marks every page."""
    cdef uint32_t number = u32(id, "id")
    cdef uint32_t space = u32(as_id, "as_id")
    check_log_of(vm.m, number, space)
    try:
        merge_log(vm.m, number, space, log)
    except BaseException:
        # The backend no longer has these marks, and nobody knows which pages they were.
        mark_all(vm.m, number, space)
        raise
