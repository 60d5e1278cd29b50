"""Tests that the start of a task comes before what it does, in traces of any length."""

from __future__ import annotations

import errno
import gc
import io
import tempfile
import tracemalloc
from collections.abc import Iterator
from typing import IO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memslots.replay import replay
from memslots.traces import Event, RegionCall, TaskEnded, TaskStarted, TraceError, open_trace, spool
from memslots.traces.births import BirthsFirst

TIDS = st.integers(1, 4)
EVENTS = st.lists(
    st.one_of(
        st.builds(lambda tid: call(0, tid), TIDS),
        st.builds(lambda tid: TaskEnded(0, tid), TIDS),
        st.builds(lambda parent, child: TaskStarted(0, parent, child, False), TIDS, TIDS),
    )
)


def call(line: int, tid: int | None, slot: int = 0) -> RegionCall:
    return RegionCall(line, slot, 0, slot << 20, 1 << 20, 0x7F00_0000_0000 + (slot << 20), 0, tid)


def lines(count: int) -> bytes:
    """Returns a trace that creates a slot and deletes it, over and over."""
    call = (
        "ioctl(8, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=0, guest_phys_addr=0, memory_size=%d, "
        "userspace_addr=0x7f0000000000}) = 0\n"
    )
    return "".join(call % (0 if number % 2 else 65536) for number in range(count)).encode()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets few events stay in memory."""
    monkeypatch.setattr(spool, "IN_MEMORY", 3)
    monkeypatch.setattr(spool, "_CHUNK", 2)


def test_all_other_events_keep_their_order() -> None:
    events: list[Event] = [
        call(1, 5), TaskEnded(2, 5), call(3, 7), call(4, 5), TaskStarted(5, 7, 5, False), call(6, 5)
    ]  # fmt: skip
    with BirthsFirst(events) as found:
        assert len(found) == 6
        assert [event.line for event in found] == [1, 2, 3, 5, 4, 6]


@given(EVENTS)
def test_a_task_starts_before_it_does_anything(events: list[Event]) -> None:
    with BirthsFirst(events) as found:
        ordered = list(found)
    assert sorted(map(id, ordered)) == sorted(map(id, events))
    others = [event for event in events if not isinstance(event, TaskStarted)]
    assert [event for event in ordered if not isinstance(event, TaskStarted)] == others
    # The last start of a task comes before all that it did since its last end.
    for child in range(1, 5):
        starts = [
            place
            for place, event in enumerate(events)
            if isinstance(event, TaskStarted) and event.child == child
        ]
        ends = [
            place
            for place, event in enumerate(events)
            if isinstance(event, TaskEnded) and event.tid == child
        ]
        if len(starts) == 1 and not ends:
            place = next(n for n, event in enumerate(ordered) if event is events[starts[0]])
            acts = [n for n, event in enumerate(ordered) if getattr(event, "tid", None) == child]
            assert all(place < act for act in acts)


@given(EVENTS)
def test_the_file_changes_no_order(events: list[Event]) -> None:
    with BirthsFirst(events) as found:
        expected = list(found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "IN_MEMORY", 3)
        patch.setattr(spool, "_CHUNK", 2)
        with BirthsFirst(events) as found:
            assert len(found) == len(events)
            assert list(found) == expected
            next(iter(found), None)  # an iteration that is not finished
            assert list(found) == expected


@pytest.mark.usefixtures("few")
def test_the_file_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    files: list[IO[bytes]] = []
    make = tempfile.TemporaryFile

    def noted() -> IO[bytes]:
        files.append(make())
        return files[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", noted)
    report = replay(open_trace("it", stream=io.BytesIO(lines(21))))
    assert report.vms[0].calls == 21 and len(report.vms[0].final_map) == 1

    def breaks_off() -> Iterator[Event]:
        yield from (call(number, 5) for number in range(21))
        raise TraceError("it", "it ends too early")

    with pytest.raises(TraceError):
        BirthsFirst(breaks_off())
    assert len(files) == 2
    assert all(file.closed for file in files)


@pytest.mark.usefixtures("few")
def test_no_room_for_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    with pytest.raises(
        TraceError, match=r"^it: a temporary file cannot hold .* No space"
    ) as caught:
        replay(open_trace("it", stream=io.BytesIO(lines(21))))
    assert caught.value.errno == errno.ENOSPC


def test_memory_does_not_grow_with_the_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "IN_MEMORY", 1000)

    def events(count: int) -> Iterator[Event]:
        for number in range(count):
            yield call(number, 5, number)

    def peak(count: int) -> int:
        gc.collect()
        tracemalloc.start()
        try:
            with BirthsFirst(events(count)) as found:
                assert sum(1 for _ in found) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(60_000) < 1.2 * peak(15_000)
