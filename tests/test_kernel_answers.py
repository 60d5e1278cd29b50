"""Every answer that a real kernel gave, given again: errno and bitmap, to the last line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from model import Model, Refused

from memslots import MemslotError, Memslots

DATA = Path(__file__).parent / "data" / "kernel"
FILES = sorted(path.name.removesuffix(".jsonl.gz") for path in DATA.glob("*.jsonl.gz"))

# One call of the file: its number, and the call with the kernel's result as the last element.
Line = tuple[int, list[Any]]


def manual_dirty_log(name: str) -> int:
    return 3 if "initset" in name else 1 if "manual" in name else 0


def lines(name: str) -> Iterator[Line]:
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="ascii") as file:
        for number, line in enumerate(file, 1):
            yield number, json.loads(line)


def answer(vm: Memslots, call: list[Any], as_id: int) -> object:
    """Make the call; the answer in the file's words.

    The file's address space 0 is as_id here, and the spaces that its machine did not have lie
    beyond those that this one has.
    """

    def space(k: int) -> int:
        return as_id if k == 0 else min(k + vm.address_spaces - 1, 0xFFFF)

    verb, slot, *rest = call
    id = slot & 0xFFFF
    try:
        match verb:
            case "set":
                flags, guest_phys_addr, memory_size, userspace_addr, _ = rest
                name = space(slot >> 16) << 16 | id
                vm.set_region(name, flags, guest_phys_addr, memory_size, userspace_addr)
            case "get":
                return 0, bytes(vm.get_dirty_log(id, as_id=space(slot >> 16)))
            case "clear":
                first_page, num_pages, bitmap, _ = rest
                bits = bytes.fromhex(bitmap)
                vm.clear_dirty_log(id, first_page, num_pages, bits, as_id=space(slot >> 16))
            case _:
                raise AssertionError(f"a line that no one has described: {call}")
    except MemslotError as error:
        assert error.errno is not None
        return (-error.errno, None) if verb == "get" else -error.errno
    return 0


def kernel_write(vm: Memslots, gpa: int, as_id: int) -> None:
    assert gpa % 4096 <= 4096 - 12, "no write in these files crosses into the next page"
    vm.mark_dirty(gpa >> 12, as_id=as_id)


def expected(vm: Memslots, call: list[Any], as_id: int) -> object:
    if call[0] != "get":
        return call[-1]
    _, slot, _, result, bitmap = call
    if result < 0:
        return result, None
    # The buffer of the recording may have been longer than the slot's own bitmap.
    words = -(-vm.address_space(as_id)[slot & 0xFFFF].npages // 64)
    bits = bytes.fromhex(bitmap)
    assert not any(bits[words * 8 :])
    return result, bits[: words * 8]


def replay(vm: Memslots, line: Line, as_id: int = 0) -> None:
    number, call = line
    if call[0] == "dirty":
        kernel_write(vm, call[1], as_id)
    else:
        want = expected(vm, call, as_id)
        assert answer(vm, call, as_id) == want, f"line {number}: {call}"
    vm.check()


def test_all_files_are_here() -> None:
    assert len(FILES) == 10
    assert sum(1 for name in FILES for _ in lines(name)) == 66_175


def model_answer(model: Model, call: list[Any]) -> object:
    verb, slot, *rest = call
    try:
        match verb:
            case "set":
                return -model.set_region(slot, *rest[:-1]).errno
            case "dirty":
                model.mark_dirty(slot >> 12)
                return None
            case "get":
                bitmap = bytes(model.get_dirty_log(slot & 0xFFFF, slot >> 16))
                return 0, bitmap.ljust(len(rest[-1]) // 2, b"\0")
            case _:
                bits = bytes.fromhex(rest[2])
                model.clear_dirty_log(slot & 0xFFFF, rest[0], rest[1], bits, slot >> 16)
                return 0
    except Refused as refused:
        return (-refused.args[0], None) if verb == "get" else -refused.args[0]


@pytest.mark.parametrize("name", FILES)
def test_the_model_itself(name: str) -> None:
    """The model that other tests compare with gives the kernel's answers too."""
    model = Model(manual_dirty_log=manual_dirty_log(name))
    for number, call in lines(name):
        want = call[-1]
        if call[0] == "dirty":
            want = None
        elif call[0] == "get":
            want = call[-2], bytes.fromhex(call[-1]) if call[-1] is not None else None
        assert model_answer(model, call) == want, f"line {number}: {call}"


@pytest.mark.parametrize("name", FILES)
def test_one_space(name: str) -> None:
    vm = Memslots(manual_dirty_log=manual_dirty_log(name))
    for line in lines(name):
        replay(vm, line)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("regions-1", "regions-2"),
        ("regions-wide-1", "regions-2"),
        ("dirty-1", "dirty-2"),
        ("dirty-manual-1", "dirty-manual-2"),
        ("dirty-initset-1", "dirty-initset-2"),
        ("regions-1", "dirty-initset-2"),
    ],
)
def test_two_spaces_at_once(name: str, other: str) -> None:
    """One file through each address space, line by line in turn: neither sees the other."""
    vm = Memslots(address_spaces=2, manual_dirty_log=manual_dirty_log(other))
    for pair in zip_longest(lines(name), lines(other)):
        for as_id, line in enumerate(pair):
            if line is not None:
                replay(vm, line, as_id)
