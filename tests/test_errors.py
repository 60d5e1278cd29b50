"""Every refusal: its class, errno, rule and message, and that it changes nothing."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from model import plain, unchanged

from memslots import (
    BusyError,
    Flags,
    InvalidRegionError,
    InvariantError,
    MemslotError,
    Memslots,
    NoRoomError,
    NoSuchSlotError,
    NotMappedError,
    OverlapError,
    ReadOnlyError,
    TraceError,
    Transaction,
)
from memslots.errors import WrongAnswerError

HVA = 0x7000_0000_0000
MAX_HVA = (1 << 47) - 4096
LOG, READONLY = 1, 2


@pytest.fixture
def used(vm: Memslots) -> Memslots:
    """Slot 1 logs gfns 0x100-0x13f, slot 2 is READONLY at 0x200-0x20f; space 1 has a slot 1 too."""
    vm.create(1, 0x100, 64, HVA, LOG)
    vm.create(2, 0x200, 16, HVA, READONLY)
    vm.create(1, 0x800, 8, HVA, as_id=1)
    vm.mark_dirty(0x107)
    return vm


SET_REGION = [
    # set_region's arguments, the rule that refuses, a value in the message
    pytest.param((3, 4, 0, 4096, HVA), 1, 0x4, id="unknown flag"),
    pytest.param((3, 1 << 16, 0, 4096, HVA), 1, 0x10000, id="INVALID"),
    pytest.param((1, 1 << 31, 0, 0, 0), 1, 0x80000000, id="unknown flag of a delete"),
    pytest.param((3, 5, 1, 1, 1), 1, 5, id="flags come first"),
    pytest.param((3, 0, 0, 4095, HVA), 2, 0xFFF, id="size askew"),
    pytest.param((3, 0, 0x1800, 4096, HVA), 2, 0x1800, id="gpa askew"),
    pytest.param((1, 0, 0x1800, 0, HVA), 2, 0x1800, id="gpa askew of a delete"),
    pytest.param((3, 0, 0, 4096, HVA + 8), 2, HVA + 8, id="hva askew"),
    pytest.param((1, 0, 0, 0, 8), 2, 0x8, id="hva askew of a delete"),
    pytest.param((3, 0, 0, 4096, MAX_HVA), 2, MAX_HVA, id="hva at the end"),
    pytest.param((3, 0, 0, 8192, MAX_HVA - 4096), 2, MAX_HVA - 4096, id="hva over the end"),
    pytest.param((1, 0, 0, 0, MAX_HVA + 4096), 2, MAX_HVA + 4096, id="hva of a delete"),
    pytest.param((3, 0, 0, 8192, 2**64 - 4096), 2, 2**64 - 4096, id="hva wraps"),
    pytest.param((64, 0, 0, 4096, HVA), 2, 64, id="id"),
    pytest.param((0xFFFF, 0, 0, 4096, HVA), 2, 65535, id="greatest id"),
    pytest.param((64, 0, 0, 0, 0), 2, 64, id="id of a delete"),
    pytest.param((2 << 16, 0, 0, 4096, HVA), 2, 2, id="as_id"),
    pytest.param((0xFFFF << 16 | 1, 0, 0, 0, 0), 2, 65535, id="as_id of a delete"),
    pytest.param((3, 0, 2**64 - 4096, 4096, HVA), 2, 2**52 - 1, id="gpa wraps to 0"),
    pytest.param((3, 0, 2**64 - 4096, 12288, HVA), 2, 2**52 - 1, id="gpa wraps"),
    pytest.param((3, 0, 0, 0, 0), 3, 3, id="no such slot"),
    pytest.param((1 << 16 | 2, 0, 0, 0, 0), 3, 2, id="no such slot in this space"),
    pytest.param((3, 0, 0, 2**43, 0), 4, 2**31, id="too many pages"),
    pytest.param((1, 0, 0x100000, 2**43, 0), 4, 2**31, id="too many pages of a slot in use"),
    pytest.param((1, LOG, 0x100000, 64 << 12, HVA + 4096), 5, HVA + 4096, id="another hva"),
    pytest.param((1, LOG, 0x100000, 65 << 12, HVA), 5, 1, id="another size"),
    pytest.param((1, LOG | READONLY, 0x100000, 64 << 12, HVA), 5, 1, id="READONLY on"),
    pytest.param((2, 0, 0x200000, 16 << 12, HVA), 5, 2, id="READONLY off"),
    pytest.param((2, 0, 0x900000, 16 << 12, HVA), 5, 2, id="READONLY off in a move"),
    pytest.param((1, 0, 0x200000, 128 << 12, HVA), 5, 1, id="5 comes before 6"),
    pytest.param((3, 0, 0xFFFF000, 8192, HVA), 7, 0xFFFF, id="above max_gfn"),
    pytest.param((3, 0, 0x10000000, 4096, HVA), 7, 0xFFFF, id="all above max_gfn"),
    pytest.param((1, LOG, 0xFFF0000, 64 << 12, HVA), 7, 0xFFFF, id="move above max_gfn"),
]


@pytest.mark.parametrize(("args", "rule", "value"), SET_REGION)
def test_set_region_refuses(
    used: Memslots, args: tuple[int, int, int, int, int], rule: int, value: int
) -> None:
    road_back = 2 if rule == 7 and args[0] == 1 else 0
    with unchanged(used, swaps=road_back), pytest.raises(MemslotError) as caught:
        used.set_region(*args)
    error = caught.value
    assert type(error) is (NoSuchSlotError if rule == 3 else InvalidRegionError)
    assert (error.errno, error.rule) == (errno.EINVAL, rule)
    assert f"rule {rule}" in str(error)
    assert f"slot {args[0] & 0xFFFF}" in str(error)
    assert f"{value:#x}" in str(error) or str(value) in str(error)
    assert error.strerror is not None
    assert error.strerror in str(error)


@pytest.mark.parametrize(
    ("args", "existing"),
    [
        pytest.param((3, 0, 0x13F000, 4096, HVA), 1, id="last page"),
        pytest.param((3, 0, 0x100000, 4096, HVA), 1, id="first page"),
        pytest.param((3, 0, 0x0FF000, 8192, HVA), 1, id="from below"),
        pytest.param((3, 0, 0x0FF000, 66 << 12, HVA), 1, id="around"),
        pytest.param((3, 0, 0x208000, 0xFFFF << 12, HVA), 2, id="6 comes before 7"),
        pytest.param((1, LOG, 0x1C1000, 64 << 12, HVA), 2, id="move"),
        pytest.param((1, 0, 0x20F000, 64 << 12, HVA), 2, id="move with other flags"),
    ],
)
def test_overlap(used: Memslots, args: tuple[int, int, int, int, int], existing: int) -> None:
    with unchanged(used), pytest.raises(OverlapError) as caught:
        used.set_region(*args)
    error = caught.value
    assert (error.errno, error.rule) == (errno.EEXIST, 6)
    assert error.existing is used[existing]
    assert plain(error.requested) == plain(
        type(error.requested)(args[0], 0, args[2] >> 12, args[3] >> 12, args[4], args[1])
    )
    text = str(error)
    assert "rule 6" in text
    assert f"slot {args[0]}" in text
    for slot in (error.existing, error.requested):
        either_end = (f"{slot.end_gfn - 1:#x}", f"{slot.end_gfn:#x}")
        in_bytes = (f"{slot.guest_phys_addr + slot.memory_size - d:#x}" for d in (0, 1))
        assert f"{slot.base_gfn:#x}" in text
        assert any(end in text for end in (*either_end, *in_bytes))


def test_a_moves_own_old_place_does_not_count(used: Memslots) -> None:
    used.move(1, 0x101)
    used.move(1, 0xC2)
    assert used[1].base_gfn == 0xC2


VERBS: list[Any] = [
    pytest.param(lambda vm: vm.create(1, 0x300, 1, HVA), InvalidRegionError, 5, id="create in use"),
    pytest.param(lambda vm: vm.create(3, 0x300, 0, HVA), InvalidRegionError, None, id="no pages"),
    pytest.param(lambda vm: vm.create(1, 0x300, 0, HVA), InvalidRegionError, None, id="no pages 2"),
    pytest.param(lambda vm: vm.create(3, 1, 1, HVA + 1), InvalidRegionError, 2, id="create askew"),
    pytest.param(lambda vm: vm.create(3, 1, 1, HVA, 4), InvalidRegionError, 1, id="create flags"),
    pytest.param(lambda vm: vm.create(64, 1, 1, HVA), InvalidRegionError, 2, id="create id"),
    pytest.param(
        lambda vm: vm.create(3, 1, 1, HVA, 0, 2), InvalidRegionError, 2, id="create as_id"
    ),
    pytest.param(lambda vm: vm.create(3, 1, 2**31, 0), InvalidRegionError, 4, id="create pages"),
    pytest.param(
        lambda vm: vm.create(3, 1, 2**63, 0), InvalidRegionError, 2, id="create more pages"
    ),
    pytest.param(lambda vm: vm.create(3, 2**52, 1, HVA), InvalidRegionError, 2, id="create wraps"),
    pytest.param(lambda vm: vm.create(3, 2**63, 1, HVA), InvalidRegionError, 2, id="create far"),
    pytest.param(
        lambda vm: vm.create(3, 0x10000, 1, HVA), InvalidRegionError, 7, id="create above"
    ),
    pytest.param(lambda vm: vm.create(3, 0xFF, 2, HVA), OverlapError, 6, id="create overlaps"),
    pytest.param(lambda vm: vm.move(3, 0), NoSuchSlotError, None, id="move none"),
    pytest.param(lambda vm: vm.move(2, 0, as_id=1), NoSuchSlotError, None, id="move none here"),
    pytest.param(lambda vm: vm.move(64, 0), InvalidRegionError, 2, id="move id"),
    pytest.param(lambda vm: vm.move(1, 0, as_id=2), InvalidRegionError, 2, id="move as_id"),
    pytest.param(lambda vm: vm.move(2, 2**52 - 1), InvalidRegionError, 2, id="move wraps"),
    pytest.param(lambda vm: vm.move(2, 0x13F), OverlapError, 6, id="move overlaps"),
    pytest.param(lambda vm: vm.set_flags(3, 0), NoSuchSlotError, None, id="flags none"),
    pytest.param(lambda vm: vm.set_flags(1, 1 << 16), InvalidRegionError, 1, id="flags INVALID"),
    pytest.param(lambda vm: vm.set_flags(1, 2), InvalidRegionError, 5, id="flags READONLY"),
    pytest.param(lambda vm: vm.set_flags(64, 0), InvalidRegionError, 2, id="flags id"),
    pytest.param(lambda vm: vm.delete(3), NoSuchSlotError, None, id="delete none"),
    pytest.param(lambda vm: vm.delete(2, as_id=1), NoSuchSlotError, None, id="delete none here"),
    pytest.param(lambda vm: vm.delete(1, as_id=2), InvalidRegionError, 2, id="delete as_id"),
]


@pytest.mark.parametrize(("call", "kind", "rule"), VERBS)
def test_verbs_refuse(
    used: Memslots, call: Callable[[Memslots], object], kind: type[MemslotError], rule: int | None
) -> None:
    with unchanged(used), pytest.raises(MemslotError) as caught:
        call(used)
    assert type(caught.value) is kind
    assert caught.value.errno == (errno.EEXIST if rule == 6 else errno.EINVAL)
    if rule is not None:
        assert caught.value.rule == rule


def test_an_error_names_the_slot_and_its_address_space(used: Memslots) -> None:
    with pytest.raises(NoSuchSlotError) as caught:
        used.move(2, 0, as_id=1)
    assert str(caught.value) == (
        "[Errno 22] slot 2 of address space 1, rule 3: there is no such slot"
    )


def test_move_above_max_gfn_takes_the_road_back(used: Memslots) -> None:
    with unchanged(used, swaps=2), pytest.raises(InvalidRegionError) as caught:
        used.move(2, 0xFFF1)
    assert caught.value.rule == 7
    used.move(2, 0xFFF0)
    with unchanged(used, as_id=1, swaps=2), pytest.raises(InvalidRegionError):
        used.move(1, 0x10000, as_id=1)


END = 65  # the bits of an end that may be 2**64, and no more
GOOD: list[tuple[str, list[int], list[int]]] = [
    # a call, arguments that fit, the bits of each argument's field
    ("set_region", [3, 0, 0, 4096, HVA], [32, 32, 64, 64, 64]),
    ("create", [3, 0, 1, HVA, 0], [32, 64, 64, 64, 32]),
    ("move", [1, 0], [32, 64]),
    ("set_flags", [1, 0], [32, 32]),
    ("delete", [1], [32]),
    ("get_dirty_log", [1], [32]),
    ("lookup", [0], [64]),
    ("gpa_to_hva", [0], [64]),
    ("in_gfn_range", [0, 9], [64, 64]),
    ("in_hva_range", [0, 9], [64, END]),
    ("mark_dirty", [0x100], [64]),
    ("get", [1], [32]),
    ("__getitem__", [1], [32]),
]
FIELDS = [
    pytest.param(call, args, at, bits[at], id=f"{call}-{at}")
    for call, args, bits in GOOD
    for at in range(len(args))
]


@pytest.mark.parametrize(("call", "args", "at", "bits"), FIELDS)
@pytest.mark.parametrize("wrong", ["1", 1.0, None, b"1", (1,)])
def test_wrong_types(
    used: Memslots, call: str, args: list[int], at: int, bits: int, wrong: object
) -> None:
    values: list[object] = list(args)
    values[at] = wrong
    with unchanged(used), pytest.raises(TypeError):
        getattr(used, call)(*values)


@pytest.mark.parametrize(("call", "args", "at", "bits"), FIELDS)
def test_integers_that_do_not_fit(
    used: Memslots, call: str, args: list[int], at: int, bits: int
) -> None:
    too_many = (1 << 64) + 1 if bits == END else 1 << bits
    for wrong in (-1, -(2**63), too_many, (1 << 64) + 1, 1 << 200):
        values = list(args)
        values[at] = wrong
        with unchanged(used), pytest.raises(OverflowError) as caught:
            getattr(used, call)(*values)
        assert not isinstance(caught.value, MemslotError)


@pytest.mark.parametrize("wrong", [-(10**5000), 10**5000], ids=["-10**5000", "10**5000"])
def test_integers_that_cannot_even_be_printed(used: Memslots, wrong: int) -> None:
    """Python refuses to print that many digits in decimal."""
    with unchanged(used):
        for call in (used.lookup, used.gpa_to_hva, used.get, used.delete):
            with pytest.raises(OverflowError, match=f"{wrong:#x}"):
                call(wrong)


def in_a_transaction(step: Callable[[Transaction], object]) -> Callable[[Memslots], None]:
    def call(vm: Memslots) -> None:
        with vm.transaction() as tx:
            step(tx)

    return call


@pytest.mark.parametrize(
    "call",
    [
        lambda vm: vm.vcpu(5),
        lambda vm: vm.address_space(5),
        lambda vm: vm.mark_dirty(0, 5),
        lambda vm: vm.mark_dirty_many(memoryview(bytes(8)).cast("Q"), 5),
        lambda vm: vm.create(0, 0, 1, HVA, as_id=5),
        lambda vm: vm.set_region(5 << 16, 0, 0, 4096, HVA),
        lambda vm: vm.get_dirty_log(0, 5),
        lambda vm: vm.clear_dirty_log(0, 0, 64, bytes(8), as_id=5),
    ],
)
def test_no_such_address_space(used: Memslots, call: Callable[[Memslots], object]) -> None:
    refuses_space_5(used, call)


@pytest.mark.parametrize(
    "step",
    [lambda tx: tx.lookup(0, 5), lambda tx: tx.get(0, as_id=5), lambda tx: tx.delete(0, 5)],
)
def test_no_such_address_space_in_a_transaction(
    used: Memslots, step: Callable[[Transaction], object]
) -> None:
    refuses_space_5(used, in_a_transaction(step))


def refuses_space_5(used: Memslots, call: Callable[[Memslots], object]) -> None:
    with unchanged(used), pytest.raises(InvalidRegionError) as caught:
        call(used)
    assert (caught.value.errno, caught.value.rule) == (errno.EINVAL, 2)
    assert "there is no address space 5; address_spaces is 2" in str(caught.value)


@pytest.mark.parametrize(
    ("at", "name"),
    list(enumerate(["slot", "flags", "guest_phys_addr", "memory_size", "userspace_addr"])),
)
def test_overflow_names_the_field(used: Memslots, at: int, name: str) -> None:
    values = [3, 0, 0, 4096, HVA]
    values[at] = -1
    with pytest.raises(OverflowError, match=name):
        used.set_region(*values)


def test_lookup_errors(used: Memslots) -> None:
    with unchanged(used):
        with pytest.raises(NotMappedError) as not_mapped:
            used.gpa_to_hva(0x140ABC)
        with pytest.raises(ReadOnlyError) as read_only:
            used.gpa_to_hva(0x200ABC, write=True)
        with pytest.raises(NoSuchSlotError) as no_such:
            used[9]
    for caught, gpa in ((not_mapped, "0x140abc"), (read_only, "0x200abc")):
        assert caught.value.errno == errno.EFAULT
        assert caught.value.rule is None
        assert gpa in str(caught.value)
    assert "slot 2" in str(read_only.value)
    assert "READONLY" in str(read_only.value)
    assert no_such.value.errno == errno.ENOENT
    assert "slot 9" in str(no_such.value)
    assert used.gpa_to_hva(0x200ABC) == HVA + 0xABC


@pytest.mark.parametrize(
    ("kind", "is_a"),
    [
        (MemslotError, OSError),
        *[(InvalidRegionError, MemslotError), (InvalidRegionError, ValueError)],
        (OverlapError, MemslotError),
        *[(NoSuchSlotError, MemslotError), (NoSuchSlotError, KeyError)],
        *[(NotMappedError, MemslotError), (ReadOnlyError, MemslotError)],
        *[(BusyError, MemslotError), (NoRoomError, MemslotError)],
        *[(InvariantError, MemslotError), (InvariantError, AssertionError)],
        *[(WrongAnswerError, MemslotError), (WrongAnswerError, AssertionError)],
        *[(TraceError, MemslotError), (TraceError, ValueError)],
    ],
)
def test_the_family(kind: type[Exception], is_a: type[Exception]) -> None:
    assert issubclass(kind, is_a)


def test_errors_can_be_pickled(used: Memslots) -> None:
    for call in (
        lambda: used.create(3, 0x13F, 1, HVA),
        lambda: used.create(3, 0, 1, 1),
        lambda: used.delete(9),
        lambda: used.gpa_to_hva(0),
    ):
        with pytest.raises(MemslotError) as caught:
            call()
        again = pickle.loads(pickle.dumps(caught.value))
        assert type(again) is type(caught.value)
        assert (again.errno, again.strerror) == (caught.value.errno, caught.value.strerror)
        assert again.rule == caught.value.rule
        if isinstance(again, OverlapError):
            assert isinstance(caught.value, OverlapError)
            assert again.existing == caught.value.existing
            assert again.requested == caught.value.requested


def test_flags_may_be_given_as_flags(used: Memslots) -> None:
    used.create(3, 0, 1, HVA, Flags.LOG_DIRTY_PAGES)
    assert used[3].flags is Flags.LOG_DIRTY_PAGES
