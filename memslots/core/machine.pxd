"""What the address spaces of one virtual machine share."""

from libc.stdint cimport uint32_t

from memslots.core.region cimport limits
from memslots.core.space cimport space
from memslots.core.srcu cimport srcu

cdef enum:
    MAX_SPACES = 16

cdef struct machine:
    srcu readers  # those who read without the writer's lock
    limits lim  # fixed when the machine is made
    space *spaces[MAX_SPACES]  # lim.nspaces of them, the rest NULL


# A machine with empty address spaces, or NULL: no memory.
cdef machine *machine_new(const limits *lim) noexcept nogil
# Gives back the machine's own memory; the slots in it are not its own. NULL does nothing.
cdef void machine_free(machine *m) noexcept nogil
