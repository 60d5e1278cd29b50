"""The listeners of changes, and the calls that a change makes to them, in subscription order."""

# The subscriptions of one Memslots. Any thread may add and end some, even during a change.
cdef class Subscriptions:
    # Subscription objects. The tuple is replaced as a whole, never changed in place, so a change
    # keeps the subscriptions it began with. Only the methods of this class use it
    cdef tuple current

    cdef tuple get(self)
    # Returns the new Subscription.
    cdef object add(self, object listener)
    # Removes a Subscription. Does nothing if it was removed before.
    cdef int remove(self, object one) except -1
    # Returns the first listener of a class, or None.
    cdef object first_of(self, object cls)
    cdef bint replace(self, tuple now, tuple then)

cdef int tell_invalidate(tuple subscriptions, object slot) except -1
cdef int ask_prepare(tuple subscriptions, object change, object old, object new) except -1
cdef int tell_commit(tuple subscriptions, object change, object old, object new) except -1
