"""Tests the names of memslots.core's C functions: each one says which file it is in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CORE = Path(__file__).parent.parent.parent / "memslots" / "core"
FILES = sorted(path for path in CORE.glob("*.pxd") if path.stem != "__init__")

#: A prefix that differs from the file's name, in the first line of its docstring.
DECLARED = re.compile(r"\(prefix(?:es)?: ([\w, ]+)\)")
#: Matches `cdef slot *slot_new(`, and in an extern block `    void debug_assert
#: "memslots_debug_assert"(`.
FUNCTION = re.compile(
    r"^cdef (?:inline )?(?:const )?\w+ \**(\w+)\(|^    (?:const )?\w+ \**(\w+) \"\w+\"\(",
    re.MULTILINE,
)


def prefixes(text: str, stem: str) -> list[str]:
    """Returns the prefixes of a file's functions: those it declares, else its name."""
    declared = DECLARED.search(text.partition("\n")[0])
    return declared[1].split(", ") if declared else [f"{stem}_"]


def functions(text: str) -> list[str]:
    """Returns the names of the functions that a .pxd file declares."""
    return [name for names in FUNCTION.findall(text) for name in names if name]


def strays(texts: dict[str, str]) -> list[str]:
    """Returns the functions whose name begins as another file's do, or as no file's."""
    owners = {prefix: stem for stem, text in texts.items() for prefix in prefixes(text, stem)}
    found = []
    for stem, text in texts.items():
        for name in functions(text):
            # The longest prefix: slot_ begins slot_pool_init, lookup_ begins lookup_batch_tree.
            own = max((prefix for prefix in owners if name.startswith(prefix)), key=len, default="")
            if owners.get(own) != stem:
                found.append(f"{stem}: {name}")
    return found


def test_every_function_has_its_files_prefix() -> None:
    assert strays({path.stem: path.read_text(encoding="utf-8") for path in FILES}) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_all_functions_are_seen(path: Path) -> None:
    """There are as many as `noexcept nogil`, except for the types of function pointers."""
    text = re.sub(r'^""".*?"""', "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"\(\*\w+\)\([^)]*\) noexcept nogil", "", text)
    text = re.sub(r"bint \(\*refresh\)\([^)]*\)(?: noexcept nogil)?", "", text)
    assert len(functions(text)) == len(re.findall(r"\bnoexcept\b", text)) > 0


def test_strays_are_found() -> None:
    texts = {
        "slot": '"""Slots."""\ncdef slot *slot_new(int a) noexcept nogil\n',
        "slotset": '"""Sets."""\ncdef inline bint slot_put(int a) noexcept nogil:\n    pass\n',
        "rbtree": '"""A tree (prefix: rb_)."""\n    void prefetch "fetch"(int) noexcept nogil\n',
    }
    assert strays(texts) == ["slotset: slot_put", "rbtree: prefetch"]
