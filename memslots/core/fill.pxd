"""Filling an empty address space in one pass.

The trees are built from the bottom, not slot by slot. That takes O(n) if the slots are in order of
host address too, else O(n log n).

    fill_get     allocates all memory and checks the rules; the only step that can fail
    ... the owner of the sets attaches the records to the slots ...
    then either  fill_begin  readers find the slots
                   wait for the readers (srcu_wait)
                 fill_end    both sets hold the slots (P1)
    or           fill_stage  the inactive set holds the slots; nobody else may change that set
                 then fill_carry, after the caller has swapped: both sets hold the slots
                 or   fill_unstage, then fill_drop
                 or   fill_leave: the slots stay in the inactive set and belong to the caller
    or           fill_put    both sets hold the slots; only before there are readers, since the
                             generation stays the same
    or           fill_drop   frees the slots; the caller must release their records before
"""

from libc.stdint cimport uint32_t

from memslots.core.idtable cimport idtable_spare
from memslots.core.index cimport index
from memslots.core.region cimport limits, refusal, region
from memslots.core.slot cimport slot
from memslots.core.space cimport space

cdef struct fill:
    space *sp
    slot **slots  # in gfn order
    slot **by_hva  # in order of host address; may be `slots` itself
    uint32_t count  # the number of slots
    idtable_spare spare[2]  # [k]: for set k's id table


# Makes a slot of each row. If it returns anything but ALLOWED, nothing stays allocated. If a rule
# refuses a region, *wrong is that region.
cdef refusal fill_get(
    fill *f, space *sp, const index *ix, const limits *lim, region *wrong
) noexcept nogil
cdef void fill_begin(fill *f) noexcept nogil
cdef void fill_end(fill *f) noexcept nogil
cdef void fill_put(fill *f) noexcept nogil
cdef void fill_stage(fill *f) noexcept nogil
cdef void fill_unstage(fill *f) noexcept nogil
cdef void fill_carry(fill *f) noexcept nogil
cdef void fill_leave(fill *f) noexcept nogil
cdef void fill_drop(fill *f) noexcept nogil
