"""The readers' section around a single look-up.

With the GIL a look-up holds it from the search until it has its own reference to the Slot found,
and a writer frees nothing without it: that is all the protection it needs, and both functions here
compile to nothing. Without (free-threaded CPython) it is in a section (srcu.pxd). A debug build
enters sections on any Python, so that what must not be done in one is caught there.

In a section no Python code may run: nothing that raises, allocates objects or lets one go.

Not installed: Cython code outside goes through memslots.pxd.
"""

from memslots.core.lookup cimport vcpu_cache
from memslots.core.machine cimport machine
from memslots.core.srcu cimport srcu_alone, srcu_enter, srcu_leave, srcu_reader, srcu_shared

cdef extern from *:
    """
    #if defined(Py_GIL_DISABLED) || defined(MEMSLOTS_DEBUG)
    #define MEMSLOTS_SECTIONS 1
    #else
    #define MEMSLOTS_SECTIONS 0
    #endif
    """
    bint SECTIONS "MEMSLOTS_SECTIONS"  # whether single look-ups need sections

cdef struct section:
    srcu_reader *reader  # where it was entered; NULL: nowhere, the GIL is held
    int side  # what srcu_leave wants
    # the cache that the look-up may use: NULL where there is none, or another thread is using it
    vcpu_cache *own


cdef inline srcu_reader *reader_of(machine *m, const vcpu_cache *own) noexcept nogil:
    """Where a reader counts itself in: its own line, or the thread's."""
    if own is not NULL and own.reader is not NULL:
        return own.reader
    return srcu_shared(&m.readers)


cdef inline section section_enter(machine *m, vcpu_cache *own) noexcept nogil:
    """`own`: as in lookup.pxd, the cache of the reader that looks up, or NULL."""
    cdef section at
    at.reader = NULL
    at.side = 0
    at.own = own
    if SECTIONS:
        at.reader = reader_of(m, own)
        at.side = srcu_enter(at.reader)
        # A vCPU is for one thread at a time; should two use it, one at most has its cache.
        if own is not NULL and not srcu_alone(at.reader):
            at.own = NULL
    return at


cdef inline void section_leave(const section *at) noexcept nogil:
    if SECTIONS:
        srcu_leave(at.reader, at.side)
