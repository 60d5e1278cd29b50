"""A refusal of the core as the error that says why."""

from libc.stdint cimport uint32_t

from memslots.core.region cimport limits, refusal, ruling
from memslots.core.slot cimport region
from memslots.core.units cimport gpa_t

# The error for a region that was refused. `p` is what region_classify gave, or NULL where it was
# not asked; `given` is the value as the caller gave it, where the region has lost it
# (SIZE_NOT_ALIGNED, GPA_NOT_ALIGNED).
cdef object refusal_error(
    refusal why, const limits *lim, const region *r, const ruling *p, str given
)
# Raises the error of a region that breaks rule 1 or 2.
cdef int check_region(const limits *lim, const region *r) except -1
# Raises the error of an address space that cannot be.
cdef int check_as_id(const limits *lim, uint32_t as_id) except -1
# Raises the error of an id or an address space that cannot be.
cdef int check_id(const limits *lim, uint32_t id, uint32_t as_id) except -1
# An id, or the NoRoomError of an address space where all are in use.
cdef object room_for(uint32_t id, uint32_t as_id, uint32_t max_slots)
# The error of an access that no slot lets through. `inside`: `next_record` is the Slot in the way,
# `readable` if only a write is not allowed; otherwise these are the Slots on both sides of a hole,
# None where there is none.
cdef object access_error(
    gpa_t gpa, bint inside, bint readable, object last_record, object next_record
)
