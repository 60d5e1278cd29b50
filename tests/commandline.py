"""Helpers for the tests of the command: running it, traces, the shapes of its JSON."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memslots.cli import main

HERE = Path(__file__).parent
TRACES = HERE / "data" / "traces"
PAGE = HERE.parent / "docs" / "command.md"
SEABIOS = str(TRACES / "qemu-pc-seabios.strace.gz")
OVMF = str(TRACES / "qemu-q35-ovmf-ttt-y.strace.gz")
OVMF_QEMU = str(TRACES / "qemu-q35-ovmf.qemu-trace")
COMMAND = [sys.executable, "-m", "memslots"]


def qemu(slot: int, gpa: int, size: int, ret: int = 0, ua: int = 0x7F0000000000) -> str:
    call = f"Slot#{slot} flags=0x0 gpa={gpa:#x} size={size:#x} ua={ua:#x}"
    return f"kvm_set_user_memory {call} ret={ret}\n"


class Outcome:
    """The result of a run in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        self.status = main(arguments)
        captured = capsys.readouterr()
        self.out, self.err = captured.out, captured.err

    def __repr__(self) -> str:
        return f"status {self.status}\n{self.out}\n--- stderr\n{self.err}"


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Runs the command in a separate process."""
    return subprocess.run([*COMMAND, *arguments], capture_output=True, timeout=600, **options)


# --- JSON: the document that docs/command.md describes

NUMBER_OR_NONE = (int, type(None))


TIMING_SHAPE: dict[str, Any] = {
    "median": float,
    "lower_quartile": float,
    "upper_quartile": float,
    "rounds": int,
    "samples": int,
    "seconds_per_operation": float,
}
BENCH_SHAPE: dict[str, Any] = {
    "memslots": str,
    "machine": {
        "cpu": str,
        "cpus": int,
        "memory": NUMBER_OR_NONE,
        "kernel": str,
        "python": str,
    },
    "date": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00"),
    "effort": str,
    "seconds": float,
    "measured": str,
    "versions": dict,
    "not_installed": dict,
    "series": [
        {
            "test": str,
            "slots": int,
            "seconds_of": str,
            "operations": int,
            "before": {**TIMING_SHAPE, "share": float},
            "after": {**TIMING_SHAPE, "share": float},
            "loop": TIMING_SHAPE,
            "improvement": float,
            "reported": (float, type(None)),
            "above": (bool, type(None)),
        }
    ],
    "against": [
        {
            "test": str,
            "case": str,
            "slots": int,
            "seconds_of": str,
            "operations": int,
            "structures": [{"structure": str, **TIMING_SHAPE, "ratio": float}],
        }
    ],
}


def assert_shape(value: Any, shape: Any, where: str = "$") -> None:
    if isinstance(shape, dict):
        assert value.keys() == shape.keys(), where
        for key, part in shape.items():
            assert_shape(value[key], part, f"{where}.{key}")
    elif isinstance(shape, list):
        assert isinstance(value, list), where
        for number, item in enumerate(value):
            assert_shape(item, shape[0], f"{where}[{number}]")
    elif isinstance(shape, re.Pattern):
        assert shape.fullmatch(value), where
    else:
        assert isinstance(value, shape), where


# --- lookup


def looked_up(outcome: Outcome) -> list[list[str]]:
    return [line.split(maxsplit=4) for line in outcome.out.splitlines()]


# --- bench: test_bench.py tests what it measures

QUICK = ["bench", "--quick"]
#: For tests that do not look at the figures.
ONE_TEST = [*QUICK, "--test", "setup", "--slots", "10"]
