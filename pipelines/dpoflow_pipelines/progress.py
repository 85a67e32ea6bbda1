"""Progress as a person sees it, drawn from the tasks' event logs.

Reads   `run_dir`/tasks/*.json and the events.jsonl beside each task's state
Gives   `following`: a live table on a terminal, plain lines elsewhere
Not     the events themselves (dpoflow.state.events)
"""

import contextlib
import threading
import time
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from dpoflow.state.events import Event, read_events, seconds_text
from dpoflow.state.step import RETRIES, TaskRecord, read_records

_SECONDS_BETWEEN_LINES = 10.0
_BAR = 24
_COLOURS = {
    "SUCCEEDED": "green",
    "RUNNING": "cyan",
    "STOPPED": "yellow",
    "FAILED": "red",
    "PENDING": "dim",
    "SKIPPED": "dim",
}
_GOES_ON = {None, "ServiceUnavailable", "KeyboardInterrupt", "SystemExit"}
"""How a task ends that the same command continues; None where it was killed."""


@dataclass
class _Follower:
    """Everything known of a run at this moment."""

    run_dir: Path
    names: list[str]
    records: dict[str, TaskRecord] = field(default_factory=dict)
    latest: dict[str, Event] = field(default_factory=dict)
    """How far each task is, with its newest figures."""
    messages: list[tuple[str, str]] = field(default_factory=list)
    _offsets: dict[tuple[str, str], int] = field(default_factory=dict)
    _earlier: dict[tuple[str, str], dict[str, None]] = field(default_factory=dict)
    """What was said before this run, each sentence once."""
    _failed: dict[str, int] = field(default_factory=dict)
    """The last attempt of each task that was told to have failed."""
    _figures: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)

    def look(self) -> None:
        self.records = read_records(self.run_dir)
        for name, record in self.records.items():
            if name in self.latest and self.latest[name].time < record.started:
                del self.latest[name]  # of an earlier attempt
            if _is_tried_again(record) and self._failed.get(name) != record.attempt:
                self._failed[name] = record.attempt
                told = f"attempt {record.attempt} of {1 + RETRIES} ended: {record.error}"
                self.messages.append((name, told))
            if record.state_dir:
                self._listen(name, record)

    def _listen(self, name: str, record: TaskRecord) -> None:
        at = (name, record.state_dir)
        path = Path(record.state_dir) / "events.jsonl"
        events, self._offsets[at] = read_events(path, self._offsets.get(at, 0))
        for event in events:
            if event.time < record.started:  # said by an earlier attempt
                if event.message and not event.passing:
                    self._earlier.setdefault(at, {})[event.message] = None
            elif event.message:
                self.messages.append((name, event.message))
            elif event.metrics:
                self._figures.setdefault(at, {}).update(event.metrics)
            elif event.total is not None or event.done:
                figures = self._figures.get(at, {})
                self.latest[name] = event.model_copy(update={"metrics": {**figures}})
        if record.reused:  # what it found out holds for this run, too
            self.messages += [(name, told) for told in self._earlier.pop(at, {})]


def progress_text(event: Event) -> str:
    """`training 40/120 updates, 1.2 s each, 1 min 36 s left, loss 0.532`."""
    of = f"/{event.total:,}" if event.total else ""
    unit = event.unit.removesuffix("s") if (event.total or event.done) == 1 else event.unit
    parts = [f"{event.phase} {event.done:,}{of} {unit}".strip()]
    if event.rate:
        parts.append(f"{event.rate:,.1f}/s" if event.rate >= 1 else f"{1 / event.rate:,.1f} s each")
        if event.total and event.done < event.total:
            parts.append(f"{seconds_text((event.total - event.done) / event.rate)} left")
    if "train/loss" in event.metrics:
        parts.append(f"loss {event.metrics['train/loss']:.3f}")
    return ", ".join(parts)


def _bar(event: Event) -> str:
    full = min(_BAR, _BAR * event.done // event.total) if event.total else 0
    return f"[cyan]{'━' * full}[/][dim]{'━' * (_BAR - full)}[/]"


def _spent(record: TaskRecord | None) -> str:
    if record is None:
        return ""
    return seconds_text((record.ended or time.time()) - record.started)


def settled(records: dict[str, TaskRecord]) -> dict[str, TaskRecord]:
    """The tasks of a run that nobody is at work on: one that was cut off never came to say so."""
    return {
        name: record.model_copy(update={"state": "FAILED", "error": "cut off"})
        if record.state == "RUNNING"
        else record
        for name, record in records.items()
    }


def _is_tried_again(record: TaskRecord) -> bool:
    hopeless = {"ConfigError", "DataRejected", "GateNotPassed"}
    failed = record.state == "FAILED" and record.error_type not in hopeless
    return failed and record.attempt <= RETRIES


def _is_stopped(record: TaskRecord) -> bool:
    return record.state == "FAILED" and record.error_type in _GOES_ON


def task_table(
    names: list[str],
    records: dict[str, TaskRecord],
    latest: dict[str, Event] | None = None,
    *,
    skipped: Container[str] = (),
) -> Table:
    """The tasks of a run, one a row; `skipped` are those that its decision left out."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("task", "state", "time", ""):
        table.add_column(column, justify="right" if column == "time" else "left")
    for name in names:
        record = records.get(name)
        waits = "SKIPPED" if name in skipped else "PENDING"
        state: str = record.state if record else waits
        event = (latest or {}).get(name)
        note = ""
        if record and record.reused:
            note = "[dim]same inputs as before: reused[/]"
        elif record and state == "RUNNING" and event is not None:
            note = f"{_bar(event)} {progress_text(event)}{_attempt(record)}"
        elif record and _is_stopped(record):
            state, note = "STOPPED", "[dim]the same command continues it[/]"
        elif state == "SKIPPED" and record:  # on a cluster, which does not say why
            note = "[dim]known inputs, or nothing to learn[/]"
        elif state == "FAILED" and record:
            note = f"[red]{record.error_type}[/]"
        table.add_row(name, f"[{_COLOURS[state]}]{state}[/]", _spent(record), note)
    return table


@contextlib.contextmanager
def following(console: Console, run_dir: Path, names: list[str]) -> Iterator[None]:
    """Draw the run for as long as the context lasts."""
    follower, ended = _Follower(run_dir, names), threading.Event()
    draw = _draw_live if console.is_terminal else _write_lines
    thread = threading.Thread(target=draw, args=(console, follower, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _draw_live(console: Console, follower: _Follower, ended: threading.Event) -> None:
    def table() -> Table:
        return task_table(follower.names, follower.records, follower.latest)

    with Live(table(), console=console, refresh_per_second=4, transient=True) as live:
        while True:
            last = ended.wait(0.25)
            follower.look()
            while follower.messages:
                name, message = follower.messages.pop(0)
                live.console.print(f"{name}: {message}", markup=False, highlight=False)
            live.update(table())
            if last:
                return


def _write_lines(console: Console, follower: _Follower, ended: threading.Event) -> None:
    """One line when a task changes state or says something, and now and then how far it is."""
    states: dict[str, str] = {}
    told: dict[str, Event] = {}
    said = time.monotonic()

    def line(text: str) -> None:
        console.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False, highlight=False)

    while True:
        last = ended.wait(0.25)
        follower.look()
        for text in _news(follower, states):
            line(text)
        if time.monotonic() - said >= _SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            for name, event in follower.latest.items():
                news = event != told.get(name) and event.done != event.total
                if news and follower.records[name].state == "RUNNING":
                    told[name] = event
                    line(f"{name}: {progress_text(event)}")
        if last:
            return


def _attempt(record: TaskRecord) -> str:
    return f" (attempt {record.attempt} of {1 + RETRIES})" if record.attempt > 1 else ""


def _news(follower: _Follower, states: dict[str, str]) -> Iterator[str]:
    """What began, what was said, what ended: in this order, whatever of it was seen at once."""
    now = {name: f"{each.state} {each.attempt}" for name, each in follower.records.items()}
    fresh = [follower.records[name] for name in now if states.get(name) != now[name]]
    states |= now
    for record in fresh:
        if record.ended is None:
            yield f"{record.name} RUNNING{_attempt(record)}"
    while follower.messages:
        name, message = follower.messages.pop(0)
        yield f"{name}: {message}"
    for record in fresh:
        if record.ended is not None:
            state = "STOPPED" if _is_stopped(record) else record.state
            reused = " (reused)" if record.reused else ""
            yield f"{record.name} {state}{reused} in {_spent(record)}"
