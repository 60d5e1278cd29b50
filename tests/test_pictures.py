"""The pictures of the docs are current, pages show them, and they are true.

`python tests/test_pictures.py` draws them again.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pictures import CHANGES, PICTURES, Step

from memslots import Flags, Memslots, Slot

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "pictures"
RAM = 0x7F00_0000_0000


@pytest.mark.parametrize("name", PICTURES)
def test_the_picture_is_current(name: str) -> None:
    assert (FOLDER / f"{name}.svg").read_text(encoding="utf-8") == PICTURES[name]()


def test_there_are_no_others() -> None:
    assert {path.stem for path in FOLDER.glob("*.svg")} == PICTURES.keys()


def test_pages_show_every_picture_and_say_what_it_shows() -> None:
    shown: dict[str, str] = {}
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        text = page.read_text(encoding="utf-8")
        for alt, name in re.findall(r"!\[([^\]]*)\]\((?:docs/)?pictures/(\S+)\.svg\)", text):
            shown[name] = alt
            assert len(alt.split()) >= 8, f"{page.name}: {name}: the alternative text"
    assert shown.keys() == PICTURES.keys()


@pytest.mark.parametrize("name", PICTURES)
def test_nothing_is_outside_the_picture(name: str) -> None:
    root = ET.fromstring(PICTURES[name]())
    width = float(root.attrib["width"])
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        # In DejaVu Sans, the widest font that a browser takes, a letter has half an em and a bit.
        size = 0.53 * 12 * len("".join(text.itertext()))
        before = {"start": 0, "middle": size / 2, "end": size}[text.get("text-anchor", "start")]
        x = float(text.attrib["x"]) - before
        assert x >= 0 and x + size <= width, "".join(text.itertext())


# ------------------------------------------------------------------------------ steps of changes


class Heard:
    """Hears of changes: what was called, and which flags readers found at the slot's old place."""

    def __init__(self, vm: Memslots, refuse: bool) -> None:
        self.vm = vm
        self.refuse = refuse
        self.calls: list[tuple[str, str]] = []

    def finds(self) -> str:
        found = self.vm.lookup(0)
        return "-" if found is None else "x" if found.flags & Flags.INVALID else "o"

    def invalidate(self, slot: Slot) -> None:
        self.calls.append(("invalidate", self.finds()))

    def prepare(self, *change: Any) -> None:
        self.calls.append(("prepare", self.finds()))
        if self.refuse:
            raise RuntimeError("no")

    def commit(self, *change: Any) -> None:
        self.calls.append(("commit", self.finds()))


def split(vm: Memslots) -> None:
    vm.split(0, 8)


MAKE: dict[str, Callable[[Memslots], Any]] = {
    "create": lambda vm: vm.create(1, 0x100, 16, RAM),
    "flags": lambda vm: vm.set_flags(0, Flags.LOG_DIRTY_PAGES),
    "delete": lambda vm: vm.delete(0),
    "move": lambda vm: vm.move(0, 0x100),
    "refused": lambda vm: vm.move(0, 0x100),
    "transaction": split,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_memslots_takes_these_steps(name: str) -> None:
    steps = CHANGES[name][1]
    vm = Memslots()
    vm.create(0, 0, 16, RAM)
    heard = Heard(vm, refuse=name == "refused")
    vm.subscribe(heard)
    before = vm.generation
    if heard.refuse:
        with pytest.raises(RuntimeError, match="no"):
            MAKE[name](vm)
    else:
        MAKE[name](vm)
    assert vm.generation - before == sum(step.swaps for step in steps)
    invalid = [step for step in steps if "invalidate" in step.note and "x" in step.active]
    for call, found in heard.calls:
        if invalid and call in ("invalidate", "prepare"):
            assert found == "x"
            assert call in invalid[0].note
    assert ("commit" in dict(heard.calls)) is not heard.refuse


def faults(steps: Sequence[Step]) -> list[Step]:
    """Returns the steps that cannot follow the steps before them."""
    found = [] if steps[0].active == steps[0].inactive else [steps[0]]  # P1
    for was, step in pairwise(steps):
        if step.swaps:
            right = (step.active, step.inactive) == (was.inactive, was.active)
        else:  # readers' set is not written, and after a swap the other is not until it is free
            right = step.active == was.active and (
                not was.swaps or (step.name == "grace" and step.inactive == was.inactive)
            )
        if not right:
            found.append(step)
    return found if steps[-1].active == steps[-1].inactive else [*found, steps[-1]]


@pytest.mark.parametrize("name", CHANGES)
def test_the_sets_follow_from_one_another(name: str) -> None:
    assert not faults(CHANGES[name][1])


@pytest.mark.parametrize("missing", range(5))
def test_a_missing_step_is_seen(missing: int) -> None:
    steps = CHANGES["flags"][1]
    left = [step for n, step in enumerate(steps) if n != missing]
    assert faults(left)


if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw(), encoding="utf-8")
