"""SIGTERM as Kubernetes means it: some seconds to put things away.

Gives   `Preemption`: inside it SIGTERM ends training after the update at hand, with a checkpoint
Not     the checkpoint (checkpoint.py), what comes after (step.py)
"""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class Preemption:
    """A context that remembers whether the process was asked to end."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
