"""The limits of a Memslots as a caller gives them. The contract is in limits.pxd."""

from libc.stdint cimport uint32_t, uint64_t

from memslots.core.machine cimport MAX_SPACES
from memslots.core.units cimport LAST_GFN, PAGE_SIZE
from memslots.values.integers cimport u32, u64

# What a Memslots allows if neither its maker nor its backend says otherwise.
DEFAULT_LIMITS = {
    "max_slots": 32764,
    "address_spaces": 1,
    "max_gfn": (1 << 40) - 1,
    "max_hva": (1 << 47) - PAGE_SIZE,
    "manual_dirty_log": 0,
}


cdef dict with_default_limits(dict given):
    return DEFAULT_LIMITS | {name: value for name, value in given.items() if value is not ...}


cdef int set_limits(
    limits *lim,
    object max_slots,
    object address_spaces,
    object max_gfn,
    object max_hva,
    object manual_dirty_log,
    uint64_t most_slots,
) except -1:
    cdef uint64_t slots = u64(max_slots, "max_slots")
    lim.nspaces = u32(address_spaces, "address_spaces")
    lim.max_gfn = u64(max_gfn, "max_gfn")
    lim.max_hva = u64(max_hva, "max_hva")
    lim.manual_dirty_log = u32(manual_dirty_log, "manual_dirty_log")
    if not 1 <= slots <= most_slots:
        raise ValueError(f"max_slots must be 1 to {most_slots}, not {slots}")
    if not 1 <= lim.nspaces <= MAX_SPACES:
        raise ValueError(f"address_spaces must be 1 to {MAX_SPACES}, not {lim.nspaces}")
    if lim.max_gfn > LAST_GFN:
        raise ValueError(f"max_gfn must be below 2**52, not {lim.max_gfn:#x}")
    if lim.manual_dirty_log not in (0, 1, 3):
        raise ValueError(f"manual_dirty_log must be 0, 1 or 3, not {lim.manual_dirty_log}")
    lim.max_slots = <uint32_t>slots
    return 0


cdef dict limits_of(object vm):
    return {
        "max_slots": vm.max_slots,
        "address_spaces": vm.address_spaces,
        "max_gfn": vm.max_gfn,
        "max_hva": vm.max_hva,
        "manual_dirty_log": vm.manual_dirty_log,
    }
