"""Pickles and copies public values and errors: the results are equal in every part.

tests/data/pickles has a folder for each version, with one file for each example and protocol 0 (the
oldest) or 5. `python tests/test_pickles.py` writes the folder of the present version. Run it before
a release, and never for a released version.
"""

from __future__ import annotations

import copy
import errno
import importlib
import pickle
import pickletools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from needs import needs_kvm

import memslots
from memslots import (
    Backing,
    Change,
    DirtyRun,
    Flags,
    GuestMemfd,
    GuestMemory,
    MemoryMap,
    Memslots,
    SetRegion2,
    Slot,
    VcpuStats,
    bench,
    errors,
    kvm,
    plan,
    replay,
    traces,
)
from memslots.memory.checkpoint import Checkpoint
from memslots.memory.mmio import MmioHandle
from memslots.write.listeners import Subscription

# memslots.baseline is only for measuring; its objects are not for storing.
PUBLIC = (memslots, errors, kvm, traces, replay, bench)
STORED = Path(__file__).parent / "data" / "pickles"
STORED_PROTOCOLS = (0, 5)

SLOT = Slot(7, 1, 0x100, 64, 0x7F00_0000_0000, Flags.LOG_DIRTY_PAGES)
OTHER = Slot(8, 1, 0x120, 64, 0x7F10_0000_0000)
HERE = MemoryMap([(0, 8, 0), (16, 8, 1 << 30, 1), (40, 8, 1 << 20)])
THERE = MemoryMap([(0, 8, 0, 1), (16, 8, 1 << 31, 1), (50, 8, 1 << 20)])
CALL = traces.RegionCall(9, 1 << 16 | 7, 1, 0x100000, 0x40000, 0x7F00_0000_0000, 17, 4, 5, 6, 10, 3)
LOST = traces.LostCall(3, "cut off", "ioctl(", 17)
COUNTS = traces.Counts(9, 4, 3, Counter({"cut off": 2}), 1, [LOST])
DIFFERENT = replay.Disagreement(CALL, 0, 17, "rule 9", "made after dropping", 22, "rule 3", "kept")
TIMING = bench.Timing(5, 9, 2.5, 1.25, 3.5)
MACHINE = bench.Machine("a processor", 2, 1 << 33, "Linux 6.18", "CPython 3.11")
ROW = bench.Row("map", 32, "a slot", 32, TIMING, TIMING, TIMING, 1.0, 0.5, 2.0)
AGAINST = bench.RivalResult("bisect", TIMING, 0.75)
CASE = bench.RivalsResult("lookup", "random", "Random", "a look-up", 10, 500, [AGAINST])


COSTLY = replay.CostlyCall(CALL, "EEXIST")


def costs() -> replay.Costs:
    made = replay.Costs()
    made.add(traces.RegionCall(1, 2, 3, 4, 5, 6, 0, duration_ns=7), "CREATE")
    return made


def machine() -> Memslots:
    vm = Memslots(max_slots=9, address_spaces=2, manual_dirty_log=1)
    vm.create(7, 0x100, 64, 0x7F00_0000_0000, Flags.LOG_DIRTY_PAGES, as_id=1)
    vm.mark_dirty(0x101, as_id=1)
    return vm


def vm_report() -> replay.VmReport:
    calls = Counter({"create": 1})
    refused, outside = Counter({"EEXIST": 1}), 1
    return replay.VmReport(
        8379, 8, 2, machine(), 3, calls, refused, outside, 0, 1, [DIFFERENT], [], None
    )


def with_attributes(error: BaseException, **attributes: object) -> BaseException:
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


OVERLAP = errors.OverlapError(17, "two slots", 9, existing=SLOT, requested=OTHER)
INVARIANT = errors.InvariantError("R3", "in space 1")
TRACE_ERROR = traces.TraceError("boot.strace", "it is empty", 3)

#: At least one object of every public class that can be pickled, with all attributes set.
EXAMPLES: dict[str, object] = {
    "memslots": machine(),
    "slot": SLOT,
    "slot-of-a-listener": Slot(0, 0, 0, 1, 0, Flags.INVALID),
    "memory-map": MemoryMap([SLOT, Slot(9, 1, 0x200, 1, 0, Flags(3))], generation=7),
    "map-diff": HERE.diff(THERE),
    "slot-change": HERE.diff(THERE).slots[0],
    "memory-change": HERE.diff(THERE).memory[0],
    "flags-change": HERE.diff(THERE).flags[0],
    "plan": plan(HERE, THERE),
    "set-region": plan(HERE, THERE).calls[0],
    "set-region-2": SetRegion2(0, 4, 0, 4096, 0, GuestMemfd(4096), 0),
    "guest-memfd": GuestMemfd(4096),
    "window": plan(HERE, THERE).windows[0],
    "flags": Flags.LOG_DIRTY_PAGES | Flags.READONLY,
    "flag": Flags.INVALID,
    "no-flags": Flags(0),
    "change": Change.FLAGS_ONLY,
    "dirty-run": DirtyRun(1, 0x100, 0x140),
    "vcpu-stats": VcpuStats(3, 4),
    "region-call": CALL,
    "vm-created": traces.VmCreated(1, 4, 8),
    "fd-closed": traces.FdClosed(2, 4, 8),
    "fd-duplicated": traces.FdDuplicated(2, 4, 8, 9),
    "fds-closed": traces.FdsClosed(2, 4, 3, 9, True),
    "fds-received": traces.FdsReceived(2, 4, (8, 9)),
    "fds-unshared": traces.FdsUnshared(2, 4),
    "task-started": traces.TaskStarted(3, 4, 5, True),
    "task-ended": traces.TaskEnded(4, 5, True),
    "capability": traces.Capability(5, 4, "KVM_CAP_NR_MEMSLOTS", 32764),
    "lost-call": LOST,
    "counts": COUNTS,
    "disagreement": DIFFERENT,
    "vm-report": vm_report(),
    "cost": replay.Cost(2, 30, 20),
    "costly-call": COSTLY,
    "costs": costs(),
    "replay-report": replay.Report("boot", "strace", COUNTS, ["a note"], [vm_report()]),
    "cap": kvm.Cap.USER_MEMORY,
    "io-exit": kvm.IoExit(0x3F8, 1, 2, True, b"ab"),
    "mmio-exit": kvm.MmioExit(0xFEE00000, 4, True, b"abcd"),
    "hlt-exit": kvm.HltExit(),
    "shutdown-exit": kvm.ShutdownExit(),
    "internal-error-exit": kvm.InternalErrorExit(1, (2, 3)),
    "fail-entry-exit": kvm.FailEntryExit(5),
    "system-event-exit": kvm.SystemEventExit(2),
    "memory-fault-exit": kvm.MemoryFaultExit(0x1000, 0x2000, 8),
    "interrupted-exit": kvm.InterruptedExit(),
    "other-exit": kvm.OtherExit(99),
    "effort": bench.QUICK,
    "machine": MACHINE,
    "row": ROW,
    "rival-result": AGAINST,
    "rivals-result": CASE,
    "timing": TIMING,
    "bench-report": bench.Report(
        MACHINE, "2026-01-02", bench.FULL, 1.5, {"numpy": None}, [ROW], [CASE]
    ),
    "memslot-error": errors.MemslotError(22, "refused", 3),
    "invalid-region-error": errors.InvalidRegionError(22, "no page", 1),
    "overlap-error": OVERLAP,
    "no-such-slot-error": errors.NoSuchSlotError(2, "slot 9", 4),
    "no-window-error": errors.NoWindowError(16, "gpa 0x1000"),
    "no-room-error": errors.NoRoomError(28, "no free id"),
    "not-mapped-error": errors.NotMappedError(14, "gpa 0x1000"),
    "read-only-error": errors.ReadOnlyError(14, "gpa 0x1000"),
    "busy-error": errors.BusyError(16, "a change"),
    "kvm-error": errors.KvmError(12, "no memory"),
    "kvm-closed-error": errors.KvmClosedError(9, "closed"),
    "kvm-unavailable-error": errors.KvmUnavailableError(2, "/dev/kvm"),
    "invariant-error": INVARIANT,
    "trace-error": TRACE_ERROR,
    "trace-error-without-a-line": traces.TraceError("boot.strace", "it is empty"),
    "snapshot-error": memslots.SnapshotError(errno.EINVAL, "no snapshot: 3 bytes"),
    "wrong-answer-error": bench.WrongAnswerError("found 1, expected 2"),
    "error-with-a-note": with_attributes(traces.TraceError("a", "b", 1), asked_by="a user"),
}


def memory() -> GuestMemory:
    return GuestMemory(machine())


#: The classes that cannot be pickled, and a maker of each.
REFUSING: dict[type, Callable[[], object]] = {
    memslots.AddressSpace: lambda: machine().address_space(1),
    memslots.Backing: lambda: Backing.anonymous(4096),
    memslots.GuestMemory: memory,
    memslots.Transaction: lambda: machine().transaction(),
    memslots.Vcpu: lambda: machine().vcpu(),
    Checkpoint: lambda: GuestMemory(Memslots()).checkpoint(),
    MmioHandle: lambda: memory().on_mmio(1 << 40, 1 << 41, read=min),
    Subscription: lambda: machine().subscribe(SimpleNamespace(commit=print)),
}
#: Handles of the kernel's objects; a test makes them if there is /dev/kvm.
OF_THE_KERNEL: set[type] = {kvm.KvmVM, kvm.KvmVcpu}
#: These hold functions of the package or an open input: no promise about pickling.
PROGRAMS: set[type] = {bench.Plan, replay.Replayer, traces.Trace}


def public_classes() -> set[type]:
    found = (getattr(module, name) for module in PUBLIC for name in module.__all__)
    return {each for each in found if isinstance(each, type)}


def parts(value: object) -> object:
    """Returns plain data that is equal for two values exactly if nobody can tell them apart."""
    if isinstance(value, Memslots):
        spaces = [value.address_space(as_id) for as_id in range(value.address_spaces)]
        slots = [slot for space in spaces for slot in space]
        logs = [
            value.get_dirty_log(slot.id, slot.as_id)
            for slot in slots
            if slot.flags & Flags.LOG_DIRTY_PAGES
        ]
        limits = (value.max_slots, value.max_gfn, value.max_hva, value.manual_dirty_log)
        return type(value), slots, logs, limits, [space.generation for space in spaces]
    if isinstance(value, BaseException):
        own = ("errno", "strerror", "filename", "rule", "existing", "requested", "property")
        known = {name: getattr(value, name) for name in own if hasattr(value, name)}
        return type(value), value.args, vars(value), known, str(value), repr(value)
    if is_dataclass(value) and not isinstance(value, type):
        inner = {field.name: parts(getattr(value, field.name)) for field in fields(value)}
        return type(value), inner
    if isinstance(value, GuestMemfd):  # equal by identity
        return GuestMemfd, value.size, value.closed
    if isinstance(value, (list, SetRegion2)):
        return [parts(each) for each in value]
    return type(value), value, str(value), repr(value)


def by_pickle(value: object, protocol: int) -> object:
    return pickle.loads(pickle.dumps(value, protocol))


WAYS: dict[str, Callable[[object], object]] = {
    f"pickle {protocol}": partial(by_pickle, protocol=protocol)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
}
WAYS |= {"copy": copy.copy, "deepcopy": copy.deepcopy}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_value_comes_back_equal(name: str, way: Callable[[object], object]) -> None:
    value = EXAMPLES[name]
    again = way(value)
    assert parts(again) == parts(value)
    if isinstance(value, Enum):
        assert again is value


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_pickle_with_other_address_spaces_is_refused(count: int) -> None:
    reduced: Any = Memslots(address_spaces=2).__reduce__()
    restore, (cls, limits, spaces, *rest), *_ = reduced
    with pytest.raises(ValueError, match=f"^there must be 2 address spaces, not {count}$"):
        restore(cls, limits, (spaces * 2)[:count], *rest)


def test_every_public_class_has_an_example() -> None:
    known = {type(value) for value in EXAMPLES.values()}
    known |= {*REFUSING, *OF_THE_KERNEL, *PROGRAMS}
    assert public_classes() - known == set()


@pytest.mark.parametrize("kind", REFUSING, ids=lambda kind: kind.__name__)
def test_what_is_no_value_refuses(kind: type) -> None:
    value = REFUSING[kind]()
    assert type(value) is kind
    for way in WAYS.values():
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            way(value)


@needs_kvm
def test_handles_of_the_kernel_refuse() -> None:
    with kvm.KvmVM() as vm, vm.create_vcpu() as vcpu:
        assert {type(vm), type(vcpu)} == OF_THE_KERNEL
        for handle in (vm, vcpu):
            for way in WAYS.values():
                with pytest.raises(TypeError, match="cannot be pickled or copied"):
                    way(handle)


def globals_of(data: bytes) -> Iterator[tuple[str, str]]:
    """Returns module and name of each global that a pickle of protocol 0 to 3 names."""
    for code, argument, _ in pickletools.genops(data):
        if code.name == "GLOBAL":
            module, name = str(argument).split(" ")
            yield module, name


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_pickle_names_public_modules_alone(name: str) -> None:
    public = {module.__name__ for module in PUBLIC} | {"memslots.memslots"}
    named = list(globals_of(pickle.dumps(EXAMPLES[name], 2)))
    for module, what in named:
        if module.split(".")[0] == "memslots":
            assert module in public
            assert hasattr(importlib.import_module(module), what)
    assert named


def stored() -> list[Path]:
    return sorted(STORED.glob("*/*.pickle"))


@pytest.mark.parametrize("path", stored(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_stored_pickle_is_read(path: Path) -> None:
    value = EXAMPLES[path.stem.rpartition(".")[0]]
    assert parts(pickle.loads(path.read_bytes())) == parts(value)


def test_this_version_has_a_stored_pickle_of_every_example() -> None:
    names = {path.name for path in (STORED / memslots.__version__).glob("*.pickle")}
    wanted = {f"{name}.{number}.pickle" for name in EXAMPLES for number in STORED_PROTOCOLS}
    assert wanted - names == set(), "python tests/test_pickles.py writes them"


def write() -> None:
    folder = STORED / memslots.__version__
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in EXAMPLES.items():
        for number in STORED_PROTOCOLS:
            (folder / f"{name}.{number}.pickle").write_bytes(pickle.dumps(value, number))


if __name__ == "__main__":
    write()
