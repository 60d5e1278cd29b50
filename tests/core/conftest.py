"""Builds the drivers: the .pyx files beside this one that drive a part of the core alone, as any
outside code could.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DRIVERS = Path(__file__).parent / "drivers"

SETUP = """
import os, sys
import memslots
from Cython.Build import cythonize
from setuptools import Extension, setup

sanitize = os.environ.get("MEMSLOTS_SANITIZE")
flags = ["-fsanitize=" + sanitize, "-fno-sanitize-recover=all"] if sanitize else []
extensions = [
    Extension(
        os.path.basename(path).removesuffix(".pyx"),
        [path],
        extra_compile_args=["-O1", "-g", "-Wno-unused-function", *flags],
        extra_link_args=flags,
    )
    for path in sys.argv[3:]
]
del sys.argv[3:]
# An editable install is not on sys.path, where Cython would look for the .pxd files by itself.
where = [os.path.dirname(os.path.dirname(memslots.__file__))]
setup(ext_modules=cythonize(extensions, build_dir="c", include_path=where, quiet=True))
"""


@pytest.fixture(scope="session")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that gives the driver module of a name."""
    target = tmp_path_factory.mktemp("drivers")
    (target / "setup.py").write_text(SETUP)
    sources = []
    for source in sorted(DRIVERS.glob("*.pyx")):
        # Copied, so that nothing is written beside the tests.
        (target / source.name).write_text(source.read_text())
        sources.append(source.name)
    command = [sys.executable, "setup.py", "build_ext", "--inplace", *sources]
    environment = dict(os.environ, PYTHONWARNINGS="ignore")
    done = subprocess.run(
        command, cwd=target, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(target))
    try:
        modules = {name: importlib.import_module(name.removesuffix(".pyx")) for name in sources}
    finally:
        sys.path.remove(str(target))

    def driver(name: str) -> ModuleType:
        return modules[f"{name}_driver.pyx"]

    return driver
