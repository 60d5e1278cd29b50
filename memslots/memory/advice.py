"""Advice to the host about memory: madvise and mbind, each with the kernel's answer."""

from __future__ import annotations

import ctypes
import os
import platform
from operator import index
from typing import SupportsIndex

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
_libc.syscall.restype = ctypes.c_long

# madvise's arguments: (to switch it on, to switch it off).
_MERGEABLE = 12, 13
_FORK = 11, 10
_DUMP = 17, 16
_MBIND = {"x86_64": 237, "aarch64": 235, "riscv64": 235, "loongarch64": 235}
_MPOL_BIND = 2
_MOST_NODES = 1024


def advise(
    hva: int,
    size: int,
    mergeable: bool | None,
    fork: bool | None,
    dump: bool | None,
    numa_node: SupportsIndex | None,
) -> None:
    """Implements Backing.advise."""
    node = None if numa_node is None else _node(numa_node)
    for wanted, (yes, no) in ((mergeable, _MERGEABLE), (fork, _FORK), (dump, _DUMP)):
        if wanted is not None and _libc.madvise(hva, size, yes if wanted else no):
            raise _error()
    if node is not None:
        _bind(hva, size, node)


def _node(given: SupportsIndex) -> int:
    """Returns the number of a NUMA node. TypeError; ValueError: no kernel has so many nodes."""
    try:
        node = index(given)
    except TypeError:
        kind = type(given).__name__
        raise TypeError(f"numa_node must be an integer, not {kind!r}") from None
    if not 0 <= node < _MOST_NODES:
        raise ValueError(f"numa_node must be 0 to {_MOST_NODES - 1}, not {node}")
    return node


def _bind(hva: int, size: int, node: int) -> None:
    number = _MBIND.get(platform.machine())
    if number is None:
        raise OSError(38, f"the number of mbind is not known for {platform.machine()}")
    mask = (ctypes.c_ulong * (_MOST_NODES // 64))()
    mask[node // 64] = 1 << node % 64
    arguments = (ctypes.c_void_p(hva), ctypes.c_ulong(size), ctypes.c_int(_MPOL_BIND))
    if _libc.syscall(
        ctypes.c_long(number),
        *arguments,
        ctypes.byref(mask),
        ctypes.c_ulong(_MOST_NODES + 1),
        ctypes.c_uint(0),
    ):
        raise _error()


def _error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
