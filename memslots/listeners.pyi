from types import TracebackType
from typing import Self

class Subscription:
    """What ``subscribe`` gives: closing it ends the calls to the listener.

    A context manager that closes at its end.
    """

    listener: object
    def close(self) -> None:
        """Ends the subscription. Closing again does nothing."""
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...
