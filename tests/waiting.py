"""How long the tests wait for what must happen: until it does, however busy the machine is.

Gives   `until`, and the ceiling `AT_MOST_S` for whatever waits by itself
Not     pytest's own limit (pyproject.toml), which ends a test that hangs elsewhere
"""

import time
from collections.abc import Callable

AT_MOST_S = 300.0
"""Reached only where the thing never happens: the slowest takes half a minute alone."""


def until(happened: Callable[[], object], what: str) -> None:
    """Return once `happened()` is true; where it never is, an AssertionError says what was not."""
    given_up = time.monotonic() + AT_MOST_S
    while not happened():
        assert time.monotonic() < given_up, f"never in {AT_MOST_S:g} s: {what}"
        time.sleep(0.01)


class Clock:
    """Stands in for a module's `time` where only its pauses shall count: nothing else takes any."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def monotonic(self) -> float:
        """The sum of the pauses."""
        return sum(self.slept)

    def sleep(self, seconds: float) -> None:
        """Over at once."""
        self.slept.append(seconds)
