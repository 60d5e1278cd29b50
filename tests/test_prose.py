"""The prose of the project is plain: the rules of prose.py find nothing in it."""

from __future__ import annotations

from pathlib import Path

import prose
import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
FOLDERS = ("memslots", "tests", "benchmarks", "examples")
SOURCES = [
    path
    for folder in FOLDERS
    for suffix in ("py", "pyx", "pxd", "pyi")
    for path in (ROOT / folder).rglob(f"*.{suffix}")
]

pytestmark = pytest.mark.static


def findings(path: Path, name: str) -> list[str]:
    parts = prose.of_page(path) if path.suffix == ".md" else prose.of_source(path)
    return [str(each) for line, text in parts for each in prose.found(name, line, text)]


def test_nothing_is_found() -> None:
    assert len(PAGES) > 20
    assert len(SOURCES) > 300
    bad = [
        each for path in [*PAGES, *SOURCES] for each in findings(path, str(path.relative_to(ROOT)))
    ]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Whoever calls it waits.", "name who it is"),
        ("It runs.\nWhat is compared was measured.", "name the thing"),
        ("For want of memory it fails.", "say when, then what"),
        ("A " + "word " * 41 + "ends.", "split it"),
    ],
)
def test_each_kind_is_found(text: str, why: str, tmp_path: Path) -> None:
    source = tmp_path / "module.pyx"
    source.write_text(f'def f():\n    """First.\n\n    {text}\n    """\n\n\n# {text!r:.20}\n')
    assert [each.partition(": ")[2] for each in findings(source, "x") if why in each]
    page = tmp_path / "page.md"
    one_line = text.replace("\n", " ")
    page.write_text(f"# A page\n\n{text}\n\n```text\n{text}\n```\n\n| {one_line} |\n")
    (finding,) = findings(page, "page.md")
    assert why in finding


def test_lines_are_told(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text('"""A module."""\n\n# One line.\n# Whoever reads it.\nx = """Whoever"""\n')
    assert findings(source, "module.py") == ["module.py:4: 'Whoever': name who it is"]
