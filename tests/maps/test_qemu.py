"""Compares three maps of each QEMU machine, which must be equal.

They come from `info mtree -f`, from `info mtree` and from the trace.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest
from needs import needs_kvm

from memslots.maps import MEMORY, Map, read

QEMU = shutil.which("qemu-system-x86_64")
pytestmark = [
    needs_kvm,
    pytest.mark.skipif(QEMU is None, reason="needs qemu-system-x86_64"),
    pytest.mark.serial,
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
    time.sleep(1.0)
    for question in ("info mtree -f", "info mtree"):
        qemu.stdin.write(f"{question}\n")
    out, _ = qemu.communicate("quit\n", timeout=60)
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
    maps = {name: {one.as_id: one for one in read(path)} for name, path in files.items()}
    for name, by_space in maps.items():
        assert by_space[0].format == name
    by_trace = ranges(maps["trace"][0])
    assert len(by_trace) > 2
    assert ranges(maps["mtree-f"][0]) == by_trace
    assert ranges(maps["mtree"][0]) == by_trace
    for as_id in maps["trace"].keys() & maps["mtree-f"].keys():
        assert ranges(maps["mtree-f"][as_id]) == ranges(maps["trace"][as_id])
