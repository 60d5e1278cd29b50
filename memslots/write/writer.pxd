"""Making changes at once, as memslots.pyx and transaction.pyx use it.

The lock of a Writer is the only lock there is for its machine. Whoever takes it lets the GIL go
while waiting for it, and while waiting for readers: no reader ever waits for a writer. Listeners
run while it is held, and so does the body of a transaction. The order of locks is in srcu.pxd.

Not installed: Cython code outside goes through memslots.pxd.
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
    cdef machine *m  # whose slots are changed; its own
    cdef writer_lock lock  # held by the thread that is changing something
    cdef uint64_t writer  # that thread's ident; 0: none. Written by whoever holds the lock
    # goes up by one whenever a thread becomes the writer. Written by whoever holds the lock
    cdef uint64_t tenure
    cdef uint64_t forks  # how often this process was forked when this was last put in order for it
    # the writer was another thread when this process was forked: what it was changing is to be
    # abandoned before anything else is changed
    cdef bint torn
    cdef Subscriptions subscriptions  # who hears of the changes
    # the Mirror of the backend in which every change is made as well, or None. Written once
    cdef object mirror
    cdef list journal  # the Mirror's: what its backend has done and is to undo; None: no mirror
    # by as_id: FreeIds, or None where they were never asked for, or have been given up. For the
    # writer
    cdef list free_ids
    # The Bindings of slots to guest_memfds, or None: there never were any. For the writer
    cdef object bindings
    cdef object __weakref__

    # Makes the machine, with nothing in it; once, before anything else.
    cdef int own_machine(self, const limits *lim) except -1
    # Whether the calling thread is the writer.
    cdef bint is_mine(self) noexcept
    # Whether the calling thread was not the writer already, and has become it: leave is due then.
    cdef bint enter_again(self, str what) except -1
    cdef int abandon(self) except -1
    cdef void after_fork(self) noexcept
    cdef void wait_for_readers(self) noexcept
    # Makes these calls of the backend too, if there is one. After an error, in whatever else the
    # change comes to, undo_calls is due.
    cdef int make_calls(self, object calls) except -1
    cdef int undo_calls(self, object error) except -1
    # The Slots that are of guest_memfds.
    cdef list memfd_slots(self)
    # Rule G7a to G7c: raises, or returns the GuestMemfd of a region that has GUEST_MEMFD.
    cdef object check_memfd(self, const region *r)
    # The FreeIds of an address space, made when they are first asked for.
    cdef FreeIds free_ids_of(self, uint32_t as_id)
    # A slot was deleted.
    cdef void give_back_id(self, uint32_t id, uint32_t as_id) noexcept
    # Whether the backend has something that is still to be undone.
    cdef bint owes(self) noexcept
    # take_runs of dirty/runs.pxd, while nobody else changes anything.
    cdef list take_dirty_runs(self, object vm, list logs)

# Frees what the sets no longer hold of a change that has ended.
cdef void finish(change *c) noexcept
# Makes the Slot kept with a slot, and lets go of it; NULL does nothing.
cdef int attach_record(slot *s) except -1
cdef void release_record(slot *s) noexcept
