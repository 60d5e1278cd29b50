"""The docstrings of the public names are whole, by the rules of numpydoc that the project keeps.

A short docstring may say all in its summary. One with sections has all of them: each parameter, in
order, and what is returned or yielded.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import types
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest

import memslots

validate = pytest.importorskip("numpydoc.validate", reason="pip install 'memslots[docs]'")

pytestmark = pytest.mark.static

MODULES = (
    "memslots",
    *(
        f"memslots.{name}"
        for name in ("errors", "kvm", "maps", "mirror", "replay", "traces", "baseline", "bench")
    ),
)
#: The rules that hold for every docstring. The rest ask for another form: a verb in the infinitive,
#: say, or examples, which the pages have.
ALWAYS = (
    *("GL01", "GL03", "GL05", "GL06", "GL07", "GL08", "GL10"),
    *("SS01", "SS02", "SS03", "SS04", "SS06"),
    *("PR02", "PR03", "PR04", "PR05", "PR06", "PR09", "PR10"),
    *("RT02", "RT04", "RT05"),
)
#: Those that hold for a docstring with sections.
WITH_SECTIONS = ("PR01", "YD01")


def public() -> Iterator[tuple[str, Any, Any]]:
    """Yields each public object once: its name, the object, and the class that defines it."""
    seen: set[Any] = set()
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            ob = getattr(module, name)
            if id(ob) in seen or not (inspect.isclass(ob) or inspect.isroutine(ob)):
                continue
            seen.add(id(ob))
            yield f"{module.__name__}.{name}", ob, None
            for member, owner in members(ob) if inspect.isclass(ob) else ():
                if (owner, member) not in seen:
                    seen.add((owner, member))
                    yield f"{module.__name__}.{name}.{member}", getattr(ob, member), owner


def members(cls: type) -> Iterator[tuple[str, type]]:
    """Yields the public methods and properties of a class, and the class that defines each.

    The fields of tuples and dataclasses have no docstrings in Python.
    """
    kinds = (types.FunctionType, staticmethod, classmethod, property, types.GetSetDescriptorType)
    places = {name: each for each in reversed(cls.__mro__) for name in each.__dict__}
    for name, owner in places.items():
        found = owner.__dict__[name]
        ours = owner.__module__.startswith("memslots")
        if (
            ours
            and not name.startswith("_")
            and (inspect.isroutine(found) or isinstance(found, kinds))
        ):
            yield name, owner


def findings(name: str, ob: Any, owner: Any) -> list[str]:
    """Returns what the rules find in one docstring."""
    doc = validate.validate(validate.get_doc_object(ob))
    found = dict(doc["errors"])
    codes = [code for code in ALWAYS if code in found]
    sections = has_sections(doc["docstring"])
    if sections:
        codes += [code for code in WITH_SECTIONS if code in found]
    if owner is not None and "GL08" in codes and described(owner, name.rpartition(".")[2]):
        codes.remove("GL08")
    texts = [f"{name}: {code} {found[code]}" for code in codes]
    if is_function(ob):
        first = doc["docstring"].split(maxsplit=1)[:1]
        if not first or not first[0].rstrip(".,").endswith("s"):
            texts.append(f"{name}: does not begin with a verb in the third person")
        if sections and "\nReturns\n---" not in doc["docstring"] and returns(ob, owner):
            texts.append(f"{name}: no word of what is returned")
    return texts


def is_function(ob: Any) -> bool:
    kind: type = type(ob)
    return inspect.isroutine(ob) and kind is not cached_property


def has_sections(docstring: str) -> bool:
    return any(f"\n{head}\n---" in docstring for head in ("Parameters", "Returns"))


def described(owner: type, attribute: str) -> bool:
    """Returns whether a class's docstring describes an attribute."""
    doc = validate.get_doc_object(owner)
    both = [*doc["Parameters"], *doc["Attributes"]]
    return attribute in {name.strip() for each in both for name in each.name.split(",")}


def returns(ob: Any, owner: Any) -> bool:
    """Returns whether a function returns something, by its annotation."""
    name = getattr(ob, "__func__", ob).__name__
    told = annotated()[owner.__name__ if owner else "", name]
    return told not in ("None", "Self") and "Iterator" not in told


@cache
def annotated() -> dict[tuple[str, str], str]:
    """Returns what each function is annotated to return, by the names of its class and its own."""
    found = {}
    for file in Path(memslots.__path__[0]).rglob("*.py*"):
        if file.suffix not in (".py", ".pyi"):
            continue
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            of_class = node.name if isinstance(node, ast.ClassDef) else ""
            for each in node.body if isinstance(node, ast.ClassDef) else [node]:
                if isinstance(each, ast.FunctionDef) and each.returns is not None:
                    found[of_class, each.name] = ast.unparse(each.returns)
    return found


def test_docstrings_are_whole() -> None:
    objects = list(public())
    assert len(objects) > 300
    found = [text for each in objects for text in findings(*each)]
    assert not found, "\n".join(found)


class Bad:
    """Faulty docstrings"""

    def nothing(self) -> int:
        return 0

    def half(self, one: int, two: int) -> int:
        """Adds two numbers.

        Parameters
        ----------
        two : int
            The second
        """
        return one + two


def test_each_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(annotated(), ("Bad", "half"), "int")
    of_class = findings("Bad", Bad, None)
    assert [text.split()[1] for text in of_class] == ["SS03"]
    of_nothing = findings("Bad.nothing", Bad.nothing, Bad)
    assert "GL08" in of_nothing[0]
    assert "third person" in of_nothing[1]
    of_half = findings("Bad.half", Bad.half, Bad)
    assert [text.split()[1] for text in of_half] == ["PR09", "PR01", "no"]
