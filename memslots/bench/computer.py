"""The machine and the software that the figures were measured with."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine and the interpreter. `memory` is in bytes, or None if the system does not say."""

    cpu: str
    cpus: int
    memory: int | None
    kernel: str
    python: str


def describe() -> Machine:
    """Returns this machine."""
    return Machine(
        cpu=_cpu(),
        cpus=os.cpu_count() or 1,
        memory=_memory(),
        kernel=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or "unknown"


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def installed(name: str) -> str | None:
    """Returns the version of a package whose module has the same name, or None if it is missing.

    It imports the module, because an installed one may still fail to import.
    """
    try:
        import_module(name)
        return version(name)
    except ImportError:  # PackageNotFoundError too
        return None
