"""Copying memory that may go away. The contract of each function is in guarded.pxd."""

from libc.stdint cimport uint64_t
from libc.string cimport memmove, memset

from memslots.core.units cimport PAGE_OFFSET_MASK, PAGE_SIZE, hva_t

cdef extern from *:
    """
    #include <errno.h>
    #include <sys/syscall.h>
    #include <sys/types.h>
    #include <sys/uio.h>
    #include <unistd.h>

    long syscall(long number, ...);

    /* Returns the number of bytes that the kernel copied, or -1 if it does not allow the call. */
    static inline int64_t memslots_process_vm(
        int writes, struct iovec *here, size_t here_count, struct iovec *there, size_t there_count)
    {
        long copied = syscall(
            writes ? SYS_process_vm_writev : SYS_process_vm_readv, (long)syscall(SYS_getpid),
            here, here_count, there, there_count, 0UL);
        if (copied >= 0)
            return copied;
        return errno == EFAULT ? 0 : -1;
    }
    """
    cdef struct iovec:
        void *iov_base
        size_t iov_len

    ssize_t process_vm "memslots_process_vm"(
        bint writes, iovec *here, size_t here_count, iovec *there, size_t there_count
    ) noexcept nogil

cdef enum:
    # The most bytes to ask of one call. The kernel may copy no more than 2 GiB.
    MOST = 1 << 30
    PARTS = 64  # pages that one call checks or fills


cdef uint64_t copy(bint writes, char *here, hva_t there, uint64_t size) noexcept nogil:
    cdef uint64_t done = 0
    cdef iovec mine
    cdef iovec theirs
    cdef ssize_t copied
    while done < size:
        mine.iov_base = here + done
        mine.iov_len = min(size - done, <uint64_t>MOST)
        theirs.iov_base = <void *>(there + done)
        theirs.iov_len = mine.iov_len
        copied = process_vm(writes, &mine, 1, &theirs, 1)
        if copied == 0:
            break
        if copied < 0:
            if writes:
                memmove(<void *>(there + done), here + done, size - done)
            else:
                memmove(here + done, <const void *>(there + done), size - done)
            return size
        done += copied
    return done


cdef uint64_t guarded_read(void *to, hva_t from_, uint64_t size) noexcept nogil:
    return copy(False, <char *>to, from_, size)


cdef uint64_t guarded_write(hva_t to, const void *from_, uint64_t size) noexcept nogil:
    return copy(True, <char *>from_, to, size)


cdef uint64_t guarded_fill(hva_t to, int byte, uint64_t size) noexcept nogil:
    cdef char page[PAGE_SIZE]
    cdef iovec mine[PARTS]
    cdef iovec theirs
    cdef uint64_t done = 0
    cdef ssize_t copied
    cdef int i
    memset(page, byte, PAGE_SIZE)
    for i in range(PARTS):
        mine[i].iov_base = page
        mine[i].iov_len = PAGE_SIZE
    while done < size:
        theirs.iov_base = <void *>(to + done)
        theirs.iov_len = min(size - done, <uint64_t>PARTS * PAGE_SIZE)
        copied = process_vm(True, mine, PARTS, &theirs, 1)
        if copied == 0:
            break
        if copied < 0:
            memset(<void *>(to + done), byte, size - done)
            return size
        done += copied
    return done


cdef uint64_t guarded_probe(hva_t at, uint64_t size) noexcept nogil:
    cdef char bytes_[PARTS]
    cdef iovec mine
    cdef iovec theirs[PARTS]
    cdef hva_t page = at
    cdef hva_t last = at + size - 1
    cdef ssize_t copied
    cdef int count
    mine.iov_base = bytes_
    while True:
        count = 0
        while count < PARTS and page <= last:
            theirs[count].iov_base = <void *>page
            theirs[count].iov_len = 1
            count += 1
            page = (page & ~<hva_t>PAGE_OFFSET_MASK) + PAGE_SIZE
            if page == 0:
                break
        if count == 0:
            return size
        mine.iov_len = count
        copied = process_vm(False, &mine, 1, theirs, count)
        if copied < 0:
            return size
        if copied < count:
            return <hva_t>theirs[copied].iov_base - at
