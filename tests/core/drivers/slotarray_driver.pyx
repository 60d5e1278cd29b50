# cython: language_level=3
"""Looks into the array of an ArrayMemslots, breaks one property of it at a time, and mends it."""

from libc.stdint cimport uint64_t

from memslots.baseline.reader cimport ArrayReader
from memslots.baseline.slotarray cimport NO_INDEX, array_slot, slotarray, slotarray_slots
from memslots.core.slot cimport SLOT_LOG_DIRTY_PAGES


cdef slotarray *array_of(face):
    return (<ArrayReader?>face).sp.active


def memory(face):
    """Where the active array is and where the retired one; the room of the active one for slots and
    for ids.
    """
    cdef slotarray *a = array_of(face)
    return <size_t>a, <size_t>(<ArrayReader>face).sp.retired, a.room, a.ids_room


def last_used(face):
    return array_of(face).last_used


def ids(face):
    """The id table."""
    cdef slotarray *a = array_of(face)
    return [a.ids[id] for id in range(a.nids)]


def broken(face, name):
    """A generator: breaks the named property, yields, and mends it."""
    cdef slotarray *a = array_of(face)
    cdef array_slot *s = slotarray_slots(a)
    cdef array_slot kept = s[0]
    cdef slotarray head = a[0]
    cdef int index = a.ids[s[0].id]
    cdef uint64_t *word
    if name == "S1 ids":
        a.ids[s[0].id] = 1
    elif name == "S1 count":
        a.ids[s[0].id] = NO_INDEX
    elif name == "S1 greatest id":
        a.ids[a.nids] = NO_INDEX
        a.nids += 1
    elif name == "S1 record":
        s[0].record = s[1].record
    elif name == "S2 order":
        s[0].base_gfn = s[1].base_gfn - 1
    elif name == "S2 pages":
        s[0].npages = 0
    elif name == "S3":
        a.last_used = a.count
    elif name == "S4 pages":
        a.npages += 1
    elif name == "S4 room":
        a.room = a.count - 1
    elif name == "D1 flag":
        s[0].flags ^= SLOT_LOG_DIRTY_PAGES
    elif name == "D1 bit":
        word = s[1].dirty + (s[1].npages >> 6)
        word[0] ^= <uint64_t>1 << (s[1].npages & 63)
    else:
        raise KeyError(name)
    yield
    if name == "D1 bit":
        word[0] ^= <uint64_t>1 << (s[1].npages & 63)
    s[0] = kept
    a[0] = head
    a.ids[s[0].id] = index
