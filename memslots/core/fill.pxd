"""An address space that is empty, filled in one pass.

The trees are built from the bottom, not slot by slot: O(n), where the slots are in the order of
their host addresses too, else O(n log n).

    fill_get     all memory, and the rules; the only step that can fail
    ... the owner of the sets attaches the records to the slots ...
    then either  fill_begin  readers find the slots
                   wait for the readers (srcu_wait)
                 fill_end    both sets hold them (P1)
    or           fill_stage  the inactive set holds them, which nobody else is to change
                 then fill_carry, after a swap of the caller's: both sets hold them
                 or   fill_unstage, and fill_drop
                 or   fill_leave: they stay in the inactive set, and are the caller's
    or           fill_put    the same, where nobody reads yet: no generation goes by
    or           fill_drop   they are freed; the records are the caller's, to let go before
"""

from libc.stdint cimport uint32_t

from memslots.core.idtable cimport idtable_spare
from memslots.core.index cimport index
from memslots.core.region cimport limits, refusal, region
from memslots.core.slot cimport slot
from memslots.core.space cimport space

cdef struct fill:
    space *sp
    slot **slots  # by gfn
    slot **by_hva  # by host address; may be `slots` itself
    uint32_t count  # of either
    idtable_spare spare[2]  # [k]: for set k's id table


# Makes a slot of each row. Anything but ALLOWED: nothing is left allocated; for what a rule
# refuses, *wrong is the region.
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
