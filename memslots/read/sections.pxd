"""The readers' section around a single look-up.

In a build with the GIL, a look-up holds the GIL from the search until it has its own reference to
the Slot found. A writer frees nothing without the GIL, so the look-up needs no more protection:
both functions here compile to nothing. In free-threaded CPython a look-up is in a section
(srcu.pxd). A debug build enters sections on any Python, to catch what must not happen in one.

In a section no Python code may run: nothing may raise, allocate objects or drop a reference.

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
    srcu_reader *reader  # the reader that was entered; NULL: none, the GIL is held
    int side  # the argument of srcu_leave
    # the cache that the look-up may use; NULL if there is none, or another thread is using it
    vcpu_cache *own


cdef inline srcu_reader *reader_of(machine *m, const vcpu_cache *own) noexcept nogil:
    """Returns the line on which a reader counts itself in: its own, or the thread's."""
    if own is not NULL and own.reader is not NULL:
        return own.reader
    return srcu_shared(&m.readers)


cdef inline section section_enter(machine *m, vcpu_cache *own) noexcept nogil:
    """Enters a section. `own` is the cache of the reader, as in lookup.pxd, or NULL."""
    cdef section at
    at.reader = NULL
    at.side = 0
    at.own = own
    if SECTIONS:
        at.reader = reader_of(m, own)
        at.side = srcu_enter(at.reader)
        # A vCPU is for one thread at a time. If two use it, at most one has its cache.
        if own is not NULL and not srcu_alone(at.reader):
            at.own = NULL
    return at


cdef inline void section_leave(const section *at) noexcept nogil:
    if SECTIONS:
        srcu_leave(at.reader, at.side)
