"""Assertions that only a build with MEMSLOTS_DEBUG=1 has.

They stand where code relies on a duty of its callers within the core.
"""

cdef extern from *:
    """
    #ifdef MEMSLOTS_DEBUG
    #include <stdio.h>
    #include <stdlib.h>
    #define memslots_debug_assert(condition, what) do { \\
        if (!(condition)) { fprintf(stderr, "memslots: broken: %s\\n", (what)); abort(); } \\
    } while (0)
    #else
    #define memslots_debug_assert(condition, what) ((void)(what))
    #endif
    """
    # Prints `what` to standard error and ends the process unless the condition holds. In other
    # builds the condition is not evaluated.
    void debug_assert "memslots_debug_assert"(bint condition, const char *what) noexcept nogil
