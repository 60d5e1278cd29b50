"""Pickling and copying a Memslots."""

from libc.stdint cimport uint32_t, uint64_t

from memslots.write.writer cimport Writer

# The limits, as the arguments of Memslots; and for each address space its generation, and the Slots
# with their dirty logs. The caller is the writer, so that it is all of one moment.
cdef tuple state_of(object vm)
# Makes a Writer's machine, which is new and empty, what the second of these says.
cdef int restore(Writer writer, object spaces) except -1

# Parts of these, for others that have the face of a Memslots.

# ValueError where a state has another number of address spaces, or where one of them cannot have
# had this generation.
cdef int check_spaces(uint32_t nspaces, object spaces) except -1
cdef int check_generation(uint32_t as_id, uint32_t nspaces, uint64_t generation) except -1
