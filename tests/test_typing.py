"""The types as a user's type checker sees them, and the stubs compared with the modules."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

import memslots

USER = Path(__file__).parent / "programs" / "typed_user.py"

# Names that no stub can describe. stubtest reports an entry that matches nothing.
ALLOWED = r"""
# Cython puts these into its modules and classes.
memslots(\.\w+)+\.__(pyx_capi|test|reduce_cython|setstate_cython)__
# stubtest takes an alias of a Literal of several values for a Union, which it is not.
memslots\.traces\.Format
memslots\.traces\.strace_ioctls\.Kind
# Its signature is that of one of its forms; the stub has Memslots(map), too.
memslots\.memslots\.Memslots\.__new__
"""
if sys.version_info < (3, 12):
    # A stub declares a buffer with this method, which Python names from 3.12 on.
    ALLOWED += r"memslots\.memory\.backing\.Backing\.__buffer__"


def without_stub() -> list[str]:
    """Returns the extension modules for `cimport` alone: they have no Python face to type.

    mypy reports each import of such a module by a typed one, so no public name is missed here.
    """
    package = Path(memslots.__file__).parent
    suffix = EXTENSION_SUFFIXES[0]
    modules = [
        path.with_name(path.name.removesuffix(suffix)) for path in package.rglob(f"*{suffix}")
    ]
    return [
        ".".join(path.relative_to(package.parent).parts)
        for path in modules
        if not path.with_suffix(".pyi").exists()
    ]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ.copy()
    env.pop("MYPYPATH", None)
    package = Path(memslots.__file__).parent.parent
    if "site-packages" not in package.parts:
        # An import hook finds an editable install, and mypy does not run it.
        env["MYPYPATH"] = str(package)
    return subprocess.run(
        [sys.executable, "-P", "-m", *arguments],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def test_the_user_file_uses_every_public_name() -> None:
    imported = {
        alias.name
        for node in ast.parse(USER.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom) and node.module == "memslots"
        for alias in node.names
    }
    assert imported == {*memslots.__all__, "__version__"}


def mypy_is_there() -> bool:
    try:
        version = metadata.version("mypy")
    except metadata.PackageNotFoundError:
        return False
    return [int(number) for number in version.split(".")[:2]] >= [2, 4]


# A Python without the GIL may have no wheel of a recent mypy.
needs_mypy = pytest.mark.skipif(not mypy_is_there(), reason="there is no mypy 2.4 or later here")


@needs_mypy
def test_mypy_strict_from_outside(tmp_path: Path) -> None:
    shutil.copy(USER, tmp_path / "user.py")
    # --strict has warn_unused_ignores, so every line with an ignore must be an error.
    result = run("mypy", "--strict", "--config-file=", "user.py", cwd=tmp_path)
    assert result.returncode == 0, result.stdout


@needs_mypy
def test_stubs_agree_with_the_modules(tmp_path: Path) -> None:
    allowlist = tmp_path / "allowed.txt"
    modules = [name.replace(".", r"\.") for name in without_stub()]
    allowlist.write_text("\n".join([ALLOWED, *modules]), encoding="utf-8")
    result = run(
        "mypy.stubtest", "memslots", "--concise", "--allowlist", str(allowlist), cwd=tmp_path
    )
    assert result.returncode == 0, result.stdout
