"""Dirty marks that a snapshot takes, and gives back if it fails."""

from memslots.dirty.runs cimport return_logs
from memslots.memslots cimport memslots_machine, memslots_writer
from memslots.write.writer cimport Writer


def take_runs(vm, list logs not None):
    """What Memslots.take_dirty_runs does; what was taken is in `logs`, for return_marks.

    Should this raise, `logs` has what was taken until then: a signal's handler may raise between
    the end of this call and the caller's next step.
    """
    cdef Writer writer = memslots_writer(vm)
    return writer.take_dirty_runs(vm, logs)


def return_marks(vm, list logs not None):
    """Marks again what take_runs took, in the slots that it was taken from."""
    return_logs(memslots_machine(vm), logs)
