"""The address spaces of one virtual machine and what they share.

The contract of each function is in machine.pxd.
"""

from libc.stdint cimport uint32_t

from memslots.core.alloc cimport alloc_free, alloc_lines
from memslots.core.space cimport space_free, space_new
from memslots.core.srcu cimport srcu_clear, srcu_init


cdef machine *machine_new(const limits *lim) noexcept nogil:
    cdef machine *m = <machine *>alloc_lines(sizeof(machine))
    cdef uint32_t as_id
    if m is NULL:
        return NULL
    srcu_init(&m.readers)
    m.lim = lim[0]
    for as_id in range(lim.nspaces):
        m.spaces[as_id] = space_new(as_id, lim.nspaces)
        if m.spaces[as_id] is NULL:
            machine_free(m)
            return NULL
    return m


cdef void machine_free(machine *m) noexcept nogil:
    cdef int as_id
    if m is not NULL:
        for as_id in range(MAX_SPACES):
            space_free(m.spaces[as_id])
        srcu_clear(&m.readers)
        alloc_free(m)
