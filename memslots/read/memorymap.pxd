"""A map of guest memory as a value, made of the index of an address space.

Not installed.
"""

from memslots.core.machine cimport machine
from memslots.core.space cimport space

# The MemoryMap of what an address space holds now. O(1) where it has an index; else as a batch that
# makes one, O(n).
cdef object map_of(machine *m, space *sp)
