"""Readers enter and leave without waiting; a writer waits for the readers that entered before.

A reader counts itself in on a cache line of its own, or on one of a few shared lines. Each line has
two counters, and the turn says which of the two new readers use. A writer that has published
something new waits for a grace period: until every reader that may have read the old is gone. It
first waits for stragglers on the counter out of use. It then turns new readers over to that counter
and waits for the readers on the other one. New readers never delay it.

The order of locks, which a debug build checks:

  1. the writer's lock (writer.pyx); the locks of several machines always in the same order. A
     backend may have a lock of its own (KvmVM has one), taken after the writer's lock
  2. a read-side section, from srcu_enter to srcu_leave; sections may be nested

Inside a section a thread must not take a lock, wait for readers or run Python code, because a
writer waits for the end of the section.
"""

from libc.stdint cimport uint64_t

from memslots.core.atomics cimport (
    atomic_fence_after_fetch,
    atomic_fetch_add,
    atomic_fetch_sub_release,
    atomic_load_acquire,
    atomic_load_relaxed,
)

cdef extern from *:
    """
    #ifdef MEMSLOTS_DEBUG
    #define MEMSLOTS_COUNT_SECTIONS 1
    #else
    #define MEMSLOTS_COUNT_SECTIONS 0
    #endif
    """
    bint COUNT_SECTIONS "MEMSLOTS_COUNT_SECTIONS"  # whether this is a debug build

cdef enum:
    SHARED_READERS = 8  # lines shared by the threads that have no reader of their own

cdef struct srcu

# The counters of one reader, or of the threads that share it: one cache line.
cdef struct srcu_reader:
    uint64_t inside[2]  # [turn & 1]: sections that began in that turn and have not ended
    srcu *domain  # the domain that its sections are in
    srcu_reader *next  # the next in the domain's list
    uint64_t taken  # whether srcu_reader_get handed it out
    uint64_t line[3]

cdef struct srcu:
    # Every reader that enters reads this line. It is written when a writer waits and when a reader
    # is added.
    uint64_t turn  # bit 0: the counter that new readers use; only the writer writes it
    # the list of readers that srcu_reader_get made; none leaves the list before srcu_clear
    srcu_reader *readers
    uint64_t turn_line[6]
    srcu_reader shared[SHARED_READERS]  # for threads that have no reader of their own


cdef void srcu_init(srcu *domain) noexcept nogil
# Frees the domain's own memory. It must have no readers left.
cdef void srcu_clear(srcu *domain) noexcept nogil
# Returns a reader with a line of its own, or NULL if there is no memory. Any thread may get a
# reader and give it back with srcu_reader_put, which ignores NULL. O(readers ever in use at once).
cdef srcu_reader *srcu_reader_get(srcu *domain) noexcept nogil
cdef void srcu_reader_put(srcu_reader *reader) noexcept nogil
# Returns this thread's shared reader, the same at each call. SHARED_READERS threads that call this
# for the first time one after another, in whatever domain, all get different readers.
cdef srcu_reader *srcu_shared(srcu *domain) noexcept nogil
# Returns the address of the number of sections that this thread is in. Only a debug build counts.
cdef int *srcu_depth() noexcept nogil


cdef inline int srcu_enter(srcu_reader *reader) noexcept nogil:
    """Begins a read-side section. Returns the `side` to pass to srcu_leave.

    Until the section ends, the writer frees nothing that the section reads. Any number of threads
    may enter on one reader.
    """
    cdef int side = atomic_load_relaxed(&reader.domain.turn) & 1
    atomic_fetch_add(&reader.inside[side], 1)
    # Pairs with the first fence of srcu_wait: either the writer sees this reader, or this reader
    # sees what it published.
    atomic_fence_after_fetch()
    if COUNT_SECTIONS:
        srcu_depth()[0] += 1
    return side


cdef inline void srcu_leave(srcu_reader *reader, int side) noexcept nogil:
    if COUNT_SECTIONS:
        srcu_depth()[0] -= 1
    # Release: pairs with the acquiring loads of srcu_wait. So all reads of this section come before
    # the writer frees anything.
    atomic_fetch_sub_release(&reader.inside[side], 1)


cdef inline bint srcu_alone(srcu_reader *reader) noexcept nogil:
    """Returns whether the caller's section is the only one on its reader.

    Until a section for which this was True ends, no other gets True. Of two sections, each counts
    itself before it looks (srcu_enter's fence), so at most one is alone. Acquire: pairs with the
    release in srcu_leave. So a section that is alone sees what earlier sections wrote.
    """
    return atomic_load_acquire(&reader.inside[0]) + atomic_load_acquire(&reader.inside[1]) == 1


# Returns whether no reader from before this call is in a section, so srcu_wait would not wait.
cdef bint srcu_idle(srcu *domain) noexcept nogil
# Waits until every reader that entered before has left. One caller at a time, and not inside a
# section. The caller must hold nothing that a reader needs.
cdef void srcu_wait(srcu *domain) noexcept nogil
# Forgets all sections. For the child of a fork, which has none of the threads in the sections.
cdef void srcu_forget(srcu *domain) noexcept nogil
