"""A MemoryMap as other modules read it.

Free functions only: no layout of a class is shared. Not installed.
"""

from libc.stdint cimport uint32_t

from memslots.core.index cimport index

# The index of a MemoryMap, as long as somebody keeps the map, and its address space; NULL: it has
# no slots. TypeError for anything else than a MemoryMap.
cdef int map_index(object map, const index **ix, uint32_t *as_id) except -1

# Its Slots that are of guest_memfds, or None: a row does not say of which.
cdef list map_memfds(object map)
