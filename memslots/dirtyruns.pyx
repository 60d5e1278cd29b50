"""Dirty logs as runs of gfns. The contract of each function is in dirtyruns.pxd."""

from cpython.bytearray cimport PyByteArray_AS_STRING
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from memslots.core.dirtylog cimport le64
from memslots.core.units cimport gfn_t

from memslots.records import DirtyRun, Flags


cdef extern from *:
    int trailing_zeros "__builtin_ctzll"(unsigned long long word) nogil  # word is not 0


cdef uint64_t word_of(const char *log, Py_ssize_t i) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, log + i * sizeof(word), sizeof(word))
    return le64(word)


cdef int add_run(list runs, object as_id, gfn_t start, gfn_t end) except -1:
    cdef object last = runs[len(runs) - 1] if runs else None
    if last is not None and last.as_id == as_id and last.end_gfn == start:
        start = last.start_gfn
        runs.pop()
    runs.append(DirtyRun(as_id, start, end))
    return 0


cdef int add_runs(list runs, object as_id, gfn_t base, bytearray log) except -1:
    """The runs of one slot. O(npages / 64 + runs)."""
    cdef const char *words = PyByteArray_AS_STRING(log)
    cdef Py_ssize_t count = len(log) // sizeof(uint64_t)
    cdef Py_ssize_t i
    cdef uint64_t word
    cdef uint64_t rest
    cdef int page
    cdef bint inside = False
    cdef gfn_t start = 0
    for i in range(count):
        word = word_of(words, i)
        page = 0
        while page < 64:
            # From `page` on: outside of a run a bit that is set is looked for, inside one that is
            # not.
            rest = (~word if inside else word) >> page
            if rest == 0:
                break
            page += trailing_zeros(rest)
            if inside:
                add_run(runs, as_id, start, base + 64 * i + page)
            else:
                start = base + 64 * i + page
            inside = not inside
    if inside:
        add_run(runs, as_id, start, base + 64 * count)
    return 0


cdef list take_runs(object vm):
    cdef list runs = []
    cdef bint manual = vm.manual_dirty_log != 0
    try:
        for as_id in range(vm.address_spaces):
            for slot in vm.address_space(as_id):
                if not slot.flags & Flags.LOG_DIRTY_PAGES:
                    continue
                log = vm.get_dirty_log(slot.id, as_id)
                add_runs(runs, as_id, slot.base_gfn, log)
                if manual:
                    vm.clear_dirty_log(slot.id, 0, slot.npages, log, as_id)
    except BaseException:
        mark_runs(vm, runs)
        raise
    return runs


cdef int mark_runs(object vm, list runs) except -1:
    for run in runs:
        vm.mark_dirty_range(run.start_gfn, run.end_gfn, run.as_id)
    return 0
