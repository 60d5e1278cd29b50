# cython: language_level=3
"""Drives the search of sorted keys alone, by every kind that this processor has."""

from libc.stdint cimport uint32_t, uint64_t

from memslots.core.alloc cimport alloc_free, alloc_lines
from memslots.core.search cimport (
    SEARCH_AVX2,
    SEARCH_AVX512,
    SEARCH_BLOCK,
    SEARCH_PORTABLE,
    search_best,
    search_block,
    search_keys,
    search_kind,
    search_lay,
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
    """Sorted keys, laid out for the kind in use; each the first half of a pair of numbers."""

    cdef search_keys keys
    cdef void *memory
    cdef uint64_t *pairs

    def __cinit__(self, list keys):
        cdef uint32_t count = <uint32_t>len(keys)
        cdef uint32_t i
        self.memory = alloc_lines(search_size(count))
        self.pairs = <uint64_t *>alloc_lines(count * 2 * sizeof(uint64_t))
        assert self.memory is not NULL and self.pairs is not NULL
        for i in range(count):
            self.pairs[2 * i] = keys[i]
            self.pairs[2 * i + 1] = ~<uint64_t>0
        search_lay(&self.keys, self.memory, count, self.pairs, 2 * sizeof(uint64_t))

    def __dealloc__(self):
        alloc_free(self.memory)
        alloc_free(self.pairs)

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
