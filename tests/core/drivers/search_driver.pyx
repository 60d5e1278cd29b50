# cython: language_level=3
"""Drives the search of sorted keys alone, by every kind that this processor has."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from memslots.core.alloc cimport alloc_block, alloc_free
from memslots.core.search cimport (
    SEARCH_AVX2,
    SEARCH_AVX512,
    SEARCH_BLOCK,
    SEARCH_PORTABLE,
    search_add,
    search_begin,
    search_best,
    search_block,
    search_end,
    search_keys,
    search_kind,
    search_one,
    search_size,
    search_use,
    search_used,
)

KINDS = {"portable": SEARCH_PORTABLE, "avx2": SEARCH_AVX2, "avx512": SEARCH_AVX512}
BLOCK = SEARCH_BLOCK


def best():
    """The name of the best kind."""
    return {number: name for name, number in KINDS.items()}[search_best()]


def use(str kind):
    """Has indexes that are made from now on use a kind; says whether that is to be had."""
    search_use(<search_kind><int>KINDS[kind])
    return search_used() == KINDS[kind]


cdef class Keys:
    """Sorted keys, laid out for the kind in use."""

    cdef search_keys keys
    cdef void *memory

    def __cinit__(self, list keys):
        cdef uint32_t count = <uint32_t>len(keys)
        cdef uint64_t first = keys[0]
        cdef uint64_t last = keys[-1]
        cdef uint32_t i
        cdef size_t size = search_size(count, last - first)
        self.memory = alloc_block(size)
        assert self.memory is not NULL and size % 64 == 0
        memset(self.memory, 0xA5, size)  # whatever is in it
        search_begin(&self.keys, self.memory, count, first, last)
        for i in range(count):
            search_add(&self.keys, i, keys[i])
        search_end(&self.keys)

    def __dealloc__(self):
        alloc_free(self.memory)

    @property
    def narrow(self):
        return self.keys.levels != 0

    @property
    def levels(self):
        return self.keys.levels

    def places(self, list wanted):
        """The places of so many numbers, all in one block."""
        cdef uint64_t numbers[SEARCH_BLOCK]
        cdef uint32_t found[SEARCH_BLOCK]
        cdef size_t count = len(wanted)
        cdef size_t i
        assert count <= SEARCH_BLOCK
        for i in range(count):
            numbers[i] = wanted[i]
        search_block(&self.keys, numbers, found, count)
        return [found[i] for i in range(count)]

    def place(self, uint64_t wanted):
        """The place of one number."""
        return search_one(&self.keys, wanted)
