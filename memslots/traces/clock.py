"""The times of strace's lines: -t, -tt, -ttt and -r, as exact nanoseconds."""

from __future__ import annotations

_DAY = 86400 * 10**9
#: A clock that went back by more has passed midnight. If it went back by less, lines are out of
#: order, or daylight saving time ended.
_BACK = 2 * 3600 * 10**9

#: A plain number of seconds below this is -r's time since the line before. From this number on, it
#: is -ttt's time since the epoch.
EPOCH_FROM = 10**8


class Clock:
    """Turns the stamp of each line into nanoseconds that never run backwards at midnight.

    `relative` is true if stamps count from the line before (-r). The clock must then see every
    line.
    """

    def __init__(self) -> None:
        self.relative = False
        self._sum = 0
        self._days = 0
        self._last = 0

    def time_of_day(self, text: str) -> int:
        """Returns the nanoseconds of `HH:MM:SS`, with or without a fraction.

        Adds a day if the clock went back by more than two hours.
        """
        hours, minutes, seconds = text.split(":")
        now = (int(hours) * 3600 + int(minutes) * 60) * 10**9 + nanoseconds(seconds)
        if now + _BACK < self._last:
            self._days += 1
        self._last = now
        return now + self._days * _DAY

    def seconds(self, text: str) -> int:
        """Returns the nanoseconds of `123.456789`, counted from the epoch or the line before."""
        value = nanoseconds(text)
        if value >= EPOCH_FROM * 10**9:
            return value
        self.relative = True
        self._sum += value
        return self._sum


def nanoseconds(text: str) -> int:
    """Converts seconds, with or without a decimal fraction, to exact nanoseconds."""
    whole, _, fraction = text.partition(".")
    return int(whole) * 10**9 + int(fraction[:9].ljust(9, "0"))
