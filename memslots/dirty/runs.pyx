"""Dirty logs as runs of gfns, across the slots and address spaces of a machine."""

from collections import namedtuple

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from memslots.core.dirtylog cimport dirty_words
from memslots.core.endian cimport endian_le64
from memslots.core.guarded cimport guarded_probe, guarded_write
from memslots.core.units cimport PAGE_SHIFT, PAGE_SIZE, gfn_t, hva_t
from memslots.dirty.logs cimport return_log
from memslots.read.reader cimport Reader

from memslots.errors import gone
from memslots.values.records import Flags

cdef enum:
    FEW = 64  # pages to copy before the GIL is released

cdef list NOWHERE = []  # the parts of a slot that has no copy

DirtyRun = namedtuple("DirtyRun", ["as_id", "start_gfn", "end_gfn"], module="memslots")
DirtyRun.__doc__ = """Guest pages [start_gfn, end_gfn) of an address space that were written."""


cdef extern from *:
    int trailing_zeros "__builtin_ctzll"(unsigned long long word) nogil  # word is not 0


@cython.final
@cython.internal
@cython.auto_pickle(False)
cdef class TakenLog:
    """The marks that were taken from a slot."""

    cdef object slot
    cdef bytearray log  # None until the marks are taken


cdef struct open_run:  # a run that the next slot may continue
    gfn_t start
    gfn_t end  # equal to start if no run is open


cdef int close_run(open_run *run, list runs, object as_id) except -1:
    if run.start != run.end:
        # DirtyRun(...) does the same, through a Python function.
        runs.append(tuple.__new__(DirtyRun, (as_id, run.start, run.end)))
    run.start = run.end = 0
    return 0


cdef int add_run(open_run *run, list runs, object as_id, gfn_t start, gfn_t end) except -1:
    if start != run.end:
        close_run(run, runs, as_id)
        run.start = start
    run.end = end
    return 0


cdef uint64_t word_of(const char *log, Py_ssize_t i) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, log + i * sizeof(word), sizeof(word))
    return endian_le64(word)


cdef int add_runs(open_run *run, list runs, TakenLog taken) except -1:
    """Adds the runs of one slot. O(npages / 64 + runs)."""
    cdef object as_id = taken.slot.as_id
    cdef gfn_t base = taken.slot.base_gfn
    cdef const char *words = PyByteArray_AS_STRING(taken.log)
    cdef Py_ssize_t count = len(taken.log) // sizeof(uint64_t)
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
            # From `page` on, look for the next set bit outside a run, the next clear bit inside
            # one.
            rest = (~word if inside else word) >> page
            if rest == 0:
                break
            page += trailing_zeros(rest)
            if inside:
                add_run(run, runs, as_id, start, base + 64 * i + page)
            else:
                start = base + 64 * i + page
            inside = not inside
    if inside:
        add_run(run, runs, as_id, start, base + 64 * count)
    return 0


cdef list runs_of(list logs):
    cdef list runs = []
    cdef open_run run
    cdef TakenLog taken
    cdef object as_id = None
    run.start = run.end = 0
    for taken in logs:
        if taken.slot.as_id != as_id:
            close_run(&run, runs, as_id)
            as_id = taken.slot.as_id
        add_runs(&run, runs, taken)
    close_run(&run, runs, as_id)
    return runs


def take_logs(vm, list logs not None):
    """Takes the marks of all slots, and stores them in `logs` before anything else can fail.

    The order is by address space and gfn. The caller must be the writer.
    """
    cdef bint manual = vm.manual_dirty_log != 0
    cdef uint32_t logging = Flags.LOG_DIRTY_PAGES
    cdef uint32_t flags
    cdef TakenLog taken
    for as_id in range(vm.address_spaces):
        for slot in vm.address_space(as_id):
            flags = slot.flags  # in C: the & of an IntFlag is a Python function
            if not flags & logging:
                continue
            # Append first: later, a failure to append would lose the marks.
            taken = TakenLog.__new__(TakenLog)
            taken.slot = slot
            logs.append(taken)
            taken.log = vm.get_dirty_log(slot.id, as_id)
            # A subclass of Memslots may have a get_dirty_log of its own.
            if <uint64_t>len(taken.log) != 8 * dirty_words(slot.npages):
                wrong, taken.log = taken.log, None
                raise ValueError(f"get_dirty_log returned {len(wrong)} bytes for {slot}")
            if manual:
                vm.clear_dirty_log(slot.id, 0, slot.npages, taken.log, as_id)


def take_runs(vm, list logs not None):
    """Returns the runs of all slots' dirty logs, by address space and gfn, and does take_logs.

    A run continues across adjacent slots.
    """
    take_logs(vm, logs)
    return runs_of(logs)


cdef Py_ssize_t next_marked(const char *log, Py_ssize_t page, Py_ssize_t end) noexcept nogil:
    """Returns the first marked page in [page, end), or a number not below `end`."""
    cdef uint64_t rest
    while page < end:
        rest = word_of(log, page >> 6) >> (page & 63)
        if rest != 0:
            return page + trailing_zeros(rest)
        page = (page | 63) + 1
    return page


cdef Py_ssize_t copy_marked(
    const char *log, Py_ssize_t page, Py_ssize_t end, hva_t to, hva_t from_, Py_ssize_t most,
    Py_ssize_t *copied,
) noexcept nogil:
    """Copies at most `most` marked pages in [page, end), and counts them in `copied`.

    `to` and `from_` are the addresses of page 0. Returns the page to go on at.
    """
    cdef uint64_t offset
    while most > 0:
        page = next_marked(log, page, end)
        if page >= end:
            break
        offset = <uint64_t>page << PAGE_SHIFT
        memcpy(<void *>(to + offset), <const void *>(from_ + offset), PAGE_SIZE)
        copied[0] += 1
        most -= 1
        page += 1
    return page


cdef Py_ssize_t copy_guarded(
    const char *log, Py_ssize_t page, Py_ssize_t end, hva_t to, hva_t from_, bint looking,
    Py_ssize_t *copied,
) noexcept nogil:
    """Copies the marked pages in [page, end) to memory that may go away, or only looks at it.

    Returns the first marked page that is gone, or a number not below `end`.
    """
    cdef uint64_t offset
    cdef uint64_t done
    while True:
        page = next_marked(log, page, end)
        if page >= end:
            return page
        offset = <uint64_t>page << PAGE_SHIFT
        if looking:
            done = guarded_probe(to + offset, PAGE_SIZE)
        else:
            done = guarded_write(to + offset, <const void *>(from_ + offset), PAGE_SIZE)
            copied[0] += 1
        if done < PAGE_SIZE:
            return page
        page += 1


def copy_pages(list logs not None, dict places not None, bint guarded):
    """Copies the pages that are marked in `logs`, from copies of the memory. Returns their number.

    `places` has for each slot, in order, its parts: the number of pages, the address, the address
    of the copy, and whether the memory may go away. Pages of other slots stay as they are.
    `guarded`: some memory may go away, so a first round only looks. NotMappedError: it has. Nothing
    was copied, unless it went during the call.
    """
    cdef TakenLog taken
    cdef Py_ssize_t first
    cdef Py_ssize_t page
    cdef Py_ssize_t end
    cdef Py_ssize_t copied = 0
    cdef const char *log
    cdef hva_t to
    cdef hva_t from_
    cdef tuple part
    cdef bint looking = guarded
    while True:
        for taken in logs:
            log = PyByteArray_AS_STRING(taken.log)
            first = 0
            for part in <list>places.get(taken.slot, NOWHERE):
                end = first + <Py_ssize_t>part[0]
                to = <hva_t>part[1] - (<hva_t>first << PAGE_SHIFT)
                from_ = <hva_t>part[2] - (<hva_t>first << PAGE_SHIFT)
                page = first
                if part[3]:
                    with nogil:
                        page = copy_guarded(log, page, end, to, from_, looking, &copied)
                    if page < end:
                        raise gone(taken.slot.guest_phys_addr + (page << PAGE_SHIFT), taken.slot)
                elif not looking:
                    page = copy_marked(log, page, end, to, from_, FEW, &copied)
                    if page < end:
                        with nogil:
                            copy_marked(log, page, end, to, from_, end, &copied)
                first = end
        if not looking:
            return copied
        looking = False


def return_logs(Reader vm not None, list logs not None):
    """Marks again the pages that take_runs stored in `logs`, even if take_runs failed."""
    cdef TakenLog taken
    for taken in logs:
        if taken.log is not None:
            return_log(vm.m, taken.slot, taken.log)
