"""Puts many mutants into one file, so that the file is built once for all of them.

A statement with mutants becomes a choice. `mutant(17)` is true if the process runs mutant 17:

    if mutant(17):
        n += 2
    elif mutant(18):
        pass
    else:
        n += 1

The condition of an `if`, `elif` or `while` becomes a choice of conditions, and an argument of
`range` a choice of arguments. A declaration loses its value, which the choice then assigns.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from mutation.mutants import Mutant, blank, deeper

#: A line of the woven file, and the mutant it belongs to; 0: to none of them.
Line = tuple[str, int]

#: What the mutants of a file need, at its end, so that its docstring stays where it is.
NEEDED = "from switchboard cimport mutant"

_CONDITION = re.compile(r"\s*(?:if|elif|while) ")
_RANGE = re.compile(r"\s*for \w+ in range\((.*)\):\s*$")
_DECLARATION = re.compile(r"(\s*)cdef ([\w *]*?)(?=\w+ = )")
#: Statements that are no part of a choice.
_OTHER = re.compile(r"\s*(?:cdef|cpdef|def|class|for|with|except)\b")


def weave(text: str, mutants: Mapping[int, Mutant]) -> list[Line]:
    """Returns the lines of a file with these mutants in it. Leaves out those it cannot put in."""
    waiting: dict[int, dict[int, Mutant]] = defaultdict(dict)
    for number, mutant in mutants.items():
        waiting[mutant.line][number] = mutant
    woven: list[Line] = []
    for first, lines in statements(text):
        own: dict[int, Mutant] = {}
        for line in range(first, first + len(lines)):
            own |= waiting[line]
        if own:
            changed = {number: mutant.apply(lines, first) for number, mutant in own.items()}
            woven += choice(lines, changed)
        else:
            woven += [(line, 0) for line in lines]
    return [*woven, (NEEDED, 0)]


def statements(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the statements of a file: the number of the first line, and the lines.

    Each line outside of brackets is one. So is each line of a docstring.
    """
    lines = text.splitlines()
    begin = depth = 0
    in_text = False
    for number, line in enumerate(lines, 1):
        if line.count('"""'):
            in_text = in_text != (line.count('"""') % 2 == 1)
        elif not in_text:
            depth += deeper(blank(line))
        if depth == 0:
            yield begin + 1, lines[begin:number]
            begin = number


def choice(lines: list[str], changed: Mapping[int, list[str]]) -> list[Line]:
    """Returns the choice between a statement and its mutants."""
    if found := _CONDITION.match(lines[0]):
        return choice_of_conditions(found[0], lines, changed)
    if found := _RANGE.match(blank(lines[0])):
        return choice_of_arguments(found.span(1), lines[0], changed)
    if found := _DECLARATION.match(lines[0]):
        rest = {number: undeclared(found, each) for number, each in changed.items()}
        name = lines[0][found.end() :].split(" = ")[0]
        return [(found[0] + name, 0), *choice_of_statements(undeclared(found, lines), rest)]
    if _OTHER.match(lines[0]):
        return [(line, 0) for line in lines]
    return choice_of_statements(lines, changed)


def undeclared(declaration: re.Match[str], lines: list[str]) -> list[str]:
    """Returns the assignment of a declaration's value."""
    return [declaration[1] + lines[0][declaration.end() :], *lines[1:]]


def choice_of_statements(lines: list[str], changed: Mapping[int, list[str]]) -> list[Line]:
    indent = lines[0][: -len(lines[0].lstrip())]
    woven: list[Line] = []
    for number, each in changed.items():
        woven.append((f"{indent}{'elif' if woven else 'if'} mutant({number}):", 0))
        woven += [(f"    {line}", number) for line in each]
    return [*woven, (f"{indent}else:", 0), *((f"    {line}", 0) for line in lines)]


def choice_of_conditions(
    head: str, lines: list[str], changed: Mapping[int, list[str]]
) -> list[Line]:
    # `not` makes a C truth value of anything, so that the types of both sides are the same.
    def condition(lines: list[str]) -> list[str]:
        last = lines[-1]
        inner = [*lines[:-1], last[: blank(last).rindex(":")]]
        return ["not (", inner[0][len(head) :], *inner[1:]]

    woven: list[Line] = [(f"{head}not (", 0)]
    for number, each in changed.items():
        woven += [(line, number) for line in condition(each)]
        woven.append((f") if mutant({number}) else", number))
    return [*woven, *((line, 0) for line in condition(lines)), (")):", 0)]


def choice_of_arguments(
    span: tuple[int, int], line: str, changed: Mapping[int, list[str]]
) -> list[Line]:
    begin, end = span
    woven: list[Line] = [(line[:begin], 0)]
    arguments = split(line[begin:end])
    mutated = {
        number: split(each[begin : end + len(each) - len(line)])
        for number, (each,) in changed.items()
    }
    for place, argument in enumerate(arguments):
        for number, others in mutated.items():
            if others[place] != argument:
                woven.append((f"({others[place]}) if mutant({number}) else", number))
        woven.append((f"({argument}),", 0))
    return [*woven, (line[end:], 0)]


def split(arguments: str) -> list[str]:
    """Returns the arguments of a call that has these between its brackets."""
    parts: list[str] = []
    begin = depth = 0
    for place, char in enumerate(arguments):
        depth += deeper(char)
        if char == "," and depth == 0:
            parts.append(arguments[begin:place])
            begin = place + 1
    return [*parts, arguments[begin:]]
