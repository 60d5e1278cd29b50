"""Small changes of a Cython file. Each makes a mutant that some test should notice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one line."""

    path: str  # from the checkout's root
    line: int  # from 1
    kind: str
    before: str
    after: str

    @property
    def key(self) -> str:
        """Returns the name of the mutant, wherever in the file it is."""
        return f"{self.path}: {self.before.strip()} -> {self.after.strip()}"

    def apply(self, lines: list[str], first: int = 1) -> list[str]:
        """Returns lines of the file with the change made. `first` is the number of lines[0]."""
        place = self.line - first
        assert lines[place] == self.before
        return [*lines[:place], self.after, *lines[place + 1 :]]


#: kind, what is found, its replacement
_CHANGES: list[tuple[str, str, str]] = [
    ("comparison", r"(?<![<>=!])<(?![<=\w])(?= )", "<="),
    ("comparison", r"<=", "<"),
    ("comparison", r"(?<![<>=!-])>(?![>=])(?= )", ">="),
    ("comparison", r"(?<=[^<>])>=", ">"),
    ("comparison", r"==", "!="),
    ("comparison", r"!=", "=="),
    ("comparison", r"\bis not NULL\b", "is NULL"),
    ("comparison", r"\bis NULL\b", "is not NULL"),
    ("condition", r"\band\b", "or"),
    ("condition", r"\bor\b", "and"),
    ("condition", r"\bnot (?!NULL|None|in\b)", ""),
    ("condition", r"\bTrue\b", "False"),
    ("condition", r"\bFalse\b", "True"),
    ("side", r"\bside\b(?=[\]\)])", "side ^ 1"),
    ("side", r"\bLEFT\b", "RIGHT"),
    ("side", r"\bRIGHT\b", "LEFT"),
    ("side", r"\bspace_active\(", "space_inactive("),
    ("side", r"\bspace_inactive\(", "space_active("),
    ("side", r"\bmin\(", "max("),
    ("side", r"\bmax\(", "min("),
    ("count", r"\+= 1\b", "+= 2"),
    ("count", r"-= 1\b", "-= 2"),
    ("count", r"(?<=[\w\)\]]) \+ 1\b", ""),
    ("count", r"(?<=[\w\)\]]) - 1\b", ""),
    ("count", r"\brange\((?=\w)", "range(1 + "),
    ("bits", r"(?<=[\w\)\]]) & (?=[\w~(])", " | "),
    ("bits", r"(?<=[\w\)\]]) \| (?=[\w~(])", " & "),
    ("bits", r"<< ?(?=[\w(])", ">> "),
    ("bits", r">> ?(?=[\w(])", "<< "),
]
_SKIPPED = re.compile(
    r"\s*(?:#|cdef (?!.*=)|cimport|from |import |def |class |cpdef |@|\"\"\"|debug_assert|else:"
    r"|try:|finally:|global |ctypedef |nogil|with |return self|pass\b|raise TypeError"
    r"|raise Assertion)"
)
_STATEMENT = re.compile(r"(\s+)(?:[a-z_][\w.\[\]&\->,() ]*\(.*\)|[\w.\[\]]+ [-+|&^]?= .*)$")
_BRANCH = re.compile(r"(\s*(?:el)?if )(.*):$")


def blank(line: str) -> str:
    """Returns the line with spaces in place of its strings and its comment."""
    return re.sub(r"\"[^\"]*\"|#.*", lambda found: " " * len(found[0]), line)


def deeper(code: str) -> int:
    """Returns how many more brackets a blanked line opens than it closes."""
    return sum(map(code.count, "([{")) - sum(map(code.count, ")]}"))


def mutants_of(path: Path, root: Path) -> Iterator[Mutant]:
    """Returns all mutants that the changes above make of a file."""
    name = path.relative_to(root).as_posix()
    text = path.read_text(encoding="utf-8")
    in_text = in_declaration = False
    depth = 0
    for number, line in enumerate(text.splitlines(), 1):
        quotes = line.count('"""')
        if quotes:
            in_text = in_text != (quotes % 2 == 1)
            continue
        if in_text:
            continue
        outer = depth
        code = blank(line)
        depth += deeper(code)
        if not outer:
            in_declaration = bool(
                re.match(r"\s*cdef (?:struct|enum|extern|union|class|inline [^=]*\($)", code)
            ) or (in_declaration and (line.startswith((" ", "\t")) or not line.strip()))
            if re.match(r"\S", line) and not code.startswith("cdef"):
                in_declaration = False
        if in_declaration and re.match(r"\s*cdef (?:class|inline)", code):
            in_declaration = False
        if in_declaration or _SKIPPED.match(line) or not line.startswith(" "):
            continue
        if outer and re.match(r"\s*[\w.*\[\] ]+,?$", code):
            continue  # a name in a list
        yield from _of_line(name, number, line, code, whole=outer == depth == 0)


def _of_line(name: str, number: int, line: str, code: str, whole: bool) -> Iterator[Mutant]:
    indent = re.match(r"\s*(?:cdef .*?= ?)?", code)
    first = indent.end() if indent else 0
    for kind, pattern, new in _CHANGES:
        for found in re.finditer(pattern, code):
            if found.start() < first:
                continue
            after = line[: found.start()] + new + line[found.end() :]
            yield Mutant(name, number, kind, line, after)
    if not whole:
        return
    if branch := _BRANCH.match(code):
        condition = line[branch.end(1) : branch.end(2)]
        for constant in ("False and", "True or"):
            after = f"{branch[1]}{constant} ({condition}):"
            yield Mutant(name, number, "branch", line, after)
    elif (statement := _STATEMENT.match(code)) and not code.strip().startswith("cdef"):
        yield Mutant(name, number, "left out", line, f"{statement[1]}pass")
    elif re.match(r"\s+(?:break|continue)$", code):
        yield Mutant(name, number, "left out", line, re.sub(r"\w+", "pass", line))
