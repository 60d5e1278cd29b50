"""Imports go one way: a module needs only what stands above it in the list of docs/design.md.

The test reads each `import` and `cimport`, at the top of a file and inside functions. Imports only
for a type checker (stubs, TYPE_CHECKING) may go either way, but only to listed modules. Code
outside core may cimport only the names that memslots/core/__init__.pxd lists.

`python tests/test_layers.py` draws the table of groups in docs/design.md anew.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from imports import Import, door, files_of, imports_of, module_name

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "design.md"
BEGIN, END = "<!-- groups -->\n```text\n", "```\n<!-- end of groups -->"


def listed(page: str) -> list[str]:
    """Returns the modules in the order of the page's list; a folder's own line is its __init__."""
    (block,) = re.findall(r"^```text\nmemslots/\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    modules: list[str] = []
    folders: list[str] = []
    for line in block.splitlines():
        found = re.match(r"^( +)(\w+)(/|\.py[xi]?)? ", line + " ")
        if found is None or len(found[1]) % 2 or len(found[1]) > 2 * len(folders) + 2:
            continue
        del folders[len(found[1]) // 2 - 1 :]
        if found[3] == "/":
            folders.append(found[2])
        else:
            modules.append(".".join([*folders, found[2]]).removesuffix(".__init__"))
    return modules


def problems(root: Path, order: list[str]) -> list[str]:
    """Returns what is wrong with the imports of a package, a line each."""
    found = {module_name(root, path) for path in files_of(root)}
    # A package whose __init__ holds only a docstring needs no line.
    empty = {name for name in found if (root / name.replace(".", "/")).is_dir()} - set(order)
    wrong = [f"{name} is in no layer" for name in sorted(found - set(order) - empty)]
    wrong += [f"{name} is in a layer, and is no module" for name in order if name not in found]
    wrong += [f"{name} stands twice" for name in sorted({x for x in order if order.count(x) > 1})]
    place = {name: number for number, name in enumerate(order)}
    for each in imports_of(root):
        if each.module in empty:
            wrong.append(f"{each.where}: {each.module} imports, and is in no layer")
        elif each.hard and place.get(each.needs, -1) > place.get(each.module, len(order)):
            wrong.append(f"{each.where}: {each.module} needs {each.needs}, which stands below it")
    wrong += [f"a cycle: {' -> '.join(cycle)}" for cycle in cycles(imports_of(root))]
    return list(dict.fromkeys(wrong))  # one statement may import many names


def cycles(imports: list[Import]) -> list[list[str]]:
    """Returns a cycle of hard imports for each module that is in one, smallest name first."""
    needs: dict[str, set[str]] = {}
    for each in imports:
        if each.hard:
            needs.setdefault(each.module, set()).add(each.needs)
    found = []
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            for needed in sorted(needs.get(module, ())):
                visit(needed, [*path, module])
            done.add(module)

    for module in sorted(needs):
        visit(module, [])
    return found


def group_of(module: str) -> str:
    """Returns the folder that a module is in, or the module's own name at the top."""
    return module.partition(".")[0]


def drawing(order: list[str], imports: list[Import]) -> str:
    """Draws which group uses which: a row uses the columns with a mark."""
    groups = list(dict.fromkeys(map(group_of, order)))
    uses = {(group_of(each.module), group_of(each.needs)) for each in imports if each.hard}
    width = max(map(len, groups))
    lines = [f"{'':{width}}  {' '.join(f'{number:2}' for number in range(1, len(groups)))}"]
    for number, group in enumerate(groups):
        marks = " ".join(" x" if (group, other) in uses else " ." for other in groups[:number])
        lines.append(f"{group:{width}}  {marks}{' ' * (number > 0)}{number + 1:2} {group}".rstrip())
    return "\n".join(lines) + "\n"


def test_imports_go_one_way() -> None:
    assert problems(ROOT / "memslots", listed(PAGE.read_text())) == []


def test_the_drawing_is_current() -> None:
    page = PAGE.read_text()
    shown = page.partition(BEGIN)[2].partition(END)[0]
    expected = drawing(listed(page), imports_of(ROOT / "memslots"))
    assert shown == expected, "run python tests/test_layers.py"


def test_every_file_that_the_page_names_is_there() -> None:
    named = re.findall(
        r"`(memslots/[\w/]+\.\w+|\w+(?:/\w+)+\.(?:py|pyx|pxd|pyi))`", PAGE.read_text()
    )
    assert len(named) > 20
    for name in named:
        path = ROOT / name if name.startswith(("memslots/", "tests/")) else ROOT / "memslots" / name
        assert path.is_file(), f"docs/design.md names {name}"


def declared(path: Path) -> set[str]:
    """Returns the names that a .pxd file declares itself."""
    text = re.sub(r'""".*?"""', "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"#.*", "", text)
    text = re.sub(r"^from .*? cimport (\([^)]*\)|.*)$", "", text, flags=re.MULTILINE)
    return set(re.findall(r"\w+", text))


def door_problems(root: Path) -> list[str]:
    """Returns what goes past the door of core, and what the door names in vain."""
    named = door(root)
    wrong = []
    used: set[tuple[str, str]] = set()
    for each in imports_of(root):
        folder, _, module = each.needs.partition(".")
        if folder == "core" and module and not each.module.startswith("core"):
            used.add((module, each.name))
            if each.name not in set().union(*named.get(module, ())):
                wrong.append(f"{each.where}: core's door does not name {module}'s {each.name}")
    whole = re.compile(r"^from \w+\.core c?import ", re.MULTILINE)
    wrong += [
        f"{path.relative_to(root.parent)}: a module of core as a whole"
        for path in files_of(root)
        if whole.search(path.read_text(encoding="utf-8"))
    ]
    for module, (public, own) in named.items():
        known = declared(root / "core" / f"{module}.pxd")
        wrong += [f"{module} has no {name}" for name in sorted((public | own) - known)]
        wrong += [f"{module}'s {name} stands twice" for name in sorted(public & own)]
        unused = {name for name in own & known if (module, name) not in used}
        wrong += [f"nobody needs {module}'s {name}" for name in sorted(unused)]
    return wrong


def test_core_has_one_door() -> None:
    named = door(ROOT / "memslots")
    assert len(named) > 15
    assert sum(len(public) + len(own) for public, own in named.values()) > 100
    assert door_problems(ROOT / "memslots") == []


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("slot_first slot_last", []),
        ("slot_first", ["small/top.pyx:1: core's door does not name slot's slot_last"]),
        ("slot_first slot_last gfn_t", ["slot has no gfn_t"]),
        ("slot_first slot_last slot_next", ["nobody needs slot's slot_next"]),
    ],
)
def test_what_the_door_lets_through(names: str, expected: list[str], tmp_path: Path) -> None:
    files = {
        "core/__init__.pxd": (
            '"""The door.\n\nOpen to Cython code outside:\n\n  units        gfn_t\n\n'
            f'For memslots alone:\n\n  slot         {names.replace(" ", chr(10) + " " * 15)}\n"""\n'
        ),
        "core/units.pxd": "ctypedef int gfn_t\n",
        "core/slot.pxd": (
            "from small.core.units cimport gfn_t\n"
            "cdef int slot_first()\ncdef int slot_last()\ncdef int slot_next()\n"
        ),
        "top.pyx": "from small.core.slot cimport slot_first, slot_last\n",
    }
    for name, content in files.items():
        path = tmp_path / "small" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert door_problems(tmp_path / "small") == expected


SMALL = {
    "errors.py": "class Error(Exception): ...\n",
    "core/__init__.py": '"""Nothing."""\n',
    "core/slot.pyx": "from small.core.units cimport gfn_t\n",
    "core/units.pxd": "ctypedef int gfn_t\n",
    "top.pyx": "from small.core.slot cimport (\n    slot,\n)\n\nfrom small.errors import Error\n",
    "top.pyi": "from small.late import Late\n",
    "late.py": '"""import small.nothing"""\nimport small.top\n',
}
ORDER = ["errors", "core.units", "core.slot", "top", "late"]


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("errors.py", "", []),
        (
            "errors.py",
            "import small.top\n",
            [
                "small/errors.py:1: errors needs top, which stands below it",
                "a cycle: errors -> top -> errors",
            ],
        ),
        (
            "core/slot.pyx",
            "def f():\n    from small import late\n",
            [
                "small/core/slot.pyx:2: core.slot needs late, which stands below it",
                "a cycle: core.slot -> late -> top -> core.slot",
            ],
        ),
        (
            "core/units.pxd",
            "from small.core.slot cimport slot, \\\n    other\n",
            [
                "small/core/units.pxd:1: core.units needs core.slot, which stands below it",
                "a cycle: core.slot -> core.units -> core.slot",
            ],
        ),
        ("core/new.py", "X = 1\n", ["core.new is in no layer"]),
        (
            "core/__init__.py",
            "import small.late\n",
            ["small/core/__init__.py:1: core imports, and is in no layer"],
        ),
        ("late.py", None, ["late is in a layer, and is no module"]),
    ],
)
def test_what_the_test_finds(
    file: str, text: str | None, expected: list[str], tmp_path: Path
) -> None:
    root = tmp_path / "small"
    for name, content in (SMALL | ({} if text is None else {file: text})).items():
        if name == file and text is None:
            continue
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    found = problems(root, ORDER)
    assert found == expected


def test_the_list_of_a_page() -> None:
    page = (
        "```text\nmemslots/\n  errors.py   the errors\n  core/       C level\n    units     pages\n"
        "              and more\n  kvm/\n    __init__  the face\n  memslots.pyx  the class\n```\n"
    )
    assert listed(page) == ["errors", "core.units", "kvm", "memslots"]


if __name__ == "__main__":
    content = PAGE.read_text()
    before, _, rest = content.partition(BEGIN)
    after = rest.partition(END)[2]
    drawn = drawing(listed(content), imports_of(ROOT / "memslots"))
    PAGE.write_text(f"{before}{BEGIN}{drawn}{END}{after}")
