"""Tests memslots.core.srcu: which readers a writer waits for, and which it does not."""

from __future__ import annotations

import threading
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("no_garbage")


class Wait:
    """A wait in a separate thread."""

    def __init__(self, domain: Any) -> None:
        self.thread = threading.Thread(target=domain.wait)
        self.thread.start()

    def goes_on(self) -> bool:
        """Returns whether the wait has not ended after a while."""
        self.thread.join(0.05)
        return self.thread.is_alive()

    def ends(self) -> bool:
        self.thread.join(60)
        return not self.thread.is_alive()


@pytest.fixture
def domain(drivers: Any) -> Any:
    return drivers("srcu").Domain()


def test_no_reader_no_wait(domain: Any) -> None:
    reader = domain.reader()
    for _ in range(5):
        assert domain.idle()
        assert Wait(domain).ends()
        side = reader.enter()
        assert not domain.idle()
        reader.leave(side)


@pytest.mark.parametrize("kind", ["reader", "shared"])
def test_who_is_in_is_waited_for(domain: Any, kind: str) -> None:
    reader = getattr(domain, kind)()
    for _ in range(4):
        side = reader.enter()
        wait = Wait(domain)
        assert wait.goes_on()
        reader.leave(side)
        assert wait.ends()
        assert domain.idle()


@pytest.mark.parametrize("kind", ["reader", "shared"])
@pytest.mark.parametrize("turns", [0, 1])
def test_after_a_fork_no_reader_is_in(domain: Any, kind: str, turns: int) -> None:
    """After a fork no reader is in a section, whichever counter it used."""
    reader = getattr(domain, kind)()
    other = domain.reader()
    for _ in range(turns):
        side = other.enter()
        wait = Wait(domain)
        assert wait.goes_on()
        other.leave(side)
        assert wait.ends()
    sides = [reader.enter(), reader.enter()]
    assert not domain.idle()
    domain.forget()
    assert domain.idle()
    # Both counters start from zero again, and a reader that enters and leaves is not counted.
    reader.leave(reader.enter())
    assert domain.idle()
    assert len(set(sides)) == 1
    # A debug build counts a thread's sections itself. The domain is not used any more.
    for side in sides:
        reader.leave(side)


def test_who_comes_later_is_not(domain: Any) -> None:
    before, after = domain.reader(), domain.reader()
    for reader in (after, before):  # another reader's line, and the same line
        side = before.enter()
        wait = Wait(domain)
        assert wait.goes_on()
        later = reader.enter()
        assert later != side
        before.leave(side)
        assert wait.ends()
        assert not domain.idle()
        # The next wait also waits for that reader.
        wait = Wait(domain)
        assert wait.goes_on()
        reader.leave(later)
        assert wait.ends()


def test_a_reader_that_comes_while_it_waits(domain: Any) -> None:
    first = domain.reader()
    side = first.enter()
    wait = Wait(domain)
    assert wait.goes_on()
    new = domain.reader()  # a new line
    new_side = new.enter()
    first.leave(side)
    assert wait.ends()
    new.leave(new_side)
    assert domain.idle()


def test_sections_within_sections(domain: Any) -> None:
    reader = domain.reader()
    outer = reader.enter()
    inner = reader.enter()
    wait = Wait(domain)
    reader.leave(outer)
    assert wait.goes_on()
    reader.leave(inner)
    assert wait.ends()


def test_alone(domain: Any) -> None:
    reader = domain.reader()
    first = reader.enter()
    assert reader.alone()
    wait = Wait(domain)
    assert wait.goes_on()
    second = reader.enter()  # in the other turn
    assert second != first
    assert not reader.alone()
    reader.leave(first)
    assert reader.alone()
    assert wait.ends()
    reader.leave(second)


def test_lines_are_used_again(drivers: Any, domain: Any) -> None:
    alloc = drivers("alloc")
    live = alloc.live()
    readers = [domain.reader() for _ in range(5)]
    addresses = {reader.address for reader in readers}
    assert len(addresses) == 5
    assert all(address % 64 == 0 for address in addresses)
    for reader in readers:
        reader.put()
    for _ in range(20):
        reader = domain.reader()
        assert reader.address in addresses
        reader.put()
    assert alloc.live() == live + 5
    del readers, reader


def test_a_reader_without_memory(drivers: Any, domain: Any) -> None:
    alloc = drivers("alloc")
    alloc.fail_nth(1)
    try:
        with pytest.raises(MemoryError):
            domain.reader()
    finally:
        alloc.fail_nth(0)
    reader = domain.reader()
    reader.leave(reader.enter())
    assert domain.idle()


def test_shared_readers(drivers: Any, domain: Any) -> None:
    """Threads that start one after another share no reader, as long as there are enough."""
    found: list[int] = []
    count = drivers("srcu").shared_readers
    for _ in range(count):
        thread = threading.Thread(target=lambda: found.append(domain.shared().address))
        thread.start()
        thread.join()
    assert len(set(found)) == count
    assert {domain.shared().address for _ in range(3)} < set(found)


def test_forgetting(domain: Any) -> None:
    """Forgets readers as the child of a fork does, which has no other threads."""
    # In a thread that ends, because a thread in a section may only read.
    thread = threading.Thread(
        target=lambda: [r.enter() for r in (domain.reader(), domain.reader(), domain.shared())]
    )
    thread.start()
    thread.join()
    assert not domain.idle()
    domain.forget()
    assert domain.idle()
    assert Wait(domain).ends()


def test_many_come_and_go(domain: Any) -> None:
    stop = False
    rounds = [0] * 3

    def read(number: int) -> None:
        while not stop:
            reader = domain.reader()
            for _ in range(10):
                reader.leave(reader.enter())
            reader.put()
            rounds[number] += 1

    threads = [threading.Thread(target=read, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    while min(rounds) < 20:
        domain.wait()
    stop = True
    for thread in threads:
        thread.join()
    assert domain.idle()
