"""Runs the targets without a fuzzer: on former findings, seeds, and random bytes."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from compared import Compared
from fuzz import fuzz_calls, fuzz_traces, inputs, target
from fuzz.changes import STEPS
from fuzz.choices import ODD, PLAIN, TWO_BYTES, Choices, Number
from fuzz.fuzz_calls import decode, encode
from fuzz.inputs import TARGETS
from fuzz.seeds import SEEDS, every_operation, words
from fuzz.target import SORTS, TABLE, Target
from model import Answer, Model, ModelSlot

from memslots import AddressSpace, MemslotError, Memslots, Slot, Transaction, Vcpu
from memslots.replay import Report, replay
from memslots.traces import Trace
from memslots.write.listeners import Subscription

CASES = Path(__file__).parent / "cases"
CLASSES: list[type] = [Memslots, AddressSpace, Vcpu, Transaction, Slot, Subscription]
#: Names that no caller uses: the constructor, Cython's own, and documentation.
NOT_CALLED = {"__new__", "__doc__", "__pyx_vtable__"}


FOUND = [(target, path) for target in TARGETS for path in sorted((CASES / target).glob("*"))]


@pytest.mark.parametrize(("target", "path"), FOUND, ids=lambda value: getattr(value, "name", value))
def test_found_once(target: str, path: Path) -> None:
    TARGETS[target](path.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_seeds(target: str) -> None:
    seeds = list(islice(SEEDS[target](), 0, None, 7))
    assert len(seeds) > 25
    for seed in seeds:
        TARGETS[target](seed)
    assert seeds == list(islice(SEEDS[target](), 0, None, 7))


@pytest.mark.parametrize("target", TARGETS)
def test_random_bytes(target: str) -> None:
    choose = random.Random(target)
    for _ in range(300):
        most = choose.choice((8, 32, 256))
        TARGETS[target](bytes(choose.randrange(most) for _ in range(choose.randrange(120))))


def test_traces_with_something_else_in_them() -> None:
    choose = random.Random(0)
    some = words()
    for seed in islice(SEEDS["traces"](), 0, None, 5):
        at = choose.randrange(1, len(seed) + 1)
        fuzz_traces.one_input(seed[:at] + choose.choice(some) + seed[at:])


def test_no_fuzzer_is_needed() -> None:
    assert "atheris" not in sys.modules


# Inputs are calls, and calls are inputs


def test_calls_that_are_encoded_and_decoded() -> None:
    choose = random.Random(1)
    for number in range(300):
        machine, calls = decode(choose.randbytes(number))
        assert decode(encode(machine, calls)) == (machine, calls)


@pytest.mark.parametrize("field", target.CHANGES["set_region"][::2])
def test_numbers(field: Number) -> None:
    whole = [0, 1, 207, 208, 0xFFFF, 0x10000, 0xFFFFFFFF, 1 << 33, (1 << 52) - 1]
    for value in [*whole, *(page << 12 for page in whole), (1 << 64) - 1]:
        assert field.decode(Choices(field.encode(value))) == value
    for odd in ODD:
        assert field.decode(Choices(field.encode(odd))) is odd
    edges = {field.decode(Choices(bytes([first]))) for first in range(PLAIN, TWO_BYTES)}
    assert edges == set(field.edges)


def test_an_input_without_end_is_over_soon() -> None:
    _, calls = decode(bytes(10**6))
    assert len(calls) == target.MOST_CALLS


# No name is forgotten, and no fault passes unseen


def public(cls: type) -> set[str]:
    """Returns the names that a class has and object does not."""
    names = {name for base in cls.__mro__[:-1] for name in vars(base)}
    private = {name for name in names if name.startswith("_") and not name.endswith("__")}
    return names - private - NOT_CALLED


def test_every_public_name_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Target, "used", set())
    for seed in every_operation():
        fuzz_calls.one_input(seed)
    for cls in CLASSES:
        used = {name for owner, name in Target.used if owner == cls.__name__}
        assert public(cls) - used == set()


def test_every_operation_and_step_is_in_a_seed() -> None:
    names, steps, machines = set(), set(), set()
    for seed in SEEDS["calls"]():
        machine, calls = decode(seed)
        machines.add(machine[0])
        for name, values in calls:
            names.add(name)
            if name == "transaction":
                steps |= {verb for verb, _ in values[-1]}
    assert names == {one.name for one in TABLE}
    assert steps == set(STEPS)
    assert machines == set(range(len(SORTS)))


def forgets_marks(model: Model, gfn: int, as_id: int = 0) -> None:
    """Replaces Model.mark_dirty."""


def keeps_logs(model: Model, as_id: int, id: int, new: ModelSlot | None) -> None:
    """Replaces Model._commit: a log outlives its slot's flag."""
    if new is None:
        del model.slots[as_id][id]
    else:
        model.slots[as_id][id] = new
        model.logs[as_id].setdefault(id, set())


def one_page_off(model: Model, as_id: int, gfn: int) -> ModelSlot | None:
    """Replaces Model.lookup."""
    for slot in model.slots[as_id].values():
        if slot.base_gfn < gfn <= slot.end_gfn:
            return slot
    return None


def takes_anything(model: Model, *call: int) -> Answer:
    """Replaces Model.plan: rule 7 is never broken."""
    answer = PLAN(model, *call)
    return replace(answer, errno=0, rule=None) if answer.rule == 7 else answer


PLAN = Model.plan


@pytest.mark.parametrize(
    ("cls", "name", "fault"),
    [
        (Model, "mark_dirty", forgets_marks),
        (Model, "_commit", keeps_logs),
        (Model, "lookup", one_page_off),
        (Model, "plan", takes_anything),
        (Model, "nr_pages", lambda model, as_id: len(model.slots[as_id])),
        (Compared, "expected_events", lambda both, *_: []),
        (Compared, "expected_events_of", lambda both, *_: []),
    ],
)
def test_a_fault_is_found(
    cls: type, name: str, fault: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in the model is found, as one in the package would be."""
    monkeypatch.setattr(cls, name, fault)
    with pytest.raises((AssertionError, MemslotError)):
        for seed in SEEDS["calls"]():
            fuzz_calls.one_input(seed)


BREAKS: dict[str, Callable[[Report], object]] = {
    "a call more": lambda report: setattr(report.counts, "calls", report.counts.calls + 1),
    "no line related": lambda report: setattr(report.counts, "unrelated", report.counts.lines),
    "a line less": lambda report: setattr(report.counts, "lines", report.counts.lines - 1),
    "no change made": lambda report: report.vms[0].operations.clear(),
    "no slots in use": lambda report: setattr(report.vms[0], "most_slots", 0),
    "one VM less": lambda report: report.vms.pop(),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_fault_in_a_report_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = next(SEEDS["traces"]())
    fuzz_traces.one_input(seed)

    def wrong(trace: Trace) -> Report:
        report = replay(trace)
        BREAKS[name](report)
        return report

    monkeypatch.setattr(fuzz_traces, "replay", wrong)
    with pytest.raises(AssertionError):
        fuzz_traces.one_input(seed)


def test_another_error_than_a_traces_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(trace: Trace) -> Report:
        raise ValueError(trace.name)

    monkeypatch.setattr(fuzz_traces, "replay", wrong)
    with pytest.raises(ValueError, match="input"):
        fuzz_traces.one_input(next(SEEDS["traces"]()))


def test_inputs_from_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, seed in enumerate(islice(SEEDS["calls"](), 3)):
        (tmp_path / f"{number}").write_bytes(seed)
    inputs.main("calls", str(tmp_path), str(tmp_path / "0"))
    assert capsys.readouterr().out == "calls: 4 inputs\n"
    inputs.main("calls", "--show", str(tmp_path / "1"))
    machine, calls = decode((tmp_path / "1").read_bytes())
    shown = capsys.readouterr().out.splitlines()
    assert shown[1] == f"  machine {machine}"
    assert [line.partition("(")[0].strip() for line in shown[2:-1]] == [name for name, _ in calls]
    inputs.main("traces", "--show", *(str(path) for target, path in FOUND if target == "traces"))
    assert "handed over in way 0: b'ioctl(8, " in capsys.readouterr().out


def test_an_input_from_a_file_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "nr_pages", lambda model, as_id: -1)
    (tmp_path / "input").write_bytes(next(SEEDS["calls"]()))
    with pytest.raises(AssertionError):
        inputs.main("calls", str(tmp_path))
    assert capsys.readouterr().err == f"{tmp_path / 'input'} fails:\n"


def test_the_fuzzers_need_no_tools_of_the_tests() -> None:
    """They run with an interpreter that has atheris and numpy."""
    block = "import sys; sys.modules['hypothesis'] = sys.modules['pytest'] = None; "
    load = "import fuzz.fuzz_calls, fuzz.fuzz_traces, fuzz.inputs, fuzz.seeds"
    tests = Path(__file__).parent.parent
    command = [sys.executable, "-c", block + f"sys.path.insert(0, {str(tests)!r}); " + load]
    subprocess.run(command, check=True)
