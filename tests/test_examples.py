"""examples/ print what docs/examples.md says, and the memory is as they show."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fresh import run_fresh
from needs import need_kvm, need_unicorn

from memslots import Backing, Flags

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PAGE = ROOT / "docs" / "examples.md"


def run(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py"), *arguments],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def shown(name: str) -> str:
    """Returns the output that the page shows."""
    pattern = rf"^\$ python examples/{name}\.py\n(.*?)^```$"
    (output,) = re.findall(pattern, PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return str(output)


@pytest.mark.parametrize(
    ("name", "need"),
    [
        pytest.param("vmm", need_kvm, id="vmm"),
        pytest.param("emulator", need_unicorn, id="emulator"),
    ],
)
def test_output(name: str, need: Callable[[], None], tmp_path: Path) -> None:
    need()
    for _ in range(5):  # its threads may run in another order
        done = run(name, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, shown(name), "")
    assert not list(tmp_path.iterdir())


def test_all_examples_are_tried() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"vmm.py", "emulator.py"}


def test_vmm_without_kvm(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    done = run("vmm", "--device", str(device), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{device} cannot be opened: No such file or directory; load KVM")
    assert done.stderr.count("\n") == 1


def test_vmm_with_what_is_no_kvm(tmp_path: Path) -> None:
    done = run("vmm", "--device", "/dev/null", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("/dev/null is not KVM's device: ")


class Refusal(Exception):
    pass


def emulator_and_slots() -> None:
    sys.path.insert(0, str(EXAMPLES))
    from emulator import Emulator, make_memory
    from unicorn import UC_PROT_ALL, UC_PROT_EXEC, UC_PROT_READ

    memory = make_memory()
    vm = memory.vm
    emulator = Emulator(memory)
    uc = emulator.uc

    def touch(gpa: int) -> None:
        assert emulator.on_unmapped(uc, 0, gpa, 1, 0, None)

    def regions() -> list[tuple[int, int, int]]:
        return sorted((first, last + 1 - first, rights) for first, last, rights in uc.mem_regions())

    def agree() -> None:
        slots = {
            slot.id: (
                slot.guest_phys_addr,
                slot.memory_size,
                UC_PROT_READ | UC_PROT_EXEC if slot.flags & Flags.READONLY else UC_PROT_ALL,
            )
            for slot in vm
        }
        # The regions that the emulator has are right: none of the old ones is left.
        assert regions() == sorted(slots[id] for id in emulator.mapped)
        # Once every slot is touched, the emulator has all of them.
        for slot in vm:
            if slot.id not in emulator.mapped:
                touch(slot.guest_phys_addr)
        assert regions() == sorted(slots.values())
        for gpa, size, _ in slots.values():
            assert uc.mem_read(gpa, size) == memory.read(gpa, size)

    agree()
    vm.move(1, 0x20)
    agree()
    vm.set_flags(1, 0)
    agree()
    memory.write(0x20FFE, b"from the VMM")
    agree()
    uc.mem_write(0x20FFE, b"from the emulator")
    assert memory.read(0x20FFE, 17) == b"from the emulator"

    with vm.transaction() as tx:
        tx.move(1, 0x30)
        tx.move(2, 0x20)
    agree()
    with vm.transaction() as tx:  # moves there and back, and on over another's old place
        tx.move(1, 0x50)
        tx.move(1, 0x30)
        tx.move(2, 0x40)
        tx.move(1, 0x22)
    agree()

    # First there is no slot, then there is one.
    touch(0x60123)
    assert uc.mem_read(0x60000, 2) == b"\xff\xff"
    rom = Backing.anonymous(0x2000)
    memoryview(rom)[:3] = b"ROM"
    memory.place(3, 0x60000, rom, flags=Flags.READONLY)
    agree()
    assert uc.mem_read(0x60000, 3) == b"ROM"

    # A change that is refused after the emulator has forgotten the slot.
    class No:
        def prepare(self, *_: Any) -> None:
            raise Refusal

    with vm.subscribe(No()):
        with pytest.raises(Refusal):
            vm.move(3, 0x70)
        assert 3 not in emulator.mapped
        agree()
        with pytest.raises(Refusal):
            vm.delete(3)
        assert 3 not in emulator.mapped
        agree()

    for slot in list(vm):
        vm.delete(slot.id)
        agree()
    assert regions() == []


def test_emulator_has_what_the_slots_have() -> None:
    need_unicorn()
    run_fresh(emulator_and_slots)
