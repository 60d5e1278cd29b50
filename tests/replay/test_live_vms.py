"""The VMs of a replay with a kernel are made when needed, and always closed."""

from __future__ import annotations

import errno
import functools
import io
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from livevm import (
    CREATE,
    EEXIST,
    EINVAL,
    ENOMEM,
    HVA,
    THREE,
    Call,
    MadeUpVM,
    Shown,
    Wrong,
    live_of,
    qemu,
    refuse,
    replay_text,
)

from memslots import Change, MemslotError, Memslots, Slot
from memslots.cli import main
from memslots.errors import KvmError, KvmUnavailableError
from memslots.kvm import KvmVM
from memslots.replay import Replayer, VmReport, replay
from memslots.replay.live import Live
from memslots.traces import TraceError, open_trace


def take(memslots: Memslots, call: Call) -> Change:
    """Succeeds, but makes no change that the rules refuse. No kernel exceeds its own limits."""
    slot, _, gpa, size, _ = call
    try:
        return memslots.set_region(*call)
    except MemslotError:
        if slot >> 16 >= memslots.address_spaces or slot & 0xFFFF >= memslots.max_slots:
            raise
        if size and (gpa + size >> 12) - 1 > memslots.max_gfn:
            raise
        return Change.NONE


# --- VMs are made when needed, and always closed


class Kernel:
    """Makes VMs, and keeps them."""

    def __init__(self, *vms: MadeUpVM | OSError) -> None:
        self.made: list[MadeUpVM] = []
        self._next = iter(vms)

    def __call__(self) -> MadeUpVM:
        vm = next(self._next, None) or MadeUpVM()
        if isinstance(vm, OSError):
            raise vm
        self.made.append(vm)
        return vm


def test_one_vm_for_each_that_has_calls() -> None:
    kernel = Kernel()
    report = replay_text(THREE, kernel)
    assert report.agree
    assert [live_of(vm).slots for vm in report.vms] == [[], [Slot(0, 0, 0, 2, HVA)]]
    assert [(len(vm.calls), vm.closed) for vm in kernel.made] == [(2, 1), (1, 1)]


def test_no_vm_for_the_second(shown: Shown) -> None:
    full = KvmError(errno.EMFILE, "KVM_CREATE_VM: Too many open files")
    kernel = Kernel(MadeUpVM(), full)
    reason = "this machine's kernel made no VM for it: KVM_CREATE_VM: Too many open files"
    with pytest.raises(TraceError, match=f"^trace: line 5: {reason}$"):
        replay_text(THREE, kernel)
    assert [vm.closed for vm in kernel.made] == [1]
    # The command makes a VM before all others, to see whether it can.
    kernel = Kernel(MadeUpVM(), MadeUpVM(), full)
    status, out, err = shown(THREE, kernel)
    assert (status, out) == (2, "")
    assert err.endswith(f"a.log: line 5: {reason}\n")
    assert [vm.closed for vm in kernel.made] == [1, 1]
    status, out, _ = shown(THREE, Kernel(MadeUpVM(), full), "--json")
    assert status == 2
    assert json.loads(out)["files"][0]["error"] == {"line": 4, "reason": reason}


class NoLimits(MadeUpVM):
    """A VM whose limits cannot be read."""

    @property
    def limits(self) -> dict[str, int]:
        raise KvmError(errno.EMFILE, "made up: too many files")


def test_a_vm_whose_limits_cannot_be_had_is_closed() -> None:
    kernel = NoLimits()
    with pytest.raises(TraceError, match=r"line 1: .* made up: too many files"):
        replay_text(CREATE, lambda: kernel)
    assert kernel.closed == 1


def interrupt(memslots: Memslots, call: Call) -> Change:
    raise KeyboardInterrupt


def test_closed_when_interrupted(shown: Shown) -> None:
    kernel = Kernel(MadeUpVM(), MadeUpVM({1: interrupt}))
    with pytest.raises(KeyboardInterrupt):
        replay_text(THREE, kernel)
    assert [vm.closed for vm in kernel.made] == [1, 1]
    kernel = Kernel(MadeUpVM(), MadeUpVM({1: interrupt}))
    status, out, err = shown(THREE, kernel)
    assert (status, out, err.strip()) == (130, "", "memslots: interrupted")
    assert [vm.closed for vm in kernel.made] == [1, 1]


def test_closed_when_the_watcher_has_had_enough() -> None:
    kernel = Kernel()

    def watch(done: int, calls: int) -> None:
        if done:
            raise InterruptedError

    with (
        open_trace("x", "qemu", io.BytesIO((CREATE * 5000).encode())) as trace,
        pytest.raises(InterruptedError),
    ):
        replay(trace, watch, kernel)
    assert [(len(vm.calls), vm.closed) for vm in kernel.made] == [(4096, 1)]


# --- the command without KVM


def test_without_kvm(shown: Shown, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command says so before it reads anything."""
    device = str(tmp_path / "kvm")
    without = functools.partial(KvmVM, device=device)
    with pytest.raises(KvmUnavailableError) as caught:
        without()
    message = f"memslots: {caught.value.strerror}\n"
    assert message.startswith(f"memslots: {device} cannot be opened: No such file or directory; ")
    assert shown(CREATE, without) == (2, "", message)
    assert shown(CREATE, without, "--json") == (2, "", message)
    assert main(["replay", "--kvm", "missing"]) == 2
    assert capsys.readouterr() == ("", message)
    assert main(["replay", "--kvm", "--sample", "qemu-pc-seabios"]) == 2
    assert capsys.readouterr() == ("", message)


def test_wrong_arguments_come_first(shown: Shown, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "--kvm"]) == 2
    assert "name one or more FILEs, or one --sample" in capsys.readouterr().err


def test_kvm_is_not_imported_until_it_is_asked_for() -> None:
    code = (
        "import sys, memslots.replay, memslots.cli.commands\n"
        "from memslots.cli import main\n"
        "status = main(['replay', '--sample', 'qemu-pc-seabios'])\n"
        "sys.exit(status or 'memslots.kvm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"this kernel" not in done.stdout


# --- after every call of any trace, beside any kernel


@dataclass(frozen=True)
class Made:
    """A call, with its recorded result and the way in which the kernel makes it."""

    call: tuple[int, int, int, int]  # slot, gpa, size, recorded errno
    wrong: Wrong | None


def made_calls(spaces: Sequence[int]) -> st.SearchStrategy[list[Made]]:
    calls = st.tuples(
        st.sampled_from([slot | as_id << 16 for as_id in spaces for slot in (0, 1, 2)]),
        st.integers(0, 6).map(lambda n: n * 0x1000),
        st.integers(0, 3).map(lambda n: n * 0x1000),
        st.sampled_from([0, 0, 0, EEXIST, EINVAL, ENOMEM]),
    )
    kernels = st.sampled_from([None, None, refuse(EINVAL), refuse(EEXIST), refuse(ENOMEM), take])
    return st.lists(st.builds(Made, calls, kernels), min_size=1, max_size=25)


def steps(made: Sequence[Made], kernel: MadeUpVM) -> Iterator[VmReport]:
    """Replays the calls one by one."""
    text = "".join(qemu(*each.call) for each in made)
    with open_trace("trace", "qemu", io.BytesIO(text.encode())) as trace:
        events = list(trace)
    replayer = Replayer(events, lambda memslots, _: Live(kernel, memslots))
    for each, event in zip(made, events, strict=True):
        # The call itself goes wrong; the calls that follow up do not.
        kernel.wrong = {} if each.wrong is None else {len(kernel.calls) + 1: each.wrong}
        replayer.feed(event)
        (vm,) = replayer.vms
        yield vm


@given(made_calls([0, 1]), st.sampled_from([1, 3, 64]), st.sampled_from([1, 2]))
def test_the_kernel_has_what_the_map_has(made: list[Made], max_slots: int, spaces: int) -> None:
    """The kernel has every slot that its limits allow, and no other."""
    kernel = MadeUpVM(max_slots=max_slots, address_spaces=spaces, max_gfn=6)
    for vm in steps(made, kernel):
        assert set(kernel.slots) == {
            slot
            for slot in vm.final_map
            if slot.id < max_slots and slot.as_id < spaces and slot.end_gfn <= 7
        }
    for found in vm.disagreements:
        assert found.pairs
        assert found.live is not None
        assert found.live_followed
