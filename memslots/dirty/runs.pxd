"""Dirty logs as runs of gfns, across the slots and address spaces of a machine."""

from memslots.core.machine cimport machine

# The runs of all slots' dirty logs, by address space and gfn, slots side by side as one; their
# marks are taken, and put down in `logs` before anything else can fail. The caller is the writer.
cdef list take_runs(object vm, list logs)
# Marks what take_runs put down in `logs` again, whether it came to an end or not. From any thread.
cdef int return_logs(machine *m, list logs) except -1
