"""Where in a sorted array of gfns. The contract of each function is in search.pxd.

C, since Cython has no words for the instructions. A function for each kind is compiled whatever the
machine that compiles, and chosen on the one that runs.
"""

from memslots.core.alloc cimport CACHE_LINE

cdef extern from *:
    """
    #define MEMSLOTS_GROUP 16  /* questions that are in flight at once */

    /* The last of `count` keys not above `wanted[j]`, for G questions: each step halves what is
       left of all. A mask in place of a condition, which compilers turn into branches as they
       like. */
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

    /* A level down: of the keys in a question's node, COUNT says how many are not above it; it goes
       on below the last of them. Only a question below all keys finds none; it may go anywhere. */
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

    #define MEMSLOTS_BY_NODES(NAME, TARGET, COUNT) \\
    __attribute__((target(TARGET))) \\
    static void NAME(const uint32_t *const *level, uint32_t levels, const uint32_t *wanted, \\
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
        /* There is no unsigned comparison: a key is not above what it is the lesser of. */
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
    /* Elsewhere the compiler makes of the portable search what the machine has. */
    #define memslots_nodes_avx512(level, levels, wanted, places, n) ((void)0)
    #define memslots_nodes_avx2(level, levels, wanted, places, n) ((void)0)
    #define memslots_has_avx512() 0
    #define memslots_has_avx2() 0
    #endif
    """
    enum:
        NODE "16"
    void halves_narrow "memslots_halves_narrow"(
        const uint32_t *keys, uint32_t count, const uint32_t *wanted, uint32_t *places, size_t n
    ) noexcept nogil
    void halves_wide "memslots_halves_wide"(
        const uint64_t *keys, uint32_t count, const uint64_t *wanted, uint32_t *places, size_t n
    ) noexcept nogil
    void nodes_avx512 "memslots_nodes_avx512"(
        const uint32_t *const *level,
        uint32_t levels,
        const uint32_t *wanted,
        uint32_t *places,
        size_t n,
    ) noexcept nogil
    void nodes_avx2 "memslots_nodes_avx2"(
        const uint32_t *const *level,
        uint32_t levels,
        const uint32_t *wanted,
        uint32_t *places,
        size_t n,
    ) noexcept nogil
    bint has_avx512 "memslots_has_avx512"() noexcept nogil
    bint has_avx2 "memslots_has_avx2"() noexcept nogil
    const uint32_t LAST_NARROW "(UINT32_MAX - 1)"  # the greatest narrow key
    const uint32_t NO_KEY "UINT32_MAX"  # what fills a level's last node: above all that is asked

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
    """How many nodes hold so many keys."""
    return (count - 1) // NODE + 1


cdef size_t search_size(uint32_t count) noexcept nogil:
    cdef size_t wide = (count * sizeof(uint64_t) + CACHE_LINE - 1) & ~<size_t>(CACHE_LINE - 1)
    cdef size_t narrow = 0
    while count > 1 or narrow == 0:
        count = nodes_of(count)
        narrow += count * <size_t>CACHE_LINE
    return max(wide, narrow)


cdef inline uint64_t key_of(const void *items, size_t stride, uint32_t place) noexcept nogil:
    return (<const uint64_t *>(<const char *>items + place * stride))[0]


cdef void lay_wide(
    search_keys *keys, uint64_t *wide, const void *items, size_t stride
) noexcept nogil:
    cdef uint32_t i
    for i in range(keys.count):
        wide[i] = key_of(items, stride, i)
    keys.wide = wide


cdef uint32_t lay_level(uint32_t *level, uint32_t count, const uint32_t *below) noexcept nogil:
    """Fills a level's last node; the first key of each node of `below`, unless that is NULL.

    Gives the number of nodes.
    """
    cdef uint32_t nodes = nodes_of(count)
    cdef uint32_t i
    if below is not NULL:
        for i in range(count):
            level[i] = below[i * NODE]
    for i in range(count, nodes * NODE):
        level[i] = NO_KEY
    return nodes


cdef void search_lay(
    search_keys *keys, void *memory, uint32_t count, const void *items, size_t stride
) noexcept nogil:
    cdef uint32_t *level = <uint32_t *>memory
    cdef uint32_t *below
    cdef uint64_t bits = 0  # those that are set in any distance from the first
    cdef uint64_t greatest
    cdef uint32_t i, nodes
    keys.origin = key_of(items, stride, 0)
    keys.shift = 0
    keys.count = count
    keys.kind = search_used()
    keys.levels = 0
    keys.wide = NULL
    for i in range(count):
        bits |= key_of(items, stride, i) - keys.origin
    greatest = key_of(items, stride, count - 1) - keys.origin
    while greatest > LAST_NARROW and not bits & 1:
        bits >>= 1
        greatest >>= 1
        keys.shift += 1
    if greatest > LAST_NARROW:
        lay_wide(keys, <uint64_t *>memory, items, stride)
        return
    for i in range(count):
        level[i] = <uint32_t>((key_of(items, stride, i) - keys.origin) >> keys.shift)
    nodes = lay_level(level, count, NULL)
    keys.level[0] = level
    keys.levels = 1
    while nodes > 1 and keys.kind != SEARCH_PORTABLE:
        below = level
        level += nodes * NODE
        nodes = lay_level(level, nodes, below)
        keys.level[keys.levels] = level
        keys.levels += 1


cdef void search_block(
    const search_keys *keys, const uint64_t *wanted, uint32_t *places, size_t count
) noexcept nogil:
    cdef uint32_t narrow[SEARCH_BLOCK]
    cdef uint64_t distance
    cdef size_t i
    if keys.levels == 0:
        halves_wide(keys.wide, keys.count, wanted, places, count)
        return
    for i in range(count):
        # Below the first key it wraps to a great number.
        distance = (wanted[i] - keys.origin) >> keys.shift
        narrow[i] = <uint32_t>min(distance, <uint64_t>LAST_NARROW)
    if keys.kind == SEARCH_AVX512:
        nodes_avx512(keys.level, keys.levels, narrow, places, count)
    elif keys.kind == SEARCH_AVX2:
        nodes_avx2(keys.level, keys.levels, narrow, places, count)
    else:
        halves_narrow(keys.level[0], keys.count, narrow, places, count)
