"""Completing maps with what the VMM's process, or QEMU, says of its own memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import BinaryIO, Protocol

from memslots.errors import TraceError
from memslots.maps.entries import Map
from memslots.maps.procmaps import ProcMaps
from memslots.maps.ramblock import RamBlocks
from memslots.maps.reading import text_of


class _Beside(Protocol):
    name: str

    def recognises(self, text: str) -> bool: ...
    def beside(self, text: str, map: Map) -> Map: ...


_BESIDE: tuple[_Beside, ...] = (RamBlocks(), ProcMaps())


def beside(
    maps: Iterable[Map], path: str | os.PathLike[str], stream: BinaryIO | None = None
) -> list[Map]:
    """Returns maps with what a file says of the VMM's memory.

    Parameters
    ----------
    maps : iterable of Map
        Maps whose entries have host addresses, or names of QEMU's regions.
    path : str or path
        QEMU's ``info ramblock``, or /proc/PID/maps or smaps of the VMM; ``-`` is standard input.
        The text may be compressed, quoted, or in a log.
    stream : binary file, optional
        A stream to read instead of the file; `path` is then its name.

    Returns
    -------
    list of Map
        As many as were given, in their order.

    Raises
    ------
    TraceError
        The file cannot be read, is in none of these formats, or does not belong to the maps.
    """
    name = os.fspath(path)
    text = text_of(name, stream)
    given = completed = list(maps)
    known = [one for one in _BESIDE if one.recognises(text)]
    if not known:
        raise TraceError(name, "it is neither QEMU's info ramblock nor /proc/PID/maps")
    try:
        for one in known:
            completed = [one.beside(text, map) for map in completed]
    except ValueError as error:
        raise TraceError(name, str(error)) from None
    if completed == given:
        raise TraceError(name, "it says nothing of these maps that they do not have already")
    return completed
