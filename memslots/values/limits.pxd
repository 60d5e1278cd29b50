"""The limits of a Memslots as a caller gives them.

Not installed: Cython code outside goes through memslots.pxd.
"""

from libc.stdint cimport uint64_t

from memslots.core.region cimport limits

# Returns the arguments of a Memslots' constructor, with the default limit for each `...`.
cdef dict with_default_limits(dict given)
# Sets the limits from the arguments of a Memslots' constructor. Raises ValueError for a limit that
# is not allowed; max_slots is at most `most_slots`. Raises TypeError for an object that is no
# integer, OverflowError for one that does not fit its field.
cdef int set_limits(
    limits *lim,
    object max_slots,
    object address_spaces,
    object max_gfn,
    object max_hva,
    object manual_dirty_log,
    uint64_t most_slots,
) except -1
# Returns the limits of a Memslots as a dictionary of these arguments.
cdef dict limits_of(object vm)
