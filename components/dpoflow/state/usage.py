"""What work on a step took: by the run that did it, kept with the step's state.

    ROOT/state/<key>/usage.json    run id to GPU time and what was paid

Reads   the state's file, the clock, whether this process holds a GPU
Gives   `Usage` for a step at work; `cost_of` for all tasks of a run
Not     what may be spent (endpoints/budget.py), estimates (pipelines' plan.py, spending.py)

What is paid is counted by payer, that is by state, so what this run paid is the total less what
earlier runs noted. A process that is killed outright notes nothing: its GPU time is lost, and what
it paid counts for whoever goes on.
"""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dpoflow.contracts.results import Cost, RunCost, TaskCost, Used
from dpoflow.state import files
from dpoflow.state.surroundings import RUN_DIR

if TYPE_CHECKING:
    from dpoflow.state.step import TaskRecord

_FILE = "usage.json"


class Usage:
    """Of one step's state: what this run spends on it, beside what others did."""

    def __init__(self, folder: Path) -> None:
        self._path, self._run = folder / _FILE, Path(os.environ.get(RUN_DIR, "")).name
        self._by_run = _read(self._path)
        self._total = dict[str, Cost]()
        self._elsewhere = 0.0
        """Seconds in which other processes did the work."""

    @property
    def mine(self) -> Used:
        """Of this run."""
        return self._by_run.get(self._run, Used())

    @property
    def others(self) -> Used:
        """Of all runs before it."""
        return _sum(used for run, used in self._by_run.items() if run != self._run)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """The time inside, if this process comes to hold a GPU; noted however it ends."""
        began, self._elsewhere = time.monotonic(), 0.0
        try:
            yield
        finally:
            here = time.monotonic() - began - self._elsewhere
            self.add_gpu_seconds(_gpus_held() * here)
            self._note()

    @contextmanager
    def elsewhere(self, gpus: int) -> Iterator[None]:
        """The time inside, in which other processes work on so many GPUs, and this one waits."""
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - began
            self._elsewhere += seconds
            self.add_gpu_seconds(gpus * seconds)

    def add_gpu_seconds(self, seconds: float) -> None:
        """Of GPUs elsewhere, where the clock here tells nothing of them."""
        told = self.mine.gpu_seconds + seconds
        self._by_run[self._run] = self.mine.model_copy(update={"gpu_seconds": told})

    def paid_in_all(self, total: Mapping[str, Cost]) -> None:
        """What was ever paid for this step, by model."""
        self._total |= total

    def _note(self) -> None:
        before = self.others.paid
        paid = self.mine.paid | {
            model: _less(cost, before.get(model)) for model, cost in self._total.items()
        }
        self._by_run[self._run] = self.mine.model_copy(update={"paid": paid})
        told = {run: used.model_dump(mode="json") for run, used in self._by_run.items()}
        files.write_text(self._path, json.dumps(told, indent=1) + "\n")


def cost_of(records: Iterable["TaskRecord"]) -> RunCost:
    """What the tasks of a run took, all in all and one by one."""
    by_task, reused = dict[str, TaskCost](), dict[str, TaskCost]()
    for record in records:
        for used, told in ((record.used, by_task), (record.used_before, reused)):
            cost = _cost(used)
            if cost != TaskCost():
                told[record.name] = cost
    return RunCost(
        gpu_hours=sum(cost.gpu_hours for cost in by_task.values()),
        money=sum(cost.money for cost in by_task.values()),
        by_task=by_task,
        reused=reused,
    )


def _cost(used: Used) -> TaskCost:
    return TaskCost(
        gpu_hours=used.gpu_seconds / 3600,
        money=used.money,
        requests=sum(cost.requests for cost in used.paid.values()),
        tokens=sum(cost.tokens for cost in used.paid.values()),
    )


def _read(path: Path) -> dict[str, Used]:
    try:
        told = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    return {str(run): Used.model_validate(used) for run, used in told.items()}


def _gpus_held() -> int:
    """1 where torch works on a GPU here: a process puts its models on one. Loads no torch."""
    torch = sys.modules.get("torch")
    return int(torch is not None and torch.cuda.is_initialized())


def _sum(several: Iterable[Used]) -> Used:
    seconds, paid = 0.0, dict[str, Cost]()
    for used in several:
        seconds += used.gpu_seconds
        for model, cost in used.paid.items():
            paid[model] = _plus(paid.get(model), cost)
    return Used(gpu_seconds=seconds, paid=paid)


def _plus(one: Cost | None, other: Cost) -> Cost:
    if one is None:
        return other
    return Cost(
        requests=one.requests + other.requests,
        tokens=one.tokens + other.tokens,
        money=one.money + other.money,
    )


def _less(total: Cost, before: Cost | None) -> Cost:
    if before is None:
        return total
    return Cost(
        requests=total.requests - before.requests,
        tokens=total.tokens - before.tokens,
        money=total.money - before.money,
    )
