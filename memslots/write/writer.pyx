"""The Writer: takes the lock, makes the steps of a change, and calls the listeners in between."""

import os

cimport cython
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport Py_INCREF, Py_XDECREF, PyObject
from cpython.weakref cimport PyWeakref_NewRef
from libc.stdint cimport uint32_t, uint64_t

from memslots.core.atomics cimport atomic_load_relaxed, atomic_store_relaxed
from memslots.core.debug cimport debug_assert
from memslots.core.dirtylog cimport dirty_free
from memslots.core.machine cimport machine, machine_free, machine_new
from memslots.core.region cimport (
    ALLOWED,
    BEYOND_MAX_GFN,
    CHANGE_CREATE,
    CHANGE_NONE,
    change_kind,
    limits,
    refusal,
    region_beyond_max_gfn,
    region_classify,
    region_place,
    ruling,
)
from memslots.core.slot cimport SLOT_GUEST_MEMFD, region, slot, slot_free
from memslots.core.slotset cimport (
    slotset,
    slotset_by_id,
    slotset_drop_index,
    slotset_first,
    slotset_step,
)
from memslots.core.space cimport space, space_active, space_inactive
from memslots.core.srcu cimport srcu_depth, srcu_forget, srcu_idle, srcu_wait
from memslots.core.units cimport PAGE_SHIFT
from memslots.core.update cimport (
    change,
    update_abandon_begin,
    update_abandon_drop,
    update_abandon_end,
    update_abandon_get,
    update_apply_begin,
    update_apply_end,
    update_end,
    update_get,
    update_invalidate_begin,
    update_invalidate_end,
    update_leftover,
    update_must_invalidate,
    update_revert_begin,
    update_revert_end,
)
from memslots.values.records cimport region_record, slot_record
from memslots.values.rules cimport refusal_error
from memslots.write.listeners cimport (
    Subscriptions,
    ask_prepare,
    tell_commit,
    tell_invalidate,
)
from memslots.write.lock cimport (
    lock_after_fork,
    lock_clear,
    lock_init,
    lock_is_held,
    lock_release,
    lock_try,
    lock_wait,
)
from memslots.write.operations cimport change_record

from memslots.errors import busy


# The number of forks between this process and the one that imported this module. If another fork
# handler runs before ours and makes a change, the Writer sees the fork by this count.
cdef uint64_t forks = 0
# A weak reference to every Writer, by address. (To import the module weakref would be a tenth of
# the import time of memslots.)
cdef dict WRITERS = {}


cdef extern from "pthread.h":
    int pthread_atfork(
        void (*before)() noexcept nogil,
        void (*in_parent)() noexcept nogil,
        void (*in_child)() noexcept nogil,
    ) nogil


cdef void release_record(slot *s) noexcept:
    if s is not NULL:
        Py_XDECREF(<PyObject *>s.record)


cdef int attach_record(slot *s) except -1:
    cdef object record
    if s is not NULL:
        record = slot_record(s)
        Py_INCREF(record)
        s.record = <void *>record
    return 0


cdef void finish(change *c) noexcept:
    release_record(update_leftover(c))
    release_record(c.invalid)
    update_end(c)


cdef void free_slots(machine *m) noexcept:
    """Frees every slot that the sets hold. The sets must not be used afterwards."""
    cdef uint32_t as_id
    cdef slot *s
    cdef slot *next
    cdef slot *chain = NULL
    # The walk reads slots it has passed, so none may be freed before its end. Until then they form
    # a chain through `record`, which is no longer needed.
    for as_id in range(m.lim.nspaces):
        s = slotset_first(&m.spaces[as_id].sets[0])
        while s is not NULL:
            next = slotset_step(&m.spaces[as_id].sets[0], s, 1)
            release_record(s)
            s.record = chain
            chain = s
            s = next
    while chain is not NULL:
        s = chain
        chain = <slot *>s.record
        dirty_free(s.dirty)
        slot_free(s)


# no_gc_clear: Memslots uses the members of the Writer until the end.
@cython.no_gc_clear
cdef class Writer(Target):
    """Owns a machine and makes its changes. One thread at a time is the writer."""

    cdef int own_machine(self, const limits *lim) except -1:
        self.subscriptions = Subscriptions()
        cdef machine *m = machine_new(lim) if lock_init(&self.lock) == 0 else NULL
        if m is NULL:
            raise MemoryError("no memory for the address spaces")
        self.m = m
        self.lim = &m.lim
        self.forks = forks
        try:
            WRITERS[<size_t><void *>self] = PyWeakref_NewRef(self, None)
            return 0
        except MemoryError:
            pass  # raise a new one: the traceback of this one would keep `self` alive
        raise MemoryError("no memory for the list of writers")

    def __dealloc__(self):
        if WRITERS is not None:  # it is None when the interpreter ends
            WRITERS.pop(<size_t><void *>self, None)
        if self.m is not NULL:
            free_slots(self.m)
            machine_free(self.m)
        lock_clear(&self.lock)

    cdef bint is_mine(self) noexcept:
        # Another thread may be writing `writer`, but only this thread writes its own ident there.
        return atomic_load_relaxed(&self.writer) == <uint64_t>PyThread_get_thread_ident()

    cdef int enter(self, str what) except -1:
        """Makes the calling thread the writer. BusyError if it is the writer already."""
        debug_assert(srcu_depth()[0] == 0, b"a writer's lock is not taken within a section")
        self.after_fork()
        if self.is_mine():
            raise busy(what)
        if not lock_try(&self.lock):
            # No change has begun yet, so a signal handler may end the wait.
            lock_wait(&self.lock)
        atomic_store_relaxed(&self.writer, <uint64_t>PyThread_get_thread_ident())
        self.tenure += 1
        if self.torn:
            try:
                self.abandon()
            except BaseException:
                self.leave()
                raise
        return 0

    cdef bint enter_again(self, str what) except -1:
        if self.is_mine():
            return False
        self.enter(what)
        return True

    cdef void leave(self) noexcept:
        atomic_store_relaxed(&self.writer, 0)
        lock_release(&self.lock)

    cdef int abandon(self) except -1:
        """Abandons the change of a thread that does not exist in this process."""
        cdef uint32_t as_id
        cdef change c
        for as_id in range(self.m.lim.nspaces):
            if update_abandon_get(&c, self.m.spaces[as_id]) != ALLOWED:
                raise MemoryError("no memory to abandon a change that was under way at a fork")
            try:
                attach_record(c.new)
            except BaseException:
                update_abandon_drop(&c)
                raise
            update_abandon_begin(&c)
            self.wait_for_readers()
            update_abandon_end(&c)
            finish(&c)
        self.torn = False
        if self.bindings is not None:
            self.bindings.begin_anew(self.memfd_slots())
        return 0

    cdef list memfd_slots(self):
        """Returns the Slots with a guest_memfd."""
        cdef list found = []
        cdef uint32_t as_id
        cdef slotset *set
        cdef slot *s
        for as_id in range(self.m.lim.nspaces):
            set = space_active(self.m.spaces[as_id])
            s = slotset_first(set)
            while s is not NULL:
                if s.flags & SLOT_GUEST_MEMFD:
                    found.append(<object>s.record)
                s = slotset_step(set, s, 1)
        return found

    cdef void after_fork(self) noexcept:
        """Releases, in the child of a fork, what threads held that do not exist there."""
        if self.forks == forks:
            return
        self.forks = forks
        srcu_forget(&self.m.readers)
        # The thread that forked goes on with its change in the child, too.
        cdef bint mine = self.is_mine()
        cdef bint torn = lock_is_held(&self.lock) and not mine
        lock_after_fork(&self.lock, mine)
        if not torn:
            return
        atomic_store_relaxed(&self.writer, 0)
        self.torn = True
        self.free_ids = None  # the ids on loan to the other thread are lost with it
        try:
            self.enter("a fork")
            self.leave()
        except MemoryError:
            pass  # the next change tries again, and raises if there still is no memory

    cdef void wait_for_readers(self) noexcept:
        """Waits until no reader is in the old sets, then drops their indexes.

        With the GIL only batch calls are such readers (sections.pxd).
        """
        cdef uint32_t as_id
        if not srcu_idle(&self.m.readers):
            with nogil:
                srcu_wait(&self.m.readers)
        for as_id in range(self.m.lim.nspaces):
            slotset_drop_index(space_inactive(self.m.spaces[as_id]))

    cdef int make_calls(self, object calls) except -1:
        self.mirror.make(calls)
        # No Python code runs from here to the swap, so no signal handler can raise in between.
        self.journal.clear()
        return 0

    cdef int undo_calls(self, object error) except -1:
        if self.journal:
            self.mirror.undo(error)
        return 0

    cdef bint owes(self) noexcept:
        return bool(self.journal)

    cdef list take_dirty_runs(self, object vm, list logs):
        from memslots.dirty.runs import take_runs

        cdef bint entered = self.enter_again("dirty runs")
        try:
            return take_runs(vm, logs)
        finally:
            if entered:
                self.leave()

    cdef object check_memfd(self, const region *r):
        if self.bindings is None:
            from memslots.values.guestmemfd import Bindings

            self.bindings = Bindings()
        return self.bindings.check(
            r.guest_memfd,
            r.guest_memfd_offset,
            r.guest_memfd_offset + (r.npages << PAGE_SHIFT),
            f"slot {r.id} of address space {r.as_id}, rule G7",
        )

    cdef FreeIds free_ids_of(self, uint32_t as_id):
        cdef FreeIds found
        if self.free_ids is None:
            self.free_ids = [None] * self.m.lim.nspaces
        found = self.free_ids[as_id]
        if found is None:
            found = self.free_ids[as_id] = FreeIds.__new__(FreeIds)
        return found

    cdef void give_back_id(self, uint32_t id, uint32_t as_id) noexcept:
        if self.free_ids is None or self.free_ids[as_id] is None:
            return
        try:
            self.free_ids_of(as_id).give_back(id)
        except MemoryError:
            self.free_ids[as_id] = None  # the next request builds them again

    cdef slot *find(self, uint32_t id, uint32_t as_id) noexcept:
        return slotset_by_id(space_active(self.m.spaces[as_id]), id)

    cdef uint32_t lowest_id(self, uint32_t as_id) except? 0xFFFFFFFF:
        return self.free_ids_of(as_id).lowest(space_active(self.m.spaces[as_id]))

    cdef object make(self, const region *r, slot *found, bint creates, change_kind *done):
        """Applies rules 3 to 7 to a region and makes the change. The caller must be the writer."""
        cdef const limits *lim = &self.m.lim
        cdef space *sp = self.m.spaces[r.as_id]
        cdef tuple subscriptions = self.subscriptions.get()
        cdef bint invalidated = False
        cdef list binding = None
        cdef ruling p
        cdef change c
        cdef refusal why = region_classify(found, r, creates, &p)
        done[0] = p.kind
        if why == ALLOWED:
            if p.kind == CHANGE_NONE:
                return <object>found.record
            why = region_place(space_active(sp), r, &p)
        if why == ALLOWED and p.kind == CHANGE_CREATE and r.flags & SLOT_GUEST_MEMFD:
            self.check_memfd(r)
            binding = self.bindings.change((), (region_record(r),))
        if why == ALLOWED:
            why = update_get(&c, sp, lim, r, &p)
        if why != ALLOWED:
            raise refusal_error(why, lim, r, &p, "")
        try:
            attach_record(c.new)
            attach_record(c.invalid)
            kind = change_record(c.kind)
            old = None if c.old is NULL else <object>c.old.record
            new = None if c.new is NULL else <object>c.new.record
            if update_must_invalidate(&c):
                update_invalidate_begin(&c)
                invalidated = True
                self.wait_for_readers()
                update_invalidate_end(&c)
                tell_invalidate(subscriptions, old)
            if c.new is not NULL and region_beyond_max_gfn(lim, r):
                raise refusal_error(BEYOND_MAX_GFN, lim, r, &p, "")
            ask_prepare(subscriptions, kind, old, new)
            if new is not None and r.flags & SLOT_GUEST_MEMFD:
                # Again: a listener may have closed the file, or bound it to another Memslots.
                self.check_memfd(r)
            elif c.old is not NULL and c.old.flags & SLOT_GUEST_MEMFD:
                binding = self.bindings.change((old,), ())
            # Last, because the backend's calls take effect: nothing after them can fail.
            if self.mirror is not None:
                self.make_calls(self.mirror.calls_of(old, new))
        except BaseException as error:
            try:
                self.undo_calls(error)
            finally:
                if invalidated:
                    update_revert_begin(&c)
                    self.wait_for_readers()
                    update_revert_end(&c)
                finish(&c)
            raise
        update_apply_begin(&c)
        self.wait_for_readers()
        update_apply_end(&c)
        if binding is not None:
            for one in binding:
                one.exchange()
        finish(&c)
        if new is None:
            self.give_back_id(r.id, r.as_id)
        tell_commit(subscriptions, kind, old, new)
        return new


cdef void count_fork() noexcept nogil:
    global forks
    forks += 1


def _after_fork_in_child():
    cdef Writer writer
    for reference in list(WRITERS.values()):
        writer = reference()
        if writer is not None:
            writer.after_fork()


if pthread_atfork(NULL, NULL, count_fork) != 0:
    raise MemoryError("no memory to prepare for forks")
os.register_at_fork(after_in_child=_after_fork_in_child)
