"""Tests the C interface: the files that Cython code outside the package is compiled with.

memslots/core/__init__.pxd has its list, and memslots/memslots.pxd is its entrance.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from imports import door, imports_of
from installed import DISTRIBUTION, ROOT, is_editable, python

PACKAGE = ROOT / "memslots"
PROGRAMS = Path(__file__).parent / "programs" / "outside"


def c_face() -> set[str]:
    """Returns the .pxd files that outside code needs: the gate, the door, and what both lead to."""
    needs: dict[str, set[str]] = {}
    for each in imports_of(PACKAGE):
        if each.where.partition(":")[0].endswith(".pxd"):
            needs.setdefault(each.module, set()).add(each.needs)
    found: set[str] = set()
    todo = ["memslots", *(f"core.{name}" for name, (public, _) in door(PACKAGE).items() if public)]
    while todo:
        module = todo.pop()
        if module not in found:
            found.add(module)
            todo += needs.get(module, ())
    files = {f"memslots/{module.replace('.', '/')}.pxd" for module in found}
    return files | {"memslots/__init__.pxd", "memslots/core/__init__.pxd"}


def structs(path: Path) -> dict[str, list[str]]:
    """Returns the structs of a .pxd file, each with its members in order."""
    text = re.sub(r'""".*?"""', "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"\n *#.*|  #.*", "", text)
    declared = re.findall(r"^cdef struct (\w+):\n((?:    .*\n|\n(?=    ))+)", text, re.MULTILINE)
    member = re.compile(r"(?:\(\*)?(\w+)(?:\)\(.*|\[\w+\])?$", re.MULTILINE)
    return {name: member.findall(body) for name, body in declared}


@pytest.mark.static
def test_every_member_is_in_the_layout_number() -> None:
    expected = {}
    for file in c_face():
        module = Path(file).stem
        for name, members in structs(ROOT / file).items():
            expected[f"{len(module)}{module}_{name}"] = members
    text = (PACKAGE / "core" / "layout.pxd").read_text(encoding="utf-8")
    body = text.partition("        {\n")[2]
    mixed = {
        name: re.findall(r"AT\((\w+)\)", members)
        for name, members in re.findall(r"LAYOUT_OF\((\w+)\)((?:\s+AT\(\w+\))*)", body)
    }
    assert len(mixed) >= 20
    assert mixed == expected


@pytest.mark.skipif(is_editable(), reason="an editable install has its files elsewhere")
def test_the_c_face_is_installed_and_no_other_declarations() -> None:
    assert {str(file) for file in DISTRIBUTION.files or [] if file.suffix == ".pxd"} == c_face()


def cython_example(page: str) -> str:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    (example,) = re.findall(r"^```cython\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return str(example)


def build(where: Path, path: str, page: str = "reference.md") -> None:
    """Builds the example of a page of docs/ in `where`; .pxd files there go before others."""
    (where / "outside.pyx").write_text(cython_example(page), encoding="utf-8")
    shutil.copy(PROGRAMS / "setup.py", where)
    python("setup.py", "-q", "build_ext", "--inplace", cwd=where, path=path, compiles=True)


def test_outside_cython_code_builds_and_runs(tmp_path: Path) -> None:
    """The example of docs/reference.md is built against the installed package."""
    shutil.copy(PROGRAMS / "main.py", tmp_path)
    # An import hook finds an editable install, and Cython does not run it.
    path = str(ROOT) if is_editable() else ""
    build(tmp_path, path)
    assert python("main.py", cwd=tmp_path).splitlines()[-1] == "done"


def test_the_example_of_the_guide_builds_and_runs(tmp_path: Path) -> None:
    build(tmp_path, str(ROOT) if is_editable() else "", "howto/use-cython.md")
    program = """
import memslots, outside
vm = memslots.Memslots()
vm.create(0, 0x10, 2, 0x7F00_0000_0000)
print(*(hex(outside.page_hva(vm, gfn)) for gfn in (0x0F, 0x11, 0x12)))
"""
    said = python("-c", program, cwd=tmp_path).split()
    assert said == [hex(2**64 - 1), hex(0x7F00_0000_1000), hex(2**64 - 1)]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        # One more member, in the middle and at the end; a wider member, with the same size.
        ("slot", "    void *record\n", "    void *more\n    void *record\n"),
        ("lookup", "    srcu_reader *reader  #", "    void *more\n    srcu_reader *reader  #"),
        ("slotset", "    int k  #", "    uint64_t k  #"),
    ],
)
def test_code_built_against_other_layouts_is_refused(
    file: str, old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in c_face():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    changed = tmp_path / "memslots" / "core" / f"{file}.pxd"
    text = changed.read_text(encoding="utf-8")
    assert text.count(old) == 1
    changed.write_text(text.replace(old, new), encoding="utf-8")
    monkeypatch.setenv("CFLAGS", "-O0")  # the build is never run
    build(tmp_path, path="")
    shutil.rmtree(tmp_path / "memslots")
    said = python("-W", "error", "-c", "import outside", cwd=tmp_path, fails=True)
    assert said.splitlines()[-1].startswith(
        "ImportError: outside was built against a memslots whose structs are laid out in"
    )
