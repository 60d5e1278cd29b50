"""The structures that people use without memslots, and loops that no call can beat."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np
from guests import Guest, Numbers
from numpy.typing import NDArray


class NumpySearch:
    """Finds the ids of `lookup_many` by numpy.searchsorted and a mask for the holes.

    The result equals that of

        i = np.searchsorted(bases, gfns, side="right") - 1
        ok = (i >= 0) & (gfns < ends[i])
        np.where(ok, ids[i], -1)

    but this is faster. A slot without pages goes before the others, so no index is below 0. All
    arrays exist before, except the one that searchsorted makes. Each piece fits the processor's
    second-level cache.
    """

    PIECE = 1 << 16

    def __init__(self, guest: Guest) -> None:
        self.bases = guest.bases
        self.ends = np.concatenate([np.zeros(1, np.uint64), guest.ends])
        self.ids = np.arange(-1, guest.slots, dtype=np.int32)
        self.ends_found = np.empty(self.PIECE, np.uint64)
        self.beyond = np.empty(self.PIECE, np.bool_)

    def lookup_many(self, gfns: Numbers, out: NDArray[np.int32]) -> None:
        """Writes the ids of the slots that hold the pages to `out`, or -1 for a page in no slot."""
        for begin in range(0, len(gfns), self.PIECE):
            piece = slice(begin, begin + self.PIECE)
            self.search(gfns[piece], out[piece])

    def search(self, gfns: Numbers, out: NDArray[np.int32]) -> None:
        ends, beyond = self.ends_found[: len(gfns)], self.beyond[: len(gfns)]
        index = self.bases.searchsorted(gfns, side="right")
        self.ids.take(index, out=out, mode="clip")  # "raise" would copy; all indices are in range
        self.ends.take(index, out=ends, mode="clip")
        np.greater_equal(gfns, ends, out=beyond)
        np.putmask(out, beyond, -1)


class SortedNumpySearch(NumpySearch):
    """Sorts the pages first, which helps if the slots do not fit the caches."""

    def lookup_many(self, gfns: Numbers, out: NDArray[np.int32]) -> None:
        """Does the same as NumpySearch.lookup_many."""
        order = np.argsort(gfns)
        ids = np.empty_like(out)
        super().lookup_many(gfns[order], ids)
        out[order] = ids


# Built with this Python's own flags, like the package.
FLOOR = '''
# cython: language_level=3, boundscheck=False, wraparound=False
"""What a look-up cannot be faster than: the call itself, and the test of one cached range."""

cimport cython
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memcpy


cdef class Empty:
    """A method that takes a gfn and gives a stored object, whatever the gfn."""

    cdef object stored

    def __init__(self, stored):
        self.stored = stored

    @cython.binding(True)
    def bound(self, gfn):
        cdef uint64_t page = gfn
        return self.stored

    @cython.binding(False)
    def unbound(self, gfn):
        cdef uint64_t page = gfn
        return self.stored


def one_range(
    const uint64_t[::1] gfns, int32_t[::1] out, uint64_t base_gfn, uint64_t npages, int32_t id
):
    """lookup_many of a single slot."""
    cdef Py_ssize_t i
    with nogil:
        for i in range(gfns.shape[0]):
            out[i] = id if gfns[i] - base_gfn < npages else -1


def copy_pages(unsigned char[::1] to, const unsigned char[::1] from_, const int64_t[::1] pages):
    """memcpy of some pages to the same places."""
    cdef Py_ssize_t i
    with nogil:
        for i in range(pages.shape[0]):
            memcpy(&to[pages[i] * 4096], &from_[pages[i] * 4096], 4096)
'''


def build_floor() -> ModuleType:
    """Compiles and imports FLOOR, in a directory that is removed before the return."""
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "floor.pyx"
        source.write_text(FLOOR)
        cythonize = [sys.executable, "-m", "Cython.Build.Cythonize", "-i", "-q", str(source)]
        subprocess.run(cythonize, check=True, stdout=subprocess.DEVNULL, cwd=directory)
        (file,) = Path(directory).glob("floor.*.so")
        spec = importlib.util.spec_from_file_location("floor", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module
