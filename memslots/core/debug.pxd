"""Assertions that only a build with MEMSLOTS_DEBUG=1 has.

They say what a caller within the core owes, where it is relied on.
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
    # Ends the process with `what` on standard error unless the condition holds. Without the switch
    # it is not evaluated.
    void debug_assert "memslots_debug_assert"(bint condition, const char *what) noexcept nogil
