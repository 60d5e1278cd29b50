"""Tests a replay with this machine's kernel."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from livevm import CREATE, EEXIST, EINVAL, THREE, live_of, qemu, replay_text
from needs import need_kvm

from memslots.cli import main
from memslots.kvm import KvmVM
from memslots.replay import Report, replay
from memslots.traces import open_trace
from memslots.traces.samples import SAMPLES

TRACES = Path(__file__).parent.parent / "data" / "traces"


# --- this machine's kernel


def replay_on_kvm(path: Path) -> Report:
    with open_trace(path) as trace:
        return replay(trace, live=KvmVM)


@pytest.mark.parametrize("path", sorted(TRACES.iterdir()), ids=lambda path: path.name)
def test_real_traces_on_the_real_kernel(path: Path) -> None:
    need_kvm()
    report = replay_on_kvm(path)
    assert report.agree
    (vm,) = report.vms
    assert vm.disagreements == []
    assert live_of(vm).slots == sorted(vm.final_map, key=lambda slot: (slot.as_id, slot.id))
    assert len(vm.final_map) >= 5


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_on_the_real_kernel(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    need_kvm()
    assert main(["replay", "--kvm", "--sample", name]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "results agree: recorded, memslots, this kernel\n" in captured.out
    assert " slots at the end, those of the map\n" in captured.out


def test_several_files_and_json_on_the_real_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    need_kvm()
    paths = sorted(TRACES.iterdir())
    assert main(["replay", "--kvm", "--json", *map(str, paths)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["agree"] is True
    assert len(document["files"]) == 4
    with KvmVM() as kvm:
        limits = kvm.limits
    for found, path in zip(document["files"], paths, strict=True):
        assert found["file"] == str(path)
        (vm,) = found["vms"]
        assert (vm["differ"], vm["disagreements"]) == ({}, [])
        assert vm["this_kernel"] == {
            "limits": {
                "max_slots": limits["max_slots"],
                "address_spaces": limits["address_spaces"],
                "max_gfn": hex(limits["max_gfn"]),
                "max_hva": hex(limits["max_hva"]),
            },
            "slots": len(vm["final_map"]),
            "missing": [],
            "others": [],
        }


def test_standard_input_on_the_real_kernel() -> None:
    need_kvm()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "memslots", "replay", "--kvm", "-"],
        input=(TRACES / "qemu-pc-seabios.strace.gz").read_bytes(),
        capture_output=True,
        timeout=600,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"all 37 results agree: recorded, memslots, this kernel\n" in done.stdout


def test_every_rule_on_the_real_kernel() -> None:
    """Compares another kernel's answers to calls that the rules refuse and allow."""
    need_kvm()
    text = (
        CREATE
        + qemu(0, 0, 0x10000)
        + qemu(0, 0, 0x10000, flags=1)
        + qemu(0, 0x20000, 0x10000, flags=1)
        + qemu(1, 0x28000, 0x10000, EEXIST)
        + qemu(1, 0, 0x800, EINVAL)
        + qemu(9, 0, 0, EINVAL)
        + qemu(0, 0x20000, 0x8000, EINVAL)
        + qemu(0, 0, 0)
    )
    report = replay_text(text, KvmVM)
    assert report.agree
    assert report.vms[0].operations == {
        "CREATE": 1, "NONE": 1, "FLAGS_ONLY": 1, "MOVE": 1, "DELETE": 1,
    }  # fmt: skip


def test_a_trace_that_the_real_kernel_did_not_give() -> None:
    """The kernel is asked again, undone and made equal to the map: later calls agree."""
    need_kvm()
    text = (
        CREATE
        + qemu(1, 0x8000, 0x10000)  # over slot 0
        + qemu(1, 0x20000, 0x10000, EINVAL)
        + qemu(1, 0, 0, EINVAL)
        + qemu(1, 0x8000, 0x10000, flags=2)  # READONLY
        + qemu(0, 0, 0x8000)
        + qemu(0, 0, 0)
        + qemu(1, 0x30000, 0x10000, flags=2)
    )
    (vm,) = replay_text(text, KvmVM).vms
    answers = {
        found.call.line: (found.recorded, found.ours, found.live) for found in vm.disagreements
    }
    assert answers == {
        2: (0, EEXIST, EEXIST),
        3: (EINVAL, 0, 0),
        4: (EINVAL, 0, 0),
        5: (0, EINVAL, EINVAL),
    }
    assert [found.live_followed for found in vm.disagreements] == [
        "slot 0 deleted, CREATE of slot 1",
        "MOVE of slot 1",
        "CREATE of slot 1",
        "slot 1 deleted, CREATE of slot 1",
    ]
    assert live_of(vm).same
    assert [(slot.id, slot.base_gfn) for slot in live_of(vm).slots] == [(1, 0x30)]


def test_a_trace_of_a_machine_with_more_address_spaces() -> None:
    need_kvm()
    with KvmVM() as kvm:
        spaces = kvm.limits["address_spaces"]
    (vm,) = replay_text(CREATE + qemu(spaces << 16, 0, 0x10000), KvmVM).vms
    (found,) = vm.disagreements
    assert (found.recorded, found.ours, found.live) == (0, 0, EINVAL)
    told = f"address_spaces is {spaces} here, {spaces + 1} in the replay"
    assert found.live_why.endswith(f"; {told}")
    assert [(slot.as_id, slot.id) for slot in live_of(vm).missing] == [(spaces, 0)]
    assert live_of(vm).others == []


def test_no_descriptor_is_left_open() -> None:
    need_kvm()
    descriptors = Path("/proc/self/fd")
    before = sorted(descriptors.iterdir())[:-1]  # the last is the directory itself
    replay_on_kvm(TRACES / "qemu-pc-hotplug.qemu-trace")
    with ExitStack() as stack:
        made: list[KvmVM] = []

        def make() -> KvmVM:
            if made:
                raise KeyboardInterrupt
            made.append(KvmVM())
            stack.callback(made[-1].close)
            return made[-1]

        with pytest.raises(KeyboardInterrupt):
            replay_text(THREE, make)
        with pytest.raises(ValueError, match="closed"):
            made[0].fileno()
    assert sorted(descriptors.iterdir())[:-1] == before
