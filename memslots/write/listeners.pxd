"""Who hears of changes, and what a change says to them, in order of subscription."""

# The subscriptions of one Memslots. Any thread may add and end some, also while a change is made.
cdef class Subscriptions:
    # Subscription objects; replaced as a whole, never changed in place, so a change goes on with
    # those that it began with. Only the methods of this class use it
    cdef tuple current

    cdef tuple get(self)
    # Returns the Subscription.
    cdef object add(self, object listener)
    # Nothing happens if it is in there no more.
    cdef int remove(self, object one) except -1
    # The first listener of a class, or None.
    cdef object first_of(self, object cls)
    cdef bint replace(self, tuple now, tuple then)

cdef int tell_invalidate(tuple subscriptions, object slot) except -1
cdef int ask_prepare(tuple subscriptions, object change, object old, object new) except -1
cdef int tell_commit(tuple subscriptions, object change, object old, object new) except -1
