"""Progress as facts: one JSON line an event, beside the step's state.

Reads   what a step says of itself
Gives   `Events` to write with, `read_events` to follow with, `seconds_text` for both
Not     drawing (pipelines/dpoflow_pipelines/progress.py), MLflow (tracking/)
"""

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import Field

from dpoflow.contracts.base import Contract
from dpoflow.state.surroundings import trace_id

Item = TypeVar("Item")

_WARM_S = 1.0
"""What a phase does in its first moment, such as finding what an earlier attempt kept, says nothing
of how it will go on."""

_SPAN_S = 3.0
"""A rate over less than this is chance."""

_LATELY_S, _FEW = 30.0, 4
"""A rate is of the last so many seconds, or of so many events where they are slower."""


class Event(Contract):
    """One line of `events.jsonl`."""

    time: float
    """Seconds since the epoch."""
    step: str
    phase: str
    done: int = 0
    total: int | None = None
    rate: float | None = None
    """Units a second of late; None while too little is known."""
    unit: str = ""
    message: str = ""
    passing: bool = False
    """Whether `message` is of the moment: not to be told again where the step is reused."""
    metrics: dict[str, float] = Field(default_factory=dict)
    at: int | None = None
    """The step that `metrics` belong to, such as the number of updates made."""
    trace_id: str = ""
    """Of the run that the work was done for."""


class Events:
    """Appends events of one step, each in one write."""

    def __init__(self, path: Path, step: str) -> None:
        self._path, self._step, self._trace_id = path, step, trace_id()
        self._phase, self._began, self._said, self._done = "", 0.0, 0.0, 0
        self._lately: deque[tuple[float, int]] = deque()

    def _append(self, event: Event) -> None:
        traced = event.model_copy(update={"trace_id": self._trace_id})
        line = traced.model_dump_json(exclude_defaults=True) + "\n"
        with self._path.open("ab+") as out:
            torn = out.seek(0, os.SEEK_END) > 0
            if torn:
                out.seek(-1, os.SEEK_END)
                torn = out.read(1) != b"\n"
            out.write((b"\n" if torn else b"") + line.encode())

    def say(self, message: str, *, phase: str = "", passing: bool = False) -> None:
        """One sentence for a person."""
        told = {"phase": phase, "message": message, "passing": passing}
        self._append(Event.model_validate({"time": time.time(), "step": self._step, **told}))

    def metrics(self, at: int, values: dict[str, float], *, phase: str = "") -> None:
        """Figures that belong to point `at`; they reach MLflow under their own names."""
        self._append(Event(time=time.time(), step=self._step, phase=phase, metrics=values, at=at))

    def progress(self, phase: str, done: int, total: int | None, *, unit: str = "") -> None:
        """`done` of `total`; at most ten lines a second, and always the last one."""
        now = time.time()
        if phase != self._phase or done < self._done:  # the same may be done to several sets
            self._phase, self._began, self._said = phase, now, 0.0
            self._lately.clear()
        self._done = done
        if now - self._said < 0.1 and done != total:
            return
        self._said = now
        self._append(
            Event(
                time=now,
                step=self._step,
                phase=phase,
                done=done,
                total=total,
                rate=self._rate(now, done),
                unit=unit,
            )
        )

    def _rate(self, now: float, done: int) -> float | None:
        lately = self._lately
        if now - self._began < _WARM_S:
            lately.clear()
        lately.append((now, done))
        while len(lately) > _FEW and now - lately[1][0] > _LATELY_S:
            lately.popleft()
        then, before = lately[0]
        return (done - before) / (now - then) if now - then >= _SPAN_S and done > before else None

    def track(
        self, items: Iterable[Item], phase: str, total: int | None = None, *, unit: str = "rows"
    ) -> Iterator[Item]:
        """`items` again, with a progress event as each is asked for, and one when all were."""
        done = 0
        for done, item in enumerate(items, start=1):
            yield item
            self.progress(phase, done, total, unit=unit)
        if done:
            self.progress(phase, done, done, unit=unit)


def read_events(path: Path, offset: int = 0) -> tuple[list[Event], int]:
    """Whole lines after byte `offset`, and where to go on. A missing file has no events.

    A line that a full disk or a lost power supply tore is passed over: progress is not evidence.
    """
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            chunk = stream.read()
    except FileNotFoundError:
        return [], offset
    end = chunk.rfind(b"\n") + 1
    events = []
    for line in chunk[:end].split(b"\n"):
        with contextlib.suppress(ValueError):
            events.append(Event.model_validate_json(line))
    return events, offset + end


def seconds_text(seconds: float) -> str:
    """12 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
