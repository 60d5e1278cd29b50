"""Little-endian words in memory: dirty bitmaps and the guest's numbers."""

from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    #define memslots_endian_le64(word) __builtin_bswap64(word)
    #define memslots_endian_le(value, size) (__builtin_bswap64(value) >> (64 - 8 * (size)))
    #else
    #define memslots_endian_le64(word) (word)
    #define memslots_endian_le(value, size) ((void)(size), (value))
    #endif
    """
    # Converts a word to little-endian, or back.
    uint64_t endian_le64 "memslots_endian_le64"(uint64_t word) noexcept nogil
    # Converts a number of `size` bytes (1, 2, 4 or 8) to little-endian, or back.
    uint64_t endian_le "memslots_endian_le"(uint64_t value, int size) noexcept nogil
