"""An access to guest memory: the spans of host memory behind a range of guest addresses.

The whole access is worked out before a byte is copied. So an access that fails does nothing.
"""

from libc.stdint cimport uint32_t, uint64_t

from memslots.core.slot cimport slot
from memslots.core.slotset cimport slotset
from memslots.core.units cimport gpa_t, hva_t

cdef enum:
    FEW_SPANS = 4  # so many spans fit in the access itself

# The part of an access that is in one slot. It says what the slot was, not where its struct is:
# after the read-side section the slot may have been freed.
cdef struct span:
    hva_t hva  # the first byte, in host memory
    uint64_t size  # in bytes, at least 1
    gpa_t gpa  # the first byte, in guest memory
    uint32_t id  # the slot's
    uint64_t npages  # the slot's
    hva_t slot_hva  # the slot's userspace_addr
    bint readonly  # the slot is READONLY
    bint may_fault  # the memory may go away meanwhile; for whoever knows it to set

cdef enum access_kind:
    ACCESS_READ
    ACCESS_WRITE  # READONLY slots refuse
    ACCESS_RESTORE  # writes what the guest cannot: READONLY slots, too

cdef struct access:
    span *spans  # by gpa; `few`, or allocated
    size_t count  # of spans
    gpa_t bad  # after ACCESS_BAD: the first guest address that cannot be accessed
    span few[FEW_SPANS]  # the spans, if they fit here

cdef enum access_result:
    ACCESS_DONE
    ACCESS_BAD  # the range cannot be accessed at the guest address `bad`
    ACCESS_NO_MEMORY

# Works out an access of `size` bytes, at least 1, that do not go beyond the last address. The
# caller must be in a read-side section. access_free is needed after ACCESS_DONE only.
# O(log n + k) for k spans.
cdef access_result access_init(
    access *a, slotset *set, gpa_t gpa, uint64_t size, access_kind kind
) noexcept nogil
cdef void access_free(access *a) noexcept nogil
# Marks the accessed pages in the dirty logs of the slots that `set` has now. If a span's slot still
# has the same memory, it gets the marks, wherever it is; else every slot that has that memory gets
# them. The caller must be in a read-side section. O(k + p / 64) for k spans, p pages;
# O(k log n + m) more if m slots replaced the old ones.
cdef void access_mark(const access *a, slotset *set) noexcept nogil

# Copying. The caller must keep the host memory of all spans mapped. What may_fault is copied by
# core.guarded: the result is ACCESS_ALL, or the first guest address that was not there. Then what
# comes before it was copied.

cdef enum:
    ACCESS_ALL = 0xFFFFFFFFFFFFFFFF

# Looks whether all memory that may_fault is there now.
cdef gpa_t access_probe(const access *a) noexcept nogil

# Returns whether the copy of one span may overwrite part of `memory`, `size` bytes, that another
# span is copied from or to. An access of one span does so only where it may_fault.
cdef bint access_meets(const access *a, const void *memory, uint64_t size) noexcept nogil
# Copies the whole access to `out`.
cdef gpa_t access_read(const access *a, void *out) noexcept nogil
# Copies `data` to the whole access.
cdef gpa_t access_write(const access *a, const void *data) noexcept nogil
# Sets every byte of the access.
cdef gpa_t access_fill(const access *a, int byte) noexcept nogil
# Reads the little-endian number of 1, 2, 4 or 8 bytes that is accessed. An aligned number is read
# with one instruction, so the result is never half old and half new. (In memory that may_fault the
# kernel reads it, until it has found the same twice.) Acquire: virtio's rings need what is read
# after the number to be read after it.
cdef gpa_t access_load(const access *a, int size, uint64_t *value) noexcept nogil
# Writes a number likewise. Release: what was written before the number is seen with it.
cdef gpa_t access_store(const access *a, uint64_t value, int size) noexcept nogil
