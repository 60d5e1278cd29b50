"""Replaces a file by another, and tests what stays of an unfinished one."""

from __future__ import annotations

import errno
import gc
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memslots.memory import replacing
from memslots.memory.replacing import replacing as replace

OLD = b"old"


def without_unnamed_files(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Acts as a file system without unnamed files."""
    real: Callable[..., int] = os.open

    def fake(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(number, os.strerror(number))
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", fake)


def without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replacing, "_by_descriptor", lambda fd: f"/nowhere/{fd}")


WAYS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "unnamed": lambda monkeypatch: None,
    "EOPNOTSUPP": lambda monkeypatch: without_unnamed_files(monkeypatch, errno.EOPNOTSUPP),
    "EISDIR": lambda monkeypatch: without_unnamed_files(monkeypatch, errno.EISDIR),
    "without /proc": without_proc,
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    WAYS[request.param](monkeypatch)
    return str(request.param)


def open_files() -> int:
    gc.collect()  # collects the garbage of other tests
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("old", [True, False])
def test_it_is_there_when_all_is_written(way: str, old: bool, tmp_path: Path) -> None:
    target = tmp_path / "name"
    if old:
        target.write_bytes(OLD)
        target.chmod(0o640)
    before = open_files()
    with replace(target) as fd:
        os.write(fd, b"new")
        assert (target.read_bytes() == OLD) if old else not target.exists()
        if way == "unnamed":
            assert names_in(tmp_path) == ["name"] * old
    assert target.read_bytes() == b"new"
    assert names_in(tmp_path) == ["name"]
    assert stat.S_IMODE(target.stat().st_mode) == (0o640 if old else 0o666 & ~umask())
    assert open_files() == before


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before


@pytest.mark.parametrize("old", [True, False])
def test_nothing_stays_of_what_fails(way: str, old: bool, tmp_path: Path) -> None:
    target = tmp_path / "name"
    if old:
        target.write_bytes(OLD)
    before = open_files()
    with pytest.raises(KeyError), replace(target) as fd:
        os.write(fd, b"new")
        raise KeyError
    assert names_in(tmp_path) == ["name"] * old
    assert open_files() == before


def test_a_file_that_somebody_else_makes_meanwhile_is_replaced(way: str, tmp_path: Path) -> None:
    target = tmp_path / "name"
    with replace(target) as fd:
        os.write(fd, b"new")
        target.write_bytes(OLD)
    assert target.read_bytes() == b"new"
    assert names_in(tmp_path) == ["name"]


def test_a_folder_that_is_moved_meanwhile(way: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with replace(folder / "name") as fd:
        os.write(fd, b"new")
        folder.rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "name").read_bytes() == b"new"


def test_other_errors_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_unnamed_files(monkeypatch, errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"), replace(tmp_path / "name"):
        pass


def test_a_folder_of_which_the_name_cannot_be_made(tmp_path: Path) -> None:
    """The name is made at the end; if that is impossible, nothing is left."""
    folder = tmp_path / "folder"
    folder.mkdir()
    before = open_files()
    with pytest.raises(FileNotFoundError), replace(folder / "name"):
        folder.rmdir()
    assert open_files() == before


KILLED = """
import os, signal, sys
from memslots.memory.replacing import replacing
with replacing(sys.argv[1]) as fd:
    os.write(fd, b"new")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("old", [True, False])
def test_nothing_stays_of_a_process_that_is_killed(old: bool, tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    unnamed = replacing._open_unnamed(folder, 0o600)
    os.close(folder)
    if unnamed is None:
        pytest.skip("this file system has no files without a name")
    os.close(unnamed)
    target = tmp_path / "name"
    if old:
        target.write_bytes(OLD)
    command = [sys.executable, "-c", KILLED, str(target)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert names_in(tmp_path) == ["name"] * old
