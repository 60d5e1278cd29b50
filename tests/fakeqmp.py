"""A made-up QEMU behind a QMP socket, that says what a test wants."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}}, "capabilities": []}}
EVENT = {"event": "RESUME", "data": {}, "timestamp": {"seconds": 1, "microseconds": 0}}
SHUTDOWN = {"event": "SHUTDOWN", "data": {"guest": True, "reason": "guest-shutdown"}}


class Peer:
    """One connection, from QEMU's side; `asked` has the commands that came."""

    def __init__(self, connection: socket.socket, asked: list[Any]) -> None:
        self._connection = connection
        self._lines = connection.makefile("rb")
        self.asked = asked

    def say(self, *messages: Any) -> None:
        """Sends messages as JSON, and bytes as they are."""
        for each in messages:
            raw = each if isinstance(each, bytes) else json.dumps(each).encode() + b"\r\n"
            self._connection.sendall(raw)

    def hear(self) -> bool:
        """Waits for the next command. Returns False if the client is gone."""
        line = self._lines.readline()
        if line:
            self.asked.append(json.loads(line))
        return bool(line)

    def greet(self) -> None:
        self.say(GREETING)
        self.hear()
        self.say({"return": {}})

    def answer(self, *texts: str) -> None:
        """Answers a question with each text."""
        for text in texts:
            self.hear()
            self.say({"return": text})

    def close(self) -> None:
        self._lines.close()
        self._connection.close()


@contextlib.contextmanager
def fake_qemu(path: Path, act: Callable[[Peer], object]) -> Iterator[list[Any]]:
    """Runs `act` in a thread for the only client. Yields the commands that the client sends."""
    asked: list[Any] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        server.settimeout(600)

        def serve() -> None:
            peer = Peer(server.accept()[0], asked)
            with contextlib.closing(peer), contextlib.suppress(ConnectionError):
                act(peer)  # the client may be gone at any time

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield asked
        thread.join(600)
        assert not thread.is_alive()
