"""`import memslots` imports only modules that it needs at once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import memslots

#: Standard modules, with those that Python imports at the start or that these import.
ALLOWED = {
    *("__future__", "collections", "enum", "errno", "functools", "genericpath", "itertools"),
    *("keyword", "operator", "os", "posixpath", "reprlib", "stat", "types"),
    *("abc", "io", "codecs", "encodings", "sys", "builtins", "time", "zipimport"),
}
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
import memslots
print(*sorted(set(sys.modules) - before))
"""


def test_import_brings_in_little() -> None:
    where = Path(memslots.__file__).parent.parent
    command = [sys.executable, "-I", "-S", "-c", PROGRAM, str(where)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    names = {name.partition(".")[0] for name in done.stdout.split()}
    assert "memslots" in names
    # Cython's own modules, and the parts of Python's modules.
    rest = {name for name in names - ALLOWED if not name.startswith("_")}
    assert rest == {"memslots", "cython_runtime"}


def test_names_that_come_in_late() -> None:
    """They are names like any other: listed, importable and picklable; no other name is."""
    # The modules that are loaded are not offered.
    assert {name for name in dir(memslots) if not name.startswith("__")} == set(memslots.__all__)
    code = (
        "import pickle, sys; import memslots; assert 'GuestMemory' in dir(memslots);"
        " assert 'memslots.memory.guestmemory' not in sys.modules;"
        " from memslots import GuestMemory; assert memslots.GuestMemory is GuestMemory;"
        " run = pickle.loads(b'cmemslots\\nDirtyRun\\n(I0\\nI1\\nI2\\ntR.');"
        " assert run == memslots.DirtyRun(0, 1, 2);"
        " from memslots import *; Transaction, MemoryMap, Backing"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        memslots.Nothing  # noqa: B018


def test_what_is_seldom_used_comes_in_when_it_is() -> None:
    code = (
        "import sys; from memslots import Memslots; Memslots();"
        " assert 'memslots.mirror.backend' not in sys.modules;"
        " assert 'memslots.memory.snapshot' not in sys.modules;"
        " assert 'memslots.write.transaction' not in sys.modules;"
        " assert 'memslots.read.memorymap' not in sys.modules;"
        " kernel = Memslots(); Memslots(backend=kernel);"
        " assert 'memslots.mirror.backend' in sys.modules"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_another_interpreter_of_the_process_is_refused() -> None:
    """The first interpreter keeps working."""
    pytest.importorskip("concurrent.interpreters", reason="Python has them from 3.14 on")
    code = """
from concurrent import interpreters
for _ in range(2):
    other = interpreters.create()
    try:
        other.exec("import memslots")
    except interpreters.ExecutionFailed as failed:
        print(failed.excinfo.type.__name__, failed.excinfo.msg)
    other.close()
    from memslots import Memslots
    vm = Memslots()
    assert vm.create(0, 0, 1, 0) is vm.lookup(0)
"""
    command = [sys.executable, "-P", "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (message,) = set(done.stdout.splitlines())
    assert re.fullmatch(
        r"ImportError module memslots\.\S+ does not support .*interpreters", message
    )
