"""QEMU's `info mtree -f` (flat views) and `info mtree` (the tree behind the flat views)."""

from __future__ import annotations

import re
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise
from operator import itemgetter

from memslots.maps.entries import MEMORY, Entry, Map, cut_off, joined
from memslots.values.records import Flags

#: The heading of a view. QEMU before 2.11 prints a view for each address space.
_VIEW = re.compile(r"FlatView #\d+|address-space \(flat view\): ")
_SPACE = re.compile(r'^\W*(?:AS "|address-space \(flat view\): )([^"\r\n]*)', re.MULTILINE)
_RANGE = re.compile(
    r"^(?:[^0-9a-f\n]*[^ 0-9a-f\n])?(?P<indent> *)(?P<start>[0-9a-f]{16})-(?P<end>[0-9a-f]{16}) "
    r"\(prio (?P<prio>-?\d+), (?P<kind>[\w/-]+)\): ?(?P<rest>[^\r\n]*)",
    re.MULTILINE,
)
#: What the option -o adds: the owner of a region.
_OWNER = re.compile(r" (?:owner|parent):\{[^}]*\}")
_ROOT = re.compile(r"Root memory region: (?P<name>[^\r\n]*)")
_BEGINS = re.compile(r"[^0-9a-f]*[0-9a-f]{16}-[0-9a-f]{16}\b")
#: The second line of a range that a mail wrapped.
_CONTINUES = re.compile(r"(?:@|\[disabled\]|owner:|parent:|(?:.* )?KVM$)", re.IGNORECASE)
_OFFSET = re.compile(r" @([0-9a-f]{16})\b")
#: An alias or an offset without its last digits, and a last line that ends before its name.
_CUT = re.compile(r"alias |.* @[0-9a-f]{0,15}$")
_CUT_LINE = re.compile(
    r"^[^0-9a-f\n]*[0-9a-f]{16}-[0-9a-f]{0,16}(?: (?:\([^\n]*)?)?\Z", re.MULTILINE
)
_KINDS = {
    "ram": "ram",
    "nv-ram": "ram",
    "rom": "rom",
    "nv-rom": "rom",
    "romd": "romd",
    "nv-romd": "romd",
    "ramd": "mmio",
    "i/o": "mmio",
    "container": "other",
}
_OLD_KINDS = ("RW", "R-", "-W", "--")
_TREE = re.compile(r"^\W*(?:address-space: |memory-region: )(?P<name>[^\r\n]+)", re.MULTILINE)
_ALIAS = re.compile(
    r"alias (?P<name>.+?) @(?P<target>\S.*?) (?P<from>[0-9a-f]{16})-(?P<to>[0-9a-f]{16})"
)
_SPACES = ("memory", "cpu-memory")  # QEMU's address spaces behind KVM's address space 0
_SMM = ("KVM-SMRAM", "cpu-smm")  # those behind KVM's address space 1
_LAST = (1 << 64) - 1
_DEEPEST = 64  # most levels of regions and aliases that are followed


class FlatViews:
    """`info mtree -f`: flat ranges with inclusive ends; ` KVM` marks ranges with a KVM slot."""

    name = "mtree-f"

    @staticmethod
    def recognises(text: str) -> bool:
        """Returns whether an input that begins with `text` is in this format."""
        if _VIEW.search(text) is not None:
            return _RANGE.search(text) is not None
        # An excerpt without headings. The lines of a tree have different indentations, or aliases.
        tree = _TREE.search(text) is not None or any(map(_is_alias, _RANGE.finditer(text)))
        return not tree and len({*_indents(text)}) == 1

    @staticmethod
    def read(text: str) -> list[Map]:
        """Returns its maps. Raises ValueError or InvalidRegionError if it holds none."""
        text = _unwrapped(text)
        starts = [match.start() for match in _VIEW.finditer(text)]
        if not starts:
            return [_excerpt(text)]
        views = [text[a:b] for a, b in pairwise([*starts, len(text)])]
        with_kvm = _tells_kvm(text)
        found: dict[int, Map] = {}
        for view in views:
            spaces: list[str] = _SPACE.findall(view)
            as_id = 0 if _named(spaces, _SPACES) else 1 if _named(spaces, _SMM) else None
            if as_id is None or as_id in found:
                continue
            entries = joined(_flat(view, with_kvm))
            if any(entry.kind != "mmio" for entry in entries):
                found[as_id] = Map(entries, spaces[0], as_id, "mtree-f")
        smm = found.get(1)
        if smm is not None and 0 in found and smm.entries == found[0].entries:
            del found[1]
        return [found[as_id] for as_id in sorted(found)]


def _excerpt(text: str) -> Map:
    """Returns the map of lines of flat views without the names of their address spaces.

    Raises ValueError if the lines are of several views that differ.
    """
    roots = list(_ROOT.finditer(text))
    starts = [0, *(root.start() for root in roots)]
    system = [at for at, root in enumerate(roots, 1) if root["name"].strip() == "system"]
    last = -1
    for line in _RANGE.finditer(text):
        start = int(line["start"], 16)
        if start <= last and not system:
            starts.append(line.start())
        last = start
    starts.sort()
    views = [text[a:b] for a, b in pairwise([*starts, len(text)])]
    if system:
        views = [views[at] for at in system]
    with_kvm = _tells_kvm(text)
    found = {tuple(_flat(view, with_kvm)) for view in views}
    maps = {one for one in found if any(entry.kind != "mmio" for entry in one)} or found
    if len(maps) > 1:
        raise ValueError(
            f"its lines are those of {len(maps)} different flat views without the names of their"
            " address spaces: the whole output of info mtree -f has them"
        )
    return Map(joined(maps.pop()), "memory", format="mtree-f")


def _named(spaces: list[str], names: tuple[str, ...]) -> bool:
    return any(space.startswith(name) for space in spaces for name in names)


def _unwrapped(text: str) -> str:
    """Joins the lines of ranges that a mail wrapped."""
    lines: list[str] = []
    for line in text.splitlines():
        more = line.strip(" \t>|")
        last = lines[-1] if lines else ""
        if more and _BEGINS.match(last) and not _RANGE.match(line):
            whole = _RANGE.match(last)
            rest = "" if whole is None else whole["rest"].strip()
            cut = not rest or (rest.startswith("alias") and not _ALIAS.match(rest))
            if cut or _CONTINUES.match(more):
                lines[-1] = f"{last.rstrip()} {more}"
                continue
        lines.append(line)
    joined_up = "\n".join(lines)
    cut = _CUT_LINE.search(joined_up.rstrip())
    if cut is not None and not _RANGE.match(cut[0]):
        raise cut_off(cut[0])
    return joined_up


def _indents(text: str) -> Iterator[int]:
    return (len(match["indent"]) for match in _RANGE.finditer(text))


def _is_alias(match: re.Match[str]) -> bool:
    return _ALIAS.match(match["rest"]) is not None


def _rest(match: re.Match[str]) -> str:
    """Returns what follows the kind of a region, without its owner."""
    rest = _OWNER.sub("", match["rest"]).rstrip()
    if _CUT.match(rest) and not _ALIAS.match(rest):
        raise cut_off(match[0])
    return rest


def _kind(match: re.Match[str]) -> str:
    if match["kind"] in _OLD_KINDS:
        raise ValueError(
            f"its regions are of the kind {match['kind']}, as an old QEMU printed all of them: that"
            " does not tell memory from devices"
        )
    return _KINDS.get(match["kind"], "other")


def _is_kvms(rest: str) -> bool:
    return rest.rstrip().lower().endswith(" kvm")


def _tells_kvm(text: str) -> bool:
    """Returns whether a text tells which regions are KVM's."""
    return any(_is_kvms(match["rest"]) for match in _RANGE.finditer(text))


def _flat(view: str, with_kvm: bool) -> Iterator[Entry]:
    for match in _RANGE.finditer(view):
        if _is_alias(match):
            raise ValueError("it has an alias, so it is of info mtree without -f: format mtree")
        kind = _kind(match)
        rest = _rest(match)
        if _is_kvms(rest):
            rest = rest[: -len(" KVM")]
            if kind == "mmio":
                kind = "ram"  # of a device in the host (ramd), which the guest gets as a slot
        elif with_kvm and kind != "mmio":
            kind = "other"  # memory without a KVM slot
        start, end = int(match["start"], 16), int(match["end"], 16) + 1
        offset = _OFFSET.search(rest)
        name = _OFFSET.split(rest)[0].strip()
        flags = Flags.READONLY if kind in ("rom", "romd") else 0
        place = int(offset[1], 16) if offset else 0 if kind in ("ram", "rom", "romd") else None
        yield Entry(start, end - start, kind, name, place, flags=int(flags))


@dataclass
class _Region:
    """A region of the tree, with the regions that the text indents below it."""

    start: int
    end: int
    prio: int
    kind: str
    name: str
    enabled: bool = True
    alias: tuple[str, int, int] | None = None  # the target region, from, to (inclusive)
    children: list[_Region] = field(default_factory=list)


class Tree:
    """`info mtree`: nested regions, aliases and priorities, flattened as QEMU flattens them."""

    name = "mtree"

    @staticmethod
    def recognises(text: str) -> bool:
        """Returns whether an input that begins with `text` is in this format."""
        return _RANGE.search(text) is not None

    @staticmethod
    def read(text: str) -> list[Map]:
        """Returns its maps. Raises ValueError or InvalidRegionError if it holds none."""
        text = _unwrapped(text)
        if _TREE.search(text) is None:
            text = f"address-space: {_SPACES[0]}\n{text}"  # an excerpt
        heads = list(_TREE.finditer(text))
        ends = [head.start() for head in heads[1:]] + [len(text)]
        regions: dict[str, _Region] = {}
        roots: dict[str, _Region] = {}
        for head, end in zip(heads, ends, strict=True):
            root = _tree(text[head.end() : end], regions)
            if root is None:
                continue
            name = head["name"].strip()
            regions.setdefault(name, root)
            if head[0].strip().lstrip("> ").startswith("address-space"):
                roots.setdefault(name, root)
        found = []
        for as_id, names in enumerate((_SPACES, _SMM)):
            name = next((name for name in roots if name.startswith(names)), None)
            if name is not None:
                entries = joined(_draw(roots[name], regions))
                found.append(Map(entries, name, as_id, "mtree"))
        return found[:1] if len(found) > 1 and found[1].entries == found[0].entries else found


def _tree(text: str, regions: dict[str, _Region]) -> _Region | None:
    """Returns the region of a section, and adds the section's regions to `regions`."""
    stack: list[tuple[int, _Region]] = []
    roots: list[_Region] = []
    for match in _RANGE.finditer(text):
        rest = _rest(match)
        alias = _ALIAS.match(rest)
        region = _Region(
            int(match["start"], 16),
            int(match["end"], 16),
            int(match["prio"]),
            _kind(match),
            alias["name"] if alias else rest.removesuffix(" [disabled]").strip(),
            not rest.endswith("[disabled]"),
            (alias["target"], int(alias["from"], 16), int(alias["to"], 16)) if alias else None,
        )
        indent = len(match["indent"])
        while stack and stack[-1][0] >= indent:
            stack.pop()
        if stack:
            stack[-1][1].children.append(region)
        else:
            roots.append(region)
        if not alias:
            regions.setdefault(region.name, region)
        stack.append((indent, region))
    if len(roots) > 1:  # an excerpt without the region that contains them
        if not any(root.children for root in roots):
            _check_side_by_side(roots)
        return _Region(0, _LAST, 0, "other", "", children=roots)
    return roots[0] if roots else None


def _check_side_by_side(regions: list[_Region]) -> None:
    """Raises ValueError if a region may contain others, and the text lost the indentation."""
    outer: _Region | None = None  # of those that begin before, the one that ends last
    for region in sorted(regions, key=lambda one: (one.start, -one.end, one.kind in MEMORY)):
        if outer is not None and region.end <= outer.end:
            raise ValueError(
                f"its lines are not indented, so the text does not tell whether {outer.name}"
                f" contains {region.name}: give the output of info mtree with its indentation, or"
                " that of info mtree -f"
            )
        if region.kind not in MEMORY and region.alias is None:
            outer = region


def _draw(root: _Region, regions: dict[str, _Region]) -> Iterator[Entry]:
    """Yields the visible entries: where regions overlap, the one of higher priority is visible."""
    taken: list[tuple[int, int, _Region, int]] = []  # [start, end), region, offset in the region
    _render(root, 0, root.start, root.end + 1, regions, taken, 0)
    joined_up: list[tuple[int, int, _Region, int]] = []
    for part in taken:
        last = joined_up[-1] if joined_up else None
        if (
            last is not None
            and last[1] == part[0]
            and last[2] is part[2]
            and last[3] + last[1] - last[0] == part[3]
        ):
            joined_up[-1] = (last[0], part[1], *last[2:])
        else:
            joined_up.append(part)
    for start, end, region, offset in joined_up:
        memory = region.kind in MEMORY
        flags = Flags.READONLY if region.kind in ("rom", "romd") else 0
        place = offset if memory else None
        yield Entry(start, end - start, region.kind, region.name, place, flags=int(flags))


def _render(
    region: _Region,
    shift: int,
    low: int,
    high: int,
    regions: dict[str, _Region],
    taken: list[tuple[int, int, _Region, int]],
    depth: int,
) -> None:
    """Adds the visible parts of a region within [low, high) to `taken`, where it is still free.

    `shift` is the distance of the region from its addresses in the text.
    """
    start, end = max(region.start + shift, low), min(region.end + 1 + shift, high)
    if not region.enabled or start >= end or depth > _DEEPEST:
        return
    if region.alias is not None:
        name, first, _ = region.alias
        target = regions.get(name)
        if target is None and region.kind in MEMORY:
            # The text lacks the region; its alias tells its kind.
            target = regions[name] = _Region(0, _LAST, 0, region.kind, name)
        if target is not None:
            there = region.start + shift - (target.start + first)
            _render(target, there, start, end, regions, taken, depth + 1)
        return
    for child in sorted(region.children, key=lambda child: -child.prio):
        _render(child, shift, start, end, regions, taken, depth + 1)
    if region.kind == "other" or (region.children and region.kind == "mmio"):
        return  # QEMU prints a container as "i/o"; a region with children is a container
    for a, b in _free(start, end, taken):
        insort(taken, (a, b, region, a - (region.start + shift)), key=itemgetter(0))


def _free(
    start: int, end: int, taken: list[tuple[int, int, _Region, int]]
) -> list[tuple[int, int]]:
    """Returns the parts of [start, end) that are not in `taken`, which is in order."""
    left = []
    first = max(bisect_left(taken, start, key=itemgetter(0)) - 1, 0)
    for a, b, *_ in islice(taken, first, None):
        if a >= end:
            break
        if b > start:
            if a > start:
                left.append((start, a))
            start = max(start, b)
    if start < end:
        left.append((start, end))
    return left
