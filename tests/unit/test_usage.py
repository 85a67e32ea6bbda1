"""What a run took, and nothing twice; and the trace id that its events carry."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from dpoflow.contracts.base import Contract
from dpoflow.contracts.results import Cost, RunCost, RunSummary, TaskCost, Used
from dpoflow.state.events import Events, read_events
from dpoflow.state.step import StepState, Task, TaskRecord
from dpoflow.state.surroundings import PARENT, RUN_DIR
from dpoflow.state.usage import cost_of
from dpoflow_pipelines.show import show_cost


class Knobs(Contract):
    """Config of the step under test."""

    word: str = "a"


class Told(Contract):
    """Its result."""


class Spender:
    """A step that pays a judge, has eight GPUs work for a while elsewhere, and may then fail."""

    def __init__(self, *, gpu_seconds: float = 0, total: Mapping[str, float] | None = None,
                 fails: bool = False) -> None:  # fmt: skip
        self.gpu_seconds, self.total, self.fails = gpu_seconds, total or {}, fails

    def __call__(self, config: Knobs, *, out: Path, state: StepState) -> Told:
        state.usage.add_gpu_seconds(self.gpu_seconds)
        state.usage.paid_in_all(
            {model: Cost(requests=int(10 * money), tokens=7, money=money)
             for model, money in self.total.items()}
        )  # fmt: skip
        if self.fails:
            raise RuntimeError("on purpose")
        (out / "file").write_text("x")
        return Told()


def record(run: Path, step: Spender, monkeypatch: pytest.MonkeyPatch) -> TaskRecord:
    """What the task left for its runner, run as part of that run."""
    monkeypatch.setenv(RUN_DIR, str(run))
    (run / "tasks").mkdir(parents=True, exist_ok=True)
    try:
        Task("spend").execute(
            step, Knobs(), root=str(run.parent.parent), kind=Told, outputs={"out": str(run / "out")}
        )
    except RuntimeError:
        assert step.fails
    return TaskRecord.model_validate_json((run / "tasks" / "spend.json").read_text("utf-8"))


def test_what_another_run_spent_costs_this_one_nothing_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = record(tmp_path / "runs" / "one", Spender(gpu_seconds=7200, total={"j": 2.5}),
                   monkeypatch)  # fmt: skip
    again = record(tmp_path / "runs" / "two", Spender(gpu_seconds=9999), monkeypatch)

    spent = TaskCost(gpu_hours=2, money=2.5, requests=25, tokens=7)
    assert cost_of([first]) == RunCost(gpu_hours=2, money=2.5, by_task={"spend": spent})
    assert again.reused
    assert cost_of([again]) == RunCost(reused={"spend": spent})


def test_a_run_that_failed_and_went_on_took_what_both_attempts_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store of answers counts all that was ever paid for this state: 1, then 3 in all."""
    run = tmp_path / "runs" / "one"
    failed = record(run, Spender(gpu_seconds=100, total={"j": 1}, fails=True), monkeypatch)
    done = record(run, Spender(gpu_seconds=50, total={"j": 3, "k": 1}), monkeypatch)
    found = record(run, Spender(), monkeypatch)  # the same command, given once more

    assert (failed.state, failed.used.gpu_seconds, failed.used.money) == ("FAILED", 100, 1)
    assert (done.used.gpu_seconds, done.used.money) == (150, 4)
    assert (found.reused, found.used, found.used_before) == (True, done.used, Used())


def test_another_run_that_goes_on_where_one_failed_pays_only_its_own_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tmp_path / "runs" / "one", Spender(gpu_seconds=100, total={"j": 1}, fails=True),
           monkeypatch)  # fmt: skip
    done = record(tmp_path / "runs" / "two", Spender(gpu_seconds=50, total={"j": 3}), monkeypatch)

    assert (done.used.gpu_seconds, done.used.money) == (50, 2)
    assert (done.used_before.gpu_seconds, done.used_before.money) == (100, 1)


def test_what_waits_for_other_processes_counts_their_gpus_and_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "state" / "key").mkdir(parents=True)
    usage = StepState(tmp_path / "state" / "key", "train").usage
    with usage.counted(), usage.elsewhere(0):
        pass
    assert usage.mine.gpu_seconds == 0
    with usage.counted(), usage.elsewhere(8):
        pass

    assert usage.mine.gpu_seconds > 0
    assert set(json.loads((tmp_path / "state" / "key" / "usage.json").read_text())) == {""}


def test_a_step_that_needs_no_torch_loads_none_to_look_for_a_gpu() -> None:
    code = (
        "import sys, pathlib, tempfile\n"
        "from dpoflow.state.usage import Usage\n"
        "with Usage(pathlib.Path(tempfile.mkdtemp())).counted(): pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_end_of_a_run_tells_what_it_took_and_what_it_did_not_take_again() -> None:
    judged = TaskCost(money=3.2, requests=1200)
    cost = RunCost(gpu_hours=1.5, money=3.2, by_task={"evaluate": judged},
                   reused={"train": TaskCost(gpu_hours=1.5)})  # fmt: skip
    console = Console(record=True, width=200)

    show_cost(console, RunSummary(run_id="r", name="n", state="SUCCEEDED", cost=cost))

    assert console.export_text().splitlines() == [
        "cost: 1,200 requests, 3.20 paid (evaluate 1,200 requests, 3.20 paid)",
        "spent by earlier runs, and not again: 1.5 GPU hours (train 1.5 GPU hours)",
    ]


@pytest.mark.parametrize(
    ("run_id", "trace_id"),
    [
        # W3C Trace Context, 3.2.2.3: 32 lower-case hex digits, not all of them zero.
        ("0af7651916cd43dd8448eb211c80319c", "0af7651916cd43dd8448eb211c80319c"),
        ("another-server/7", "1d6d428f76d856d90c92aa92f66fcc86"),
        (None, ""),
    ],
)
def test_every_event_carries_the_trace_id_of_its_run(
    run_id: str | None, trace_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PARENT, raising=False)
    if run_id:
        monkeypatch.setenv(PARENT, run_id)
    events = Events(tmp_path / "events.jsonl", "train")

    events.say("hello")
    events.metrics(3, {"train/loss": 0.5})
    events.progress("training", 1, 2)

    told, _ = read_events(tmp_path / "events.jsonl")
    assert [event.trace_id for event in told] == [trace_id] * 3
