"""Finds which module of a Cython package needs which: reads all imports from the sources.

A module is all files of one stem: x.pyx, x.pxd and x.pyi, or x.py. Its name leaves the package out:
`core.slot`, `replay` for replay/__init__.py, and `__init__` for the package's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = (".py", ".pyx", ".pxd", ".pyi")
# Strings and comments contain words that look like imports.
HIDDEN = re.compile(
    r'("""|\'\'\')(?:\\.|(?!\1).)*\1|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|#[^\n]*', re.DOTALL
)
STATEMENT = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<source>[\w.]+)[ \t]+c?import[ \t]*(?P<names>\([^)]*\)|[^\n(]+)"
    r"|c?import[ \t]+(?P<modules>[\w., \t]+))",
    re.MULTILINE,
)
# Modules that memslots.pyx imports on first use.
LATE = re.compile(r'\blate\(\s*"(?P<source>[\w.]+)",\s*"(?P<name>\w+)"\)')


@dataclass(frozen=True, slots=True)
class Import:
    """One import: which module needs which name of which, and where that is written.

    `hard` is False if only a type checker reads it: in a stub, or under TYPE_CHECKING.
    """

    module: str
    needs: str
    name: str
    where: str
    hard: bool


def module_name(root: Path, path: Path) -> str:
    """Returns the name of the module that a file belongs to."""
    parts = list(path.relative_to(root).with_suffix("").parts)
    if parts[-1] == "__init__" and len(parts) > 1:
        parts.pop()
    return ".".join(parts)


def files_of(root: Path) -> list[Path]:
    """Returns the sources of the package at `root`."""
    return sorted(path for path in root.rglob("*") if path.suffix in SUFFIXES)


def hide(text: str) -> str:
    """Returns the text with strings and comments blanked, and its lines where they were."""
    return HIDDEN.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)


def resolve(package: str, modules: set[str], dotted: str) -> str | None:
    """Returns the module that a dotted path names, or None if it is none of the package's."""
    if dotted == package:
        return "__init__"
    inner = dotted.removeprefix(f"{package}.")
    return inner if inner != dotted and inner in modules else None


def imports_of_file(root: Path, path: Path, modules: set[str]) -> Iterator[Import]:
    """Yields the imports of one file that stay in the package."""
    whole = path.read_text(encoding="utf-8")
    text = hide(whole)
    package, module = root.name, module_name(root, path)
    # The beginning and end of the lines under `if TYPE_CHECKING:`.
    blocks = re.finditer(r"^if TYPE_CHECKING:\n((?:[ \t]+[^\n]*\n|\n)+)", text, re.MULTILINE)
    checking = [found.span() for found in blocks]
    for found in LATE.finditer(whole):
        where = f"{path.relative_to(root.parent)}:{text.count(chr(10), 0, found.start()) + 1}"
        needs = resolve(package, modules, found["source"])
        if needs is not None:
            yield Import(module, needs, found["name"], where, True)
    for found in STATEMENT.finditer(text):
        where = f"{path.relative_to(root.parent)}:{text.count(chr(10), 0, found.start()) + 1}"
        soft = path.suffix == ".pyi" or any(a <= found.start() < b for a, b in checking)
        pairs: list[tuple[str, str]] = []
        if found["source"]:
            names = [part.split() for part in found["names"].strip("() \n").split(",")]
            pairs = [(found["source"], words[0]) for words in names if words]
        else:
            parts = [part.split() for part in found["modules"].split(",")]
            pairs = [(words[0], "") for words in parts if words]
        for source, name in pairs:
            # `from memslots.cli import text_output` needs that module, not the package's __init__.
            needs = resolve(package, modules, f"{source}.{name}") if name else None
            if needs is None:
                needs = resolve(package, modules, source)
            if needs is not None and needs != module:
                yield Import(module, needs, name, where, not soft)


def imports_of(root: Path) -> list[Import]:
    """Returns all imports of the package at `root` that stay in it."""
    files = files_of(root)
    modules = {module_name(root, path) for path in files}
    return [each for path in files for each in imports_of_file(root, path, modules)]


def door(root: Path) -> dict[str, tuple[set[str], set[str]]]:
    """Returns for each module of core what its door names: for code outside, and for us alone."""
    text = (root / "core" / "__init__.pxd").read_text(encoding="utf-8")
    _, _, lists = text.partition("\nOpen to Cython code outside")
    named: dict[str, tuple[set[str], set[str]]] = {}
    for number, part in enumerate(lists.split("\nFor memslots alone:\n")):
        for module, names in re.findall(r"^  (\w+) ((?:.*\n {14,})*.*)$", part, re.MULTILINE):
            named.setdefault(module, (set(), set()))[number].update(names.split())
    return named
