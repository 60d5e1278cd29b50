from types import TracebackType
from typing import NoReturn, Self

class Subscription:
    """What ``subscribe`` gives: closing it ends the calls to the listener.

    A context manager that closes at its end.
    """

    listener: object
    def __init__(self, owner: object, listener: object) -> None: ...
    def __reduce__(self) -> NoReturn: ...
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
