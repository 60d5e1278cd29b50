"""What a snapshot needs of the Writer: a moment without changes, and marks that can be restored."""

from memslots.memslots cimport memslots_writer
from memslots.write.writer cimport Writer


def without_changes(vm, work):
    """Returns what work() returns. Nobody changes the slots meanwhile: other threads wait."""
    cdef Writer writer = memslots_writer(vm)
    cdef bint entered = writer.enter_again("a snapshot")
    try:
        return work()
    finally:
        if entered:
            writer.leave()


def take_runs(vm, list logs not None):
    """Does what Memslots.take_dirty_runs does. `logs` gets the marks, for return_logs.

    If this raises, `logs` has what was taken until then. `logs` is an argument because a signal
    handler may raise after this call, before the caller has its result.
    """
    cdef Writer writer = memslots_writer(vm)
    return writer.take_dirty_runs(vm, logs)
