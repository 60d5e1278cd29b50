"""Pickling and copying a Memslots."""

# What __reduce__ gives: limits, generations, Slots and dirty logs, and the attributes of a
# subclass. The caller is the writer, so that it is all of one moment.
cdef tuple copy_of(object vm)
