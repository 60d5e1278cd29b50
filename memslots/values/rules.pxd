"""The error that says why the core refused a call."""

from libc.stdint cimport uint32_t

from memslots.core.region cimport limits, refusal, ruling
from memslots.core.slot cimport region
from memslots.core.units cimport gpa_t

# Returns the error for a region that was refused. `p` is the ruling of region_classify, or NULL if
# that was not called. `given` is the value as the caller gave it, for the refusals whose region has
# lost it (SIZE_NOT_ALIGNED, GPA_NOT_ALIGNED).
cdef object refusal_error(
    refusal why, const limits *lim, const region *r, const ruling *p, str given
)
# Raises the error of a region that breaks rule 1 or 2.
cdef int check_region(const limits *lim, const region *r) except -1
# Raises InvalidRegionError if there is no such address space.
cdef int check_as_id(const limits *lim, uint32_t as_id) except -1
# Raises InvalidRegionError if the id or the address space is beyond the limits.
cdef int check_id(const limits *lim, uint32_t id, uint32_t as_id) except -1
# Returns `id`, or raises NoRoomError if it is not below `max_slots`: all ids are in use.
cdef object room_for(uint32_t id, uint32_t as_id, uint32_t max_slots)
# Returns the error of an access that no slot allows. With `inside`, `next_record` is the Slot that
# has the page, and `readable` says that it refuses only writes. Otherwise the records are the Slots
# on both sides of a hole, or None.
cdef object access_error(
    gpa_t gpa, bint inside, bint readable, object last_record, object next_record
)
