"""Pickling and copying a Memslots: what it takes with it, and how it is made again.

The contract of each function is in copying.pxd.
"""

from memslots.arguments cimport u64
from memslots.core.space cimport SWAPPING, space, space_generation
from memslots.dirtylogs cimport get_log, put_log
from memslots.faces cimport ReadFace

from memslots.records import Flags


cdef object space_state(ReadFace face):
    """An address space: its generation, and its Slots with their dirty logs or None."""
    slots = [
        (
            record,
            bytes(get_log(face.m, record.id, record.as_id, False))
            if record.flags & Flags.LOG_DIRTY_PAGES
            else None,
        )
        for record in face
    ]
    return space_generation(face.sp), slots


cdef int restore_space(object vm, ReadFace face, object state) except -1:
    """Fills an empty address space of `vm`. A state that breaks a rule is refused by that rule."""
    cdef space *sp = face.sp
    generation, slots = state
    for record, log in slots:
        vm.create(
            record.id,
            record.base_gfn,
            record.npages,
            record.userspace_addr,
            record.flags,
            sp.as_id,
        )
        if log is not None:
            put_log(face.m, record.id, sp.as_id, log)
    if generation % sp.nspaces != sp.as_id or generation & SWAPPING:
        raise ValueError(f"address space {sp.as_id} cannot have generation {generation:#x}")
    sp.active.generation = u64(generation, "generation")
    return 0


cdef tuple copy_of(object vm):
    limits = {
        "max_slots": vm.max_slots,
        "address_spaces": vm.address_spaces,
        "max_gfn": vm.max_gfn,
        "max_hva": vm.max_hva,
        "manual_dirty_log": vm.manual_dirty_log,
    }
    spaces = [space_state(vm.address_space(as_id)) for as_id in range(vm.address_spaces)]
    return restore, (type(vm), limits, spaces), getattr(vm, "__dict__", None) or None


def restore(cls, limits, spaces):
    """Makes a Memslots of what a pickle has of it."""
    vm = cls(**limits)
    if len(spaces) != vm.address_spaces:
        raise ValueError(f"{len(spaces)} address spaces where there are {vm.address_spaces}")
    for as_id, state in enumerate(spaces):
        restore_space(vm, vm.address_space(as_id), state)
    return vm
