"""A client of QMP, the protocol by which QEMU is asked and told: JSON, a message on each line."""

from __future__ import annotations

import json
import socket
from time import monotonic
from typing import Any

from memslots.traces.events import shorten

#: Seconds to wait for the greeting, and for each reply.
PATIENCE = 10.0
#: Longest message in bytes.
MOST_BYTES = 64 << 20
_HINT = "does QEMU run with -qmp unix:SOCKET,server=on,wait=off?"


class QmpError(Exception):
    """The socket cannot be used, or the peer does not behave as QMP says."""


class QmpClosedError(QmpError):
    """The peer closed the connection. `reason` is why QEMU shut down, or None if unknown."""

    def __init__(self, reason: str | None) -> None:
        known = reason or "it closed the connection, and did not say that it shuts down"
        super().__init__(f"QEMU is gone: {known}")
        self.reason = reason


class Qmp:
    """A connection to the QMP socket at `path`, ready for commands.

    All methods raise QmpError, and QmpClosedError if the peer is gone.
    """

    def __init__(self, path: str) -> None:
        self._received = bytearray()
        self._shutdown: str | None = None
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._connect(path)
            greeting = self._message(PATIENCE, complaint := "its greeting is no QMP")
            if greeting is None and not self._received:
                raise QmpError(_busy())
            if greeting is None or "QMP" not in greeting:
                shown = self._received.decode("ascii", "replace") or json.dumps(greeting)
                raise QmpError(f"{complaint}: {shorten(shown, 80)!r}")
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Qmp:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def execute(self, command: str, **arguments: str) -> Any:
        """Makes a command, and returns what it returns."""
        question: dict[str, Any] = {"execute": command}
        if arguments:
            question["arguments"] = {key.replace("_", "-"): arguments[key] for key in arguments}
        try:
            self._socket.settimeout(PATIENCE)
            self._socket.sendall(json.dumps(question).encode() + b"\n")
        except (ConnectionError, TimeoutError):
            pass  # a peer that is gone may have said why: read it
        deadline = monotonic() + PATIENCE
        complaint = f"its reply to {command} is no QMP"
        while (reply := self._message(deadline - monotonic(), complaint)) is not None:
            if "return" in reply:
                return reply["return"]
            if "error" in reply:
                error = reply["error"]
                why = error.get("desc", error) if isinstance(error, dict) else error
                raise QmpError(f"QEMU refuses {command}: {shorten(str(why))}")
        raise QmpError(f"no reply to {command} in {PATIENCE:g} s")

    def wait(self, seconds: float) -> None:
        """Waits, and reads the events that come meanwhile."""
        deadline = monotonic() + seconds
        while self._message(deadline - monotonic(), "it sent what is no QMP") is not None:
            pass

    def _connect(self, path: str) -> None:
        self._socket.settimeout(PATIENCE)
        try:
            self._socket.connect(path)
        except (BlockingIOError, TimeoutError):
            raise QmpError(_busy()) from None
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise QmpError(f"cannot connect ({why}): {_HINT}") from None

    def _message(self, seconds: float, complaint: str) -> dict[str, Any] | None:
        """Returns the next message, or None if it does not come in time."""
        line = self._line(seconds, complaint)
        if line is None:
            return None
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise QmpError(f"{complaint}: {shorten(line.decode('ascii', 'replace'), 80)!r}")
        if message.get("event") == "SHUTDOWN":
            data = message.get("data")
            reason = data.get("reason") if isinstance(data, dict) else None
            self._shutdown = str(reason or "it shut down")
        return message

    def _line(self, seconds: float, complaint: str) -> bytes | None:
        deadline = monotonic() + seconds
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            if searched > MOST_BYTES:
                raise QmpError(f"{complaint}: a message is longer than {MOST_BYTES} bytes")
            left = deadline - monotonic()
            if left <= 0:
                return None
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                return None
            except ConnectionError:
                data = b""
            if not data:
                raise QmpClosedError(self._shutdown)
            self._received += data
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line


def _busy() -> str:
    return f"no greeting in {PATIENCE:g} s: a QMP socket serves one client at a time"
