"""The Writer, which makes each change at once, for memslots.pyx and transaction.pyx.

The lock of a Writer is the only lock of its machine. A thread releases the GIL while it waits for
the lock or for readers. No reader ever waits for a writer. Listeners and the body of a transaction
run with the lock held. The order of locks is in srcu.pxd.

Not installed: Cython code outside this package uses memslots.pxd.
"""

from libc.stdint cimport uint32_t, uint64_t

from memslots.core.machine cimport machine
from memslots.core.region cimport limits
from memslots.core.slot cimport region, slot
from memslots.core.update cimport change
from memslots.write.freeids cimport FreeIds
from memslots.write.listeners cimport Subscriptions
from memslots.write.lock cimport writer_lock
from memslots.write.operations cimport Target

cdef class Writer(Target):
    cdef machine *m  # whose slots are changed; owned by this Writer
    cdef writer_lock lock  # held by the thread that makes a change
    cdef uint64_t writer  # that thread's ident; 0: none. Written by the thread that has the lock
    # goes up by one when a thread becomes the writer. Written by the thread that has the lock
    cdef uint64_t tenure
    cdef uint64_t forks  # the process's count of forks that after_fork has last seen
    # whether another thread was the writer when this process was forked: its change must be
    # abandoned before the next change
    cdef bint torn
    cdef Subscriptions subscriptions  # the listeners of changes
    # the Mirror, whose backend makes every change as well, or None. Written once
    cdef object mirror
    cdef list journal  # the Mirror's: calls that may have to be undone; None: no mirror
    # by as_id: FreeIds, or None if nobody asked for them yet or memory ran out. For the writer only
    cdef list free_ids
    # The Bindings of slots to guest_memfds; None: there never were any. For the writer only
    cdef object bindings
    cdef object __weakref__

    # Makes the empty machine. Call it once, before anything else.
    cdef int own_machine(self, const limits *lim) except -1
    # Returns whether the calling thread is the writer.
    cdef bint is_mine(self) noexcept
    # Enters unless the calling thread is the writer already. Returns whether it entered: then the
    # caller must leave.
    cdef bint enter_again(self, str what) except -1
    cdef int abandon(self) except -1
    cdef void after_fork(self) noexcept
    cdef void wait_for_readers(self) noexcept
    # Makes these calls of the backend. There must be one. If this or anything else fails before the
    # swap, the caller must call undo_calls.
    cdef int make_calls(self, object calls) except -1
    cdef int undo_calls(self, object error) except -1
    # Returns the Slots with a guest_memfd.
    cdef list memfd_slots(self)
    # Rules G7a to G7c: raises, or returns the GuestMemfd of a region that has GUEST_MEMFD.
    cdef object check_memfd(self, const region *r)
    # Returns the FreeIds of an address space. The first call makes them.
    cdef FreeIds free_ids_of(self, uint32_t as_id)
    # Tells the FreeIds that a slot was deleted.
    cdef void give_back_id(self, uint32_t id, uint32_t as_id) noexcept
    # Returns whether the backend has calls that are still to be undone.
    cdef bint owes(self) noexcept
    # Does take_runs of dirty/runs.pyx as the writer.
    cdef list take_dirty_runs(self, object vm, list logs)

# Frees the slots of an ended change that no set holds, and their records.
cdef void finish(change *c) noexcept
# Attach a Slot to a slot, and release it again. NULL does nothing.
cdef int attach_record(slot *s) except -1
cdef void release_record(slot *s) noexcept
