"""A file descriptor of KVM's, and the ioctls on it."""

from __future__ import annotations

import ctypes
import errno
import operator
import os
import warnings
from collections.abc import Callable
from functools import partial

from memslots.errors import KvmError

# Not fcntl.ioctl: it takes no integer above 31 bits, and from Python 3.14 on it makes a call that
# a signal ended again by itself, so that KVM_RUN's immediate_exit would never be seen.
_ioctl = ctypes.CDLL(None, use_errno=True).ioctl
_ioctl.argtypes = ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p


class Fd:
    """An open descriptor, closed at the latest when nobody has it any more."""

    def __init__(self, number: int | None, what: str) -> None:
        # Emptied by close: only one thread can take the number out.
        self._open = [] if number is None else [number]
        self._what = what
        # At the interpreter's end the module may be empty before its objects go.
        self._warn = warnings.warn
        self._close = os.close

    def __del__(self) -> None:
        if getattr(self, "_open", None):
            try:
                self._warn(f"unclosed {self._what}", ResourceWarning, source=self, stacklevel=2)
            finally:  # the warning may have been turned into an error
                self.close()

    def close(self) -> None:
        """Close it. Closing again does nothing."""
        try:
            number = self._open.pop()
        except IndexError:
            return
        self._close(number)

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return not self._open

    def fileno(self) -> int:
        """Its number. ValueError if it is closed."""
        try:
            return self._open[0]
        except IndexError:
            raise ValueError(f"{self._what} is closed") from None

    def ioctl(self, name: str, request: int, argument: int | bytes | bytearray = 0) -> int:
        """Make an ioctl, again where a signal ended it; its result.

        A struct that the kernel is to fill is a bytearray. Raises KvmError, with the call's name
        and what the kernel said.
        """
        answer = Answer()
        while not self.ioctl_once(name, request, argument, answer):
            pass  # Python's signal handlers run here, and may raise
        return answer.result

    def ioctl_once(
        self, name: str, request: int, argument: int | bytes | bytearray, answer: Answer
    ) -> bool:
        """The same, but False where a signal ended it.

        A signal's handler may raise when the kernel has answered already. `answer` has what it
        said even then.
        """
        call = partial(_ioctl, self.fileno(), request, _pointer(argument))
        answer.clear()
        # Both in one call of C, which no handler can come between: it could make ioctls of its own.
        calls: tuple[Callable[[], int], ...] = call, ctypes.get_errno
        answer.extend(map(operator.call, calls))
        if answer.result != -1:
            return True
        if answer.errno == errno.EINTR:
            return False
        raise KvmError(answer.errno, f"{name}: {os.strerror(answer.errno)}")

    def create(self, name: str, request: int, argument: int, what: str) -> Fd:
        """The descriptor that an ioctl opens, of `what`. KvmError as `ioctl`."""
        answer, made = Answer(), Fd(None, what)
        try:
            while not self.ioctl_once(name, request, argument, answer):
                pass
            made._open.append(answer.result)
        except BaseException:
            if answer.done and made.closed:  # opened, and then a handler raised
                made._open.append(answer.result)
            made.close()
            raise
        return made


class Answer(list[int]):
    """What the kernel said to an ioctl: its result and errno. Empty until it has."""

    @property
    def result(self) -> int:
        """Not negative, or -1 for an error."""
        return self[0]

    @property
    def errno(self) -> int:
        """Which error, where it is one."""
        return self[1]

    @property
    def done(self) -> bool:
        """Whether the kernel did what it was asked for."""
        return bool(self) and self.result != -1


def _pointer(argument: int | bytes | bytearray) -> int | ctypes.Array[ctypes.c_char]:
    if isinstance(argument, int):
        return argument
    array = ctypes.c_char * len(argument)
    if isinstance(argument, bytearray):
        return array.from_buffer(argument)
    return array.from_buffer_copy(argument)  # bytes are to stay what they are
