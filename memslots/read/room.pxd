"""Room for slots: the holes between the slots of an address space.

Each call sees one generation. Not installed.
"""

from libc.stdint cimport uint64_t

from memslots.core.lookup cimport vcpu_cache
from memslots.core.machine cimport machine
from memslots.core.space cimport space
from memslots.core.units cimport gfn_t

# A request for the lowest run of `npages` pages that begins at a multiple of `align`.
cdef struct wish:
    uint64_t npages  # at least 1
    uint64_t align  # at least 1
    gfn_t start  # the run begins here or later
    gfn_t end  # the run ends here or earlier


# Makes a wish of the arguments of find_hole. Raises ValueError if there are no pages, `align` is 0,
# or `start` is above `end`.
cdef int set_wish(
    wish *w, object npages, object start, object end, object align, gfn_t usual_end
) except -1
# Sets `gfn` to the lowest gfn from there on where the run of a wish may begin. Returns False if
# the run does not fit before the wish's end. O(1).
cdef bint wish_fits(const wish *w, gfn_t *gfn) noexcept nogil
# Returns the runs of pages in [start, end) that no slot holds: a list of (start, end).
# O(log n + k).
cdef list holes_of(machine *m, const space *sp, vcpu_cache *own, gfn_t start, gfn_t end)
# Returns the first gfn of the lowest run that satisfies a wish, or None. O(log n + k) for k slots
# that it passes over.
cdef object find_hole_of(machine *m, const space *sp, vcpu_cache *own, const wish *w)
# Returns whether each page of [start, end) is in a slot. O(log n + k).
cdef bint is_mapped_of(
    machine *m, const space *sp, vcpu_cache *own, gfn_t start, gfn_t end
) noexcept
