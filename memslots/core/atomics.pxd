"""The part of C11's memory model that Cython cannot express (prefix: atomic_).

GCC's and Clang's `__atomic` built-ins work on plain members. C11's own functions need `_Atomic`
types, and Cython cannot declare these.
"""

from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #if defined(__x86_64__) || defined(__i386__)
    #define memslots_cpu_relax() __builtin_ia32_pause()
    #elif defined(__aarch64__)
    #define memslots_cpu_relax() __asm__ __volatile__("yield" ::: "memory")
    #else
    #define memslots_cpu_relax() __asm__ __volatile__("" ::: "memory")
    #endif
    #define memslots_load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define memslots_load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
    #define memslots_store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define memslots_store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
    #define memslots_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    #if defined(__x86_64__) || defined(__i386__)
    /* On x86 a locked instruction is already a fence. This keeps the compiler from reordering. */
    #define memslots_fence_after_fetch() __atomic_signal_fence(__ATOMIC_SEQ_CST)
    #else
    #define memslots_fence_after_fetch() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    #endif
    #define memslots_compare_exchange(p, e, v) \\
        __atomic_compare_exchange_n((p), (e), (v), 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)
    #define memslots_fetch_add(p, v) __atomic_fetch_add((p), (v), __ATOMIC_RELAXED)
    #define memslots_fetch_add_acq_rel(p, v) __atomic_fetch_add((p), (v), __ATOMIC_ACQ_REL)
    #define memslots_fetch_sub_acq_rel(p, v) __atomic_fetch_sub((p), (v), __ATOMIC_ACQ_REL)
    #define memslots_fetch_sub_release(p, v) __atomic_fetch_sub((p), (v), __ATOMIC_RELEASE)
    #define memslots_fetch_or(p, v) __atomic_fetch_or((p), (v), __ATOMIC_RELEASE)
    #define memslots_fetch_and(p, v) __atomic_fetch_and((p), (v), __ATOMIC_ACQ_REL)
    #define memslots_exchange(p, v) __atomic_exchange_n((p), (v), __ATOMIC_ACQ_REL)
    """
    # One declaration for pointers and one for counts. The built-ins accept both.
    void *atomic_load_acquire_ptr "memslots_load_acquire"(void *const *) noexcept nogil
    void *atomic_load_relaxed_ptr "memslots_load_relaxed"(void *const *) noexcept nogil
    void atomic_store_release_ptr "memslots_store_release"(void **, void *) noexcept nogil
    void atomic_store_relaxed_ptr "memslots_store_relaxed"(void **, void *) noexcept nogil
    uint64_t atomic_load_acquire "memslots_load_acquire"(const uint64_t *) noexcept nogil
    uint64_t atomic_load_relaxed "memslots_load_relaxed"(const uint64_t *) noexcept nogil
    void atomic_store_relaxed "memslots_store_relaxed"(uint64_t *, uint64_t) noexcept nogil
    void atomic_store_release "memslots_store_release"(uint64_t *, uint64_t) noexcept nogil
    # If the value is `*expected`, writes `wanted` and returns True. Otherwise stores the value in
    # `*expected` and returns False.
    bint atomic_compare_exchange_ptr "memslots_compare_exchange"(
        void **, void **expected, void *wanted
    ) noexcept nogil
    bint atomic_compare_exchange "memslots_compare_exchange"(
        uint64_t *, uint64_t *expected, uint64_t wanted
    ) noexcept nogil
    uint64_t atomic_fetch_add "memslots_fetch_add"(uint64_t *, uint64_t) noexcept nogil
    uint64_t atomic_fetch_add_acq_rel "memslots_fetch_add_acq_rel"(
        uint64_t *, uint64_t
    ) noexcept nogil
    uint64_t atomic_fetch_sub_acq_rel "memslots_fetch_sub_acq_rel"(
        uint64_t *, uint64_t
    ) noexcept nogil
    uint64_t atomic_fetch_sub_release "memslots_fetch_sub_release"(
        uint64_t *, uint64_t
    ) noexcept nogil
    uint64_t atomic_fetch_or_release "memslots_fetch_or"(uint64_t *, uint64_t) noexcept nogil
    uint64_t atomic_fetch_and_acq_rel "memslots_fetch_and"(uint64_t *, uint64_t) noexcept nogil
    uint64_t atomic_exchange_acq_rel "memslots_exchange"(uint64_t *, uint64_t) noexcept nogil
    void atomic_fence "memslots_fence"() noexcept nogil
    # A fence right after an atomic_fetch_add.
    void atomic_fence_after_fetch "memslots_fence_after_fetch"() noexcept nogil
    void atomic_cpu_relax "memslots_cpu_relax"() noexcept nogil
