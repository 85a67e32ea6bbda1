"""What a person is told while a run works: lines that say something, and nothing that is not so."""

import io
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from tests.waiting import until

from dpoflow.state import events as events_module
from dpoflow.state import files
from dpoflow.state.events import Event, Events, read_events
from dpoflow.state.step import TaskRecord
from dpoflow_pipelines import progress
from dpoflow_pipelines.progress import following, progress_text

Tell = Callable[[float, int], Event]


@pytest.fixture
def tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tell:
    """Makes progress in the phase `judging` of 1,000 at a time of its own, and gives the event."""
    path = tmp_path / "events.jsonl"
    events, now = Events(path, "test"), [0.0]
    monkeypatch.setattr(events_module.time, "time", lambda: now[0])

    def tell(at_s: float, done: int) -> Event:
        now[0] = 1000.0 + at_s
        events.progress("judging", done, 1000, unit="prompts")
        return read_events(path)[0][-1]

    return tell


def test_nothing_is_foretold_in_the_first_seconds_and_then_the_speed_of_late(tell: Tell) -> None:
    first = [tell(second / 2, second).rate for second in range(5)]
    steady = [tell(4 + second, 8 + 2 * second).rate for second in range(40)]
    slower = [tell(44 + second, 87 + second).rate for second in range(60)]

    assert first == [None] * 5
    assert all(rate == pytest.approx(2, rel=0.1) for rate in steady)
    assert slower[-1] == pytest.approx(1, rel=0.05)
    assert all(late <= early for early, late in itertools.pairwise(slower))


def test_answers_that_were_kept_do_not_count_as_speed(tell: Tell) -> None:
    tell(0.0, 1)
    tell(0.2, 600)  # an earlier attempt paid for these

    assert tell(0.9, 601).rate is None
    assert tell(10.9, 611).rate == pytest.approx(1)


def test_the_same_done_to_a_second_set_is_a_phase_of_its_own(tell: Tell) -> None:
    for second in range(10):
        tell(second, 100 * second)

    again = [tell(10 + second, 1 + second).rate for second in range(10)]

    assert again[:3] == [None] * 3
    assert again[3:] == [pytest.approx(1)] * 7


def test_rows_that_went_by_quickly_are_all_counted_in_the_end(tmp_path: Path) -> None:
    events = Events(tmp_path / "events.jsonl", "test")

    assert list(events.track(iter("abcde"), "read")) == [*"abcde"]

    last = read_events(tmp_path / "events.jsonl")[0][-1]
    assert (last.done, last.total) == (5, 5)


@pytest.mark.parametrize(
    ("event", "text"),
    [
        ({"done": 1, "unit": "rows"}, "read 1 row"),
        ({"done": 1, "total": 1, "unit": "rows"}, "read 1/1 row"),
        ({"done": 1, "total": 5, "unit": "rows"}, "read 1/5 rows"),
        ({"done": 3, "total": 9, "rate": 0.5, "unit": "x"}, "read 3/9 x, 2.0 s each, 12 s left"),
        ({"done": 1, "total": 3, "metrics": {"train/loss": 0.5321}}, "read 1/3, loss 0.532"),
    ],
)
def test_a_line_counts_in_words_that_fit(event: dict[str, object], text: str) -> None:
    told = Event.model_validate({"time": 0, "step": "s", "phase": "read", **event})

    assert progress_text(told) == text


def test_what_a_reused_step_found_out_is_told_again_and_what_it_did_then_is_not(
    tmp_path: Path,
) -> None:
    (tmp_path / "state").mkdir()
    events, out = Events(tmp_path / "state" / "events.jsonl", "synthesize"), io.StringIO()
    for _ in range(2):  # the first time it was killed
        events.say("sampling 33 candidates", passing=True)
        events.say("12 pairs from 19 prompts")
    now = time.time()
    reused = TaskRecord(
        name="synthesize",
        state="SUCCEEDED",
        started=now,
        ended=now,
        reused=True,
        state_dir=f"{tmp_path}/state",
    )

    with following(Console(file=out, width=200), tmp_path, ["synthesize"]):
        files.write_text(tmp_path / "tasks" / "synthesize.json", reused.model_dump_json())

    lines = [line.split(" ", 1)[1] for line in out.getvalue().splitlines()]
    assert lines == [
        "synthesize: 12 pairs from 19 prompts",
        "synthesize SUCCEEDED (reused) in 0 s",
    ]


def test_an_attempt_that_is_tried_again_is_told_with_its_reason(tmp_path: Path) -> None:
    out = io.StringIO()

    def record(num_lines: int, **more: object) -> None:
        """And wait until it is told: kfp waits a second before it tries again."""
        told = TaskRecord.model_validate({"name": "synthesize", "started": time.time(), **more})
        files.write_text(tmp_path / "tasks" / "synthesize.json", told.model_dump_json())
        until(lambda: out.getvalue().count("\n") >= num_lines, f"{more} was told")

    away = {"error_type": "ServiceUnavailable", "error": "the judge is away"}
    with following(Console(file=out, width=200), tmp_path, ["synthesize"]):
        record(1, state="RUNNING")
        record(3, state="FAILED", ended=time.time(), **away)
        record(4, state="RUNNING", attempt=2)
        record(5, state="FAILED", ended=time.time(), attempt=3, **away)

    lines = [line.split(" ", 1)[1] for line in out.getvalue().splitlines()]
    assert lines == [
        "synthesize RUNNING",
        "synthesize: attempt 1 of 3 ended: the judge is away",
        "synthesize STOPPED in 0 s",
        "synthesize RUNNING (attempt 2 of 3)",
        "synthesize STOPPED in 0 s",  # the last one: its error is the run's
    ]


def test_where_there_is_no_terminal_lines_come_in_order_and_with_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    (tmp_path / "state").mkdir()
    events, out = Events(tmp_path / "state" / "events.jsonl", "train"), io.StringIO()
    started = time.time() - 1

    def record(**more: object) -> None:
        told = {"name": "train", "started": started, "state_dir": f"{tmp_path}/state", **more}
        text = TaskRecord.model_validate(told).model_dump_json()
        files.write_text(tmp_path / "tasks" / "train.json", text)

    with following(Console(file=out, width=200), tmp_path, ["train"]):
        record(state="RUNNING")
        events.metrics(7, {"train/loss": 0.6104}, phase="training")
        events.progress("training", 7, 20, unit="updates")
        until(lambda: "7/20" in out.getvalue(), "the progress was told")
        events.say("writing the policy")
        record(state="SUCCEEDED", ended=started + 5)

    lines = [line.split(" ", 1)[1] for line in out.getvalue().splitlines()]
    assert lines == [
        "train RUNNING",
        "train: training 7/20 updates, loss 0.610",
        "train: writing the policy",
        "train SUCCEEDED in 5 s",
    ]
