"""What an installed memslots is to others: its files, its metadata, its imports, and its C face."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import memslots

ROOT = Path(__file__).parent.parent
DISTRIBUTION = importlib.metadata.distribution("memslots")


def is_editable() -> bool:
    direct_url = json.loads(DISTRIBUTION.read_text("direct_url.json") or "{}")
    return bool(direct_url.get("dir_info", {}).get("editable", False))


def python(*arguments: str, cwd: Path, path: str = "") -> str:
    """What a fresh interpreter prints, in a directory from which it can import nothing of ours."""
    env = os.environ.copy()
    env.pop("PYTHONPATH", None)
    env.pop("PYTHONSAFEPATH", None)  # a script may import what lies beside it
    if path:
        env["PYTHONPATH"] = path
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_the_suite_tests_what_is_installed() -> None:
    # In the root of a checkout there is a folder that is called memslots, too.
    package = Path(memslots.__file__).parent
    if is_editable():
        assert package == ROOT / "memslots"
    else:
        assert package == Path(str(DISTRIBUTION.locate_file("memslots")))
        assert package != ROOT / "memslots"


def test_version() -> None:
    assert DISTRIBUTION.version == memslots.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[?{re.escape(memslots.__version__)}\b", changelog, re.MULTILINE)


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
    assert suffixes == {".py", ".pyi", ".pxd", ".so", ".xz", ".typed"}
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
    # Nothing that is not the standard library's at all, but for what Cython makes for its modules.
    others = {name for name in imported if not re.match(r"memslots$|_?cython_", name)}
    assert others <= sys.stdlib_module_names


def cython_example() -> str:
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```cython\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return str(example)


OUTSIDE_SETUP = """
from Cython.Build import cythonize
from setuptools import setup

setup(name="outside", ext_modules=cythonize("outside.pyx"))
"""

OUTSIDE_MAIN = """
from array import array

import memslots
import outside


def walk(face):
    bases = array("Q", [0] * 10)
    return list(bases[: outside.walk(face, bases)])


vm = memslots.Memslots(address_spaces=2)
vm.create(7, base_gfn=0x100, npages=64, userspace_addr=0x7F00_0000_0000)
vm.create(3, base_gfn=0x10, npages=8, userspace_addr=0x7F00_0000_0000)
vm.create(1, base_gfn=0x100, npages=1, userspace_addr=0x7E00_0000_0000, as_id=1)

for face in (vm, vm.address_space(0), vm.vcpu()):
    assert walk(face) == [0x10, 0x100]
    for gfn in (0xF, 0x10, 0x17, 0x18, 0xFF, 0x100, 0x13F, 0x140, 2**64 - 1):
        slot = face.lookup(gfn)
        assert outside.page_hva(face, gfn) == (slot.gfn_to_hva(gfn) if slot else memslots.BAD_HVA)
assert walk(vm.address_space(1)) == walk(vm.vcpu(as_id=1)) == [0x100]

vm.move(7, base_gfn=0x200)
vm.delete(3)
assert walk(vm) == [0x200]
assert outside.page_hva(vm, 0x201) == 0x7F00_0000_1000

try:
    walk("a machine")
except TypeError:
    print("done")
"""


def test_outside_cython_code_builds_and_runs(tmp_path: Path) -> None:
    """The example of docs/reference.md, built against what is installed."""
    (tmp_path / "outside.pyx").write_text(cython_example(), encoding="utf-8")
    (tmp_path / "setup.py").write_text(OUTSIDE_SETUP, encoding="utf-8")
    (tmp_path / "main.py").write_text(OUTSIDE_MAIN, encoding="utf-8")
    # An editable install is found by an import hook, which Cython does not run.
    path = str(ROOT) if is_editable() else ""
    python("setup.py", "-q", "build_ext", "--inplace", cwd=tmp_path, path=path)
    assert python("main.py", cwd=tmp_path).splitlines()[-1] == "done"


def test_what_is_not_the_c_face_is_not_installed() -> None:
    installed = {str(f) for f in DISTRIBUTION.files or [] if f.suffix == ".pxd"}
    outside_core = {name for name in installed if not name.startswith("memslots/core/")}
    assert outside_core <= {"memslots/__init__.pxd", "memslots/memslots.pxd"}
