"""Inputs like those that people have pasted in public: all their calls are read, or reported."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import pytest
from commandline import Outcome

from memslots.replay import Report, replay
from memslots.traces import open_trace
from memslots.traces.simpletrace import HEAD, text_of
from memslots.traces.threads import grouped

DATA = Path(__file__).parent.parent / "data" / "field"
Slots = list[tuple[int, int, int, int]]  # id, flags, guest address, size


def report_of(name: str) -> Report:
    with open_trace(DATA / name) as trace:
        return replay(trace)


def replay_text(text: str) -> Report:
    with open_trace("trace", "qemu", io.BytesIO(text.encode())) as trace:
        return replay(trace)


def slots_of(report: Report) -> list[Slots]:
    return [
        [(s.id, int(s.flags), s.guest_phys_addr, s.memory_size) for s in vm.final_map]
        for vm in report.vms
    ]


#: By file: the number of calls, and the slots of each VM.
CASES: dict[str, tuple[int, list[Slots]]] = {
    "mail-quoted-wrapped.txt": (3, [[(6, 0, 0x100000, 2129657856)]]),
    "commit-message.txt": (2, [[(0, 0, 0x1000, 4096)]]),
    "quoted-printable.eml": (
        3,
        [[(0, 4, 0, 1 << 31), (2, 2, 0xFFC00000, 1 << 22), (1, 4, 1 << 32, 1 << 31)]],
    ),
    "simple-binary.trace": (2, [[(0, 0, 0, 1 << 27), (1, 2, 0xFFFC0000, 1 << 18)]]),
    "64k-pages.strace": (3, [[(1, 0, 0x40000000, 1 << 16), (0, 0, 0x80000000, 1 << 29)]]),
    "apic-page.strace": (3, [[(0, 0, 0, 1 << 22), (1, 0, 0xFEF00000, 17825792)]]),
    "dev-kvm-fd.strace": (2, [[], [(0, 0, 0, 1 << 20)]]),
    "phys-bits.log": (3, [[(0, 0, 0, 1 << 31), (6, 0, 1 << 38, 1 << 24)]]),
    "gmem-alias.log": (3, [[(0, 4, 0, 1 << 21), (4, 4, 1 << 32, 1 << 20)]]),
    "libvirt-two-boots.log": (
        5,
        [
            [(0, 0, 0, 1 << 27), (1, 2, 0xFFFC0000, 1 << 18), (2, 0, 1 << 32, 1 << 28)],
            [(0, 0, 0, 1 << 27), (1, 2, 0xFFFC0000, 1 << 18)],
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_in_it(name: str) -> None:
    calls, slots = CASES[name]
    report = report_of(name)
    assert (report.counts.calls, report.counts.lost_total) == (calls, 0)
    assert slots_of(report) == slots
    assert report.agree, [d.why for vm in report.vms for d in vm.disagreements]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "64k-pages.strace",
            "EINVAL of slot 1: its kernel had pages of 64 KiB: all 2 successful calls",
        ),
        (
            "apic-page.strace",
            "EEXIST of slot 1: KVM has a slot of its own there, for the APIC page",
        ),
        ("phys-bits.log", "EINVAL of slot 6: its guest addresses had 39 bits or a few more"),
        ("dev-kvm-fd.strace", "no call on descriptor 3 succeeded: it is no VM"),
    ],
)
def test_a_refusal_that_is_explained(name: str, text: str) -> None:
    assert any(text in note for note in report_of(name).notes), report_of(name).notes


def test_lines_keep_their_numbers() -> None:
    """Wrapped lines are joined; line numbers are those of an editor."""
    report = report_of("mail-wrapped.txt")
    with open_trace(DATA / "mail-wrapped.txt") as trace:
        lines = [event.line for event in trace]
    text = (DATA / "mail-wrapped.txt").read_text().splitlines()
    assert len(lines) == report.counts.calls == 4
    for line in lines:
        assert "kvm_set_user_memory" in text[line - 1]


def test_nothing_but_a_message() -> None:
    report = report_of("stderr-only.log")
    assert report.counts.calls == 1
    assert "the host addresses of the failed calls are not known" in report.notes[0]


def test_a_file_for_each_thread(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    files = [str(DATA / "ff.502"), str(DATA / "ff.501")]
    outcome = Outcome(capsys, "replay", "--json", *files)
    document = json.loads(outcome.out)
    assert (outcome.status, len(document["files"])) == (0, 1)
    (vm,) = document["files"][0]["vms"]
    assert vm["calls"] == 4
    other = tmp_path / "log.7"
    other.write_text("no trace\n")
    assert grouped([files[0], files[0], str(other), files[1]]) == [
        [files[0], files[1]],
        [files[0]],
        [str(other)],
    ]


def simple(*records: bytes, version: int = 4) -> bytes:
    return HEAD + struct.pack("<Q", version) + b"".join(records)


def event(number: int, *arguments: int) -> bytes:
    length = 24 + 8 * len(arguments)
    return struct.pack("<QQQII", 1, number, 5000, length, 7) + struct.pack(
        f"<{len(arguments)}Q", *arguments
    )


NAME = struct.pack("<QQI", 0, 3, 19) + b"kvm_set_user_memory"


def test_the_binary_file_of_qemus_trace() -> None:
    def lines(content: bytes) -> list[bytes]:
        # In blocks of every size, as a pipe may deliver them.
        found = {
            b"".join(text_of(iter([content[i : i + n] for i in range(0, len(content), n)])))
            for n in (1, 7, 1 << 16)
        }
        (one,) = found
        return one.splitlines()

    assert lines(simple(NAME, event(3, 0, 0, 0, 4096, 4096, 0), event(4, 1))) == [
        b"kvm_set_user_memory 0.000 pid=7 slot=0x0 flags=0x0 guest_phys_addr=0x0"
        b" memory_size=0x1000 userspace_addr=0x1000 ret=0x0"
    ]
    assert lines(simple(NAME, event(3, 1, 2))) == [b"kvm_set_user_memory with 2 arguments"]
    for version in (2, 3, 9):  # versions whose names are not in the file, or not known
        assert f"version {version}".encode() in lines(simple(version=version))[0]
    whole = simple(NAME, event(3, 0, 0, 0, 4096, 4096, 0))
    for cut in range(25, len(whole)):
        assert cut == 24 + len(NAME) or b"cut off" in lines(whole[:cut])[-1]


def test_not_a_reason() -> None:
    """One other call, or one with the same size, explains nothing."""
    one = "kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x10000 ua=0x7f0000000000 ret=0\n"
    small = "kvm_set_user_memory Slot#1 flags=0x0 gpa=0x20000 size=0x1000 ua=0x7f0000000000 ret="
    assert not replay_text(one + small + "-22\n").agree
    assert not replay_text(one + small.replace("Slot#1", "Slot#2") + "0\n" + small + "-22\n").agree


@pytest.mark.parametrize(
    ("time", "ordered"),
    [
        ("", False),
        ("10:11:12 ", False),
        ("1700000000 ", False),
        ("     0.000123 ", False),
        ("10:11:12.5 ", True),
        ("10:11:12.5 (+     0.000123) ", True),
        ("1700000000.123 [  16] [00007f688951bd6b] ", True),
    ],
)
def test_files_of_threads_with_other_times(
    time: str, ordered: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A report says if the files of strace -ff have no times by which to order the calls."""
    paths = [str(tmp_path / f"out.{tid}") for tid in (501, 502)]
    for n, path in enumerate(paths):
        region = f"{{slot={n}, flags=0, guest_phys_addr={n << 12}, memory_size=4096, "
        call = f"ioctl(8, KVM_SET_USER_MEMORY_REGION, {region}userspace_addr=0x7f0000000000}}) = 0"
        Path(path).write_text(f"{time}{call}\n")
    assert grouped(paths) == [paths]
    (file,) = json.loads(Outcome(capsys, "replay", "--json", *paths).out)["files"]
    assert file["calls"] == 2
    assert any("no times finer than a second" in note for note in file["notes"]) is not ordered
