"""Searching a sorted array of gfns. The contract of each function is in search.pxd.

The code is C, since Cython cannot express the vector instructions. A function for each kind is
always compiled; the machine that runs the code chooses between them.
"""

from memslots.core.alloc cimport CACHE_LINE, alloc_whole_lines

cdef extern from *:
    """
    #define MEMSLOTS_GROUP 16  /* numbers in a group */

    /* Finds the last of `count` keys not above each of G numbers. Each step halves what is left
       for all of them. A mask stands in place of a condition, since a compiler may turn a condition
       into a branch. */
    #define MEMSLOTS_HALVES(G, KEY) do { \\
        uint32_t at[G] = {0}; \\
        for (uint32_t left = count; left > 1;) { \\
            const uint32_t half = left / 2; \\
            for (int j = 0; j < (G); j++) \\
                at[j] += half & -(uint32_t)(keys[at[j] + half] <= (KEY)wanted[i + j]); \\
            left -= half; \\
        } \\
        for (int j = 0; j < (G); j++) \\
            places[i + j] = at[j]; \\
        i += (G); \\
    } while (0)

    #define MEMSLOTS_BY_HALVES(NAME, KEY) \\
    static void NAME(const KEY *keys, uint32_t count, const KEY *wanted, uint32_t *places, \\
                     size_t n) \\
    { \\
        size_t i = 0; \\
        while (i + MEMSLOTS_GROUP <= n) \\
            MEMSLOTS_HALVES(MEMSLOTS_GROUP, KEY); \\
        while (i < n) \\
            MEMSLOTS_HALVES(1, KEY); \\
    }

    MEMSLOTS_BY_HALVES(memslots_halves_narrow, uint32_t)
    MEMSLOTS_BY_HALVES(memslots_halves_wide, uint64_t)

    #if defined(__aarch64__) && defined(__GNUC__)
    #include <arm_neon.h>

    /* Every 64-bit ARM has these instructions. gcc 12 -O3 compiles the loop below wrongly for it:
       in a vector, a comparison that holds is -1, and gcc adds these as if they were 1. */
    static inline uint32_t memslots_count_portable(const uint32_t *node, uint32_t wanted)
    {
        const uint32x4_t limit = vdupq_n_u32(wanted);
        uint32x4_t found = vcleq_u32(vld1q_u32(node), limit);
        for (int i = 4; i < 16; i += 4)
            found = vaddq_u32(found, vcleq_u32(vld1q_u32(node + i), limit));
        return -vaddvq_u32(found);
    }
    #else
    static inline uint32_t memslots_count_portable(const uint32_t *node, uint32_t wanted)
    {
        uint32_t found = 0;
        for (int i = 0; i < 16; i++)  /* compilers vectorise this loop */
            found += node[i] <= wanted;
        return found;
    }
    #endif

    /* Searches for G numbers, level by level. COUNT says how many keys of a number's node are not
       above it; the search goes on below the last of these. Only a number below all keys finds
       none; its place may be any. */
    #define MEMSLOTS_NODES(G, COUNT) do { \\
        uint32_t at[G] = {0}; \\
        for (int l = (int)levels - 1; l >= 0; l--) \\
            for (int j = 0; j < (G); j++) { \\
                const uint32_t found = COUNT(level[l] + 16 * (size_t)at[j], wanted[i + j]); \\
                at[j] = 16 * at[j] + found - (found > 0); \\
            } \\
        for (int j = 0; j < (G); j++) \\
            places[i + j] = at[j]; \\
        i += (G); \\
    } while (0)

    /* Searches for one number likewise. The compiler unrolls a loop of known length; with one
       number, nothing else hides the latency of the steps. */
    #define MEMSLOTS_ONE_OF(LEVELS, COUNT) do { \\
        uint32_t at = 0; \\
        for (int l = (LEVELS) - 1; l >= 0; l--) { \\
            const uint32_t found = COUNT(level[l] + 16 * (size_t)at, wanted); \\
            at = 16 * at + found - (found > 0); \\
        } \\
        return at; \\
    } while (0)

    #define MEMSLOTS_ONE_BY_NODES(NAME, TARGET, COUNT) \\
    TARGET static uint32_t NAME(uint32_t *const *level, uint32_t levels, uint32_t wanted) \\
    { \\
        switch (levels) { \\
        case 1: MEMSLOTS_ONE_OF(1, COUNT); \\
        case 2: MEMSLOTS_ONE_OF(2, COUNT); \\
        case 3: MEMSLOTS_ONE_OF(3, COUNT); \\
        case 4: MEMSLOTS_ONE_OF(4, COUNT); \\
        default: MEMSLOTS_ONE_OF((int)levels, COUNT); \\
        } \\
    }

    MEMSLOTS_ONE_BY_NODES(memslots_one_portable, , memslots_count_portable)

    #define MEMSLOTS_BY_NODES(NAME, TARGET, COUNT) \\
    __attribute__((target(TARGET))) \\
    static void NAME(uint32_t *const *level, uint32_t levels, const uint32_t *wanted, \\
                     uint32_t *places, size_t n) \\
    { \\
        size_t i = 0; \\
        while (i + MEMSLOTS_GROUP <= n) \\
            MEMSLOTS_NODES(MEMSLOTS_GROUP, COUNT); \\
        while (i < n) \\
            MEMSLOTS_NODES(1, COUNT); \\
    }

    #if defined(__x86_64__) && defined(__GNUC__)
    #include <immintrin.h>

    __attribute__((target("avx512f,popcnt")))
    static inline uint32_t memslots_count_avx512(const uint32_t *node, uint32_t wanted)
    {
        const __m512i keys = _mm512_load_si512(node);
        return (uint32_t)__builtin_popcount(
            _mm512_cmple_epu32_mask(keys, _mm512_set1_epi32((int)wanted)));
    }

    __attribute__((target("avx2,popcnt")))
    static inline uint32_t memslots_count_avx2(const uint32_t *node, uint32_t wanted)
    {
        /* AVX2 has no unsigned comparison: a key is not above the limit if it is their minimum. */
        const __m256i limit = _mm256_set1_epi32((int)wanted);
        const __m256i low = _mm256_load_si256((const __m256i *)node);
        const __m256i high = _mm256_load_si256((const __m256i *)node + 1);
        const __m256i both = _mm256_packs_epi32(
            _mm256_cmpeq_epi32(_mm256_min_epu32(low, limit), low),
            _mm256_cmpeq_epi32(_mm256_min_epu32(high, limit), high));
        return (uint32_t)__builtin_popcount((unsigned)_mm256_movemask_epi8(both)) / 2;
    }

    MEMSLOTS_BY_NODES(memslots_nodes_avx512, "avx512f,popcnt", memslots_count_avx512)
    MEMSLOTS_BY_NODES(memslots_nodes_avx2, "avx2,popcnt", memslots_count_avx2)
    MEMSLOTS_ONE_BY_NODES(memslots_one_avx512, __attribute__((target("avx512f,popcnt"))),
                          memslots_count_avx512)
    MEMSLOTS_ONE_BY_NODES(memslots_one_avx2, __attribute__((target("avx2,popcnt"))),
                          memslots_count_avx2)

    static int memslots_has_avx512(void)
    {
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("popcnt");
    }

    static int memslots_has_avx2(void)
    {
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt");
    }
    #else
    /* Elsewhere there is only the portable search, for the compiler to optimise. */
    #define memslots_nodes_avx512(level, levels, wanted, places, n) ((void)0)
    #define memslots_nodes_avx2(level, levels, wanted, places, n) ((void)0)
    #define memslots_one_avx512 memslots_one_portable
    #define memslots_one_avx2 memslots_one_portable
    #define memslots_has_avx512() 0
    #define memslots_has_avx2() 0
    #endif
    """
    void halves_narrow "memslots_halves_narrow"(
        const uint32_t *keys, uint32_t count, const uint32_t *wanted, uint32_t *places, size_t n
    ) noexcept nogil
    void halves_wide "memslots_halves_wide"(
        const uint64_t *keys, uint32_t count, const uint64_t *wanted, uint32_t *places, size_t n
    ) noexcept nogil
    void nodes_avx512 "memslots_nodes_avx512"(
        uint32_t *const *level,
        uint32_t levels,
        const uint32_t *wanted,
        uint32_t *places,
        size_t n,
    ) noexcept nogil
    void nodes_avx2 "memslots_nodes_avx2"(
        uint32_t *const *level,
        uint32_t levels,
        const uint32_t *wanted,
        uint32_t *places,
        size_t n,
    ) noexcept nogil
    uint32_t one_portable "memslots_one_portable"(
        uint32_t *const *level, uint32_t levels, uint32_t wanted
    ) noexcept nogil
    uint32_t one_avx512 "memslots_one_avx512"(
        uint32_t *const *level, uint32_t levels, uint32_t wanted
    ) noexcept nogil
    uint32_t one_avx2 "memslots_one_avx2"(
        uint32_t *const *level, uint32_t levels, uint32_t wanted
    ) noexcept nogil
    bint has_avx512 "memslots_has_avx512"() noexcept nogil
    bint has_avx2 "memslots_has_avx2"() noexcept nogil
    const uint32_t LAST_NARROW "(UINT32_MAX - 1)"  # the greatest narrow key
    const uint32_t NO_KEY "UINT32_MAX"  # fills up a level's last node: above every wanted number

cdef search_kind search_best() noexcept nogil:
    if has_avx512():
        return SEARCH_AVX512
    return SEARCH_AVX2 if has_avx2() else SEARCH_PORTABLE


cdef search_kind used = search_best()


cdef void search_use(search_kind kind) noexcept nogil:
    global used
    used = <search_kind>min(<int>kind, <int>search_best())


cdef search_kind search_used() noexcept nogil:
    return used


cdef inline uint32_t nodes_of(uint32_t count) noexcept nogil:
    """Returns the number of nodes that hold `count` keys."""
    return (count - 1) // SEARCH_NODE + 1


cdef inline size_t wide_size(uint32_t count, uint64_t span) noexcept nogil:
    """Returns the bytes of the wide keys, or 0 if the span allows narrow keys in any case."""
    return alloc_whole_lines(count * <uint64_t>sizeof(uint64_t)) if span > LAST_NARROW else 0


cdef size_t search_size(uint32_t count, uint64_t span) noexcept nogil:
    cdef size_t size = wide_size(count, span)
    while True:
        count = nodes_of(count)
        size += count * <size_t>CACHE_LINE
        if count == 1:
            return size


cdef void search_begin(
    search_keys *keys, void *memory, uint32_t count, uint64_t first, uint64_t last
) noexcept nogil:
    cdef size_t wide = wide_size(count, last - first)
    cdef uint32_t *level = <uint32_t *>(<char *>memory + wide)
    keys.origin = first
    keys.shift = 0
    keys.count = count
    keys.kind = search_used()
    keys.levels = 0
    keys.wide = <uint64_t *>memory if wide != 0 else NULL
    keys.stray = 0
    while (last - first) >> keys.shift > LAST_NARROW:
        keys.shift += 1
    while True:
        count = nodes_of(count)
        keys.level[keys.levels] = level
        keys.levels += 1
        level += count * SEARCH_NODE
        if count == 1:
            return


cdef void search_end(search_keys *keys) noexcept nogil:
    cdef uint32_t count = keys.count
    cdef uint32_t height, i
    if keys.stray != 0:
        keys.levels = 0
        return
    keys.wide = NULL
    for height in range(keys.levels):
        for i in range(count, nodes_of(count) * SEARCH_NODE):
            keys.level[height][i] = NO_KEY
        count = nodes_of(count)


cdef inline uint32_t narrow_of(const search_keys *keys, uint64_t wanted) noexcept nogil:
    """Returns the number to look for among narrow keys."""
    # If `wanted` is below the first key, the difference wraps to a great number.
    return <uint32_t>min((wanted - keys.origin) >> keys.shift, <uint64_t>LAST_NARROW)


cdef uint32_t search_one(const search_keys *keys, uint64_t wanted) noexcept nogil:
    cdef uint32_t place
    if keys.levels == 0:
        halves_wide(keys.wide, keys.count, &wanted, &place, 1)
        return place
    if keys.kind == SEARCH_AVX512:
        return one_avx512(keys.level, keys.levels, narrow_of(keys, wanted))
    if keys.kind == SEARCH_AVX2:
        return one_avx2(keys.level, keys.levels, narrow_of(keys, wanted))
    return one_portable(keys.level, keys.levels, narrow_of(keys, wanted))


cdef void search_block(
    const search_keys *keys, const uint64_t *wanted, uint32_t *places, size_t count
) noexcept nogil:
    cdef uint32_t narrow[SEARCH_BLOCK]
    cdef size_t i
    if keys.levels == 0:
        halves_wide(keys.wide, keys.count, wanted, places, count)
        return
    for i in range(count):
        narrow[i] = narrow_of(keys, wanted[i])
    if keys.kind == SEARCH_AVX512:
        nodes_avx512(keys.level, keys.levels, narrow, places, count)
    elif keys.kind == SEARCH_AVX2:
        nodes_avx2(keys.level, keys.levels, narrow, places, count)
    else:
        halves_narrow(keys.level[0], keys.count, narrow, places, count)
