cdef extern from "switchboard.h":
    bint mutant(int number) noexcept nogil
