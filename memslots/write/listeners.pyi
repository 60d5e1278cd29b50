from types import TracebackType
from typing import NoReturn, Self, final

@final
class Subscription:
    """A subscription, as ``subscribe`` returns it. Closing it ends the calls to the listener.

    It is a context manager that closes at the end.
    """

    def __new__(cls, owner: Subscriptions, listener: object) -> Self: ...
    @property
    def listener(self) -> object:
        """The object that is told of changes."""
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

@final
class Subscriptions:
    """The subscriptions of one Memslots."""

    def __new__(cls) -> Self: ...
    def __reduce__(self) -> NoReturn: ...
