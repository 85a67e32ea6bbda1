"""When a server goes away: one sentence, and one when it is back, however many requests wait.

Reads   how attempts to ask it end
Gives   `Outage`
Not     trying again (client.py)
"""

import time
from collections.abc import Callable

from dpoflow.state.events import seconds_text

_GRACE_S = 3.0
"""Without any answer, before it is worth a sentence: single requests fail all the time."""

_QUIET_S = 60.0
"""Between one outage that is told and the next: a server may come and go."""


class Outage:
    """Watches one server and speaks of it to `tell`; `afterwards` is what giving up leads to."""

    def __init__(self, name: str, tell: Callable[[str], None], afterwards: str = "") -> None:
        self._name, self._tell, self._afterwards = name, tell, afterwards
        self._since = self._until = float("inf")
        self._answered_at = self._told_at = float("-inf")
        self._is_away = False

    def failed(self, why: str, *, began: float, until: float) -> None:
        """An attempt that began then; its request is given up at `until` (monotonic seconds)."""
        now = time.monotonic()
        self._since = min(self._since, max(began, self._answered_at))
        self._until = min(self._until, until)  # the first request that is given up ends the step
        if self._is_away or now - self._since < _GRACE_S or now - self._told_at < _QUIET_S:
            return
        self._is_away, self._told_at = True, now
        left = max(0.0, self._until - now)
        clock = time.strftime("%H:%M:%S", time.localtime(time.time() + left))
        self._tell(
            f"{self._name}: {why}; trying again until {clock} ({seconds_text(left)})"
            f"{self._afterwards}"
        )

    def answered(self) -> None:
        """An attempt that did not fail."""
        self._answered_at = time.monotonic()
        if self._is_away:
            away = seconds_text(self._answered_at - self._since)
            self._tell(f"{self._name} answers again after {away}")
        self._is_away, self._since, self._until = False, float("inf"), float("inf")
