"""Pickling and copying a Memslots: what it takes with it, and how it is made again."""

from libc.stdint cimport uint32_t, uint64_t

from memslots.core.space cimport SWAPPING, space, space_generation
from memslots.dirty.logs cimport get_log, put_log
from memslots.read.reader cimport Reader
from memslots.values.integers cimport u64
from memslots.values.limits cimport limits_of
from memslots.write.operations cimport operation_create
from memslots.write.writer cimport Writer

from memslots.values.records import Flags


cdef object space_state(Reader reader):
    """An address space: its generation, and its Slots with their dirty logs or None."""
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


cdef int restore_space(Writer writer, uint32_t as_id, object state) except -1:
    """Fills an empty address space. A state that breaks a rule is refused by that rule."""
    cdef space *sp = writer.m.spaces[as_id]
    generation, slots = state
    cdef uint64_t last = u64(generation, "generation")
    for record, log in slots:
        operation_create(
            writer,
            record.id,
            record.base_gfn,
            record.npages,
            record.userspace_addr,
            record.flags,
            as_id,
        )
        if log is not None:
            put_log(writer.m, record.id, as_id, log)
    # Nobody else has seen this machine yet, so no cache holds one of its generations.
    check_generation(as_id, sp.nspaces, last)
    sp.active.generation = last
    return 0


cdef int check_generation(uint32_t as_id, uint32_t nspaces, uint64_t generation) except -1:
    # There must be room to go on.
    if generation % nspaces != as_id or generation >= SWAPPING >> 1:
        raise ValueError(f"address space {as_id} cannot have generation {generation:#x}")
    return 0


cdef int check_spaces(uint32_t nspaces, object spaces) except -1:
    if len(spaces) != nspaces:
        raise ValueError(f"{len(spaces)} address spaces where there are {nspaces}")
    return 0


def state_of(vm):
    """Returns the limits, as the arguments of Memslots, and for each address space its generation,
    and the Slots with their dirty logs. The caller is the writer, so that it is all of one moment.
    """
    spaces = [space_state(vm.address_space(as_id)) for as_id in range(vm.address_spaces)]
    return limits_of(vm), spaces


def restore(Writer writer not None, spaces):
    """Makes a Writer's machine, which is new and empty, what the second of these says."""
    check_spaces(writer.m.lim.nspaces, spaces)
    for as_id, state in enumerate(spaces):
        restore_space(writer, as_id, state)
