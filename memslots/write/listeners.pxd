"""What a change says to its listeners, in order of subscription.

A subscription is a `listeners.Subscription`.
"""

cdef int tell_invalidate(tuple subscriptions, object slot) except -1
cdef int ask_prepare(tuple subscriptions, object change, object old, object new) except -1
cdef int tell_commit(tuple subscriptions, object change, object old, object new) except -1
