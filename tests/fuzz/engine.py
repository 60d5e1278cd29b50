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
    """Fuzzes the `one_input` of a module. The command line's arguments are libFuzzer's."""
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
    """Loads atheris's libFuzzer, so that the calls of gcc's -fsanitize-coverage find it.

    An instrumented memslots cannot be imported without it.
    """
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags | os.RTLD_GLOBAL)
    try:
        core = importlib.import_module("atheris.core_with_libfuzzer")
    finally:
        sys.setdlopenflags(flags)
    return ctypes.CDLL(core.__file__)


def start_counters(libfuzzer: ctypes.CDLL) -> int:
    """Registers the counters of modules that gcc instrumented, if counters.c was preloaded.

    Returns the number of counters, 0 if there are none.
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
