"""Tests an installed memslots as users see it: its files, its metadata and its imports."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from installed import DISTRIBUTION, ROOT, is_editable, python

import memslots


def test_the_suite_tests_what_is_installed() -> None:
    # The root of a checkout also has a folder with the name memslots.
    package = Path(memslots.__file__).parent
    if is_editable():
        assert package == ROOT / "memslots"
    else:
        assert package == Path(str(DISTRIBUTION.locate_file("memslots")))
        assert package != ROOT / "memslots"


def test_version() -> None:
    assert DISTRIBUTION.version == memslots.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    (latest, date), *_ = re.findall(r"^## ([0-9.]+) - ([0-9-]{10})$", changelog, re.MULTILINE)
    assert latest == memslots.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f'version: {latest}\ndate-released: "{date}"\n' in citation


def test_no_runtime_dependency() -> None:
    requirements = DISTRIBUTION.requires or []
    assert [line for line in requirements if "extra ==" not in line] == []
    extras = set(DISTRIBUTION.metadata.get_all("Provides-Extra") or [])
    assert extras >= {"cli", "test", "numpy", "docs", "dev", "examples"}


@pytest.mark.skipif(is_editable(), reason="an editable install has its files elsewhere")
def test_installed_files() -> None:
    files = {str(file) for file in DISTRIBUTION.files or [] if "__pycache__" not in file.parts}
    inside = {file for file in files if file.startswith("memslots/")}
    suffixes = {Path(file).suffix for file in inside}
    assert suffixes == {".py", ".pyi", ".pxd", ".so", ".xz", ".html", ".typed"}
    assert "memslots/py.typed" in inside
    # Beside the package: its metadata and its command.
    rest = files - inside
    assert all(".dist-info/" in file or file.endswith("/bin/memslots") for file in rest)


def test_import_is_lean(tmp_path: Path) -> None:
    code = """
import sys
before = set(sys.modules)
import memslots
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""
    imported = set(python("-c", code, cwd=tmp_path).split())
    assert "memslots" in imported
    assert not imported & {"numpy", "click", "rich", "hypothesis", "pytest", "Cython", "mypy"}
    # Modules that only a snapshot needs.
    assert not imported & {"secrets", "platform", "hmac"}
    # Only the standard library, and the modules that Cython makes for its own modules.
    others = {name for name in imported if not re.match(r"memslots$|_?cython_", name)}
    assert others <= sys.stdlib_module_names


def test_another_system_is_refused_in_a_sentence(tmp_path: Path) -> None:
    # What Python and setuptools look up by the system's name is looked up before.
    program = f"""
import os, runpy, sys, sysconfig, setuptools
sysconfig.get_config_vars()
sys.platform = "freebsd14"
del os.sched_getaffinity  # as on macOS and Windows
sys.argv = ["setup.py", "-q", "build_ext", "--build-lib", {str(tmp_path)!r}]
runpy.run_path({str(ROOT / "setup.py")!r})
"""
    said = python("-c", program, cwd=ROOT, fails=True)
    assert said.splitlines()[-1].startswith("memslots needs Linux, and this is freebsd14: ")
    assert list(tmp_path.iterdir()) == []
