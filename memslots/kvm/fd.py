"""A file descriptor of KVM's, and the ioctls on it."""

from __future__ import annotations

import fcntl
import os
import warnings

from memslots.errors import KvmError


class Fd:
    """An open descriptor, closed at the latest when nobody has it any more."""

    def __init__(self, number: int, what: str) -> None:
        self._number: int | None = number
        self._what = what

    def __del__(self) -> None:
        if getattr(self, "_number", None) is not None:
            warnings.warn(f"unclosed {self._what}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def close(self) -> None:
        """Close it. Closing again does nothing."""
        number, self._number = self._number, None
        if number is not None:
            os.close(number)

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._number is None

    def fileno(self) -> int:
        """Its number. ValueError if it is closed."""
        if self._number is None:
            raise ValueError(f"{self._what} is closed")
        return self._number

    def ioctl(self, name: str, request: int, argument: int | bytes | bytearray = 0) -> int:
        """Make an ioctl, again where a signal ended it; its result.

        A struct that the kernel is to fill is a bytearray. Raises KvmError, with the call's name
        and what the kernel said.
        """
        while True:
            try:
                return fcntl.ioctl(self.fileno(), request, _writable(argument))
            except InterruptedError:
                continue  # Python's signal handlers run here, and may raise
            except OSError as error:
                raise KvmError(error.errno or 0, f"{name}: {error.strerror}") from None


def _writable(argument: int | bytes | bytearray) -> int | bytearray:
    # Given bytes, fcntl would answer with the struct and keep the result to itself.
    return bytearray(argument) if isinstance(argument, bytes) else argument
