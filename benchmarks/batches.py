"""Batches of a million look-ups, and numpy's answer to the same question.

The answers go to a buffer that exists before the batch. A figure is the time of one look-up.
"""

from __future__ import annotations

import numpy as np
from common import KVM_SIZES, MILLION, SIZES, STRUCTURES, AnyMemslots, nanoseconds
from guests import CASES, Guest
from rivals import NumpySearch

from memslots import Vcpu
from memslots.baseline import ArrayVcpu


class _LookupMany:
    param_names = ("slots", "structure", "case")
    unit = "ns"

    def face_of(self, vm: AnyMemslots) -> AnyMemslots | Vcpu | ArrayVcpu:
        return vm

    def setup(self, slots: int, structure: str, case: str) -> None:
        """Makes the slots, and checks a look-up of every page."""
        guest = Guest(slots)
        self.face = self.face_of(guest.make(structure))
        self.asked = guest.accesses(case)
        self.ids = np.empty(MILLION, np.int32)
        self.batch()
        assert np.array_equal(self.ids, self.asked.ids)

    def batch(self) -> None:
        self.face.lookup_many(self.asked.gfns, self.ids)

    def track_lookup_many(self, slots: int, structure: str, case: str) -> float:
        """Returns the time of one look-up."""
        return nanoseconds(self.batch, MILLION)


class LookupMany(_LookupMany):
    """Times lookup_many through a Memslots."""

    params = (SIZES, tuple(STRUCTURES), CASES)


class LookupManyByVcpu(_LookupMany):
    """Times lookup_many through a Vcpu, which keeps its last-used slot between batches."""

    params = (KVM_SIZES, tuple(STRUCTURES), ("random", "boot"))

    def face_of(self, vm: AnyMemslots) -> AnyMemslots | Vcpu | ArrayVcpu:
        return vm.vcpu()


class Translate:
    """Times translate through a Memslots."""

    params = (SIZES, tuple(STRUCTURES), CASES)
    param_names = ("slots", "structure", "case")
    unit = "ns"

    def setup(self, slots: int, structure: str, case: str) -> None:
        """Makes the slots, and checks a translation of every address."""
        guest = Guest(slots)
        self.vm = guest.make(structure)
        self.asked = guest.accesses(case)
        self.hvas = np.empty(MILLION, np.uint64)
        self.batch()
        assert np.array_equal(self.hvas, self.asked.hvas)

    def batch(self) -> None:
        self.vm.translate(self.asked.gpas, self.hvas)

    def track_translate(self, slots: int, structure: str, case: str) -> float:
        """Returns the time of one look-up."""
        return nanoseconds(self.batch, MILLION)


class Numpy:
    """Times numpy.searchsorted, the usual replacement, for the ids that lookup_many returns."""

    params = (SIZES, CASES)
    param_names = ("slots", "case")
    unit = "ns"

    def setup(self, slots: int, case: str) -> None:
        """Lays out the slots, and checks a look-up of every page."""
        guest = Guest(slots)
        self.search = NumpySearch(guest)
        self.asked = guest.accesses(case)
        self.ids = np.empty(MILLION, np.int32)
        self.batch()
        assert np.array_equal(self.ids, self.asked.ids)

    def batch(self) -> None:
        self.search.lookup_many(self.asked.gfns, self.ids)

    def track_searchsorted(self, slots: int, case: str) -> float:
        """Returns the time of one look-up."""
        return nanoseconds(self.batch, MILLION)
