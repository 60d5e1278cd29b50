"""Changing the arrays, as arraymemslots.pyx uses it.

One thread at a time: there is no lock, and no reader that a change would have to wait for.
"""

from libc.stdint cimport uint32_t

from memslots.baseline.slotarray cimport array_slot, arrayspace
from memslots.core.machine cimport MAX_SPACES
from memslots.core.region cimport limits
from memslots.core.slot cimport slot
from memslots.write.operations cimport Target

cdef class ArrayWriter(Target):
    cdef limits own_lim  # what lim points to
    cdef arrayspace spaces[MAX_SPACES]  # own_lim.nspaces of them, the rest zeros
    cdef bint busy  # somebody has entered
    cdef slot found  # what find returns a pointer to

    # Makes the address spaces, with nothing in them; once, before anything else.
    cdef int own_spaces(self, const limits *lim) except -1
    # The slot of an id, or NULL. Good until Python code is run.
    cdef array_slot *slot_of(self, uint32_t as_id, uint32_t id) noexcept
