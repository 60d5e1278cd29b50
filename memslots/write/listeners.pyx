"""Listeners: objects that are told of a change before it, while it is made, and after it."""

cimport cython
from cpython.exc cimport PyErr_SetObject, PyErr_WriteUnraisable


@cython.final
cdef class Subscription:
    """A subscription, as ``subscribe`` returns it. Closing it ends the calls to the listener.

    It is a context manager that closes at the end. A subscription that begins or ends during a
    change takes effect with the next change.
    """

    cdef readonly object listener
    cdef Subscriptions owner  # holds this subscription; None once it is closed
    # The listener's methods, or None, looked up once: methods that it gets after it subscribed are
    # ignored.
    cdef object prepare
    cdef object invalidate
    cdef object commit

    def __cinit__(self, Subscriptions owner not None, listener):
        self.listener = listener
        self.prepare = getattr(listener, "prepare", None)
        self.invalidate = getattr(listener, "invalidate", None)
        self.commit = getattr(listener, "commit", None)
        if self.prepare is None and self.invalidate is None and self.commit is None:
            raise TypeError(
                "a listener must have prepare(change, old, new), invalidate(slot) or"
                f" commit(change, old, new); {type(listener).__name__!r} has none"
            )
        self.owner = owner

    def close(self):
        """Ends the subscription. Closing again does nothing."""
        with cython.critical_section(self):
            owner, self.owner = self.owner, None
        if owner is not None:
            (<Subscriptions>owner).remove(self)

    def __reduce__(self):
        raise TypeError("a Subscription cannot be pickled or copied: it belongs to its Memslots")

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


@cython.final
cdef class Subscriptions:
    """The subscriptions of one Memslots."""

    def __cinit__(self):
        self.current = ()

    def __reduce__(self):
        raise TypeError("Subscriptions cannot be pickled or copied: they belong to a Memslots")

    cdef tuple get(self):
        with cython.critical_section(self):
            now = self.current
        return now

    cdef bint replace(self, tuple now, tuple then):
        """Replaces `now` by `then` if `now` is still the tuple. Returns whether it was."""
        cdef bint same
        with cython.critical_section(self):
            same = self.current is now
            if same:
                self.current = then
        return same

    cdef object add(self, object listener):
        one = Subscription(self, listener)
        cdef tuple now = None
        cdef tuple then = None
        # Making the tuple may run a finalizer that closes another subscription: then try again.
        while now is None or not self.replace(now, then):
            now = self.get()
            then = (*now, one)
        return one

    cdef int remove(self, object one) except -1:
        cdef tuple now = None
        cdef tuple then = None
        while now is None or not self.replace(now, then):
            now = self.get()
            then = tuple([each for each in now if each is not one])
        return 0

    cdef object first_of(self, object cls):
        cdef Subscription one
        for one in self.get():
            if isinstance(one.listener, cls):
                return one.listener
        return None


cdef int tell_invalidate(tuple subscriptions, object slot) except -1:
    """Tells every listener that a slot is about to go. An exception refuses the change."""
    cdef Subscription subscription
    for subscription in subscriptions:
        if subscription.invalidate is not None:
            subscription.invalidate(slot)
    return 0


cdef int ask_prepare(tuple subscriptions, object change, object old, object new) except -1:
    """Asks every listener whether a change may be made. An exception refuses the change."""
    cdef Subscription subscription
    for subscription in subscriptions:
        if subscription.prepare is not None:
            subscription.prepare(change, old, new)
    return 0


cdef int tell_commit(tuple subscriptions, object change, object old, object new) except -1:
    """Tells every listener that a change is done.

    An Exception is reported as unraisable, and the other listeners are still told. Any other
    BaseException (KeyboardInterrupt, SystemExit) is not about the change: it is raised at the end.
    """
    cdef Subscription subscription
    cdef object leaving = None
    for subscription in subscriptions:
        if subscription.commit is not None:
            try:
                subscription.commit(change, old, new)
            except Exception as exception:
                PyErr_SetObject(type(exception), exception)
                PyErr_WriteUnraisable(subscription.commit)
            except BaseException as exception:
                leaving = exception
    if leaving is not None:
        raise leaving
    return 0
