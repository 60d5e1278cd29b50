"""The pictures of the docs: `PICTURES` has each by its name in docs/pictures.

What the package can compute is computed: the picture of a plan is drawn of a plan, that of dirty
marks of dirty logs. The steps of changes are written down here, and test_pictures.py compares them
with what a Memslots does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from drawing import WIDTH, Drawing, legend

from memslots import Backing, Flags, GuestMemory, MemoryMap, Memslots, plan

# ------------------------------------------------------------------------------ steps of a change


@dataclass(frozen=True)
class Step:
    """A step: the slots of both sets after it, by their letters; `-` for none."""

    name: str
    active: str
    inactive: str
    note: str = ""

    @property
    def swaps(self) -> bool:
        return self.name == "swap"


GENERATION = "the generation goes on by one step"
CREATE = (
    Step("before", "-", "-"),
    Step("stage", "-", "n", "listeners' prepare and the backend have agreed; all memory is there"),
    Step("swap", "n", "-", "readers find n from here on"),
    Step("grace", "n", "-", "the writer waits until no reader is left in set 0"),
    Step("carry over", "n", "n", GENERATION),
)
FLAGS = (
    Step("before", "o", "o", "o is the slot as it is"),
    Step("stage", "o", "n", "n is its copy with the new flags; nobody reads set 1"),
    Step("swap", "n", "o", "readers find n from here on"),
    Step("grace", "n", "o", "the writer waits until no reader is left in set 0"),
    Step("carry over", "n", "n", f"o is freed; {GENERATION}"),
)
_MARKED = (
    Step("before", "o", "o", "o is the slot as it is"),
    Step("stage", "o", "x", "x is its copy with the flag INVALID"),
    Step("swap", "x", "o", "readers find x: the slot is there, and nothing may be done with it"),
    Step("grace", "x", "o", f"{GENERATION}; listeners' invalidate(slot), then their prepare(...)"),
)
DELETE = (
    *_MARKED,
    Step("stage", "x", "-", "listeners and the backend have agreed"),
    Step("swap", "-", "x", "readers find no slot"),
    Step("grace", "-", "x", "the writer waits until no reader is left in set 1"),
    Step("carry over", "-", "-", f"o and x are freed; {GENERATION}; listeners' commit(...)"),
)
MOVE = (
    *_MARKED,
    Step("stage", "x", "n", "n is the copy in its new place; the dirty log goes with it"),
    Step("swap", "n", "x", "readers find n in its new place"),
    Step("grace", "n", "x", "the writer waits until no reader is left in set 1"),
    Step("carry over", "n", "n", f"o and x are freed; {GENERATION}; listeners' commit(...)"),
)
REFUSED = (
    *_MARKED[:3],
    Step("grace", "x", "o", f"{GENERATION}; invalidate(slot), then prepare(...), which raises"),
    Step("swap", "o", "x", "readers find o again"),
    Step("grace", "o", "x", "the writer waits until no reader is left in set 1"),
    Step("carry back", "o", "o", f"x is freed; {GENERATION}"),
)
TRANSACTION = (
    Step("before", "a", "a"),
    Step("tx.delete", "a", "-"),
    Step("tx.create", "a", "b"),
    Step("tx.create", "a", "b c"),
    Step(
        "end of body",
        "a",
        "b c",
        "slots must not overlap now; every invalidate, every prepare, then the backend",
    ),
    Step("swap", "b c", "a", "readers find b and c from here on"),
    Step("grace", "b c", "a", "the writer waits until no reader is left in set 0"),
    Step(
        "carry over",
        "b c",
        "b c",
        f"a's marks go to b and c; a is freed; {GENERATION}; every commit, in order",
    ),
)
CHANGES = {
    "create": ("A create, step by step", CREATE),
    "flags": ("A change of flags, step by step", FLAGS),
    "delete": ("A delete, step by step", DELETE),
    "move": ("A move, step by step", MOVE),
    "refused": ("A change that a listener refuses, step by step", REFUSED),
    "transaction": ("A transaction that splits a slot, step by step", TRANSACTION),
}

_SETS = (100, 240)  # the left edges of the columns
_COLUMN = 104
_ROW = 36
_KINDS = {"o": "old", "a": "old", "x": "invalid", "n": "new", "b": "new", "c": "new"}


def change(title: str, steps: Sequence[Step]) -> str:
    """Returns the picture of a change: time runs down, and each set has a column."""
    drawing = Drawing(title)
    top = 40
    active = [sum(step.swaps for step in steps[: n + 1]) % 2 for n in range(len(steps))]
    for side in (0, 1):
        x = _SETS[side]
        drawing.text(x + _COLUMN / 2, 20, f"set {side}", "ink bold", "middle")
        drawing.box(x, top, _COLUMN, _ROW * len(steps), "quiet")
    for n, step in enumerate(steps):
        y = top + _ROW * n
        if step.name == "grace":
            drawing.box(8, y + 2, WIDTH - 16, _ROW - 4, "grace")
        drawing.box(_SETS[active[n]], y, _COLUMN, _ROW, "active", 0)
        if step.swaps:
            there = "M208 {0:g}H236" if active[n] else "M236 {0:g}H208"
            drawing.path(there.format(y + _ROW / 2), "reader", "head")
        drawing.text(14, y + _ROW / 2, step.name, "ink small" if " " in step.name else "ink")
        drawing.lines(356, y + _ROW / 2, step.note, 58)
    _slots(drawing, steps, active, top)
    _readers(drawing, steps, active, top)
    end = top + _ROW * len(steps)
    legend(
        drawing,
        end + 20,
        [
            ("box", "active", "active set"),
            ("line", "reader", "a reader in its section"),
            ("box", "wire accent", "what the step changes"),
            ("box", "grace", "grace period"),
        ],
    )
    return drawing.svg(end + 38)


def _slots(drawing: Drawing, steps: Sequence[Step], active: Sequence[int], top: int) -> None:
    """Draws the slots that each set has after each step."""
    before = (steps[0].active, steps[0].inactive)
    for n, step in enumerate(steps):
        y = top + _ROW * n + _ROW / 2
        sides = (step.active, step.inactive) if active[n] == 0 else (step.inactive, step.active)
        for side, (names, was) in enumerate(zip(sides, before, strict=True)):
            for k, name in enumerate(names.split()):
                x = _SETS[side] + 30 + 32 * k
                if name == "-":
                    drawing.path(f"M{x - 6} {y:g}h12", "line")
                    if was != names:
                        drawing.box(x - 13, y - 11, 26, 22, "wire accent dashed")
                else:
                    drawing.slot(x, y, name, _KINDS[name], was != names and name not in was)
        before = sides


def _readers(drawing: Drawing, steps: Sequence[Step], active: Sequence[int], top: int) -> None:
    """Draws a reader that enters before each swap, and one that stays after the last."""
    entered = top + _ROW * 0.5
    for n, step in enumerate(steps):
        if not step.swaps:
            continue
        x = _SETS[active[n - 1]] + _COLUMN - 12
        left = top + _ROW * (n + 1.5)
        _reader(drawing, x, entered, left)
        entered = top + _ROW * (n + 0.5)
    x = _SETS[active[-1]] + _COLUMN - 12
    _reader(drawing, x, entered, top + _ROW * len(steps) - 4)


def _reader(drawing: Drawing, x: float, entered: float, left: float) -> None:
    drawing.path(f"M{x:g} {entered:g}V{left:g}", "reader")
    drawing.path(f"M{x - 5:g} {entered:g}h10M{x - 5:g} {left:g}h10", "reader")


# ------------------------------------------------------------------------------- the grace period

#: What happens, both counters, the turn, and what follows from it.
GRACE = (
    ("reader A enters", 1, 0, 0, "A may read the set that is active now"),
    ("the writer swaps", 1, 0, 0, "A may still read the old set"),
    ("the writer waits for counter 1", 1, 0, 0, "nobody is left there from the turn before"),
    ("the writer turns over", 1, 0, 1, "new readers use counter 1"),
    ("reader B enters", 1, 1, 1, "B cannot have the old set"),
    ("reader A leaves", 0, 1, 1, "the writer's wait ends; it does not wait for B"),
)


def grace() -> str:
    """Returns the picture of a grace period: time runs down."""
    drawing = Drawing("A grace period: the writer waits for the reader that entered before it")
    top, row = 40, 34
    lanes = {"A": 236, "writer": 276, "B": 316}
    for name, x in lanes.items():
        drawing.text(x, 20, name, "ink bold", "middle")
    for x, name in ((366, "counter 0"), (436, "counter 1")):
        drawing.text(x, 20, name, "ink bold small", "middle")
    drawing.box(8, top + row * 2 + 2, WIDTH - 16, row * 4 - 4, "grace")
    for n, (event, zero, one, turn, note) in enumerate(GRACE):
        y = top + row * n + row / 2
        drawing.text(14, y, event)
        drawing.box((331, 401)[turn], y - 12, 70, 24, "active")
        for x, count in ((366, zero), (436, one)):
            drawing.text(x, y, str(count), "ink code" if count else "soft code", "middle")
        drawing.lines(480, y, note, 40)
    middle = [top + row * n + row / 2 for n in range(len(GRACE))]
    _reader(drawing, lanes["A"], middle[0], middle[5])
    _reader(drawing, lanes["B"], middle[4], top + row * len(GRACE) - 3)
    drawing.path(f"M{lanes['writer']} {middle[1]:g}V{middle[5]:g}", "line dashed")
    for n in (1, 3, 5):
        drawing.dot(lanes["writer"], middle[n], "ink", 5)
    end = top + row * len(GRACE)
    legend(
        drawing,
        end + 20,
        [
            ("line", "reader", "a reader in its section"),
            ("line", "line dashed", "the writer waits"),
            ("box", "active", "the counter that new readers use"),
            ("box", "grace", "grace period"),
        ],
    )
    return drawing.svg(end + 38)


# --------------------------------------------------------------------------------------- two sets


def sets() -> str:
    """Returns the picture of two sets whose trees go through the same three slots."""
    drawing = Drawing("Two sets, one copy of each slot: the trees of both sets go through it")
    width, height, y = 196, 96, 148
    centres = {3: 206, 7: 418, 9: 630}
    for base, x in centres.items():
        left = x - width / 2
        drawing.box(left, y, width, height, "old line")
        drawing.text(x, y + 36, f"slot: base_gfn {base:#x}, npages,", "ink small", "middle")
        drawing.text(x, y + 36 + 18, "userspace_addr, id, flags, ...", "ink small", "middle")
        for side, edge in ((0, y + 12), (1, y + height - 12)):
            drawing.dot(x - 84, edge, f"dot{side}")
            drawing.text(x - 74, edge, f"gfn_node[{side}], hva_node[{side}]", "soft small")
    drawing.box(10, y + 16, 70, 64, "quiet line")
    for n, word in enumerate(("address", "space")):
        drawing.text(45, y + 40 + 16 * n, word, "ink", "middle")
    heads = ((0, 22, "set 0, active: readers use it"), (1, 344, "set 1, inactive: for the writer"))
    for side, head, name in heads:
        drawing.box(228, head, 380, 40, ("active" if side == 0 else "quiet") + " line")
        drawing.text(418, head + 13, name, "ink bold small", "middle")
        drawing.text(
            418,
            head + 28,
            "gfn tree, hva tree, id table, last-used, generation"
            if side
            else "gfn tree, hva tree, id table, last-used, generation, index",
            "soft small",
            "middle",
        )
        down = side == 0
        edge = y if down else y + height
        near = edge - 4 if down else edge + 4
        root = centres[7] - 84
        drawing.path(f"M{root} {head + 40 if down else head}V{near}", f"edge{side}", f"head{side}")
        bend = edge - 44 if down else edge + 44
        for child in (3, 9):
            to = centres[child] - 84
            drawing.path(
                f"M{root} {edge}C{root} {bend} {to} {bend} {to} {near}",
                f"edge{side}",
                f"head{side}",
            )
        mouth = y + 16 if down else y + 80
        drawing.path(f"M45 {mouth}V{head + 20}H224", "line", "head")
        drawing.text(52, head + 10, "active" if down else "inactive", "ink small")
    note = (
        "A swap lets the arrows of the address space change places. The trees by host address go "
        "through hva_node[0] and hva_node[1] in the same way."
    )
    drawing.lines(14, 414, note, 110)
    return drawing.svg(440)


# ---------------------------------------------------------------------------------------- an index


def index() -> str:
    """Returns the picture of an index of 40 slots, and of the way of one look-up through it."""
    drawing = Drawing("The index of a set: nodes of 16 keys, rows of 32 bytes, Slots")
    keys = [0x100 + 0x40 * n for n in range(40)]
    wanted, place = 0x5D0, 19
    cell, gap, left = 13, 16, 20
    x_of = [left + n * cell + n // 16 * gap for n in range(40)]
    drawing.text(left, 20, f"which slot holds gfn {wanted:#x}?", "ink bold")
    top, low, rows = 40, 100, 180
    starts = [x_of[0], x_of[16], x_of[32]]
    for n in range(16):
        kind = "active" if n == place // 16 else "old" if n < 3 else "quiet"
        drawing.box(left + n * cell, top, cell, 22, f"{kind} line", 0)
    note = "a node of 16 keys is one cache line: an instruction or two count those <= the gfn"
    drawing.lines(left + 16 * cell + 14, top + 11, note, 60)
    for n, x in enumerate(x_of):
        kind = "active" if n == place else "old"
        drawing.box(x, low, cell, 22, f"{kind} line", 0)
    for n in range(8, 16):
        drawing.box(starts[2] + n * cell, low, cell, 22, "quiet line", 0)
    text = "the base gfns, as 32-bit numbers"
    drawing.text(starts[2] + 16 * cell, low + 36, text, "soft small", "end")
    for n in range(3):
        kind = "edge0" if n == place // 16 else "line"
        arrow = "head0" if n == place // 16 else "head"
        drawing.path(
            f"M{left + n * cell + cell / 2:g} {top + 22}L{starts[n] + 4} {low - 2}", kind, arrow
        )
    drawing.path(
        f"M{x_of[place] + cell / 2:g} {low + 22}V{rows - 12}H{left + 54}V{rows + 38}H{left + 63}",
        "edge0",
        "head0",
    )
    fields = (("base_gfn", 8), ("npages", 4), ("id", 4), ("hva, flags", 8), ("Slot", 8))
    for n, row in enumerate(range(place - 1, place + 2)):
        x, y = left + 64, rows + 26 * n
        drawing.text(left, y + 12, f"row {row}", "soft small")
        for name, size in fields:
            width = size * 13
            drawing.box(x, y, width, 24, ("active" if row == place else "quiet") + " line", 0)
            text = f"{keys[row]:#x}" if name == "base_gfn" else name
            drawing.text(x + width / 2, y + 12, text, "ink code", "middle")
            x += width
    end = left + 64 + 32 * 13
    drawing.path(f"M{end} {rows + 38}H{end + 34}", "edge0", "head0")
    drawing.box(end + 36, rows + 18, 150, 40, "new line")
    drawing.text(end + 111, rows + 31, "Slot", "ink code", "middle")
    drawing.text(end + 111, rows + 46, "one more reference", "soft small", "middle")
    drawing.text(
        left + 64, rows + 90, "a row has 32 bytes, with all that an answer needs", "soft small"
    )
    return drawing.svg(rows + 108)


# ------------------------------------------------------------------------------------- dirty marks


def marks() -> str:
    """Returns the picture of a write, and of the marks that it leaves in the dirty logs."""
    vm = Memslots()
    memory = GuestMemory(vm)
    for id, (first, end, flags) in enumerate(((0, 6, 1), (6, 10, 0), (10, 16, 1))):
        size = (end - first) << 12
        memory.place(id, first << 12, Backing.anonymous(size), flags=Flags(flags))
    gpa, size = 0x3F00, 0x6F00
    memory.write(gpa, bytes(size))
    logs = {
        slot.id: slot.flags & Flags.LOG_DIRTY_PAGES and vm.get_dirty_log(slot.id) for slot in vm
    }
    memory.write(gpa, bytes(size))
    runs = vm.take_dirty_runs()

    drawing = Drawing("A write across three slots, and its marks in the dirty logs")
    left, cell = 96, 39
    page = {gfn: left + gfn * cell for gfn in range(17)}
    rows = {"write": 26, "gfn": 62, "slot": 96, "log": 134, "runs": 172}
    for name, text in (
        ("write", "write"),
        ("gfn", "gfn"),
        ("slot", "slots"),
        ("log", "dirty logs"),
    ):
        drawing.text(14, rows[name], text)
    write_x, write_end = left + gpa / 4096 * cell, left + (gpa + size) / 4096 * cell
    drawing.box(write_x, rows["write"] - 11, write_end - write_x, 22, "new line")
    text = f"write({gpa:#x}, {size:#x} bytes)"
    drawing.text((write_x + write_end) / 2, rows["write"], text, "ink code", "middle")
    for gfn in range(16):
        drawing.box(page[gfn], rows["gfn"] - 11, cell, 22, "quiet line", 0)
        drawing.text(page[gfn] + cell / 2, rows["gfn"], f"{gfn:x}", "ink code", "middle")
    for slot in vm:
        x, width = page[slot.base_gfn], slot.npages * cell
        drawing.box(x + 2, rows["slot"] - 13, width - 4, 26, "active line")
        name = "logs" if logs[slot.id] else "does not log"
        drawing.text(x + width / 2, rows["slot"], f"slot {slot.id}: {name}", "ink", "middle")
        if not logs[slot.id]:
            drawing.text(x + width / 2, rows["log"], "-", "soft code", "middle")
            continue
        bits = int.from_bytes(logs[slot.id], "little")
        for n in range(slot.npages):
            bit = bits >> n & 1
            kind = "invalid line" if bit else "old line"
            drawing.box(page[slot.base_gfn + n], rows["log"] - 11, cell, 22, kind, 0)
            at = page[slot.base_gfn + n] + cell / 2
            drawing.text(at, rows["log"], str(bit), "ink code", "middle")
    drawing.text(14, rows["runs"], "runs")
    for run in runs:
        x, y, to = page[run.start_gfn], rows["runs"], page[run.end_gfn]
        drawing.path(f"M{x + 2} {y - 5}v10M{x + 2} {y}H{to - 2}M{to - 2} {y - 5}v10", "accent")
        text = f"[{run.start_gfn:#x}, {run.end_gfn:#x})"
        drawing.text((x + to) / 2, y + 16, text, "soft code", "middle")
    return drawing.svg(204)


# ------------------------------------------------------------------------------------------ a plan


def absent() -> str:
    """Returns the picture of the plan of docs/plans.md: which memory is there after each call."""
    ram, video = 0x7F00_0000_0000, 0x7E00_0000_0000
    now = MemoryMap([(0, 0x10000, ram)])
    hole = MemoryMap([(0xA0, 0x20, video)])
    made = plan(now, now | hole)
    vm = Memslots(now)
    maps = [vm.map()]
    for call in made.calls:
        vm.set_region(*call)
        maps.append(vm.map())

    drawing = Drawing("A plan of four calls: which slot holds each range after each call")
    left, top, width, height = 190, 58, 106, 30
    ranges = [(slot.base_gfn, slot.end_gfn) for slot in made.wanted]
    names = ["before", *(f"call {n}" for n in range(len(made)))]
    calls = ["", *("CREATE" if call.memory_size else "DELETE" for call in made.calls)]
    for n, (name, what) in enumerate(zip(names, calls, strict=True)):
        x = left + n * width + width / 2
        drawing.text(x, 18, name, "ink bold", "middle")
        text = f"{what} {made.calls[n - 1].slot}" if n else ""
        drawing.text(x, 36, text, "soft code", "middle")
    for k, (start, end) in enumerate(ranges):
        y = top + k * height
        drawing.text(left - 12, y + 13, f"[{start << 12:#x}, {end << 12:#x})", "ink code", "end")
        for n, found in enumerate(maps):
            slot = found.lookup(start)
            kind = (
                "invalid" if slot is None else "new" if slot.userspace_addr == video else "active"
            )
            drawing.box(left + n * width + 1, y, width - 2, height - 4, f"{kind} line", 0)
            text = "absent" if slot is None else f"slot {slot.id}"
            at = left + n * width + width / 2
            drawing.text(at, y + 13, text, "ink", "middle")
    end = top + len(ranges) * height
    legend(
        drawing,
        end + 14,
        [
            ("box", "active line", "RAM"),
            ("box", "new line", "video memory"),
            ("box", "invalid line", "a window: the memory is in no slot until a later call"),
        ],
    )
    return drawing.svg(end + 32)


# ---------------------------------------------------------------------------------- a transaction


def trade() -> str:
    """Returns the maps before and after the transaction of README.md, as MemoryMap.svg draws them.

    Side by side they would be too small to read on a page.
    """
    vm = Memslots()
    vm.create(0, base_gfn=0x100, npages=64, userspace_addr=0x7F00_0000_0000)
    vm.create(1, base_gfn=0x200, npages=256, userspace_addr=0x7F00_0100_0000)
    before = vm.map().svg().replace("address space 0:", "before:")
    with vm.transaction() as tx:
        tx.move(0, 0x200)
        tx.move(1, 0x100)
    after = vm.map().svg().replace("address space 0:", "after one transaction:")
    width, first = size_of(before)
    height = first + size_of(after)[1]
    below = after.replace("<svg ", f'<svg y="{first}" ', 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" role="img">\n{before}\n{below}\n</svg>\n'
    )


def size_of(svg: str) -> tuple[int, int]:
    """Returns the width and the height of a picture."""
    found = re.match(r'<svg [^>]*?width="(\d+)" height="(\d+)"', svg)
    assert found is not None
    return int(found[1]), int(found[2])


#: What makes each picture, by its name in docs/pictures.
PICTURES: dict[str, Callable[[], str]] = {
    "sets": sets,
    "grace": grace,
    "index": index,
    "marks": marks,
    "plan": absent,
    "trade": trade,
    **{f"change-{name}": partial(change, *of) for name, of in CHANGES.items()},
}
