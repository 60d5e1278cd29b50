"""Several changes in one step: staged in the inactive set, then published with one swap."""

cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from memslots.core.alloc cimport alloc_free, alloc_zeroed
from memslots.core.fill cimport fill, fill_carry, fill_leave, fill_stage, fill_unstage
from memslots.core.idtable cimport (
    idtable,
    idtable_drop_spare,
    idtable_fits,
    idtable_get_spare,
    idtable_spare,
)
from memslots.core.index cimport index
from memslots.core.machine cimport MAX_SPACES, machine
from memslots.core.region cimport (
    ALLOWED,
    BEYOND_MAX_GFN,
    CHANGE_CREATE,
    CHANGE_MOVE,
    CHANGE_NONE,
    NO_MEMORY,
    OVERLAPS,
    change_kind,
    refusal,
    region_beyond_max_gfn,
    region_classify,
    ruling,
)
from memslots.core.slot cimport SLOT_GUEST_MEMFD, region, slot_has_gfn, slot_region
from memslots.core.slot cimport slot as slot_t
from memslots.core.slotset cimport (
    slotset,
    slotset_by_id,
    slotset_clash,
    slotset_count,
    slotset_first,
    slotset_floor,
    slotset_step,
)
from memslots.core.space cimport (
    space,
    space_active,
    space_inactive,
    space_swap_begin,
    space_swap_end,
)
from memslots.core.units cimport gfn_t
from memslots.core.update cimport (
    change,
    update_carry,
    update_carry_marks,
    update_discard,
    update_displaces,
    update_init,
    update_stage,
    update_stage_get,
    update_unstage,
)
from memslots.read.ranges cimport extent, set_extent
from memslots.values.integers cimport u32, u64
from memslots.values.rules cimport check_as_id, check_id, refusal_error, room_for
from memslots.write.filling cimport (
    drop_filled,
    filled_slots,
    fits_at_once,
    get_filled,
)
from memslots.write.freeids cimport FreeIds
from memslots.write.listeners cimport ask_prepare, tell_commit, tell_invalidate
from memslots.write.operations cimport (
    Target,
    change_record,
    operation_create,
    operation_create_slot,
    operation_delete,
    operation_move,
    operation_set_flags,
    operation_set_region,
    operation_set_region2,
)
from memslots.write.writer cimport Writer, finish, attach_record, release_record

import errno
from operator import attrgetter

from memslots.errors import InvalidRegionError, busy
from memslots.write.cuts import merge, protect, split, unmap

cdef object base_of = attrgetter("base_gfn")

cdef enum progress:
    NEW  # made, not begun
    OPEN  # in the body of the with statement
    ENDING  # asking and telling listeners
    ENDED

cdef enum:
    # The number of changes that are stored in the transaction itself and searched linearly. More
    # changes get an allocated array, doubled when full, and a dict.
    FEW = 4


cdef inline uint64_t key_of(uint32_t as_id, uint32_t id) noexcept nogil:
    return <uint64_t>as_id << 32 | id


cdef inline bint stays(const change *c) noexcept nogil:
    """Returns whether the slot keeps the guest pages that readers see it with."""
    return (
        c.old is not NULL
        and c.old.base_gfn == c.new.base_gfn
        and c.old.npages == c.new.npages
    )


# no_gc_clear: an open transaction must find its writer to give the lock back.
@cython.final
@cython.no_gc_clear
cdef class Transaction(Target):
    """Transaction()\n--\n
    Any number of changes that readers see all at once, or not at all.

    Memslots.transaction makes it.

    Within ``with vm.transaction() as tx:`` the methods of `tx` make the same changes as the methods
    of Memslots of the same names. Each starts from the result of the one before. The rules hold for
    each step, except rule 6: slots may overlap until the end. The end of the body publishes all
    changes, with one swap for each address space. If the body raises, a listener refuses, or slots
    still overlap, nothing has changed.

    A page that logs before and after, at the same guest page and on the same host memory, keeps its
    mark, whatever happened to slots meanwhile (T1, docs/changes.md).

    At the end the listeners are called. First ``invalidate``, once for each slot that readers see
    and that goes or moves, with the Slot that readers see. Then ``prepare`` for every step, and
    after the swap ``commit`` for every step, in the order of the steps. A listener that subscribes
    in the body hears of the next change; one that closes there is not called any more.

    A transaction is used once, in one thread. Changes of other threads wait until it has ended;
    another change from the same thread is a BusyError.
    """

    cdef object owner  # the Memslots, which keeps the machine alive
    cdef Writer writer
    cdef machine *m  # whose slots are changed
    cdef uint64_t tenure  # the writer's tenure when the transaction was begun
    cdef progress state
    # a method is running: code that it runs in between (a finalizer, say) may not begin another
    cdef bint in_step
    # a change of many steps could be neither finished nor undone: roll back is all that is left
    cdef bint is_spoiled
    cdef tuple subscriptions  # those of the beginning; from commit on without those that closed
    cdef change first[FEW]
    # one for each changed id, in the order of first use; `first`, or an allocated array
    cdef change *changes
    cdef size_t count  # of changes
    cdef size_t room  # changes that fit in the array
    cdef dict numbers  # as_id << 32 | id: its number in `changes`; None: there are at most FEW
    # (Change, old, new, the Slot that the step takes from where readers see it, or None), in order;
    # None: there is neither a listener nor a backend, or no step yet
    cdef list steps
    # by as_id: (a FreeIds of the ids that were deleted here, the ids on loan from the Writer's
    # FreeIds); None: no id was asked for
    cdef dict ids
    # the GuestMemfds of new slots, kept as long as the transaction; None: there are none
    cdef list memfds
    # the calls of a backend to make instead of those planned from `steps` (_set_calls), or None
    cdef object calls
    cdef fill filled  # slots that were put in at once
    cdef bint has_fill  # whether `filled` is in use
    cdef uint32_t additions[MAX_SPACES]  # by as_id: how many changed ids the active set lacks
    cdef idtable_spare spare[MAX_SPACES]  # memory for these ids in the set that is active now

    def __cinit__(self):
        self.state = NEW
        self.changes = self.first
        self.room = FEW

    def __dealloc__(self):
        if self.state == OPEN:
            self.roll_back()

    def __reduce__(self):
        raise TypeError("a Transaction cannot be pickled or copied: it belongs to its Memslots")

    def __enter__(self):
        if self.writer is None:
            raise TypeError("only Memslots.transaction() makes a transaction")
        self.writer.enter("a transaction")
        # Check `state` with the lock held: now no other thread can begin the transaction.
        if self.state != NEW:
            self.writer.leave()
            raise RuntimeError("a transaction can be begun only once")
        self.state = OPEN
        self.tenure = self.writer.tenure
        self.subscriptions = self.writer.subscriptions.get()
        return self

    def __exit__(self, exc_type, exc, traceback):
        cdef bint spoiled = self.is_spoiled
        self.is_spoiled = False
        self.enter("the end of a transaction")
        if exc_type is not None or spoiled:
            self.roll_back()
        else:
            self.commit()
        if spoiled and exc_type is None:
            raise RuntimeError("a step was left unfinished, so the transaction was undone")
        return False

    def set_region(self, slot, flags, guest_phys_addr, memory_size, userspace_addr):
        """As Memslots.set_region, in this transaction."""
        return operation_set_region(self, slot, flags, guest_phys_addr, memory_size, userspace_addr)

    def set_region2(
        self,
        slot,
        flags,
        guest_phys_addr,
        memory_size,
        userspace_addr,
        guest_memfd=None,
        guest_memfd_offset=0,
    ):
        """As Memslots.set_region2, in this transaction.

        Ranges of a file may overlap until the end.
        """
        return operation_set_region2(
            self,
            slot,
            flags,
            guest_phys_addr,
            memory_size,
            userspace_addr,
            guest_memfd,
            guest_memfd_offset,
        )

    def _create_slot(self, slot):
        """Creates a slot from a Slot. For cuts.py."""
        return operation_create_slot(self, slot)

    def create(self, slot, base_gfn, npages, userspace_addr, flags=0, as_id=0):
        """As Memslots.create, in this transaction."""
        return operation_create(self, slot, base_gfn, npages, userspace_addr, flags, as_id)

    def move(self, slot, base_gfn, as_id=0):
        """As Memslots.move, in this transaction."""
        return operation_move(self, slot, base_gfn, as_id)

    def set_flags(self, slot, flags, as_id=0):
        """As Memslots.set_flags, in this transaction."""
        return operation_set_flags(self, slot, flags, as_id)

    def delete(self, slot, as_id=0):
        """As Memslots.delete, in this transaction."""
        return operation_delete(self, slot, as_id)

    def create_many(self, slots, as_id=None):
        """As Memslots.create_many, in this transaction."""
        from memslots.write.filling import create_many, map_from

        self.enter("many slots")
        self.leave()
        map = map_from(slots, as_id)
        made = self.stage_all(map, as_id)
        return create_many(self, map, as_id) if made is None else made

    def unmap(self, start, end, as_id=0):
        """As Memslots.unmap, in this transaction."""
        unmap(self, start, end, as_id)

    def protect(self, start, end, flags, as_id=0):
        """As Memslots.protect, in this transaction."""
        protect(self, start, end, flags, as_id)

    def split(self, slot, gfn, id=None, as_id=0):
        """As Memslots.split, in this transaction."""
        return split(self, slot, gfn, id, as_id)

    def merge(self, first, second, as_id=0):
        """As Memslots.merge, in this transaction."""
        return merge(self, first, second, as_id)

    def lookup(self, gfn, as_id=0):
        """Returns the slot that will hold a guest page if the transaction ends now, or None.

        If slots overlap for the moment, returns the one that begins last. O(k + log n) after k
        changes.
        """
        cdef gfn_t page = u64(gfn, "gfn")
        cdef uint32_t number = u32(as_id, "as_id")
        cdef slotset *set
        cdef slot_t *s
        cdef slot_t *staged
        cdef size_t n
        self.enter("a look-up in a transaction")
        self.leave()
        check_as_id(&self.m.lim, number)
        set = self.slots(number)
        s = slotset_floor(set, page)
        # Slots that this transaction did not change do not overlap. So walking back, only the first
        # of them can hold the page. At most `count` changed slots come before it in the walk.
        for _ in range(self.count):
            if s is NULL or slot_has_gfn(s, page):
                break
            s = slotset_step(set, s, 0)
        if s is not NULL and not slot_has_gfn(s, page):
            s = NULL
        # A changed slot may begin far before the page and still hold it: try each.
        for n in range(self.count):
            staged = self.changes[n].new
            if staged is NULL or self.changes[n].sp.as_id != number:
                continue
            if slot_has_gfn(staged, page) and (s is NULL or staged.base_gfn > s.base_gfn):
                s = staged
        return None if s is NULL else <object>s.record

    def get(self, id, default=None, as_id=0):
        """Returns the slot that will have an id if the transaction ends now, or `default`. O(1)."""
        cdef uint32_t wanted = u32(id, "id")
        cdef uint32_t number = u32(as_id, "as_id")
        cdef slot_t *s
        self.enter("a look-up in a transaction")
        self.leave()
        check_as_id(&self.m.lim, number)
        s = slotset_by_id(self.slots(number), wanted)
        return default if s is NULL else <object>s.record

    def in_gfn_range(self, start, end, as_id=0):
        """Returns the slots that will overlap the pages [start, end) if the transaction ends now.

        They are in gfn order. ValueError: start is above end. O(k + log n + m) after k changes, for
        m slots.
        """
        cdef uint32_t number = u32(as_id, "as_id")
        cdef extent e
        cdef slotset *set
        cdef slot_t *s
        cdef size_t n
        cdef dict found = {}
        cdef bint any = set_extent(&e, False, start, end)
        self.enter("a look-up in a transaction")
        self.leave()
        check_as_id(&self.m.lim, number)
        if not any:
            return []
        set = self.slots(number)
        # As in lookup: the nearest unchanged slot is at most `count` steps away.
        s = slotset_floor(set, e.first)
        for _ in range(self.count + 1):
            if s is NULL:
                break
            if slot_has_gfn(s, e.first):
                found[s.id] = <object>s.record
            s = slotset_step(set, s, 0)
        for n in range(self.count):
            s = self.changes[n].new
            if s is not NULL and self.changes[n].sp.as_id == number and slot_has_gfn(s, e.first):
                found[s.id] = <object>s.record
        s = slotset_floor(set, e.first)
        s = slotset_first(set) if s is NULL else slotset_step(set, s, 1)
        while s is not NULL and s.base_gfn <= e.last:
            found[s.id] = <object>s.record
            s = slotset_step(set, s, 1)
        return sorted(found.values(), key=base_of)

    def free_id(self, as_id=0):
        """Returns the lowest id that no slot will have. See Memslots.free_id."""
        cdef uint32_t number = u32(as_id, "as_id")
        cdef uint32_t id
        self.enter("a free id")
        try:
            check_as_id(&self.m.lim, number)
            id = self.lowest_id(number)
        finally:
            self.leave()
        return room_for(id, number, self.m.lim.max_slots)

    def _check_cut(self, as_id, additions, id=None):
        """Raises the error that `additions` more slots, one of them with this id, would raise.

        For cuts.py, which finds a caller's mistakes before it changes anything.
        """
        cdef uint32_t number = u32(as_id, "as_id")
        cdef uint32_t new
        self.enter("a cut")
        self.leave()
        check_as_id(&self.m.lim, number)
        if slotset_count(self.slots(number)) + <uint64_t>additions > self.m.lim.max_slots:
            room_for(self.m.lim.max_slots, number, self.m.lim.max_slots)
        if id is not None:
            new = u32(id, "id")
            check_id(self.lim, new, number)
            if self.find(new, number) is not NULL:
                raise InvalidRegionError(errno.EINVAL, f"slot {new} exists already", 5)

    def _set_calls(self, calls):
        """Makes the backend make these calls at the end, instead of those planned from the steps.

        They must have the same result as all steps so far. For mirror/plan.py.
        """
        self.calls = calls

    def _spoil(self):
        """Spoils the transaction: part of a change is made, so it can only be rolled back."""
        self.is_spoiled = True

    cdef int enter(self, str what) except -1:
        if self.is_spoiled and self.state == OPEN:
            raise RuntimeError(f"{what}: a step was left unfinished; the body can only be left")
        if self.state == ENDING:
            raise busy(what)
        if self.state != OPEN:
            raise RuntimeError(
                f"{what}: the transaction is not open; use it in a with statement, once"
            )
        if not self.is_held() or not self.writer.is_mine():
            raise RuntimeError(f"{what}: the transaction belongs to another thread")
        if self.in_step:
            raise busy(what)
        self.in_step = True
        return 0

    cdef void leave(self) noexcept:
        self.in_step = False

    cdef bint is_held(self) noexcept:
        """Returns whether the lock is still held for this transaction.

        It is not in the child of a fork, if another thread had begun the transaction: there the
        changes are abandoned. The ident of the writer's thread cannot tell: a new thread in the
        child may have the same.
        """
        return self.tenure == self.writer.tenure

    cdef list stage_all(self, object slots, object as_id):
        """Stages the slots of a map in one pass. Returns None, and does nothing, if it cannot.

        The slots are in `filled`, not in `changes`, until something else changes in their space.
        """
        cdef const index *ix
        cdef uint32_t number
        cdef size_t n
        cdef list made
        if self.has_fill or self.subscriptions:
            return None
        if not fits_at_once(self.writer, slots, as_id, &ix, &number):
            return None
        self.enter("many slots")
        try:
            if slotset_count(self.slots(number)) or slotset_count(
                space_active(self.m.spaces[number])
            ):
                return None
            for n in range(self.count):
                if self.changes[n].sp.as_id == number:
                    return None
            get_filled(&self.filled, self.writer, ix, number)
            try:
                made = filled_slots(&self.filled)
            except BaseException:
                drop_filled(&self.filled)
                raise
            with nogil:
                fill_stage(&self.filled)
            self.has_fill = True
            return made
        finally:
            self.leave()

    cdef int take_apart(self) except -1:
        """Turns each slot of `filled` into a change of `changes`."""
        cdef slotset *set = space_inactive(self.filled.sp)
        cdef change *c
        cdef slot_t *s
        cdef uint32_t as_id = self.filled.sp.as_id
        cdef uint32_t i
        # First everything that can fail. A change from no slot to no slot has no effect.
        for i in range(self.filled.count):
            self.change_of(as_id, self.filled.slots[i].id, NULL)
        for i in range(self.filled.count):
            s = self.filled.slots[i]
            c = self.change_of(as_id, s.id, NULL)
            c.held[set.k] = s
            c.new = s
        fill_leave(&self.filled)
        self.has_fill = False
        return 0

    cdef slot_t *find(self, uint32_t id, uint32_t as_id) noexcept:
        return slotset_by_id(self.slots(as_id), id)

    cdef slotset *slots(self, uint32_t as_id) noexcept:
        return space_inactive(self.m.spaces[as_id])

    cdef object make(self, const region *r, slot_t *found, bint creates, change_kind *done):
        if self.has_fill and r.as_id == self.filled.sp.as_id:
            self.take_apart()
        cdef slotset *set = self.slots(r.as_id)
        cdef slot_t *next = NULL
        cdef slot_t *before
        cdef change *c
        cdef ruling p
        cdef refusal why = region_classify(found, r, creates, &p)
        done[0] = p.kind
        if why == ALLOWED and p.kind == CHANGE_CREATE and r.flags & SLOT_GUEST_MEMFD:
            if self.memfds is None:
                self.memfds = []
            self.memfds.append(self.writer.check_memfd(r))
        if why == ALLOWED and (p.kind == CHANGE_CREATE or p.kind == CHANGE_MOVE):
            if region_beyond_max_gfn(&self.m.lim, r):
                why = BEYOND_MAX_GFN
        if why != ALLOWED:
            raise refusal_error(why, &self.m.lim, r, &p, "")
        if p.kind == CHANGE_NONE:
            return <object>found.record
        c = self.change_of(r.as_id, r.id, p.old)
        before = c.held[set.k]
        if update_stage_get(c, &self.m.lim, r, &next) != ALLOWED:
            raise refusal_error(NO_MEMORY, &self.m.lim, r, &p, "")
        try:
            attach_record(next)
            old = None if before is NULL else <object>before.record
            new = None if next is NULL else <object>next.record
            if next is NULL and self.ids is not None and r.as_id in self.ids:
                (<FreeIds>self.ids[r.as_id][0]).give_back(r.id)
            # The last step that can fail: a recorded step is always made.
            if self.subscriptions or self.writer.mirror is not None:
                displaced = None
                if update_displaces(c, p.kind):
                    # The Slot that readers see, whatever earlier steps changed.
                    displaced = <object>c.old.record
                if self.steps is None:
                    self.steps = []
                self.steps.append((change_record(p.kind), old, new, displaced))
        except BaseException:
            release_record(next)
            update_discard(next, before, c.old)
            raise
        c.displaced |= update_displaces(c, p.kind)
        update_stage(c, next)
        if before is not c.old:
            release_record(before)
            update_discard(before, next, c.old)
        return new

    cdef change *change_of(self, uint32_t as_id, uint32_t id, slot_t *old) except NULL:
        """Returns the change of an id, or adds one with all memory that it may need later."""
        cdef change *more
        cdef size_t room
        cdef space *sp = self.m.spaces[as_id]
        cdef idtable_spare larger
        cdef idtable *ids
        cdef size_t n
        if self.numbers is None:
            for n in range(self.count):
                if self.changes[n].id == id and self.changes[n].sp is sp:
                    return &self.changes[n]
        else:
            number = self.numbers.get(key_of(as_id, id))
            if number is not None:
                return &self.changes[<size_t>number]
        if self.count == self.room:
            room = 2 * self.room
            more = <change *>alloc_zeroed(room * sizeof(change))
            if more is NULL:
                raise MemoryError("no memory for another change")
            memcpy(more, self.changes, self.count * sizeof(change))
            if self.changes is not self.first:
                alloc_free(self.changes)
            self.changes = more
            self.room = room
        if self.count == FEW and self.numbers is None:
            self.numbers = {
                key_of(self.changes[n].sp.as_id, self.changes[n].id): n for n in range(<size_t>FEW)
            }
        # The set that is active now must take the id after the swap, when nothing may fail.
        ids = &space_active(sp).ids
        if old is NULL and not idtable_fits(ids, self.additions[as_id] + 1, &self.spare[as_id]):
            if idtable_get_spare(ids, self.additions[as_id] + 1, &larger) != 0:
                raise MemoryError("no memory for another slot")
            idtable_drop_spare(&self.spare[as_id])
            self.spare[as_id] = larger
        if self.numbers is not None:
            self.numbers[key_of(as_id, id)] = self.count
        self.additions[as_id] += old is NULL
        update_init(&self.changes[self.count], sp, id, old)
        self.count += 1
        return &self.changes[self.count - 1]

    cdef int commit(self) except -1:
        """Calls the listeners and the backend, then swaps. Always releases the lock."""
        cdef size_t n
        cdef list bindings = None
        self.state = ENDING
        try:
            self.check_overlaps()
            if self.steps is not None:
                still = self.writer.subscriptions.get()
                if still is not self.subscriptions:
                    self.subscriptions = tuple([one for one in self.subscriptions if one in still])
                for _, _, _, displaced in self.steps:
                    if displaced is not None:
                        tell_invalidate(self.subscriptions, displaced)
                for kind, old, new, _ in self.steps:
                    ask_prepare(self.subscriptions, kind, old, new)
            # Worked out only now: a listener may have closed a file.
            bindings = self.new_bindings()
            if self.steps is not None:
                # Last, because the backend's calls take effect: nothing after them can fail.
                if self.writer.mirror is not None:
                    if self.calls is None:
                        self.calls = self.writer.mirror.plan(self.steps)
                    self.writer.make_calls(self.calls)
        except BaseException as error:
            try:
                self.writer.undo_calls(error)
            finally:
                self.roll_back()
            raise
        self.swap()
        if bindings is not None:
            for one in bindings:
                one.exchange()
        for n in range(self.count):
            if self.changes[n].new is NULL:
                self.writer.give_back_id(self.changes[n].id, self.changes[n].sp.as_id)
            finish(&self.changes[n])
        self.count = 0
        try:
            if self.steps is not None:
                self.tell_all()
        finally:
            self.end()
        return 0

    cdef int check_overlaps(self) except -1:
        """Checks S2 (no overlap) for every new or moved slot. OverlapError."""
        cdef size_t n
        cdef change *c
        cdef ruling p
        cdef region r
        for n in range(self.count):
            c = &self.changes[n]
            if c.new is NULL or stays(c):
                continue
            p.existing = slotset_clash(space_inactive(c.sp), c.new)
            if p.existing is not NULL:
                p.old = NULL
                r = slot_region(c.new)
                raise refusal_error(OVERLAPS, &self.m.lim, &r, &p, "")
        return 0

    cdef list new_bindings(self):
        """Returns the bindings of guest_memfds to exchange after the swap; None: no guest_memfd."""
        cdef list leaving = []
        cdef list coming = []
        cdef size_t n
        cdef change *c
        if self.writer.bindings is None:
            return None
        for n in range(self.count):
            c = &self.changes[n]
            if c.new is c.old:
                continue
            if c.old is not NULL and c.old.flags & SLOT_GUEST_MEMFD:
                leaving.append(<object>c.old.record)
            if c.new is not NULL and c.new.flags & SLOT_GUEST_MEMFD:
                coming.append(<object>c.new.record)
        return self.writer.bindings.change(leaving, coming)

    cdef void swap(self) noexcept:
        """Publishes the staged changes and carries them over to the other set. Cannot fail."""
        cdef bint touched[MAX_SPACES]
        cdef size_t n
        cdef change *c
        cdef uint32_t as_id
        cdef uint32_t nspaces = self.m.lim.nspaces
        for as_id in range(nspaces):
            touched[as_id] = False
        for n in range(self.count):
            c = &self.changes[n]
            touched[c.sp.as_id] |= c.new is not c.old
        if self.has_fill:
            touched[self.filled.sp.as_id] = True
        for as_id in range(nspaces):
            if touched[as_id]:
                space_swap_begin(self.m.spaces[as_id])
        self.writer.wait_for_readers()
        for as_id in range(nspaces):
            if touched[as_id]:
                space_swap_end(self.m.spaces[as_id])
        for n in range(self.count):
            c = &self.changes[n]
            if touched[c.sp.as_id]:
                update_carry(c, &self.spare[c.sp.as_id])
                update_carry_marks(c)
        if self.has_fill:
            fill_carry(&self.filled)
            self.has_fill = False

    cdef int tell_all(self) except -1:
        leaving = None
        for kind, old, new, _ in self.steps:
            try:
                tell_commit(self.subscriptions, kind, old, new)
            except BaseException as exception:
                leaving = exception
        if leaving is not None:
            raise leaving
        return 0

    cdef void roll_back(self) noexcept:
        """Restores the inactive set and releases the lock."""
        cdef size_t n
        cdef int adds
        if not self.is_held():
            # The sets were rebuilt, and the slots may be freed: leave what was staged.
            self.has_fill = False
            self.end()
            return
        if self.has_fill:
            fill_unstage(&self.filled)
            drop_filled(&self.filled)
            self.has_fill = False
        # First take out the new slots, so that the old ones find their places in the id table.
        for adds in range(2):
            for n in range(self.count):
                if (self.changes[n].new is NULL) == (adds == 1):
                    update_unstage(&self.changes[n])
        for n in range(self.count):
            finish(&self.changes[n])
        self.end()

    cdef void end(self) noexcept:
        self.return_ids()
        self.forget()
        self.state = ENDED
        if self.is_held():
            self.writer.leave()

    cdef void return_ids(self) noexcept:
        """Returns the ids on loan to the Writer. FreeIds.lowest skips those that are in use."""
        cdef tuple ids
        if self.ids is None:
            return
        if self.is_held():
            # Nothing here needs memory: Cython walks a dict without an iterator.
            for as_id, ids in self.ids.items():
                for id in <list>ids[1]:
                    self.writer.give_back_id(id, as_id)
        self.ids = None

    cdef uint32_t lowest_id(self, uint32_t as_id) except? 0xFFFFFFFF:
        cdef slotset *staged = self.slots(as_id)
        cdef slotset *active = space_active(self.m.spaces[as_id])
        cdef FreeIds free_ids = self.writer.free_ids_of(as_id)
        cdef FreeIds deleted
        cdef uint32_t id, other
        cdef size_t n
        if self.ids is None:
            self.ids = {}
        if as_id not in self.ids:
            deleted = FreeIds.__new__(FreeIds)
            deleted.beyond = 0xFFFFFFFF
            self.ids[as_id] = (deleted, [])
            for n in range(self.count):
                if self.changes[n].sp.as_id == as_id and self.changes[n].old is not NULL:
                    deleted.give_back(self.changes[n].id)
        deleted, loan = self.ids[as_id]
        while True:
            id = free_ids.lowest(active)
            if slotset_by_id(staged, id) is NULL:
                break
            loan.append(id)  # first, because it may fail: then no id is lost
            free_ids.take(id)
        while deleted.given_back:
            other = deleted.given_back[0]
            if slotset_by_id(staged, other) is NULL:
                return min(id, other)
            deleted.take(other)
        return id

    cdef void forget(self) noexcept:
        """Frees the transaction's own memory."""
        cdef uint32_t as_id
        if self.changes is not self.first:
            alloc_free(self.changes)
        self.changes = self.first
        self.count = 0
        self.room = FEW
        for as_id in range(self.m.lim.nspaces):
            idtable_drop_spare(&self.spare[as_id])


def transaction_of(owner, Writer writer not None):
    """Returns a Transaction, not begun, on the machine of a Writer, which `owner` keeps alive."""
    cdef Transaction tx = Transaction.__new__(Transaction)
    tx.owner = owner
    tx.writer = writer
    tx.m = writer.m
    tx.lim = writer.lim
    return tx
