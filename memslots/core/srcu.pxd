"""Readers enter and leave without waiting; a writer waits for those who were in before it asked.

A reader counts itself in on a cache line of its own (or on one of a few, for whoever has none), one
of two counters: the turn says which one those use who enter now. A writer that has published
something new waits until nobody is left who may have read the old: first for stragglers on the
counter out of use, then, having turned new readers over to that one, for those on the other. New
readers never hold it up.

The order of locks, which a debug build checks:

  1. the lock of a writer (writer.pyx); of several machines, always in the same order. A backend may
     have one of its own (KvmVM has), which is taken after it
  2. a section, from srcu_enter to srcu_leave; may be nested

In a section nobody takes a lock, waits for readers or runs Python code: a writer waits for its end.
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
    SHARED_READERS = 8  # threads that read without a line of their own share this many

cdef struct srcu

# One line: who counts here.
cdef struct srcu_reader:
    uint64_t inside[2]  # [turn & 1]: sections that began in that turn and have not ended
    srcu *domain  # where it enters
    srcu_reader *next  # the next of the domain's list
    uint64_t taken  # whether somebody has it
    uint64_t line[3]

cdef struct srcu:
    # Read by all who enter; written when a writer waits, and when a reader is added.
    uint64_t turn  # bit 0: the counter that new readers use; the writer alone writes it
    # the readers that srcu_reader_get has made; never one less before srcu_clear
    srcu_reader *readers
    uint64_t turn_line[6]
    srcu_reader shared[SHARED_READERS]  # for whoever has no line of their own


cdef void srcu_init(srcu *domain) noexcept nogil
# Gives back what the domain has got for itself. Nobody reads any more.
cdef void srcu_clear(srcu *domain) noexcept nogil
# A reader with a line of its own, or NULL: no memory. Any thread may get one and give it back; NULL
# does nothing. O(readers ever in use at once).
cdef srcu_reader *srcu_reader_get(srcu *domain) noexcept nogil
cdef void srcu_reader_put(srcu_reader *reader) noexcept nogil
# The shared reader of this thread: the same at each call. Of threads that ask for the first time
# one after another, in whatever domain, no SHARED_READERS have one in common.
cdef srcu_reader *srcu_shared(srcu *domain) noexcept nogil
# How many sections this thread is in. Counted in a debug build only.
cdef int *srcu_depth() noexcept nogil


cdef inline int srcu_enter(srcu_reader *reader) noexcept nogil:
    """Enters; gives what srcu_leave wants. What is read from now on stays until then.

    Any number of threads may enter on one reader.
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
    # Release: pairs with the acquiring loads of srcu_wait, so that all that was read was read
    # before anything is freed.
    atomic_fetch_sub_release(&reader.inside[side], 1)


cdef inline bint srcu_alone(srcu_reader *reader) noexcept nogil:
    """Whether the section that the caller is in is the only one of its reader.

    Then it stays the only one to find so until it leaves: of two that entered, both counted before
    either looked (srcu_enter's fence), so at most one was alone. Acquire: pairs with the release in
    srcu_leave, so whoever is alone sees what those before it wrote.
    """
    return atomic_load_acquire(&reader.inside[0]) + atomic_load_acquire(&reader.inside[1]) == 1


# Whether no reader is in who may have entered before: srcu_wait would not wait.
cdef bint srcu_idle(srcu *domain) noexcept nogil
# Waits for every reader who entered before; one caller at a time, in no section. Whoever calls it
# holds nothing a reader needs.
cdef void srcu_wait(srcu *domain) noexcept nogil
# Forgets all sections. After a fork, whose child has none of the threads that were in them.
cdef void srcu_forget(srcu *domain) noexcept nogil
