"""An access to guest memory: the spans of host memory behind a range of guest addresses.

All spans are found before a byte is copied. So an access that fails here does nothing.
"""

from libc.stdint cimport uint32_t, uint64_t

from memslots.core.slot cimport slot
from memslots.core.slotset cimport slotset
from memslots.core.units cimport gpa_t, hva_t

cdef enum:
    FEW_SPANS = 4  # spans that fit in the access itself

# The part of an access that is in one slot, or a part of that part (access_split). It says what the
# slot was, not where its struct is: after the read-side section the slot may have been freed.
cdef struct span:
    hva_t hva  # the first byte, in host memory
    uint64_t size  # in bytes, at least 1
    gpa_t gpa  # the first byte, in guest memory
    uint32_t id  # the slot's
    uint64_t npages  # the slot's
    hva_t slot_hva  # the slot's userspace_addr
    bint readonly  # the slot is READONLY
    bint may_fault  # the memory may go away meanwhile; access_init sets False, the caller True

cdef enum access_kind:
    ACCESS_READ
    ACCESS_WRITE  # READONLY slots refuse
    ACCESS_RESTORE  # writes, also to READONLY slots, which the guest cannot write

cdef struct access:
    span *spans  # by gpa; `few`, or allocated
    size_t count  # of spans
    gpa_t bad  # after ACCESS_BAD: the first guest address that cannot be accessed
    span few[FEW_SPANS]  # the spans, if they fit here

cdef enum access_result:
    ACCESS_DONE
    ACCESS_BAD  # the range cannot be accessed at the guest address `bad`
    ACCESS_NO_MEMORY

# Finds the spans of `size` bytes, at least 1, that must not go beyond the last address. The caller
# must be in a read-side section. access_free is needed only after ACCESS_DONE. O(log n + k) for k
# spans.
cdef access_result access_init(
    access *a, slotset *set, gpa_t gpa, uint64_t size, access_kind kind
) noexcept nogil
# Splits span n behind its first `size` bytes, which are fewer than it has. Returns False if there
# is no memory; then nothing has changed. O(k).
cdef bint access_split(access *a, size_t n, uint64_t size) noexcept nogil
# Frees the memory of an access.
cdef void access_free(access *a) noexcept nogil
# Marks the accessed pages in the dirty logs of the slots that `set` has now. If a span's slot still
# has the same host memory, that slot gets the marks, at whatever gfn it is. Otherwise every slot
# with that memory gets them. The caller must be in a read-side section. O(k + p / 64) for k spans
# and p pages; O(k log n + m) more if m slots replaced the old ones.
cdef void access_mark(const access *a, slotset *set) noexcept nogil

# Copying. The caller must keep the host memory of all spans mapped. Spans that may_fault are copied
# by core.guarded. The functions return ACCESS_ALL, or the first guest address whose memory is
# missing. In that case the bytes before that address were copied.

cdef enum:
    ACCESS_ALL = 0xFFFFFFFFFFFFFFFF

# Checks whether all memory that may_fault is there now. Copies nothing.
cdef gpa_t access_probe(const access *a) noexcept nogil

# Returns whether a copy between the access and the `size` bytes of `memory` could overwrite bytes
# that are still to be copied. With a single span that is so only if it may_fault.
cdef bint access_meets(const access *a, const void *memory, uint64_t size) noexcept nogil
# Copies the whole access to `out`.
cdef gpa_t access_read(const access *a, void *out) noexcept nogil
# Copies `data` to the whole access.
cdef gpa_t access_write(const access *a, const void *data) noexcept nogil
# Sets every byte of the access.
cdef gpa_t access_fill(const access *a, int byte) noexcept nogil
# Reads the accessed little-endian number of 1, 2, 4 or 8 bytes. An aligned number is read with one
# instruction, so it is never half old and half new. (In memory that may_fault the kernel reads it
# again until two reads agree, at most 17 times.) Acquire: virtio's rings need later reads to come
# after the read of the number.
cdef gpa_t access_load(const access *a, int size, uint64_t *value) noexcept nogil
# Writes a number likewise. Release: a reader that sees the number sees all earlier writes too.
cdef gpa_t access_store(const access *a, uint64_t value, int size) noexcept nogil
