# cython: language_level=3, cdivision=True
"""The machine that the threads of threads_driver.pyx work on, and a thread."""

from libc.stdint cimport uint32_t, uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from memslots.core.lookup cimport vcpu_cache
from memslots.core.machine cimport machine
from memslots.core.slot cimport slot
from memslots.core.space cimport space
from memslots.core.units cimport gfn_t, gpa_t, hva_t

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    ctypedef struct pthread_barrier_t:
        pass
    int pthread_create(pthread_t *, const void *, void *(*)(void *) noexcept nogil, void *)
    int pthread_join(pthread_t, void **)
    int pthread_barrier_init(pthread_barrier_t *, const void *, unsigned)
    int pthread_barrier_wait(pthread_barrier_t *)
    int pthread_barrier_destroy(pthread_barrier_t *)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    NSPACES = 2
    TILES = 24  # slots in the range, of UNIT pages each at first
    UNIT = 8
    TOP = 24 * 8
    LOG_SIZE = 24  # bytes, of a slot that has the whole range
    TILE_IDS = 3 * 24  # a tile's id is below it
    OTHERS = 8  # ids from there on, of the slots elsewhere
    OTHER_PAGES = 4
    ELSEWHERE = 0x10000
    THREADS = 12  # as ROLES has
    STAGED = 2 * NSPACES  # ids that one transaction changes, at most

cdef enum wrong:
    NOTHING
    REFUSED
    HOLE
    TORN
    WRONG_HVA
    NOT_TILED
    NOT_BY_ID
    NOT_BY_HVA
    GENERATION_FELL
    MARKED_BEYOND_END
    NO_READER

cdef struct scene:
    machine *m
    pthread_barrier_t start
    double end  # by the clock
    uint64_t wrong  # the first of the enum that was seen
    uint64_t waits  # how often the writer found readers to wait for
    uint64_t indexed  # how often a batch found an index
    gfn_t gfns[TOP]
    gpa_t gpas[TOP]

cdef struct job

ctypedef wrong (*round_t)(job *) noexcept nogil

# A thread and what it does, over and over.
cdef struct job:
    scene *at
    round_t once
    vcpu_cache *own  # NULL: it reads without a vCPU
    vcpu_cache vcpu
    uint64_t dice
    uint64_t rounds
    uint64_t generations[NSPACES]  # seen last


cdef inline double now() noexcept nogil:
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return time.tv_sec + time.tv_nsec * 1e-9


cdef inline uint64_t throw(job *j, uint64_t sides) noexcept nogil:
    """A number below `sides`."""
    j.dice = j.dice * <uint64_t>6364136223846793005 + <uint64_t>1442695040888963407
    return (j.dice >> 33) % sides


cdef inline hva_t hva_of(uint32_t id) noexcept nogil:
    """A host address that tells the slot."""
    return (<hva_t>id + 1) << 32


cdef inline space *any_space(job *j) noexcept nogil:
    return j.at.m.spaces[throw(j, NSPACES)]
