"""Copying memory that may go away meanwhile, as when its file is made shorter or pages never came.

Touching such memory ends the process (SIGBUS). So the kernel copies here (process_vm_readv and
process_vm_writev on this process itself) and says where it had to stop. A call takes a few hundred
nanoseconds. If the system does not allow these calls, the memory is copied as any other.
"""

from libc.stdint cimport uint64_t

from memslots.core.units cimport hva_t

# Each function returns the number of bytes done from the beginning: `size` if none is missing.
cdef uint64_t guarded_read(void *to, hva_t from_, uint64_t size) noexcept nogil
cdef uint64_t guarded_write(hva_t to, const void *from_, uint64_t size) noexcept nogil
cdef uint64_t guarded_fill(hva_t to, int byte, uint64_t size) noexcept nogil
# Checks whether the pages are there; copies nothing.
cdef uint64_t guarded_probe(hva_t at, uint64_t size) noexcept nogil
