"""Compares the public names, signatures, bases and the C interface with data/public-face.txt.

`python tests/test_public_face.py` writes the file anew, from the memslots that Python imports.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType

import pytest

import memslots

LIST = Path(__file__).parent / "data" / "public-face.txt"
MODULES = (
    "memslots",
    "memslots.errors",
    "memslots.memslots",
    "memslots.core",
    "memslots.kvm",
    "memslots.traces",
    "memslots.maps",
    "memslots.replay",
    "memslots.baseline",
    "memslots.bench",
)
#: The declarations for `cimport`.
PXDS = (
    "memslots.pxd",
    *(f"core/{name}.pxd" for name in ("lookup", "machine", "slot", "space", "srcu", "units")),
)
#: Operators and protocols: the only public names with underscores.
SPECIAL = re.compile(
    r"__(len|iter|reversed|getitem|contains|eq|hash|enter|exit|next|call|copy|deepcopy)__"
)
#: Parts that may change: the module of an annotation's class, the address of a default.
UNSTABLE = re.compile(r" at 0x[0-9a-f]+|\bmemslots(?:\.\w+)*\.(?=[A-Z])")
#: An annotation of a named tuple before Python 3.14, which shows what is in the quotes.
FORWARD = re.compile(r"ForwardRef\('([^']*)'\)")


def signature(value: Callable[..., object]) -> str:
    """Returns the parameters of a callable, or nothing if Python does not know them."""
    try:
        return UNSTABLE.sub("", FORWARD.sub(r"\1", str(inspect.signature(value))))
    except ValueError:
        return ""


def own_bases(cls: type) -> list[type]:
    """Returns the class and its bases in memslots: a method may move from one to another."""
    return [base for base in cls.__mro__ if base is cls or base.__module__.startswith("memslots")]


def members(name: str, cls: type) -> Iterator[str]:
    """Returns a line for each public attribute of the class that is defined in memslots."""
    own = own_bases(cls)
    found = {key for base in own for key in (*vars(base), *inspect.get_annotations(base))}
    for attribute in sorted(found):
        value = inspect.getattr_static(cls, attribute, None)
        full = f"{name}.{attribute}"
        if SPECIAL.fullmatch(attribute):
            if value is not None:
                yield f"{full}: def"
        elif attribute.startswith("_"):
            continue
        elif isinstance(value, staticmethod | classmethod):
            yield f"{full}: {type(value).__name__}{signature(getattr(cls, attribute))}"
        elif isinstance(value, Enum):
            yield f"{full} = {value.value!r}"
        else:
            yield f"{full}: {f'def{signature(value)}' if callable(value) else 'attribute'}"


def python_face(module: ModuleType) -> Iterator[str]:
    """Returns the lines of a module: of what its `__all__` names, or else of its own classes."""
    own = [name for name, value in vars(module).items() if is_own(value, module)]
    for public in sorted(getattr(module, "__all__", own)):
        value = getattr(module, public)
        name = f"{module.__name__}.{public}"
        if not isinstance(value, type):
            constant = f" = {value!r}" if isinstance(value, int) else ": value"
            yield f"{name}{f': def{signature(value)}' if callable(value) else constant}"
            continue
        # Users catch errors by their bases. The bases of other classes may change.
        bases = ", ".join(base.__name__ for base in value.__bases__)
        line = f"{name}: class"
        if issubclass(value, BaseException):
            line += f"({bases})"
        if any({"__init__", "__new__"} & vars(base).keys() for base in own_bases(value)):
            line += "" if issubclass(value, Enum) else f" {signature(value)}"
        yield line.rstrip()
        # Names that `memslots` also has are listed there with their members.
        if module is memslots or not hasattr(memslots, public):
            yield from members(name, value)


def is_own(value: object, module: ModuleType) -> bool:
    return isinstance(value, type) and value.__module__ == module.__name__


def c_face(path: Path) -> Iterator[str]:
    """Returns the declarations of a .pxd file, one a line, without comments and cimports."""
    text = re.sub(r'"""(?s:.*?)"""|#.*', "", path.read_text(encoding="utf-8"))
    text = re.sub(r",\s*\n\s*|\(\s*\n\s*", lambda hit: hit[0].strip()[0] + " ", text)
    text = re.sub(r",? *\n? *\)", ")", text).replace("( ", "(")
    head = ""
    for line in filter(str.strip, text.splitlines()):
        if not line.startswith(" "):
            head = line.strip()
            if not re.match(r"from|cimport|import|cdef extern", head):
                yield f"{path.name}: {head.removesuffix(':')}"
        elif re.match(r"cdef (struct|enum|union|packed)", head):
            yield f"{path.name}: {head} {line.strip()}"


def face() -> list[str]:
    lines = []
    for name in MODULES:
        module = importlib.import_module(name)
        if name == "memslots.baseline":
            # This module is only for measuring. Its other names are not promised.
            lines.append(f"{name}.{module.ArrayMemslots.__name__}: class")
        elif name != "memslots.core":
            lines += python_face(module)
    package = Path(memslots.__file__).parent
    for pxd in PXDS:
        lines += c_face(package / pxd)
    return lines


@pytest.mark.parametrize("name", MODULES)
def test_public_modules_can_be_imported(name: str) -> None:
    assert importlib.import_module(name).__name__ == name


def test_the_public_face_is_what_is_listed() -> None:
    listed = LIST.read_text(encoding="utf-8").splitlines()
    changed = [
        line
        for line in difflib.unified_diff(listed, face(), "listed", "now", n=0, lineterm="")
        if not line.startswith("@@")
    ]
    assert not changed, "if this is meant, run python tests/test_public_face.py:\n" + "\n".join(
        changed
    )


@pytest.mark.parametrize("name", memslots.__all__)
def test_every_class_and_method_has_a_signature(name: str) -> None:
    value = getattr(memslots, name)
    if not callable(value):
        pytest.skip("a constant")
    assert str(inspect.signature(value)).startswith("(")
    doc = inspect.getdoc(value)
    assert doc
    assert not re.match(r"\w+\(", doc)  # the signature is no part of it
    for method in vars(value) if isinstance(value, type) and not issubclass(value, int) else ():
        if not method.startswith("_") and callable(getattr(value, method)):
            inspect.signature(getattr(value, method))


if __name__ == "__main__":
    LIST.write_text("\n".join(face()) + "\n", encoding="utf-8")
