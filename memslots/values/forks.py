"""A lock that the child of a fork can use, whatever other threads did at the fork."""

from __future__ import annotations

import os
from threading import RLock


def lock_across_forks() -> RLock:
    """Returns a lock that is never held by a thread that the child of a fork does not have.

    A fork waits until the lock is free, so hold it for a moment only. The thread that holds it may
    take it again and may fork: a finalizer or a signal's handler may run anywhere.
    """
    lock = RLock()
    os.register_at_fork(
        before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
    )
    return lock
