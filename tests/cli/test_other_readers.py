"""`memslots map` and `lookup` read dumps of memory as pyelftools and Volatility 3 do."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commandline import HERE, Outcome

from memslots import PAGE_SIZE, Backing, GuestMemory, Memslots

#: Start and pages of each slot: adjacent ones, a PC's hole, and memory above 4 GiB.
SLOTS = ((0, 160), (0xC0000, 16), (0xD0000, 300), (0x1_0000_0000, 64), (0x23_4567_8000, 1))


def need(name: str) -> Any:
    """Returns a module of the extra `readers`, or skips the test."""
    return pytest.importorskip(name, reason="pip install 'memslots[readers]'")


def filled(seed: int) -> GuestMemory:
    """Returns memory of SLOTS in which about half of the pages are written."""
    memory, dice = GuestMemory(Memslots()), random.Random(seed)
    for id, (start, npages) in enumerate(SLOTS):
        memory.place(id, start, Backing.anonymous(npages * PAGE_SIZE))
        for page in range(npages):
            if dice.random() < 0.5:
                memory.write(start + page * PAGE_SIZE, dice.randbytes(PAGE_SIZE))
    return memory


def entries(capsys: pytest.CaptureFixture[str], path: Path) -> list[tuple[int, int, int | None]]:
    """Returns start, end and offset of each entry that `memslots map` shows."""
    document = json.loads(Outcome(capsys, "map", "--json", str(path)).out)
    found = []
    for each in document["files"][0]["vms"][0]["final_map"]:
        start = int(each["guest_phys_addr"], 16)
        offset = each["offset"] and int(each["offset"], 16)
        found.append((start, start + each["memory_size"], offset))
    return found


def offsets(
    capsys: pytest.CaptureFixture[str], path: Path, addresses: list[int]
) -> list[int | None]:
    """Returns the offset in the file that `memslots lookup` has for each address."""
    arguments = [hex(gpa) for gpa in addresses]
    document = json.loads(Outcome(capsys, "lookup", "--json", str(path), *arguments).out)
    return [each["offset"] and int(each["offset"], 16) for each in document["answers"]]


def addresses_of(found: list[tuple[int, int, int | None]], seed: int) -> list[int]:
    """Returns the edges of all entries, what is next to them, and some addresses inside."""
    dice = random.Random(seed)
    edges = {gpa + step for start, end, _ in found for gpa in (start, end) for step in (-1, 0, 1)}
    inside = [dice.randrange(start, end) for start, end, _ in found for _ in range(5)]
    return sorted({gpa for gpa in (*edges, *inside) if gpa >= 0})


@pytest.mark.parametrize("sparse", [False, True])
def test_pyelftools_finds_the_same_in_a_dump(
    sparse: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    elffile = need("elftools.elf.elffile")
    path = tmp_path / "dump"
    memory = filled(1)
    memory.dump(path, sparse=sparse)
    with path.open("rb") as file:
        elf = elffile.ELFFile(file)
        loads = [each for each in elf.iter_segments() if each["p_type"] == "PT_LOAD"]
        headers = [(each["p_paddr"], each["p_memsz"], each["p_filesz"]) for each in loads]
        data = [each.data() for each in loads]
        places = [each["p_offset"] for each in loads]
    assert (len(loads) > len(SLOTS)) == sparse
    for (start, size, held), content in zip(headers, data, strict=True):
        assert memory.read(start, size) == content + bytes(size - held)
    found = entries(capsys, path)
    assert [(start, end) for start, end, _ in found] == [
        (start, start + size) for start, size, _ in headers
    ]
    addresses = addresses_of(found, 1)
    expected = []
    for gpa in addresses:
        inside = [
            place + gpa - start if gpa - start < held else None
            for (start, size, held), place in zip(headers, places, strict=True)
            if start <= gpa < start + size
        ]
        expected.append(inside[0] if inside else None)
    assert offsets(capsys, path, addresses) == expected


@contextmanager
def volatility_layer(path: Path, kind: str) -> Iterator[Any]:
    """Yields Volatility's layer of guest physical memory over a file."""
    contexts = need("volatility3.framework.contexts")
    layers = {
        "elf": lambda: need("volatility3.framework.layers.elf").Elf64Layer,
        "lime": lambda: need("volatility3.framework.layers.lime").LimeLayer,
    }
    physical = need("volatility3.framework.layers.physical")
    context = contexts.Context()
    context.config["file.location"] = path.as_uri()
    file = physical.FileLayer(context, "file", "file")
    try:
        context.add_layer(file)
        context.config["guest.base_layer"] = "file"
        layer = layers[kind]()(context, "guest", "guest")
        context.add_layer(layer)
        yield layer
    finally:
        file.destroy()


def check_beside_volatility(
    capsys: pytest.CaptureFixture[str], path: Path, kind: str, memory: GuestMemory | None = None
) -> None:
    """Compares the offset of each address, and the bytes of each entry with `memory`."""
    with volatility_layer(path, kind) as layer:
        found = entries(capsys, path)
        addresses = addresses_of(found, 2)
        there = [gpa for gpa in addresses if layer.is_valid(gpa)]
        assert 0 < len(there) < len(addresses)
        # A piece of the mapping: guest address, size, address in the file, size, layer.
        places = {gpa: piece[2] for gpa in there for piece in layer.mapping(gpa, 1)}
        expected = [places.get(gpa) for gpa in addresses]
        assert offsets(capsys, path, addresses) == expected
        for start, end, offset in found:
            (mapped,) = layer.mapping(start, end - start)
            assert mapped[:4] == (start, end - start, offset, end - start)
            if memory is not None:
                assert memory.read(start, end - start) == layer.read(start, end - start)
        assert layer.maximum_address == max(end for _, end, _ in found) - 1


# Volatility's own table of ELF's types, if jsonschema is installed.
@pytest.mark.filterwarnings("ignore:The metaschema:DeprecationWarning")
def test_volatility_finds_the_same_in_a_dump(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "dump"
    memory = filled(2)
    memory.dump(path)
    check_beside_volatility(capsys, path, "elf", memory)


def test_volatility_finds_the_same_in_lime_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    check_beside_volatility(capsys, HERE / "data" / "maps" / "lime.lime", "lime")
    path = tmp_path / "lime"
    memory = filled(3)
    with path.open("wb") as file:
        for start, npages in SLOTS:
            size = npages * PAGE_SIZE
            file.write(struct.pack("<IIQQ8x", 0x4C694D45, 1, start, start + size - 1))
            file.write(memory.read(start, size))
    check_beside_volatility(capsys, path, "lime", memory)
