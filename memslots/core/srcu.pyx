"""Readers enter and leave without waiting.

How it works and the contract of each function are in srcu.pxd.
"""

from libc.stdint cimport uint64_t
from posix.time cimport nanosleep, timespec

from memslots.core.atomics cimport cpu_relax, fence, load_acquire, store_relaxed

cdef enum:
    SPINS = 2000  # some microseconds: most stretches of a batch end sooner


cdef void drain(srcu *domain, int side) noexcept nogil:
    """Waits until nobody is left on a counter that new readers do not use."""
    cdef timespec pause
    cdef int spins = 0
    pause.tv_sec = 0
    pause.tv_nsec = 20_000
    while load_acquire(&domain.readers[side]) != 0:
        if spins < SPINS:
            spins += 1
            cpu_relax()
        else:
            nanosleep(&pause, NULL)


cdef void srcu_wait(srcu *domain) noexcept nogil:
    cdef uint64_t turn = domain.turn
    # Pairs with the fence of srcu_enter: what was published before is seen by all who are not seen
    # here.
    fence()
    # Stragglers: they took the number of this counter before the last wait turned it out of use,
    # and counted after.
    drain(domain, (turn & 1) ^ 1)
    store_relaxed(&domain.turn, turn + 1)
    # Those who still count on the old counter from here on are the next wait's stragglers; they see
    # what was published.
    fence()
    drain(domain, turn & 1)
