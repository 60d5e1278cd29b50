"""Replaces a file by a new one, after all of the new one is written.

If the file system supports unnamed files (O_TMPFILE), the new file has no name until then. So
nothing remains of it if the process is killed.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[int]:
    """Yields a descriptor to write a new file, which replaces `path` at the end.

    If `path` is a pipe or a device, the descriptor writes to it directly.
    """
    target = Path(path)
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        fd = os.open(target, os.O_WRONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)
        return
    # Follow symbolic links, so that these stay.
    target = target.resolve()
    # For a new file the umask decides. A replacement is private until it has the old file's mode.
    create = 0o666 if mode is None else 0o600
    with _opened(target.parent, os.O_RDONLY | os.O_DIRECTORY) as folder:
        unnamed = _open_unnamed(folder, create)
        partial = None if unnamed is not None else _partial_name(target)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        fd = unnamed if unnamed is not None else os.open(str(partial), flags, create, dir_fd=folder)
        try:
            try:
                if mode is not None:
                    os.fchmod(fd, stat.S_IMODE(mode))
                yield fd
                if partial is None:
                    # Name the file: with its final name if that is free.
                    partial = _link(fd, folder, target, mode is not None)
            finally:
                os.close(fd)
            if partial is not None:
                os.replace(partial, target.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            if partial is not None:
                with suppress(FileNotFoundError):
                    os.unlink(partial, dir_fd=folder)
            raise


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def _open_unnamed(folder: int, mode: int) -> int | None:
    """Opens a file without a name. Returns None if the system does not support it."""
    try:
        fd = os.open(".", os.O_WRONLY | os.O_TMPFILE, mode, dir_fd=folder)
    except OSError as error:
        # EISDIR: the kernel does not know the flag.
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
            return None
        raise
    if not Path(_by_descriptor(fd)).exists():  # without /proc it can never get a name
        os.close(fd)
        return None
    return fd


def _link(fd: int, folder: int, target: Path, taken: bool) -> str | None:
    """Names an unnamed file like `target`. If that is taken, returns the other name it got."""
    if not taken:
        try:
            _link_as(fd, folder, target.name)
        except FileExistsError:
            pass  # created meanwhile
        else:
            return None
    partial = _partial_name(target)
    _link_as(fd, folder, partial)
    return partial


def _link_as(fd: int, folder: int, name: str) -> None:
    # Given descriptors of folders, Python calls linkat. Only linkat follows the link in /proc.
    os.link(_by_descriptor(fd), name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True)


def _by_descriptor(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def _partial_name(target: Path) -> str:
    # Only a part of the name: the whole may leave no room for more.
    return f".{target.name[:32]}.{secrets.token_hex(4)}.part"
