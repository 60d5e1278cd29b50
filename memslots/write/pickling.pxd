"""Pickling and copying a Memslots."""

from memslots.write.writer cimport Writer

# The limits, as the arguments of Memslots; and for each address space its generation, and the Slots
# with their dirty logs. The caller is the writer, so that it is all of one moment.
cdef tuple state_of(object vm)
# Makes a Writer's machine, which is new and empty, what the second of these says.
cdef int restore(Writer writer, object spaces) except -1
