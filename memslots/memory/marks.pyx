"""What a snapshot asks of the Writer: no changes for a moment, and marks to be given back."""

from memslots.memslots cimport memslots_writer
from memslots.write.writer cimport Writer

from memslots.dirty.runs import return_logs


def without_changes(vm, work):
    """Returns what work() returns; nobody changes the slots meanwhile, and others wait."""
    cdef Writer writer = memslots_writer(vm)
    cdef bint entered = writer.enter_again("a snapshot")
    try:
        return work()
    finally:
        if entered:
            writer.leave()


def take_runs(vm, list logs not None):
    """What Memslots.take_dirty_runs does; what was taken is in `logs`, for return_marks.

    Should this raise, `logs` has what was taken until then: a signal's handler may raise between
    the end of this call and the caller's next step.
    """
    cdef Writer writer = memslots_writer(vm)
    return writer.take_dirty_runs(vm, logs)


def return_marks(vm, list logs not None):
    """Marks again what take_runs took, in the slots that it was taken from."""
    return_logs(vm, logs)
