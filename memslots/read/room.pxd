"""Where there is room: what lies between the slots of an address space.

All of a call is of one generation. Not installed.
"""

from libc.stdint cimport uint64_t

from memslots.core.lookup cimport vcpu_cache
from memslots.core.machine cimport machine
from memslots.core.space cimport space
from memslots.core.units cimport gfn_t

# What is asked for: the lowest run of `npages` pages that begins at a multiple of `align`.
cdef struct wish:
    uint64_t npages  # at least 1
    uint64_t align  # at least 1
    gfn_t start  # not before it
    gfn_t end  # the gfn that it ends at, or before


# Takes the arguments of find_hole. ValueError for no pages, an align of 0, a start above the end.
cdef int set_wish(
    wish *w, object npages, object start, object end, object align, gfn_t usual_end
) except -1
# The lowest gfn from `gfn` on where a wish may begin; False: there is none before its end. O(1).
cdef bint wish_fits(const wish *w, gfn_t *gfn) noexcept nogil
# The runs of pages in [start, end) that no slot holds: a list of (start, end). O(log n + k).
cdef list holes_of(machine *m, const space *sp, vcpu_cache *own, gfn_t start, gfn_t end)
# The lowest gfn that suits a wish, or None. O(log n + k) for k slots that are passed over.
cdef object find_hole_of(machine *m, const space *sp, vcpu_cache *own, const wish *w)
# Whether each page of [start, end) is in a slot. O(log n + k).
cdef bint is_mapped_of(
    machine *m, const space *sp, vcpu_cache *own, gfn_t start, gfn_t end
) noexcept
