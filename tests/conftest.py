"""Fixtures of the whole suite: the class under test, a small machine, checked at the end, and the
drivers: the .pyx files of core/drivers that drive a part of the core alone, as any outside code
could.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from memslots import Memslots
from memslots.baseline import ArrayMemslots

# A Python that a test starts, in whatever directory, is to import what is installed too: not the
# checkout's memslots folder, which holds no compiled module.
os.environ["PYTHONSAFEPATH"] = "1"

# Their asserts say what was compared, as those of the tests themselves.
pytest.register_assert_rewrite("compared", "fuzz")

DRIVERS = Path(__file__).parent / "core" / "drivers"

SETUP = """
import os, sys
import memslots
from Cython.Build import cythonize
from setuptools import Extension, setup

sanitize = os.environ.get("MEMSLOTS_SANITIZE")
flags = ["-fsanitize=" + sanitize, "-fno-sanitize-recover=all"] if sanitize else []
macros = [("MEMSLOTS_DEBUG", "1")] if os.environ.get("MEMSLOTS_DEBUG", "0") not in ("", "0") else []
extensions = [
    Extension(
        os.path.basename(path).removesuffix(".pyx"),
        [path],
        extra_compile_args=["-O1", "-g", "-Wno-unused-function", *flags],
        extra_link_args=flags,
        define_macros=macros,
    )
    for path in sys.argv[3:]
]
del sys.argv[3:]
# An editable install is not on sys.path, where Cython would look for the .pxd files by itself. The
# baseline's, which are not installed, are in the checkout.
where = [os.path.dirname(os.path.dirname(memslots.__file__)), os.environ["MEMSLOTS_CHECKOUT"]]
setup(
    ext_modules=cythonize(
        extensions,
        build_dir="c",
        include_path=where,
        compiler_directives={"freethreading_compatible": True},
        quiet=True,
    )
)
"""

settings.register_profile(
    "ci",
    max_examples=300,
    stateful_step_count=50,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("long", settings.get_profile("ci"), max_examples=10_000)
# pytest's own --hypothesis-profile=long does the same.
settings.load_profile(os.environ.get("MEMSLOTS_HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session", autouse=True)
def gil_stays_off() -> Iterator[None]:
    """Nothing that the tests import turns the GIL on where there is none."""
    yield
    if sysconfig.get_config_var("Py_GIL_DISABLED") and os.environ.get("PYTHON_GIL") != "1":
        assert not getattr(sys, "_is_gil_enabled")()  # noqa: B009 (unknown to older typesheds)


@pytest.fixture(params=[Memslots, ArrayMemslots], ids=lambda cls: cls.__name__)
def memslots_class(request: pytest.FixtureRequest) -> type[Memslots]:
    """Every class with the face of Memslots; what holds for one holds for all."""
    cls: type[Memslots] = request.param
    return cls


@pytest.fixture
def vm(memslots_class: type[Memslots]) -> Iterator[Memslots]:
    """64 slots, two address spaces, gfns up to 0xffff."""
    vm = memslots_class(64, address_spaces=2, max_gfn=0xFFFF)
    yield vm
    vm.check()


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
    checkout = str(Path(__file__).parent.parent)
    environment = dict(os.environ, PYTHONWARNINGS="ignore", MEMSLOTS_CHECKOUT=checkout)
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
