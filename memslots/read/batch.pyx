"""Batch calls. The contract is in batch.pxd."""

from libc.stdint cimport int32_t, uint64_t
from libc.string cimport memset

from memslots.core.atomics cimport atomic_load_relaxed
from memslots.core.index cimport index
from memslots.core.index_policy cimport index_policy_build, index_policy_current, index_policy_pays
from memslots.core.lookup_batch cimport (
    LOOKUP_IDS,
    lookup_batch_index,
    lookup_batch_tree,
    lookup_kind,
)
from memslots.core.slotset cimport slotset
from memslots.core.space cimport space_active
from memslots.core.srcu cimport srcu_enter, srcu_leave, srcu_reader
from memslots.core.units cimport hva_t
from memslots.read.sections cimport reader_of, section, section_enter, section_leave
from memslots.values.buffers cimport buffers, release_batch, take_batch

cdef enum:
    # How many look-ups a batch makes before it leaves the readers' section and enters anew. A
    # writer waits for no more look-ups of a batch than this. They take some 20 microseconds if each
    # misses the processor's caches. Entering costs less than one such miss.
    STRETCH = 64
    INDEXED_STRETCH = 512  # the same, if the index answers


cdef void run(
    machine *m,
    space *sp,
    vcpu_cache *cache,
    lookup_kind kind,
    const uint64_t *given,
    void *out,
    size_t count,
) noexcept nogil:
    """Runs a batch stretch by stretch. Each stretch sees one generation."""
    cdef size_t width = sizeof(int32_t) if kind == LOOKUP_IDS else sizeof(hva_t)
    cdef srcu_reader *reader = reader_of(m, cache)
    cdef bint scattered = False
    cdef bint hopeful = True  # whether the rest of the batch may count for an index
    cdef size_t begin = 0
    cdef size_t stretch
    cdef uint64_t searches, expected
    cdef bint pays
    cdef slotset *set
    cdef const index *ix
    cdef int side
    while begin < count:
        side = srcu_enter(reader)
        set = space_active(sp)
        ix = index_policy_current(set)
        stretch = min(<size_t>(STRETCH if ix is NULL else INDEXED_STRETCH), count - begin)
        if ix is not NULL:
            lookup_batch_index(
                ix, cache, kind, given + begin, <char *>out + begin * width, stretch, &scattered
            )
            cache.generation = atomic_load_relaxed(&set.generation)
            srcu_leave(reader, side)
            begin += stretch
            continue
        searches = cache.misses
        lookup_batch_tree(set, cache, kind, given + begin, <char *>out + begin * width, stretch)
        searches = cache.misses - searches
        begin += stretch
        expected = searches * ((count - begin) // stretch) if hopeful else 0
        pays = searches != 0 and index_policy_pays(set, searches, expected)
        srcu_leave(reader, side)
        if pays:
            hopeful = index_policy_build(sp, reader)


cdef object run_batch(
    machine *m, space *sp, vcpu_cache *own, lookup_kind kind, object given, str name, object out
):
    cdef buffers taken
    cdef section at
    # A copy of the reader's cache, since another thread may use the reader meanwhile. If the reader
    # has no cache, this one serves the batch.
    cdef vcpu_cache cache
    memset(&cache, 0, sizeof(cache))
    out = take_batch(given, name, kind_element(kind), out, &taken)
    if own is not NULL:
        cache.reader = own.reader
        at = section_enter(m, own)
        if at.own is not NULL:
            cache.last_used = own.last_used
            cache.slot = own.slot
            cache.generation = own.generation
        section_leave(&at)
    with nogil:
        run(
            m,
            sp,
            &cache,
            kind,
            <const uint64_t *>taken.numbers.buf,
            taken.results.buf,
            taken.count,
        )
    release_batch(&taken)
    if own is not NULL:
        at = section_enter(m, own)
        if at.own is not NULL:
            own.last_used = cache.last_used
            own.slot = cache.slot
            own.generation = cache.generation
            own.hits += cache.hits
            own.misses += cache.misses
        section_leave(&at)
    return out
