"""The readers, which memslots.pyx extends and pickling.pyx reads.

Not installed: Cython code outside goes through memslots.pxd.
"""

from libc.stdint cimport uint32_t

from memslots.core.lookup cimport vcpu_cache
from memslots.core.machine cimport machine
from memslots.core.space cimport space

cdef class Reader:
    cdef machine *m  # the machine whose address space is read
    cdef space *sp  # the address space
    cdef vcpu_cache *own  # the reader's own last-used slot, or NULL: it uses the set's
    cdef object owner  # the Memslots that owns m; None in the Memslots itself

    cdef object slot_of(self, uint32_t id)
