"""A KVM file descriptor, and the ioctls on it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import operator
import os
import warnings
from collections.abc import Callable
from functools import partial

from memslots.errors import KvmClosedError, KvmError

# fcntl makes the ioctls that pass a struct. Those that pass a number go through ctypes, for two
# reasons: fcntl takes no number above 31 bits, and from Python 3.14 on it repeats a call that a
# signal ended. With a repeated KVM_RUN, immediate_exit would never be seen.
_by_struct = fcntl.ioctl
_by_value = ctypes.CDLL(None, use_errno=True).ioctl
_by_value.argtypes = ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong


class _Number:
    """A descriptor's number. Closes the descriptor when the last reference to this object goes.

    Each user holds a reference. Nothing has to be counted, so the handler of a signal that raises
    has no count to spoil.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._close = os.close  # at the interpreter's end, the module may be empty before this goes

    def __del__(self) -> None:
        self._close(self.number)


class Fd:
    """An open descriptor, closed at the latest when nothing refers to it.

    Safe to use from any thread. If it is closed while other threads use it, the last of them to
    finish closes the descriptor.
    """

    def __init__(self, number: int | None, what: str) -> None:
        self._held = None if number is None else _Number(number)  # None: closed
        self._what = what
        self._warn = warnings.warn  # for the same reason as _Number's _close

    def __del__(self) -> None:
        if getattr(self, "_held", None) is not None:
            try:
                self._warn(f"unclosed {self._what}", ResourceWarning, source=self, stacklevel=2)
            finally:  # the warning may have been turned into an error
                self.close()

    def close(self) -> None:
        """Closes the descriptor. Closing again does nothing."""
        self._held = None

    @property
    def closed(self) -> bool:
        """Whether the descriptor is closed."""
        return self._held is None

    def closed_error(self) -> KvmClosedError:
        """Returns the error to raise if the descriptor is closed."""
        return KvmClosedError(errno.EBADF, f"{self._what} is closed")

    def _used(self) -> _Number:
        held = self._held
        if held is None:
            raise self.closed_error()
        return held

    def fileno(self) -> int:
        """Returns the descriptor's number. Raises KvmClosedError if it is closed."""
        return self._used().number

    def ioctl(self, name: str, request: int, argument: int | bytes | bytearray = 0) -> int:
        """Makes an ioctl, and repeats it if a signal ended it. Returns its result.

        A struct that the kernel fills is a bytearray. Raises KvmError, with the call's name and the
        kernel's error.
        """
        answer = Answer()
        while not self.ioctl_once(name, request, argument, answer):
            pass  # Python's signal handlers run here, and may raise
        return answer.result

    def ioctl_once(
        self, name: str, request: int, argument: int | bytes | bytearray, answer: Answer
    ) -> bool:
        """Makes an ioctl once. Returns False if a signal ended it.

        A signal's handler may raise after the kernel has answered. Even then `answer` holds the
        kernel's answer.
        """
        # No local variable holds the number: the traceback of an error would hold it, too.
        code = _make(self._used(), request, argument, answer)
        if code == errno.EINTR:
            return False
        if code:
            raise KvmError(code, f"{name}: {os.strerror(code)}")
        return True

    def create(self, name: str, request: int, argument: int, what: str) -> Fd:
        """Returns the descriptor that an ioctl opens. `what` names it. Raises as `ioctl` does."""
        answer, made = Answer(), Fd(None, what)
        try:
            while not self.ioctl_once(name, request, argument, answer):
                pass
            made._held = _Number(answer.result)
        except BaseException:
            if answer.done and made.closed:  # opened before a handler raised
                made._held = _Number(answer.result)
            made.close()
            raise
        return made


def _make(held: _Number, request: int, argument: int | bytes | bytearray, answer: Answer) -> int:
    """Makes an ioctl once. Returns the errno, or 0 for success."""
    try:
        number = held.number
        answer.clear()
        # From the kernel's call to the answer only C code runs: no handler can come between.
        if isinstance(argument, int):
            call = partial(_by_value, number, request, argument)
            calls: tuple[Callable[[], int], ...] = call, ctypes.get_errno
            answer.extend(map(operator.call, calls))
            return answer.errno if answer.result == -1 else 0
        # Given bytes, fcntl would return the struct and drop the result.
        given = bytearray(argument) if isinstance(argument, bytes) else argument
        made = map(operator.call, (partial(_by_struct, number, request, given),))
        try:
            answer.extend(made)
        except OSError as error:
            if answer or not error.errno:  # raised by a signal's handler
                raise
            return error.errno
        return 0
    finally:
        del held  # else the traceback of an error would hold it


class Answer(list[int]):
    """The kernel's answer to an ioctl: its result, and by value its errno. Empty at first."""

    @property
    def result(self) -> int:
        """The result of the ioctl; -1 for an error."""
        return self[0]

    @property
    def errno(self) -> int:
        """The errno, if the result is an error."""
        return self[1]

    @property
    def done(self) -> bool:
        """Whether the kernel did what was asked."""
        return bool(self) and self.result != -1
