"""The limits of a Memslots as a caller gives them.

Not installed: Cython code outside goes through memslots.pxd.
"""

from libc.stdint cimport uint64_t

from memslots.core.region cimport limits

# The arguments of a Memslots' constructor, with the usual limits where they are `...`.
cdef dict with_default_limits(dict given)
# Takes the arguments of a Memslots' constructor; max_slots is `most_slots` at most. ValueError for
# a limit that cannot be, TypeError, OverflowError for what is no integer or does not fit its field.
cdef int set_limits(
    limits *lim,
    object max_slots,
    object address_spaces,
    object max_gfn,
    object max_hva,
    object manual_dirty_log,
    uint64_t most_slots,
) except -1
# The same as a dictionary of these arguments, of a Memslots.
cdef dict limits_of(object vm)
