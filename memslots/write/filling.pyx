"""Many slots at once: a Memslots made from a map or from a pickle, and create_many."""

from libc.stdint cimport uint32_t, uint64_t

from memslots.core.fill cimport (
    fill,
    fill_begin,
    fill_drop,
    fill_end,
    fill_get,
    fill_put,
)
from memslots.core.index cimport (
    INDEX_ANY_ID,
    index,
    index_flags,
    index_row,
    index_userspace_addr,
)
from memslots.core.region cimport ALLOWED, NO_MEMORY, change_kind, refusal
from memslots.core.slot cimport SLOT_GUEST_MEMFD, region
from memslots.core.slotset cimport slotset_count
from memslots.core.space cimport SWAPPING, space, space_active, space_generation
from memslots.dirty.logs cimport get_log, put_log
from memslots.read.memorymap cimport map_index, map_memfds
from memslots.read.reader cimport Reader
from memslots.values.integers cimport u32, u64
from memslots.values.limits cimport limits_of
from memslots.values.records cimport memfd_of
from memslots.values.rules cimport check_as_id, check_region, refusal_error, room_for
from memslots.write.operations cimport Target, operation_create_slot, operation_delete
from memslots.write.writer cimport Writer, attach_record, release_record

from memslots.read.memorymap import MemoryMap
from memslots.values.records import Flags


cdef object space_state(Reader reader):
    """Returns the generation of an address space, and its Slots with their dirty logs or None."""
    slots = [
        (
            record,
            bytes(get_log(reader.m, record.id, record.as_id, False))
            if record.flags & Flags.LOG_DIRTY_PAGES
            else None,
        )
        for record in reader
    ]
    return space_generation(reader.sp), slots


cdef int restore_space(Writer writer, uint32_t as_id, object state, object copies) except -1:
    """Fills an empty address space. If the state breaks a rule, raises that rule's error."""
    cdef space *sp = writer.m.spaces[as_id]
    generation, slots = state
    cdef uint64_t last = u64(generation, "generation")
    for record, log in slots:
        if record.flags & Flags.GUEST_MEMFD:
            record = copies.slot(record)
        operation_create_slot(writer, record)
        if log is not None:
            put_log(writer.m, record.id, as_id, log)
    # No other thread has seen this machine yet, so no cache holds one of its generations.
    check_generation(as_id, sp.nspaces, last)
    sp.active.generation = last
    return 0


cdef int check_generation(uint32_t as_id, uint32_t nspaces, uint64_t generation) except -1:
    # The generation must have room to grow.
    if generation % nspaces != as_id or generation >= SWAPPING >> 1:
        raise ValueError(f"address space {as_id} cannot have generation {generation:#x}")
    return 0


cdef int check_spaces(uint32_t nspaces, object spaces) except -1:
    if len(spaces) != nspaces:
        raise ValueError(f"there must be {nspaces} address spaces, not {len(spaces)}")
    return 0


def state_of(vm):
    """Returns the limits, as the arguments of Memslots, and the state of each address space.

    A state is a generation and the Slots with their dirty logs. The caller must be the writer, so
    that all is of one moment.
    """
    spaces = [space_state(vm.address_space(as_id)) for as_id in range(vm.address_spaces)]
    return limits_of(vm), spaces


def restore(Writer writer not None, spaces):
    """Fills the new, empty machine of a Writer with `spaces`, the second result of state_of."""
    check_spaces(writer.m.lim.nspaces, spaces)
    copies = None
    if any(record.flags & Flags.GUEST_MEMFD for _, slots in spaces for record, _ in slots):
        from memslots.values.guestmemfd import Copies

        copies = Copies()
    for as_id, state in enumerate(spaces):
        restore_space(writer, as_id, state, copies)
    if copies is not None:
        copies.done()


cdef int get_filled(fill *f, Writer writer, const index *ix, uint32_t as_id) except -1:
    """Allocates the slots for an empty address space, and attaches their records."""
    cdef uint32_t i
    cdef region wrong
    cdef refusal why
    with nogil:
        why = fill_get(f, writer.m.spaces[as_id], ix, writer.lim, &wrong)
    if why == NO_MEMORY:
        raise MemoryError("no memory for the slots of a MemoryMap")
    if why != ALLOWED:
        raise refusal_error(why, writer.lim, &wrong, NULL, "")
    try:
        for i in range(f.count):
            attach_record(f.slots[i])
    except BaseException:
        drop_filled(f)
        raise
    return 0


cdef void drop_filled(fill *f) noexcept:
    cdef uint32_t i
    for i in range(f.count):
        release_record(f.slots[i])
    fill_drop(f)


cdef list filled_slots(const fill *f):
    cdef uint32_t i
    return [<object>f.slots[i].record for i in range(f.count)]


cdef bint fits_at_once(
    Writer writer, object slots, object as_id, const index **ix, uint32_t *number
) except -1:
    if writer.mirror is not None or not isinstance(slots, MemoryMap) or map_memfds(slots):
        return False
    map_index(slots, ix, number)
    check_as_id(writer.lim, number[0])
    return (
        ix[0] is not NULL
        and ix[0].count <= writer.lim.max_slots
        and (as_id is None or u32(as_id, "as_id") == number[0])
    )


def fill_with(Writer writer not None, map):
    """Puts the slots of a MemoryMap into the new, empty machine of a Writer. O(n)."""
    cdef const index *ix
    cdef uint32_t as_id
    cdef fill f
    map_index(map, &ix, &as_id)
    check_as_id(writer.lim, as_id)
    if map_memfds(map) is not None:
        create_many(writer, map, as_id)
    elif ix is not NULL:
        get_filled(&f, writer, ix, as_id)
        with nogil:
            fill_put(&f)


def map_from(slots, as_id):
    """Returns `slots` if it is a MemoryMap, or the map that it makes in an address space.

    This runs the code of an iterable, so it comes before a lock is taken.
    """
    return slots if isinstance(slots, MemoryMap) else MemoryMap(slots, as_id)


def create_at_once(Writer writer not None, slots, as_id):
    """Does what create_many does, if the address space is empty and there are no listeners.

    Returns
    -------
    list of Slot or None
        None: nothing was done; use create_many.

    Notes
    -----
    O(n) if the slots are in the order of their host addresses too, else O(n log n).
    """
    cdef const index *ix
    cdef uint32_t number
    cdef fill f
    cdef list made
    if not fits_at_once(writer, slots, as_id, &ix, &number):
        return None
    writer.enter("many slots")
    try:
        if slotset_count(space_active(writer.m.spaces[number])) or writer.subscriptions.get():
            return None
        get_filled(&f, writer, ix, number)
        try:
            made = filled_slots(&f)
        except BaseException:
            drop_filled(&f)
            raise
        fill_begin(&f)
        writer.wait_for_readers()
        fill_end(&f)
    finally:
        writer.leave()
    return made


def create_many(Target to not None, map, as_id):
    """Creates all the slots in a transaction, or none.

    Returns
    -------
    list of Slot
        In gfn order.
    """
    cdef const index *ix
    cdef uint32_t space_id
    cdef uint32_t i, count, id
    cdef list made
    map_index(map, &ix, &space_id)
    if as_id is not None and u32(as_id, "as_id") != space_id:
        raise ValueError(f"the map is of address space {space_id}, not {as_id}")
    check_as_id(to.lim, space_id)
    cdef list memfds = map_memfds(map)
    count = ix.count if ix is not NULL else 0
    made = [None] * count
    try:
        # First the slots with given ids: the others get the free ids.
        for i in range(count):
            if not ix.rows[i].hva & INDEX_ANY_ID:
                made[i] = create_row(to, &ix.rows[i], space_id, <uint32_t>ix.rows[i].id, memfds)
        for i in range(count):
            if ix.rows[i].hva & INDEX_ANY_ID:
                id = free_id(to, space_id)
                made[i] = create_row(to, &ix.rows[i], space_id, id, memfds)
    except BaseException:
        try:
            for slot in made:
                if slot is not None:
                    operation_delete(to, slot.id, slot.as_id)
        except BaseException:
            to._spoil()
            raise
        raise
    return made


cdef uint32_t free_id(Target to, uint32_t as_id) except? 0xFFFFFFFF:
    """Returns the lowest id that no slot has. NoRoomError."""
    cdef uint32_t id
    to.enter("a free id")
    try:
        id = to.lowest_id(as_id)
    finally:
        to.leave()
    room_for(id, as_id, to.lim.max_slots)
    return id


cdef object create_row(
    Target to, const index_row *row, uint32_t as_id, uint32_t id, list memfds
):
    cdef region r
    cdef change_kind done
    r.id = id
    r.as_id = as_id
    r.flags = index_flags(row)
    r.base_gfn = row.base_gfn
    r.npages = row.npages
    r.userspace_addr = index_userspace_addr(row)
    r.guest_memfd = 0
    r.guest_memfd_offset = 0
    if memfds is not None and r.flags & SLOT_GUEST_MEMFD:
        memfd_of(&r, memfds, &r)
    to.enter("a change")
    try:
        check_region(to.lim, &r)
        return to.make(&r, to.find(r.id, as_id), True, &done)
    finally:
        to.leave()
