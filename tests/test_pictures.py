"""docs/trade.svg, which README.md shows, is what the package draws.

`python tests/test_pictures.py` draws it again.
"""

from __future__ import annotations

import re
from pathlib import Path

from memslots import MemoryMap, Memslots

PICTURE = Path(__file__).parent.parent / "docs" / "trade.svg"
GAP = 16


def trade() -> tuple[MemoryMap, MemoryMap]:
    """Returns the maps before and after the transaction of README.md."""
    vm = Memslots()
    vm.create(0, base_gfn=0x100, npages=64, userspace_addr=0x7F00_0000_0000)
    vm.create(1, base_gfn=0x200, npages=256, userspace_addr=0x7F00_0100_0000)
    before = vm.map()
    with vm.transaction() as tx:
        tx.move(0, 0x200)
        tx.move(1, 0x100)
    return before, vm.map()


def draw(before: MemoryMap, after: MemoryMap) -> str:
    """Returns both maps as one SVG picture, side by side, each as MemoryMap.svg draws it."""
    parts = [
        before.svg().replace("address space 0:", "before:"),
        after.svg().replace("address space 0:", "after one transaction:"),
    ]
    sizes = [re.match(r'<svg [^>]*width="(\d+)" height="(\d+)"', part) for part in parts]
    widths = [int(size[1]) for size in sizes if size is not None]
    height = max(int(size[2]) for size in sizes if size is not None)
    width = sum(widths) + GAP
    second = parts[1].replace("<svg ", f'<svg x="{widths[0] + GAP}" ', 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" role="img">\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n{parts[0]}\n{second}\n</svg>\n'
    )


def test_the_picture_is_current() -> None:
    assert PICTURE.read_text(encoding="utf-8") == draw(*trade())


if __name__ == "__main__":
    PICTURE.write_text(draw(*trade()), encoding="utf-8")
