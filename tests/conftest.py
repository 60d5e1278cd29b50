"""Fixtures of the whole suite: the class under test, a small machine, the drivers.

The small machine is checked at the end of a test. The drivers are the .pyx files of core/drivers.
They drive a part of the core alone, as any outside code could.
"""

from __future__ import annotations

import fcntl
import gc
import hashlib
import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fresh import compiler_environment
from hypothesis import HealthCheck, settings

import memslots
from memslots import Memslots

# A Python that a test starts must import the installed package in any directory. The checkout's
# memslots folder has no compiled module.
os.environ["PYTHONSAFEPATH"] = "1"

# Their asserts then show the compared values, as those of the tests do.
pytest.register_assert_rewrite("compared", "fuzz")

TESTS = Path(__file__).parent
ROOT = TESTS.parent
DRIVERS = TESTS / "core" / "drivers"

settings.register_profile(
    "ci",
    max_examples=300,
    stateful_step_count=50,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("short", settings.get_profile("ci"), max_examples=20)
settings.register_profile("long", settings.get_profile("ci"), max_examples=10_000)
# pytest's own --hypothesis-profile=long does the same.
settings.load_profile(os.environ.get("MEMSLOTS_HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session", autouse=True)
def gil_stays_off() -> Iterator[None]:
    """Checks that no import of the tests turns the GIL on in a free-threaded Python."""
    yield
    if sysconfig.get_config_var("Py_GIL_DISABLED") and os.environ.get("PYTHON_GIL") != "1":
        assert not getattr(sys, "_is_gil_enabled")()  # noqa: B009 (unknown to older typesheds)


@pytest.fixture(scope="module", autouse=True)
def little_to_collect() -> None:
    """Keeps what stays until the end out of the collections that tests ask for: most are quick.

    That is what pytest has collected, and what hypothesis and caches keep of each module.
    """
    gc.collect()
    gc.freeze()


if sysconfig.get_config_var("Py_GIL_DISABLED"):
    # Without the GIL each collection walks the whole heap, with what is frozen. By CPython's own
    # threshold, 2,000 new objects, collections would be nearly half of the suite's time.
    gc.set_threshold(100_000)


@pytest.fixture
def vm() -> Iterator[Memslots]:
    """Returns a Memslots with 64 slots, two address spaces and gfns up to 0xffff."""
    vm = Memslots(64, address_spaces=2, max_gfn=0xFFFF)
    yield vm
    vm.check()


# The tests of each marker, by folder or file. pyproject.toml says what a marker means.
MARKERS = {
    "static": (
        "test_typing.py",
        "test_layers.py",
        "test_distributions.py",
        "core/test_prefixes.py",
        "models/",
        "mutation/",
    ),
    "pure": (
        *("traces/", "cli/", "bench/", "maps/", "replay/", "mirror/test_cycles.py"),
        *("mirror/test_plan.py", "mirror/test_plan_traces.py", "mirror/test_planner.py"),
    ),
    "kvm": ("kvm/",),
    "leaks": ("test_leaks.py", "kvm/test_leaks.py"),
    "soak": ("test_leaks.py", "kvm/test_leaks.py", "test_stress.py", "core/test_threads.py"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks each test by its folder."""
    for item in items:
        where = item.path.relative_to(TESTS).as_posix()
        for marker, places in MARKERS.items():
            if where.startswith(places):
                item.add_marker(marker)
        if "testcapi" in getattr(item, "fixturenames", ()):
            item.add_marker("untraced")


def build_drivers(target: Path, sources: Sequence[Path]) -> None:
    """Builds the drivers in `target`, unless they were built from the same files before."""
    core = Path(memslots.__file__).parent / "core"
    stamp = hashlib.sha256()
    shared = sorted(DRIVERS.glob("*.pxd"))
    for path in [*sources, *shared, *sorted((ROOT / "memslots").rglob("*.pxd"))]:
        stamp.update(path.read_bytes())
    # A build of the package counts as new if its files have another time.
    stamp.update(repr([path.stat().st_mtime_ns for path in sorted(core.glob("*.so"))]).encode())
    with (target.parent / f"{target.name}.lock").open("w") as lock:
        # The workers of a parallel run wait here, and one of them builds.
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = target / "built"
        if done.is_file() and done.read_text() == stamp.hexdigest():
            return
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for source in [DRIVERS / "setup.py", *shared, *sources]:
            # Copied, so that the build writes nothing beside the tests.
            shutil.copy(source, target)
        names = [source.name for source in sources]
        command = [sys.executable, "setup.py", str(ROOT), *names, "build_ext", "--inplace"]
        result = subprocess.run(
            command,
            cwd=target,
            env=compiler_environment() | {"PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        done.write_text(stamp.hexdigest())


@pytest.fixture(scope="session")
def drivers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Returns a function from a driver's name to its module.

    The drivers are built once for each interpreter and each set of switches, in pytest's cache.
    """
    switches = [os.environ.get(f"MEMSLOTS_{name}", "") for name in ("DEBUG", "SANITIZE")]
    name = "-".join([str(sysconfig.get_config_var("SOABI")), *filter(None, switches)])
    if hasattr(request.config, "cache"):
        target = request.config.cache.mkdir("drivers") / name
    else:
        target = tmp_path_factory.mktemp("drivers") / name
    sources = sorted(DRIVERS.glob("*.pyx"))
    # tests/arm64/run has built them, because this Python cannot.
    if built := os.environ.get("MEMSLOTS_TEST_DRIVERS"):
        target = Path(built)
    else:
        build_drivers(target, sources)
    sys.path.insert(0, str(target))
    try:
        modules = {source.stem: importlib.import_module(source.stem) for source in sources}
    finally:
        sys.path.remove(str(target))

    def driver(name: str) -> ModuleType:
        return modules[f"{name}_driver"]

    return driver
