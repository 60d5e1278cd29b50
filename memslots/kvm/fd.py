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

from memslots.errors import KvmError

# With a struct by fcntl; with a number not, since fcntl takes none above 31 bits, and from Python
# 3.14 on makes a call that a signal ended again by itself: KVM_RUN's immediate_exit would never be
# seen.
_by_struct = fcntl.ioctl
_by_value = ctypes.CDLL(None, use_errno=True).ioctl
_by_value.argtypes = ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong


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
        number = self.fileno()
        answer.clear()
        code = 0
        # What calls the kernel is C in C, to the answer: no handler can come between.
        if isinstance(argument, int):
            call = partial(_by_value, number, request, argument)
            calls: tuple[Callable[[], int], ...] = call, ctypes.get_errno
            answer.extend(map(operator.call, calls))
            if answer.result == -1:
                code = answer.errno
        else:
            # Given bytes, fcntl would answer with the struct and keep the result to itself.
            given = bytearray(argument) if isinstance(argument, bytes) else argument
            try:
                answer.extend(map(operator.call, (partial(_by_struct, number, request, given),)))
            except OSError as error:
                if answer:  # a handler's
                    raise
                code = error.errno or 0
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
            made._open.append(answer.result)
        except BaseException:
            if answer.done and made.closed:  # opened, and then a handler raised
                made._open.append(answer.result)
            made.close()
            raise
        return made


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
