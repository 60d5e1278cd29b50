"""The values that Python code gets: Flags, Change, Slot and VcpuStats."""

import enum
from collections import namedtuple

cimport cython
from cpython.object cimport PyTypeObject
from libc.stdint cimport uint32_t, uint64_t

from memslots.core.slot cimport (
    SLOT_CALLER_FLAGS,
    SLOT_GUEST_MEMFD,
    SLOT_INVALID,
    SLOT_KNOWN_FLAGS,
    slot_region,
)
from memslots.core.units cimport PAGE_SHIFT, gfn_range_fits, gfn_t, hva_t, page_aligned
from memslots.values.integers cimport u32, u64

import errno

from memslots.errors import InvalidRegionError, NotMappedError
from memslots.values.integers import slot_number


# Pickles name each class by this module. It stays when the classes' own module is moved.
cdef str PUBLIC = "memslots"


class Flags(enum.IntFlag):
    """A slot's flags, with KVM's numbers."""

    __module__ = PUBLIC

    LOG_DIRTY_PAGES = 1 << 0
    """The slot has a dirty log."""
    READONLY = 1 << 1
    """The guest may read the slot's pages, but not write them."""
    GUEST_MEMFD = 1 << 2
    """The slot is bound to a range of a guest_memfd (set_region2). Excludes the other flags."""
    INVALID = 1 << 16
    """The slot is about to be deleted or moved. Listeners see this flag; callers cannot set it."""


class Change(enum.Enum):
    """What a call changed."""

    __module__ = PUBLIC

    CREATE = "create"
    DELETE = "delete"
    MOVE = "move"
    FLAGS_ONLY = "flags_only"
    NONE = "none"


VcpuStats = namedtuple("VcpuStats", ["hits", "misses"], module=PUBLIC)
VcpuStats.__doc__ = """How many look-ups a Vcpu's last-used slot answered; how many searched."""

# Made in advance: making an IntFlag takes a microsecond, and there are few of them.
cdef dict FLAGS = {
    bits: Flags(bits)
    for known in range(SLOT_KNOWN_FLAGS + 1)
    for bits in (known, known | SLOT_INVALID)
}


def size_text(size):
    """Returns a size in the largest unit that needs at most two digits after the point.

    `44 KiB`, `255.75 MiB`, `2 GiB`.
    """
    for unit, bits in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        whole = 1 << bits
        if size >= whole and not size * 100 % whole:
            return f"{size / whole:.2f}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{size} B"


# no_gc: no GuestMemfd refers to a Slot.
@cython.final
@cython.freelist(64)
@cython.no_gc
cdef class Slot:
    """Slot(id, as_id, base_gfn, npages, userspace_addr, flags=0, guest_memfd=None, \
guest_memfd_offset=0)\n--\n
    A run of guest pages and where the host keeps them.

    Immutable. It stays valid for ever, even after the slot is changed or deleted.

    Compares and hashes by value. ``gfn in slot`` asks whether the slot holds a page.

    Parameters
    ----------
    id, as_id : int
        The slot's number and its address space (32 bits each).
    base_gfn : int
        The first guest page.
    npages : int
        The number of pages, at least 1.
    userspace_addr : int
        The host address of the first byte.
    flags : int or Flags
    guest_memfd : GuestMemfd, optional
        The file that the slot is bound to, if it has the flag GUEST_MEMFD, and only then.
    guest_memfd_offset : int
        The offset of the slot's first page in the file, in bytes.

    Raises
    ------
    TypeError, OverflowError
        A value is no integer, or does not fit its field.
    InvalidRegionError
        There are no pages, or pages beyond the last gfn that has an address. A flag is unknown, or
        does not go with the other arguments.
    """

    cdef readonly uint32_t id
    cdef readonly uint32_t as_id
    cdef readonly gfn_t base_gfn
    cdef readonly uint64_t npages
    cdef readonly hva_t userspace_addr
    cdef uint32_t bits
    cdef tuple memfd  # the GuestMemfd, its number, the offset in it; None: there is none

    def __init__(
        self,
        id,
        as_id,
        base_gfn,
        npages,
        userspace_addr,
        flags=0,
        guest_memfd=None,
        guest_memfd_offset=0,
    ):
        cdef uint32_t number = u32(id, "id")
        cdef uint32_t space = u32(as_id, "as_id")
        cdef uint32_t bits = u32(flags, "flags")
        cdef gfn_t base = u64(base_gfn, "base_gfn")
        cdef uint64_t pages = u64(npages, "npages")
        cdef hva_t hva = u64(userspace_addr, "userspace_addr")
        cdef uint64_t offset = u64(guest_memfd_offset, "guest_memfd_offset")
        cdef tuple memfd = None
        if bits & ~<uint32_t>(SLOT_KNOWN_FLAGS | SLOT_INVALID):
            raise InvalidRegionError(errno.EINVAL, f"unknown flags {bits:#x}")
        if bits & SLOT_GUEST_MEMFD or guest_memfd is not None or offset != 0:
            from memslots.values.guestmemfd import GuestMemfd, number_of

            if not bits & SLOT_GUEST_MEMFD or bits & SLOT_CALLER_FLAGS or guest_memfd is None:
                raise InvalidRegionError(
                    errno.EINVAL,
                    f"flags {bits:#x}: GUEST_MEMFD (4) needs a guest_memfd and no other flags",
                )
            if not isinstance(guest_memfd, GuestMemfd):
                raise TypeError(f"guest_memfd must be a GuestMemfd, not {guest_memfd!r}")
            if not page_aligned(offset) or offset + (pages << PAGE_SHIFT) < offset:
                raise InvalidRegionError(
                    errno.EINVAL, f"{pages} pages from byte {offset:#x} are not in any guest_memfd"
                )
            memfd = (guest_memfd, number_of(guest_memfd)[0], offset)
        if pages == 0 or not gfn_range_fits(base, pages):
            raise InvalidRegionError(
                errno.EINVAL, f"{pages} pages from gfn {base:#x} are not a run of guest pages"
            )
        if hva + (pages << PAGE_SHIFT) - 1 < hva:
            raise InvalidRegionError(
                errno.EINVAL, f"{pages} pages from host address {hva:#x} go beyond the last address"
            )
        if self.npages != 0:  # tested last: the __index__ of an argument may have made the Slot
            raise TypeError("a Slot is immutable")
        self.id = number
        self.as_id = space
        self.base_gfn = base
        self.userspace_addr = hva
        self.bits = bits
        self.memfd = memfd
        self.npages = pages

    @property
    def flags(self):
        """The slot's Flags."""
        return FLAGS[self.bits]

    @property
    def guest_memfd(self):
        """The GuestMemfd that the slot was bound to, or None."""
        return None if self.memfd is None else self.memfd[0]

    @property
    def guest_memfd_offset(self):
        """The offset of the slot's first page in the file, in bytes."""
        return 0 if self.memfd is None else self.memfd[2]

    @property
    def guest_phys_addr(self):
        """The guest address of the first byte."""
        return self.base_gfn << PAGE_SHIFT

    @property
    def memory_size(self):
        """The size in bytes."""
        return self.npages << PAGE_SHIFT

    @property
    def end_gfn(self):
        """The first gfn after the slot."""
        return self.base_gfn + self.npages

    def gfn_to_hva(self, gfn):
        """Returns the host address of a page.

        Parameters
        ----------
        gfn : int

        Returns
        -------
        int
            The host address of the page's first byte.

        Raises
        ------
        NotMappedError
            The slot does not hold the page.
        """
        cdef gfn_t page = u64(gfn, "gfn")
        if page - self.base_gfn >= self.npages:
            raise NotMappedError(errno.EFAULT, f"gfn {page:#x} is not in {self}")
        return self.userspace_addr + ((page - self.base_gfn) << PAGE_SHIFT)

    def __contains__(self, gfn):
        return u64(gfn, "gfn") - self.base_gfn < self.npages

    def __eq__(self, other):
        if not isinstance(other, Slot):
            return NotImplemented
        cdef Slot that = <Slot>other
        return (
            self.base_gfn == that.base_gfn
            and self.npages == that.npages
            and self.userspace_addr == that.userspace_addr
            and self.id == that.id
            and self.as_id == that.as_id
            and self.bits == that.bits
            and self.memfd == that.memfd
        )

    def __hash__(self):
        return hash(
            (self.id, self.as_id, self.base_gfn, self.npages, self.userspace_addr, self.bits)
        )

    def __repr__(self):
        return (
            f"Slot(id={self.id}, as_id={self.as_id}, base_gfn={self.base_gfn:#x},"
            f" npages={self.npages:#x}, userspace_addr={self.userspace_addr:#x},"
            f" flags={self.flags!r}"
            + (
                f", guest_memfd={self.guest_memfd!r},"
                f" guest_memfd_offset={self.guest_memfd_offset:#x})"
                if self.memfd is not None
                else ")"
            )
        )

    def __str__(self):
        names = "".join(f" {flag.name}" for flag in self.flags)
        return (
            f"slot {self.id} (gfn [{self.base_gfn:#x}, {self.base_gfn + self.npages:#x}),"
            f" {size_text(self.npages << PAGE_SHIFT)}, hva {self.userspace_addr:#x}{names})"
        )

    def __reduce__(self):
        fields = (
            self.id,
            self.as_id,
            self.base_gfn,
            self.npages,
            self.userspace_addr,
            self.bits,
        )
        if self.memfd is not None:
            fields += (self.guest_memfd, self.guest_memfd_offset)
        return Slot, fields

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self


# Cython does not let a cdef class choose its __module__, which Python reads from this name.
(<PyTypeObject *>Slot).tp_name = "memslots.Slot"


cdef object region_record(const region *r):
    cdef Slot record = Slot.__new__(Slot)
    record.id = r.id
    record.as_id = r.as_id
    record.base_gfn = r.base_gfn
    record.npages = r.npages
    record.userspace_addr = r.userspace_addr
    record.bits = r.flags
    if r.guest_memfd:
        from memslots.values.guestmemfd import by_number

        record.memfd = (by_number(r.guest_memfd), r.guest_memfd, r.guest_memfd_offset)
    return record


def region_arguments(Slot slot not None):
    """Returns the arguments of the set_region that makes a slot equal to this Slot.

    If it has a guest_memfd, they are those of set_region2, which has two more.
    """
    arguments = (
        slot_number(slot.id, slot.as_id),
        slot.bits,
        slot.base_gfn << PAGE_SHIFT,
        slot.npages << PAGE_SHIFT,
        slot.userspace_addr,
    )
    if slot.memfd is not None:
        arguments += (slot.guest_memfd, slot.guest_memfd_offset)
    return arguments


def deletion_arguments(Slot slot not None):
    """Returns the arguments of the set_region that deletes a slot."""
    return slot_number(slot.id, slot.as_id), 0, 0, 0, 0


cdef object slot_record(const slot *s):
    cdef region r = slot_region(s)
    return region_record(&r)


cdef int memfd_of(const region *r, list records, region *out) except -1:
    cdef Slot s
    cdef size_t low = 0
    cdef size_t high = len(records)
    cdef size_t middle
    while low < high:
        middle = (low + high) // 2
        if (<Slot>records[middle]).base_gfn > r.base_gfn:
            high = middle
        else:
            low = middle + 1
    if low == 0:
        return 0
    s = <Slot>records[low - 1]
    if r.base_gfn - s.base_gfn >= s.npages:
        return 0
    out.guest_memfd = s.memfd[1]
    out.guest_memfd_offset = <uint64_t>s.memfd[2] + ((r.base_gfn - s.base_gfn) << PAGE_SHIFT)
    return 1


cdef int record_region(object record, region *r) except -1:
    cdef Slot s = <Slot?>record
    r.id = s.id
    r.as_id = s.as_id
    r.flags = s.bits
    r.base_gfn = s.base_gfn
    r.npages = s.npages
    r.userspace_addr = s.userspace_addr
    r.guest_memfd = 0
    r.guest_memfd_offset = 0
    if s.memfd is not None:
        r.guest_memfd = s.memfd[1]
        r.guest_memfd_offset = s.memfd[2]
    return 0
