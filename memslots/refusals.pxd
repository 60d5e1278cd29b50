"""A refusal of the core as the error that says why."""

from memslots.core.region cimport limits, plan, refusal, region

# The error for a region that was refused. `p` is what region_plan gave, or NULL where it was not
# asked; `given` is the value as the caller gave it, where the region has lost it (SIZE_NOT_ALIGNED,
# GPA_NOT_ALIGNED).
cdef object refusal_error(
    refusal why, const limits *lim, const region *r, const plan *p, str given
)
