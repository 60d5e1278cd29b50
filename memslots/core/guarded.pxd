"""Copying memory that may go away meanwhile: a file's that is made shorter, pages that never came.

Touching such memory ends the process (SIGBUS). Here the kernel copies (process_vm_readv and
process_vm_writev on this very process) and says where it had to stop; that takes some hundred
nanoseconds a call. Where the system does not allow these calls, it is copied as any other memory.
"""

from libc.stdint cimport uint64_t

from memslots.core.units cimport hva_t

# Each gives how many bytes it has done from the beginning: all `size` if nothing is in the way.
cdef uint64_t guarded_read(void *to, hva_t from_, uint64_t size) noexcept nogil
cdef uint64_t guarded_write(hva_t to, const void *from_, uint64_t size) noexcept nogil
cdef uint64_t guarded_fill(hva_t to, int byte, uint64_t size) noexcept nogil
# Looks whether the pages are there; copies nothing.
cdef uint64_t guarded_probe(hva_t at, uint64_t size) noexcept nogil
