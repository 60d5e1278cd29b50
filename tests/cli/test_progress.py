"""The bar on a terminal: when it is shown."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator

import pytest
from rich.console import Console

from memslots.cli import progress
from memslots.cli.progress import metered, unmetered


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Returns what a terminal got, on which a bar comes after a twentieth of a second."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, force_interactive=True, width=80)
    monkeypatch.setattr(progress, "Console", lambda stderr: console)
    monkeypatch.setattr(progress, "PATIENCE", 0.05)
    yield text
    assert progress.Meter.current is None


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar comes after a minute. On a busy machine a shorter time may be over too early."""
    monkeypatch.setattr(progress, "PATIENCE", 60)


def nothing_comes_later() -> bool:
    return not any(isinstance(thread, threading.Timer) for thread in threading.enumerate())


@pytest.mark.usefixtures("patient")
def test_short_work_shows_nothing(terminal: io.StringIO) -> None:
    with metered("short"):
        assert not nothing_comes_later()
    assert nothing_comes_later()
    assert terminal.getvalue() == ""


def wait_for_bar(terminal: io.StringIO, what: str, after: int = 0) -> None:
    """Waits until the terminal shows `what` behind its first `after` characters."""
    end = time.monotonic() + 60
    while what not in terminal.getvalue()[after:]:
        assert time.monotonic() < end, terminal.getvalue()[after:]
        time.sleep(0.01)


def test_no_bar_while_something_is_asked(terminal: io.StringIO) -> None:
    with metered("long"):
        wait_for_bar(terminal, "long")
        with unmetered():
            hidden = terminal.getvalue()
            time.sleep(0.3)
            assert terminal.getvalue() == hidden
        wait_for_bar(terminal, "long", after=len(hidden))
    with unmetered():
        pass


@pytest.mark.usefixtures("patient")
def test_an_error_removes_the_bar(terminal: io.StringIO) -> None:
    with pytest.raises(KeyboardInterrupt), metered("long"), unmetered():
        raise KeyboardInterrupt
    assert nothing_comes_later()
    assert terminal.getvalue() == ""
