"""The units of the core, and functions of them (prefixes: gpa_, gfn_, page_).

A name says its unit: gfn and npages count pages, gpa and hva count bytes. No unit is converted
silently.
"""

from libc.stdint cimport uint64_t

ctypedef uint64_t gfn_t  # a guest page frame number: gpa >> PAGE_SHIFT
ctypedef uint64_t gpa_t  # a guest physical address, in bytes
ctypedef uint64_t hva_t  # a host virtual address, in bytes

cdef enum:
    PAGE_SHIFT = 12  # log2 of the page size
    PAGE_SIZE = 1 << PAGE_SHIFT  # in bytes
    PAGE_OFFSET_MASK = PAGE_SIZE - 1  # the bits of an address within its page

cdef extern from *:
    """
    /* A host address that no page has: the result of a translation that fails. */
    #define MEMSLOTS_BAD_HVA UINT64_MAX
    /* The greatest gfn whose address fits 64 bits. */
    #define MEMSLOTS_LAST_GFN (UINT64_MAX >> 12)
    """
    const hva_t BAD_HVA "MEMSLOTS_BAD_HVA"
    const gfn_t LAST_GFN "MEMSLOTS_LAST_GFN"


cdef inline gfn_t gpa_to_gfn(gpa_t gpa) noexcept nogil:
    return gpa >> PAGE_SHIFT


cdef inline bint page_aligned(uint64_t address) noexcept nogil:
    return (address & PAGE_OFFSET_MASK) == 0


cdef inline bint gfn_range_fits(gfn_t base_gfn, uint64_t npages) noexcept nogil:
    """Returns whether the end of the range, in bytes, is below 2**64 (rule 2: "wraps 64 bits")."""
    return base_gfn <= LAST_GFN and npages <= LAST_GFN - base_gfn
