"""Repeats every answer of a real kernel: errno and bitmap, to the last line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from errno import EINVAL
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from memfdmodel import FOREIGN, PLAIN, File, MemfdModel
from model import Model, Refused

from memslots import Flags, GuestMemfd, MemslotError, Memslots

DATA = Path(__file__).parent / "data" / "kernel"
ALL = sorted(path.name.removesuffix(".jsonl.gz") for path in DATA.glob("*.jsonl.gz"))
FILES = [name for name in ALL if not name.startswith("gmem")]
GMEM_FILES = [name for name in ALL if name.startswith("gmem")]

# One call of the file: its number, and the call; its last element is the kernel's result.
Line = tuple[int, list[Any]]


def manual_dirty_log(name: str) -> int:
    return 3 if "initset" in name else 1 if "manual" in name else 0


def lines(name: str) -> Iterator[Line]:
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="ascii") as file:
        for number, line in enumerate(file, 1):
            yield number, json.loads(line)


def answer(vm: Memslots, call: list[Any], as_id: int) -> object:
    """Makes the call. Returns the answer in the file's words.

    The file's address space 0 is as_id here. Spaces that its machine did not have lie beyond those
    of this one.
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
    # The recording's buffer may be longer than the slot's own bitmap.
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
    assert sum(1 for name in GMEM_FILES for _ in lines(name)) == 10_000


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
    """Plays one file through each address space, line by line: neither affects the other."""
    vm = Memslots(address_spaces=2, manual_dirty_log=manual_dirty_log(other))
    for pair in zip_longest(lines(name), lines(other)):
        for as_id, line in enumerate(pair):
            if line is not None:
                replay(vm, line, as_id)


# guest_memfd. A line names a file by a number, or says what stands in its place.


def gmem_answer(vm: Memslots, files: dict[File, GuestMemfd | int], call: list[Any]) -> object:
    """Makes a call of a gmem file. Returns None if there is nothing to compare."""
    try:
        match call:
            case ["gmem", number, size, flags, _]:
                if flags & ~3:
                    return -EINVAL  # a GuestMemfd has no flags
                files[number] = GuestMemfd(size)
            case ["close", number]:
                memfd = files.pop(number)
                assert isinstance(memfd, GuestMemfd)
                memfd.close()
                return None
            case ["set2", slot, flags, gpa, size, hva, file, offset, _]:
                vm.set_region2(slot, flags, gpa, size, hva, files.get(file, -1), offset)
            case ["dirty", gpa]:
                kernel_write(vm, gpa, 0)
                return None
            case _:
                return answer(vm, call, 0)
    except MemslotError as error:
        assert error.errno is not None
        return -error.errno
    return 0


def gmem_model_answer(model: MemfdModel, call: list[Any]) -> object:
    match call:
        case ["gmem", number, size, flags, _]:
            return model.create(number, size, flags)
        case ["close", number]:
            model.close(number)
            return None
        case ["set2", *arguments, _]:
            return model.set_region2(*arguments)
        case ["set", *arguments, _]:
            return model.set_region(*arguments)
        case _:
            return model_answer(model.plain, call)


def gmem_expected(call: list[Any], npages: int) -> object:
    match call:
        case ["close" | "dirty", *_]:
            return None
        case ["get", _, _, result, bitmap]:
            return (result, None) if bitmap is None else (result, bytes.fromhex(bitmap)[:npages])
        case _:
            return call[-1]


@pytest.mark.parametrize("name", GMEM_FILES)
def test_guest_memfd(name: str, tmp_path: Path) -> None:
    vm, model = Memslots(), MemfdModel(Model())
    other, foreign = Memslots(), GuestMemfd(64 << 12)
    other.set_region2(0, Flags.GUEST_MEMFD, 0, 4096, 0, foreign)
    with (tmp_path / "plain").open("wb") as plain:
        files: dict[File, GuestMemfd | int] = {FOREIGN: foreign, PLAIN: plain.fileno()}
        for number, call in lines(name):
            space = vm.address_space(0)
            slot = space.get(call[1] & 0xFFFF) if call[0] == "get" else None
            want = gmem_expected(call, -(-slot.npages // 64) * 8 if slot else 0)
            assert gmem_answer(vm, files, call) == want, f"line {number}: {call}"
            assert gmem_model_answer(model, call) == want, f"line {number}: {call}"
            vm.check()
    private = {slot.id: slot for slot in vm if slot.guest_memfd is not None}
    assert private.keys() == model.private
    for id, (start, _, file) in model.bound.items():
        assert private[id].guest_memfd_offset == start
        memfd = private[id].guest_memfd
        assert memfd is not None
        assert memfd.closed if file not in files else memfd is files[file]
