"""A file descriptor of KVM's, and the ioctls on it."""

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

# With a struct by fcntl; with a number not, since fcntl takes none above 31 bits, and from Python
# 3.14 on makes a call that a signal ended again by itself: KVM_RUN's immediate_exit would never be
# seen.
_by_struct = fcntl.ioctl
_by_value = ctypes.CDLL(None, use_errno=True).ioctl
_by_value.argtypes = ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong


class _Number:
    """A descriptor's number, closed when nobody has it any more.

    Whoever uses it has a reference meanwhile: so nothing is to be counted, which a signal's handler
    that raises might come between.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._close = os.close  # at the interpreter's end the module may be empty before this goes

    def __del__(self) -> None:
        self._close(self.number)


class Fd:
    """An open descriptor, closed at the latest when nobody has it any more.

    Safe to use from any thread: what is closed while others use it goes when the last has done.
    """

    def __init__(self, number: int | None, what: str) -> None:
        self._held = None if number is None else _Number(number)  # None: closed
        self._what = what
        self._warn = warnings.warn  # as _Number's close

    def __del__(self) -> None:
        if getattr(self, "_held", None) is not None:
            try:
                self._warn(f"unclosed {self._what}", ResourceWarning, source=self, stacklevel=2)
            finally:  # the warning may have been turned into an error
                self.close()

    def close(self) -> None:
        """Close it. Closing again does nothing."""
        self._held = None

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._held is None

    def closed_error(self) -> KvmClosedError:
        """What to raise where it is closed."""
        return KvmClosedError(errno.EBADF, f"{self._what} is closed")

    def _used(self) -> _Number:
        held = self._held
        if held is None:
            raise self.closed_error()
        return held

    def fileno(self) -> int:
        """Its number. KvmClosedError if it is closed."""
        return self._used().number

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
        # No variable of this holds the number, since an error's traceback would, too.
        code = _make(self._used(), request, argument, answer)
        if code == errno.EINTR:
            return False
        if code:
            raise KvmError(code, f"{name}: {os.strerror(code)}")
        return True

    def create(self, name: str, request: int, argument: int, what: str) -> Fd:
        """The descriptor that an ioctl opens, of `what`. KvmError as `ioctl`."""
        answer, made = Answer(), Fd(None, what)
        try:
            while not self.ioctl_once(name, request, argument, answer):
                pass
            made._held = _Number(answer.result)
        except BaseException:
            if answer.done and made.closed:  # opened, and then a handler raised
                made._held = _Number(answer.result)
            made.close()
            raise
        return made


def _make(held: _Number, request: int, argument: int | bytes | bytearray, answer: Answer) -> int:
    """Make it once; the errno, 0 for success."""
    try:
        number = held.number
        answer.clear()
        # What calls the kernel is C in C, to the answer: no handler can come between.
        if isinstance(argument, int):
            call = partial(_by_value, number, request, argument)
            calls: tuple[Callable[[], int], ...] = call, ctypes.get_errno
            answer.extend(map(operator.call, calls))
            return answer.errno if answer.result == -1 else 0
        # Given bytes, fcntl would answer with the struct and keep the result to itself.
        given = bytearray(argument) if isinstance(argument, bytes) else argument
        made = map(operator.call, (partial(_by_struct, number, request, given),))
        try:
            answer.extend(made)
        except OSError as error:
            if answer or not error.errno:  # a handler's
                raise
            return error.errno
        return 0
    finally:
        del held  # an error's traceback would hold it


class Answer(list[int]):
    """What the kernel said to an ioctl: its result, and by value its errno. Empty until it has."""

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
