"""Fixtures of the whole suite: the class under test, and a small machine, checked at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from memslots import Memslots

# A Python that a test starts, in whatever directory, is to import what is installed too: not the
# checkout's memslots folder, which holds no compiled module.
os.environ["PYTHONSAFEPATH"] = "1"

settings.register_profile(
    "ci",
    max_examples=300,
    stateful_step_count=50,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("long", settings.get_profile("ci"), max_examples=10_000)
# pytest's own --hypothesis-profile=long does the same.
settings.load_profile(os.environ.get("MEMSLOTS_HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(params=[Memslots])
def memslots_class(request: pytest.FixtureRequest) -> type[Memslots]:
    """Every class with the face of Memslots; what holds for one holds for all."""
    cls: type[Memslots] = request.param
    return cls


@pytest.fixture
def vm(memslots_class: type[Memslots]) -> Iterator[Memslots]:
    """64 slots, two address spaces, gfns up to 0xffff."""
    vm = memslots_class(64, address_spaces=2, max_gfn=0xFFFF)
    yield vm
    vm.check()
