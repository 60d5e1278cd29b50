"""Dirty logs as runs of gfns, across the slots and address spaces of a machine."""

# The runs of all slots' dirty logs, by address space and gfn, slots side by side as one; their
# marks are taken. The caller is the writer. Where it fails, what it took is marked again.
cdef list take_runs(object vm)
# Marks them again, wherever slots are there now.
cdef int mark_runs(object vm, list runs) except -1
