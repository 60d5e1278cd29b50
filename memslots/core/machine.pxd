"""The address spaces of one virtual machine and what they share."""

from libc.stdint cimport uint32_t

from memslots.core.region cimport limits
from memslots.core.space cimport space
from memslots.core.srcu cimport srcu

cdef enum:
    MAX_SPACES = 16

cdef struct machine:
    srcu readers  # threads that read without the writer's lock
    limits lim  # fixed when the machine is made
    space *spaces[MAX_SPACES]  # the first lim.nspaces are set, the rest are NULL


# Returns a machine with empty address spaces, or NULL if there is no memory.
cdef machine *machine_new(const limits *lim) noexcept nogil
# Frees the machine's own memory, but not the slots in it. NULL does nothing.
cdef void machine_free(machine *m) noexcept nogil
