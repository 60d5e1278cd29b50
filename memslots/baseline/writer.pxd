"""Changes the arrays, for arraymemslots.pyx.

One thread at a time: there is no lock, and a change has no readers to wait for.
"""

from libc.stdint cimport uint32_t

from memslots.baseline.slotarray cimport array_slot, arrayspace
from memslots.core.machine cimport MAX_SPACES
from memslots.core.region cimport limits
from memslots.core.slot cimport slot
from memslots.write.operations cimport Target

cdef class ArrayWriter(Target):
    cdef limits own_lim  # the target of lim
    cdef arrayspace spaces[MAX_SPACES]  # own_lim.nspaces of them, the rest zeros
    cdef bint busy  # a caller has entered
    cdef slot found  # the target of the pointer that find returns

    # Makes the empty address spaces. Called once, before anything else.
    cdef int own_spaces(self, const limits *lim) except -1
    # Returns the slot of an id, or NULL. Valid until Python code runs.
    cdef array_slot *slot_of(self, uint32_t as_id, uint32_t id) noexcept
