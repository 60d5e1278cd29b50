"""Compares three maps of each QEMU machine, which must be equal.

They come from `info mtree -f`, from `info mtree` and from the trace.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from needs import needs_kvm

from memslots.maps import MEMORY, Entry, Map, beside, in_raw, read

QEMU = shutil.which("qemu-system-x86_64")
pytestmark = [
    needs_kvm,
    pytest.mark.skipif(QEMU is None, reason="needs qemu-system-x86_64"),
]

MACHINES = {
    "pc": ["-M", "pc", "-m", "768"],
    "pc above 4 GiB": ["-M", "pc", "-m", "5G"],
    "q35 with a VGA and a disk": ["-M", "q35", "-m", "1G", "-vga", "std"],
    "q35 with room to plug": ["-M", "q35", "-m", "512,slots=2,maxmem=2G"],
    "microvm": ["-M", "microvm", "-m", "256"],
}


def asked(arguments: list[str], folder: Path) -> dict[str, Path]:
    """Returns what a machine that has not begun to run says of its memory, and its trace."""
    assert QEMU is not None
    found = {"trace": folder / "trace"}
    log = ["-trace", "kvm_set_user_memory", "-D", str(found["trace"])]
    command = [QEMU, *arguments, "-accel", "kvm", "-nodefaults", "-display", "none", "-S"]
    qemu = subprocess.Popen(
        [*command, *log, "-monitor", "stdio"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert qemu.stdin is not None
    assert qemu.stdout is not None
    # Once it has answered, it has all its memory.
    qemu.stdin.write("info status\n")
    qemu.stdin.flush()
    answer = ""
    while "VM status" not in answer:
        read = qemu.stdout.read(1)
        assert read, answer
        answer += read
    found["process"] = folder / "process"
    found["process"].write_bytes(Path(f"/proc/{qemu.pid}/maps").read_bytes())
    for question in ("info mtree -f", "info mtree"):
        qemu.stdin.write(f"{question}\n")
    out, _ = qemu.communicate("quit\n", timeout=600)
    split = out.index("address-space: ")
    for name, text in (("mtree-f", out[:split]), ("mtree", out[split:])):
        found[name] = folder / name
        found[name].write_text(text)
    return found


def ranges(found: Map) -> list[tuple[int, int, bool]]:
    """Returns what KVM has: guest addresses, and whether the guest may write them."""
    return [(e.start, e.end, e.kind == "ram") for e in found.of_kind(*MEMORY)]


@pytest.mark.parametrize("machine", MACHINES)
def test_one_map(machine: str, tmp_path: Path) -> None:
    files = asked(MACHINES[machine], tmp_path)
    del files["process"]
    maps = {name: {one.as_id: one for one in read(path)} for name, path in files.items()}
    for name, by_space in maps.items():
        assert by_space[0].format == name
    by_trace = ranges(maps["trace"][0])
    assert len(by_trace) > 2
    assert ranges(maps["mtree-f"][0]) == by_trace
    assert ranges(maps["mtree"][0]) == by_trace
    for as_id in maps["trace"].keys() & maps["mtree-f"].keys():
        assert ranges(maps["mtree-f"][as_id]) == ranges(maps["trace"][as_id])


def test_what_is_behind_the_slots(tmp_path: Path) -> None:
    """By the kernel's list of QEMU's mappings: a file of 5 GiB, mapped by 2 slots and more."""
    backend = "memory-backend-memfd,id=all,size=5G,share=on"
    machine = ["-M", "pc,memory-backend=all", "-object", backend, "-m", "5G"]
    files = asked(machine, tmp_path)
    (found,) = beside(read(files["trace"]), files["process"])
    of_memfd = [entry for entry in found if entry.backing.startswith("memfd:")]
    assert sum(entry.size for entry in of_memfd) > (5 << 30) - (1 << 20)
    for entry in of_memfd:
        assert entry.offset == (entry.start if entry.start < 4 << 30 else entry.start - (1 << 30))
    assert {entry.backing for entry in found.of_kind("rom")} == {"anonymous"}


@pytest.mark.parametrize("type", ["pc", "q35"])
@pytest.mark.parametrize("gib", [1, 3, 4, 5])
def test_places_in_a_file_of_ram(type: str, gib: int, tmp_path: Path) -> None:
    """By the size of the file they are the places in pc.ram that QEMU tells."""
    (flat,) = read(asked(["-M", type, "-m", f"{gib}G"], tmp_path)["mtree-f"])[:1]
    of_ram = [entry for entry in flat.of_kind("ram") if entry.name == "pc.ram"]
    below = max(entry.end for entry in of_ram if entry.start < 4 << 30)
    above = [Entry(entry.start, entry.size) for entry in of_ram if entry.start >= 4 << 30]
    # As SeaBIOS tells the guest: the last pages below are its own.
    firmware = Entry(below - 0x20000, 0x20000, "reserved")
    e820 = Map((Entry(0, 0x9FC00), Entry(1 << 20, firmware.start - (1 << 20)), firmware, *above))
    found = in_raw(e820, gib << 30)
    for entry in found:
        assert entry.offset == flat.offset_of(entry.start)
    assert found.gpa_of((gib << 30) - 1) == found.entries[-1].end - 1
