"""Runs a target under atheris, and counts the coverage of the extension modules if they allow it.

Only this module needs atheris. The modules that are run as scripts import it.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


def main(target: str) -> NoReturn:
    """Fuzz the `one_input` of a module with the command line's arguments, which are libFuzzer's."""
    import atheris

    libfuzzer = load_libfuzzer()
    with atheris.instrument_imports(include=["memslots", "model", "compared", "fuzz"]):
        one_input: Callable[[bytes], None] = importlib.import_module(target).one_input
    print(f"INFO: {start_counters(libfuzzer)} counters in memslots' extension modules", flush=True)
    # To minimize, libFuzzer makes a shell run its first argument again and again.
    again = shlex.join([sys.executable, sys.argv[0]])
    atheris.Setup([again, *sys.argv[1:]], one_input, internal_libfuzzer=True)
    atheris.Fuzz()
    sys.exit(0)


def load_libfuzzer() -> ctypes.CDLL:
    """Load atheris's libFuzzer, for all to find what gcc's -fsanitize-coverage calls.

    An instrumented memslots cannot be imported without.
    """
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags | os.RTLD_GLOBAL)
    try:
        core = importlib.import_module("atheris.core_with_libfuzzer")
    finally:
        sys.setdlopenflags(flags)
    return ctypes.CDLL(core.__file__)


def start_counters(libfuzzer: ctypes.CDLL) -> int:
    """Have the modules counted that gcc instrumented: counters.c, if it was preloaded.

    Gives how many counters there are, 0 where there are none.
    """
    import memslots

    process = ctypes.CDLL(None)
    if not hasattr(process, "memslots_counters_start"):
        return 0
    process.memslots_counters_start.restype = ctypes.c_long
    counted: int = process.memslots_counters_start(
        os.fsencode(Path(memslots.__file__).parent) + b"/",
        libfuzzer.__sanitizer_cov_8bit_counters_init,
        libfuzzer.__sanitizer_cov_pcs_init,
    )
    if counted < 0:
        raise RuntimeError("counters.c could not begin to count")
    return counted
