"""Readers enter and leave without waiting; a writer waits for those who were in before it asked.

Two counters of readers, one of which new readers use. A writer that has published something new
waits until nobody is left who may have read the old: first for stragglers on the counter out of
use, then, having turned new readers over to that one, for those on the other. New readers never
hold it up.
"""

from libc.stdint cimport uint64_t

from memslots.core.atomics cimport fence, fetch_add, fetch_sub_release, load_acquire, load_relaxed

cdef struct srcu:
    uint64_t turn  # bit 0: the counter that new readers use; the writer alone writes it
    # keeps the counters, which readers write, off the line that they all read
    uint64_t turn_line[7]
    uint64_t readers[2]  # how many are in
    uint64_t readers_line[6]


cdef inline int srcu_enter(srcu *domain) noexcept nogil:
    """Enters; gives what srcu_leave wants. What is read from now on stays until then.

    May be nested.
    """
    cdef int side = load_relaxed(&domain.turn) & 1
    fetch_add(&domain.readers[side], 1)
    # Pairs with the first fence of srcu_wait: either the writer sees this reader, or this reader
    # sees what it published.
    fence()
    return side


cdef inline void srcu_leave(srcu *domain, int side) noexcept nogil:
    # Release: pairs with the acquiring loads of srcu_wait, so that all that was read was read
    # before anything is freed.
    fetch_sub_release(&domain.readers[side], 1)


cdef inline bint srcu_idle(srcu *domain) noexcept nogil:
    """Whether no reader is in who may have entered before: srcu_wait would not wait."""
    fence()
    return load_acquire(&domain.readers[0]) == 0 and load_acquire(&domain.readers[1]) == 0


# Waits for every reader who entered before; one caller at a time. Whoever calls it holds nothing a
# reader needs.
cdef void srcu_wait(srcu *domain) noexcept nogil
