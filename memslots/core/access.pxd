"""An access to guest memory: which parts of which slots a range of guest addresses goes through.

It is worked out in full before a byte is copied, so that one that cannot be done does nothing.
"""

from libc.stdint cimport uint32_t, uint64_t

from memslots.core.slot cimport slot
from memslots.core.slotset cimport slotset
from memslots.core.units cimport gpa_t, hva_t

cdef enum:
    FEW_PIECES = 4  # of so many an access holds the pieces itself

# The part of an access that is in one slot. It tells what the slot was, and not where it is: once
# the readers' section is left the slot may be gone.
cdef struct piece:
    hva_t hva  # the first byte, in host memory
    uint64_t size  # in bytes, at least 1
    gpa_t gpa  # the first byte, in guest memory
    uint32_t id  # the slot's
    uint64_t npages  # the slot's
    hva_t slot_hva  # the slot's userspace_addr
    bint readonly  # the slot is READONLY

cdef enum access_kind:
    ACCESS_READ
    ACCESS_WRITE  # READONLY slots refuse
    ACCESS_RESTORE  # writes what the guest cannot: READONLY slots, too

cdef struct access:
    piece *pieces  # by gpa; `few`, or memory of its own
    size_t count  # of them
    gpa_t bad  # the first guest address that no slot lets through, where there is one
    piece few[FEW_PIECES]

cdef enum access_result:
    ACCESS_DONE
    ACCESS_BAD  # not all of the range can be accessed: `bad` cannot
    ACCESS_NO_MEMORY

# Works out an access of `size` bytes, at least 1, that do not go beyond the last address. Slots are
# read as the set has them: the caller is in a section. Only after ACCESS_DONE there is something
# for access_free. O(log n + k) for k pieces.
cdef access_result access_init(
    access *a, slotset *set, gpa_t gpa, uint64_t size, access_kind kind
) noexcept nogil
cdef void access_free(access *a) noexcept nogil
# Marks what was accessed in the dirty logs of the slots as `set` has them now: wherever a slot is,
# if it is still the same memory, else in every slot that has that memory. The caller is in a
# section. O(k + p / 64) for k pieces, p pages; O(k log n + m) more where m slots took their place.
cdef void access_mark(const access *a, slotset *set) noexcept nogil

# Moving bytes. Whoever calls these keeps the memory of all pieces: the core takes nobody's word for
# what is there.

# Whether memory that is copied from or to, `size` bytes, may be overwritten by the copy of another
# piece. That of a piece itself does no harm.
cdef bint access_meets(const access *a, const void *memory, uint64_t size) noexcept nogil
# Copies what is accessed, all of it, to `out`.
cdef void access_read(const access *a, void *out) noexcept nogil
# Writes to what is accessed, all of it.
cdef void access_write(const access *a, const void *data) noexcept nogil
cdef void access_fill(const access *a, int byte) noexcept nogil
# The little-endian number of 1, 2, 4 or 8 bytes that is accessed. Where it is aligned it is read at
# once, so that nobody ever sees half of it, and in order with what is read after: as the rings of
# virtio want it.
cdef uint64_t access_load(const access *a, int size) noexcept nogil
# Writes it likewise, in order with what was written before.
cdef void access_store(const access *a, uint64_t value, int size) noexcept nogil
