"""The first inputs of the two targets: recorded calls of a kernel and of QEMU.

They are the same each time. As a script, `python tests/fuzz/seeds.py calls|traces DIRECTORY` writes
them to files. For the traces it also writes their words to DIRECTORY.dict, in libFuzzer's format.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

if __name__ == "__main__":
    # Python puts a script's own folder on the path; the imports start from tests/.
    sys.path.insert(0, str(Path(__file__).parent.parent))
    if importlib.util.find_spec("atheris"):
        from fuzz.engine import load_libfuzzer

        load_libfuzzer()

from compared import Flusher, FullListener, Listener
from fuzz.changes import STEPS, Steps
from fuzz.fuzz_calls import decode, encode
from fuzz.target import SORTS, TABLE, Call
from model import Model

from memslots.traces import RegionCall, open_trace, strace_ioctls

DATA = Path(__file__).parent.parent / "data"
KERNEL = sorted((DATA / "kernel").glob("*.jsonl.gz"))
TRACES = sorted((DATA / "traces").glob("*trace*"))

#: Inputs made of one recording, and calls of each, spread over its whole length.
PIECES, LENGTH = 16, 24
#: Lines of a trace in an input.
LINES = 10
TRANSACTION = [one.name for one in TABLE].index("transaction")
SUBSCRIBERS = (Listener, FullListener, Flusher)
#: Inputs with random arguments for each operation.
EACH = 6


def calls() -> Iterator[bytes]:
    """Returns inputs of fuzz_calls.py."""
    yield from every_operation()
    for path in KERNEL:
        name = path.name
        manual = 3 if "initset" in name else 1 if "manual" in name else 0
        with gzip.open(path, "rt", encoding="ascii") as file:
            yield from pieces((1, 1, manual), recorded_in(file))
    for path in TRACES:
        with open_trace(path) as trace:
            regions = [event for event in trace if isinstance(event, RegionCall)]
        yield from pieces((2, 2, 0), [region(call) for call in regions])


def recorded_in(file: Iterable[str]) -> list[Call]:
    """Returns the calls of a file, except those that make and close guest memory files."""
    calls = map(json.loads, file)
    return [recorded(call) for call in calls if call[0] not in ("gmem", "close")]


def recorded(call: list[int | str]) -> Call:
    """Returns a line of the kernel's answers without the answer."""
    match call:
        case ["set", slot, flags, gpa, size, hva, _]:
            return "set_region", (False, slot, flags, gpa, size, hva)
        case ["set2", slot, flags, gpa, size, hva, *_]:
            return "set_region2", (False, slot, flags, gpa, size, hva, "closed")
        case ["dirty", int(gpa)]:
            return "mark_dirty", (gpa >> 12, 0)
        case ["get", int(slot), *_]:
            return "get_dirty_log", (slot & 0xFFFF, slot >> 16)
        case ["clear", int(slot), first, pages, str(bitmap), _]:
            bits = bytes.fromhex(bitmap)
            return "clear_dirty_log", (slot & 0xFFFF, first, pages, bits, 0, slot >> 16)
    raise AssertionError(f"a line that no one has described: {call}")


def region(call: RegionCall) -> Call:
    values = (call.guest_phys_addr, call.memory_size, call.userspace_addr)
    return "set_region", (False, call.slot, call.flags, *values)


def pieces(machine: tuple[int, int, int], recording: list[Call]) -> Iterator[bytes]:
    """Yields stretches of a recording, each with the slots that exist when it begins."""
    sort, spaces, _ = machine
    model = Model(SORTS[sort].max_slots, address_spaces=spaces)
    stride = max(len(recording) // PIECES, LENGTH)
    for begin in range(0, len(recording), stride):
        slots = [slot for space in range(spaces) for slot in model.in_order(space)]
        there = [
            ("create", (False, s.id, s.base_gfn, s.npages, s.userspace_addr, s.flags, s.as_id))
            for s in slots
        ]
        piece = recording[begin : begin + LENGTH]
        yield encode(machine, there[:LENGTH] + looked_at(piece))
        yield encode(machine, there[:LENGTH] + together(piece))
        for name, values in recording[begin : begin + stride]:
            if name == "set_region":
                model.set_region(*values[1:])


def looked_at(piece: list[Call]) -> list[Call]:
    """Returns the calls with a look around after every few of them."""
    found: list[Call] = []
    for number, (name, values) in enumerate(piece):
        found.append((name, values))
        if number % 4 == 3 and name == "set_region":
            gfn = values[3] >> 12
            gfns = [gfn, max(gfn - 1, 0), gfn + (values[4] >> 12)]
            found.append(("look", (number, [gfn % (1 << 52) for gfn in gfns], 0)))
        elif number % 4 == 1:
            found.append(("walk", (number,)))
    return found


def together(piece: list[Call]) -> list[Call]:
    """Returns the changes among the calls, as transactions."""
    steps = [(name, values[1:]) for name, values in piece if name.startswith("set_region")]
    return [
        ("transaction", ("ends", False, steps[at : at + Steps.MOST // 2]))
        for at in range(0, len(steps), Steps.MOST // 2)
    ]


def every_operation() -> Iterator[bytes]:
    """Returns each operation and each step on some slots, with arbitrary arguments."""
    steps = [
        bytes([TRANSACTION, end, named, 3, 2, 0, 10, 0, step])  # the first of three steps is a move
        for step in range(len(STEPS))
        for end, named in ((0, 0), (1, 1), (2, 0))
    ]
    for turn in range(EACH):
        for begun in [*(bytes([number]) for number in range(len(TABLE))), *steps]:
            choose = random.Random(begun + bytes([turn]))
            spaces = (1, 2)[turn % 2]
            machine = (turn % len(SORTS), spaces, (0, 1, 3)[turn % 3])
            start = encode(machine, slots_to_begin_with(turn))
            small = bytes(choose.randrange(8) for _ in range(16))
            yield encode(*decode(start + begun + small))
            anything = bytes(choose.choice((choose.randrange(256), 1)) for _ in range(24))
            yield encode(*decode(start + begun + anything))


def slots_to_begin_with(turn: int) -> list[Call]:
    return [
        ("subscribe", (0, SUBSCRIBERS[turn % 3])),
        ("create", (False, 0, 0, 70, 0x1000, 1, 0)),
        ("create", (False, 1, 80, 3, 0x9000, 2, 0)),
        ("create", (True, 2, 90, 5, 0x8000, 0, turn % 2)),
        ("walk", (0,)),
    ]


def traces() -> Iterator[bytes]:
    """Returns inputs of fuzz_traces.py."""
    for path in TRACES:
        raw = path.read_bytes()
        text = gzip.decompress(raw) if path.suffix == ".gz" else raw
        lines = text.splitlines(keepends=True)
        for begin in range(0, len(lines), LINES):
            part = b"".join(lines[begin : begin + LINES])
            if begin == 0 or b"MEMORY_REGION" in part or b"kvm_set_user_memory" in part:
                yield b"\0" + part
        some = [line for line in lines if b"MEMORY_REGION" in line or b"kvm_set" in line][:4]
        for how in range(36):
            yield bytes([how]) + b"".join(some)
        yield b"\0" + gzip.compress(b"".join(some), mtime=0)


def words() -> list[bytes]:
    """Returns the words that the readers look for, for libFuzzer to insert anywhere."""
    found = set(WORDS.split(b"|"))
    found |= {
        name.encode() for name in (*strace_ioctls.FLAG_NAMES, *strace_ioctls.CAPABILITIES.values())
    }
    return sorted(found)


#: More words of trace lines.
WORDS = (
    b"ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=|ioctl(|KVM_SET_USER_MEMORY_REGION2|, flags=|0x2"
    b"|guest_phys_addr=|memory_size=|userspace_addr=|guest_memfd=|}) = 0\n|) = -1 EEXIST (|) = ? "
    b"|) = -1 EINVAL (Invalid argument)\n| <unfinished ...>\n|<... ioctl resumed>|[pid 7] "
    b"|0x4020ae46|_IOC(_IOC_WRITE, 0xae, 0x46, 0x20)|KVM_CHECK_EXTENSION|clone(|CLONE_THREAD"
    b"|vfork() = 9\n|execve(|close(8) = 0\n|+++ exited with 0 +++\n|strace: Process 9 attached"
    b"|(INJECTED)|... |12:00:00|1700000000.123456| ENOMEM|AddrSpace#1 Slot#| flags=0x| gpa=0x"
    b"| size=0x| ua=0x| ret=-17| ret=0\n|guest_memfd=3 guest_memfd_offset=0x0|7@1700000000.123456:"
    b"|MEMORY_REGION|KVM_CREATE_VM|_IOC(_IOC_|0xae|0ae4|fork(|dup2(|F_DUPFD|strace: Process |+++"
    b"|kvm_set_user_memory|: starting up libvirt version"
)

SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {"calls": calls, "traces": traces}

if __name__ == "__main__":
    target, directory = sys.argv[1], Path(sys.argv[2])
    directory.mkdir(parents=True, exist_ok=True)
    for count, seed in enumerate(SEEDS[target]()):
        (directory / f"seed-{count:04}").write_bytes(seed)
    if target == "traces":
        lines = ['"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in words()]
        Path(f"{directory}.dict").write_text("".join(lines), encoding="ascii")
