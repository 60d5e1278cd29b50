"""How other modules read a MemoryMap.

Free functions only: no layout of a class is shared. Not installed.
"""

from libc.stdint cimport uint32_t

from memslots.core.index cimport index

# Sets `ix` to the index of a MemoryMap, or NULL if the map has no slots, and `as_id` to its address
# space. The index is valid while the caller keeps the map. Raises TypeError for any other object.
cdef int map_index(object map, const index **ix, uint32_t *as_id) except -1

# Returns the Slots of a map that have a guest_memfd, or None. A row does not say which file it has.
cdef list map_memfds(object map)
