"""Every example in README.md and docs/ runs, and prints what the page says.

A page is one story: its python and pycon blocks share one namespace, in order. Its console blocks
run the command, or a program of examples/, in a directory with the page's files of
tests/data/pages. A fence of another language must
be on the list below, with the reason why it is not run. Any other fence is an error, so no example
goes untested because of a misspelt fence.
"""

from __future__ import annotations

import builtins
import doctest
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from needs import need_kvm, need_unicorn

import memslots
import memslots.bench
import memslots.kvm
import memslots.maps
import memslots.replay
import memslots.traces

ROOT = Path(__file__).parent.parent
# docs/command.md is about the command: tests/cli/test_page.py runs its examples.
ELSEWHERE = {"command.md"}
PAGES = [
    ROOT / "README.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if page.name not in ELSEWHERE),
]
RUN = {"python", "pycon", "console"}
NOT_RUN = {
    "text": "a list, a table or a part of a test",
    "sh": "makes environments: sessions of noxfile.py run the README's two commands",
    "cython": "tests/test_c_face.py builds it against the installed package",
    "{toctree}": "Sphinx's",
    "{eval-rst}": "Sphinx makes a part of it from docstrings",
}

# Other programs that a console block may run, from a checkout's root, and their needs.
EXAMPLES: dict[str, Callable[[], None]] = {
    "python examples/vmm.py": need_kvm,
    "python examples/emulator.py": need_unicorn,
}
# What the other examples of a page need.
PAGE_NEEDS: dict[str, Callable[[], None]] = {"kvm.md": need_kvm}
FILES = ROOT / "tests" / "data" / "pages"
# A file of raw memory, by its size: it has no bytes on the disk.
RAW = {"memory.bin": 4 << 30}

FENCE = re.compile(r"^(?P<fence>`{3,})(?P<kind>[^\s`]*)[^`\n]*$")
LINK = re.compile(r"\]\((?!https?:|mailto:|#)(?P<target>[^)#\s]+)(#[^)\s]*)?\)")


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is the 1-based number of its first line of content."""

    kind: str
    line: int
    text: str


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        opening = FENCE.match(lines[number])
        number += 1
        if opening is None:
            continue
        start = number
        while lines[number] != opening["fence"]:
            number += 1
        text = "".join(line + "\n" for line in lines[start:number])
        yield Block(opening["kind"], start + 1, text)
        number += 1


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def run_doctest(block: Block, page: Path, namespace: dict[str, Any]) -> None:
    examples = doctest.DocTestParser().get_doctest(
        block.text, namespace, page_id(page), str(page), block.line - 1
    )
    assert examples.examples, f"{page_id(page)}:{block.line}: a pycon block without a prompt"
    # The parser gave the test a copy of the namespace; the block's names belong to the page.
    examples.globs = namespace
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    runner.run(examples, out=report.append, clear_globs=False)
    assert not runner.failures, "".join(report)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_fences(page: Path) -> None:
    kinds = {block.kind for block in blocks(page)}
    assert kinds <= RUN | NOT_RUN.keys()


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_python(page: Path) -> None:
    PAGE_NEEDS.get(page.name, lambda: None)()
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.kind == "python":
            # Empty lines before it give the block the page's line numbers in a traceback.
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            exec(code, namespace)
        elif block.kind == "pycon":
            run_doctest(block, page, namespace)


def test_docstrings() -> None:
    """The examples in docstrings of the package and its classes print what they say."""
    namespace = {name: getattr(memslots, name) for name in memslots.__all__}
    found = {"memslots": memslots, **namespace}
    blocks = {name: Block("pycon", 1, ob.__doc__ or "") for name, ob in found.items()}
    with_examples = [name for name, block in blocks.items() if ">>> " in block.text]
    assert {"memslots", "Memslots", "GuestMemory"} <= {*with_examples}
    for name in with_examples:
        run_doctest(blocks[name], ROOT / "memslots" / name, dict(namespace))


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Yields each `$ command` of a console block with the output that follows it."""
    command, output = "", ""
    for line in block.text.splitlines():
        if line.startswith("$ "):
            if command:
                yield command, output
            command, output = line.removeprefix("$ "), ""
        else:
            output += line + "\n"
    yield command, output


CONSOLES = [
    pytest.param(page, block, id=f"{page_id(page)}:{block.line}")
    for page in PAGES
    for block in blocks(page)
    if block.kind == "console"
]


@pytest.mark.parametrize(("page", "block"), CONSOLES)
def test_console(page: Path, block: Block, tmp_path: Path) -> None:
    for file in (FILES / page.stem).glob("*"):
        shutil.copy(file, tmp_path)
    for name in re.findall(r"\S+\.bin\b", block.text):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, RAW[name])
    scripts = str(Path(sys.executable).parent)
    env = os.environ | {
        "PATH": scripts + os.pathsep + os.environ.get("PATH", ""),
        "COLUMNS": "100",
        "NO_COLOR": "1",
        "LC_ALL": "C.UTF-8",
    }
    for command, expected in commands(block):
        program = command
        if command in EXAMPLES:
            EXAMPLES[command]()
            program = shlex.join([sys.executable, str(ROOT / command.removeprefix("python "))])
        else:
            assert "memslots" in command.split()
        run = subprocess.run(
            ["sh", "-c", program],
            cwd=tmp_path,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stdout
        matches = doctest.OutputChecker().check_output(expected, run.stdout, doctest.ELLIPSIS)
        assert matches, f"$ {command}\n{run.stdout}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=page_id)
def test_links(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [
        link["target"]
        for link in LINK.finditer(text)
        if not (page.parent / link["target"]).exists()
    ]
    assert not missing


def test_the_checks_can_fail(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n```pycon\n>>> 1 + 1\n3\n```\n\n```py\n1\n```\n")
    sum_of_ones, misspelt = blocks(page)
    assert sum_of_ones == Block("pycon", 4, ">>> 1 + 1\n3\n")
    assert misspelt.kind not in RUN | NOT_RUN.keys()
    with pytest.raises(AssertionError, match="Expected:"):
        run_doctest(sum_of_ones, ROOT / "page.md", {})


def test_the_stretches_of_a_batch() -> None:
    source = (ROOT / "memslots" / "read" / "batch.pyx").read_text(encoding="utf-8")
    stretch, indexed = re.findall(r"^    (?:INDEXED_)?STRETCH = (\d+)", source, re.MULTILINE)
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert f"each stretch of {stretch} elements, or of {indexed} if the index answers" in page


def test_the_table_of_errors() -> None:
    """The table has every error of the package; each is a MemslotError with the bases it lists."""
    found = {
        each
        for module in (memslots, memslots.errors, memslots.kvm, memslots.traces, memslots.bench)
        for name in module.__all__
        if isinstance(each := getattr(module, name), type) and issubclass(each, Exception)
    }
    assert {each for each in found if not issubclass(each, memslots.MemslotError)} == set()
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    page = page.partition("\n## Errors\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+Error)` \|[^|]*\|([^|]*)\|", page, re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(
        each.__name__ for each in found if each is not memslots.MemslotError
    )
    for name, bases in rows:
        for base in re.findall(r"`(\w+)`", bases):
            known = getattr(memslots.errors, base, None) or getattr(builtins, base)
            assert issubclass(getattr(memslots.errors, name), known), name


def test_members_that_pages_name_exist() -> None:
    """A page may name `Class.member`, or a member of a variable that all pages use alike."""
    modules: list[Any] = [memslots, memslots.kvm, memslots.replay, memslots.maps, memslots.bench]
    known = {name: [getattr(each, name)] for each in modules for name in each.__all__}
    known |= {
        "vm": [memslots.Memslots],
        "tx": [memslots.Transaction],
        "mem": [memslots.GuestMemory],
        "memory": [memslots.GuestMemory],
        "kvm": [memslots.kvm.KvmVM],
        "vcpu": [memslots.Vcpu, memslots.kvm.KvmVcpu],
    }
    missing, count = [], 0
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for owner, member in re.findall(r"(?<=`)(\w+)\.(\w+)(?=[`(])", prose):
            if owner in known:
                count += 1
                fields = [getattr(each, "__annotations__", {}) for each in known[owner]]
                found = any(hasattr(each, member) for each in known[owner])
                if not found and not any(member in each for each in fields):
                    missing.append(f"{page_id(page)}: {owner}.{member}")
    assert count > 60
    assert not missing


def test_the_api_page_has_every_public_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    modules = re.findall(r"^\.\. automodule:: (\S+)$", page, re.MULTILINE)
    named = set(re.findall(r"^\.\. auto(?:class|function):: (\w+)$", page, re.MULTILINE))
    for module in modules:
        named |= set(importlib.import_module(module).__all__)
    assert {name for name in memslots.__all__ if callable(getattr(memslots, name))} <= named
    package = ROOT / "memslots"
    parts = {f"memslots.{file.parent.name}" for file in package.glob("*/__init__.py")}
    public = {part for part in parts if getattr(importlib.import_module(part), "__all__", None)}
    assert public - {"memslots.cli", "memslots.traces.samples"} <= set(modules)


def test_the_table_of_the_c_face() -> None:
    """The table of names for Cython is that of the door of memslots.core."""
    door = (ROOT / "memslots" / "core" / "__init__.pxd").read_text(encoding="utf-8")
    door = door.partition("Open to Cython code outside")[2].partition("For memslots alone:")[0]
    listed: dict[str, list[str]] = {}
    for module, names in re.findall(r"^  (\w* +)(\S.*)$", door.partition("\n\n")[2], re.MULTILINE):
        if module.strip():
            last = listed.setdefault(module.strip(), [])
        last += names.split()
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    page = page.partition("\n## From Cython\n")[2]
    rows = re.findall(r"^\| `core\.(\w+)` \|(.*)\|$", page, re.MULTILINE)
    assert {module: re.findall(r"`(\w+)`", names) for module, names in rows} == listed
