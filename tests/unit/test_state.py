"""The life of a step: reuse, continuation, locks, records, children that die with their runner."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.waiting import until

from dpoflow.contracts import manifest
from dpoflow.contracts.base import Contract
from dpoflow.contracts.errors import DataRejected, ServiceUnavailable
from dpoflow.state import files
from dpoflow.state.events import Events, read_events
from dpoflow.state.step import StepState, Task, TaskRecord, begin, find, refer
from dpoflow.state.surroundings import RUN_DIR, join_run, tell_run


class Knobs(Contract):
    """Config of the step under test."""

    word: str = "hello"


class Told(Contract):
    """Result of the step under test."""

    length: int


class Echo:
    """A step that writes its input's text and its own word, and counts how often it really ran."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, config: Knobs, *, source: Path, said: Path, state: StepState) -> Told:
        self.times += 1
        text = (source / "text").read_text() + config.word
        (said / "text").write_text(text)
        return Told(length=len(text))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return artifact(tmp_path / "source", "one ")


def artifact(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "text").write_text(text)
    manifest.seal(folder, "test.source", parents={}, config={}, code="none")
    return folder


def execute(
    step: Echo, root: Path, source: Path, knobs: Knobs | None = None, to: str = "a"
) -> Told:
    return Task("echo").execute(
        step,
        knobs or Knobs(),
        root=str(root),
        inputs={"source": str(source)},
        outputs={"said": str(root / to)},
        kind=Told,
    )


def test_an_artifact_by_reference_holds_no_bytes_and_is_read_from_the_state(
    tmp_path: Path, source: Path
) -> None:
    root, step = tmp_path / "root", Echo()
    big = 1_000_000
    written = Task("echo").execute(
        step,
        Knobs(word="x" * big),
        root=str(root),
        inputs={"source": str(source)},
        outputs={"said": str(root / "named")},
        kind=Told,
        by_reference=("said",),
    )
    named = root / "named"
    told = execute(step, root, named, to="next")

    assert {path.name for path in named.iterdir()} == {"manifest.json", "reference.json"}
    assert written.length == len("one ") + big
    assert told.length == written.length + len("hello")
    assert manifest.read(root / "next").parents == {"source": manifest.read(named).digest}


def test_a_reference_to_what_is_gone_or_damaged_is_refused(tmp_path: Path, source: Path) -> None:
    root = tmp_path / "root"
    execute(Echo(), root, source)
    kept = find(root, manifest.read(root / "a").digest)
    assert kept is not None
    refer(kept, tmp_path / "named")

    (root / "index" / manifest.read(kept).digest).unlink()
    with pytest.raises(DataRejected, match=r"is not under .* any more; run the step that made it"):
        execute(Echo(), root, tmp_path / "named", to="b")

    (tmp_path / "named" / "reference.json").write_text('{"digest": "../../etc"}')
    with pytest.raises(DataRejected, match="is not under"):
        execute(Echo(), root, tmp_path / "named", to="b")

    (tmp_path / "named" / "reference.json").write_text("{")
    with pytest.raises(DataRejected, match="is damaged"):
        execute(Echo(), root, tmp_path / "named", to="b")


def test_bytes_that_changed_behind_a_reference_are_seen(tmp_path: Path, source: Path) -> None:
    root = tmp_path / "root"
    execute(Echo(), root, source)
    kept = find(root, manifest.read(root / "a").digest)
    assert kept is not None
    refer(kept, tmp_path / "named")
    (kept / "text").unlink()
    (kept / "text").write_text("another")

    with pytest.raises(DataRejected, match="text was changed"):
        execute(Echo(), root, tmp_path / "named", to="b")


def test_tasks_of_a_cluster_find_each_other_by_the_runs_id_and_a_laptops_by_their_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (RUN_DIR, "DPOFLOW_MLFLOW_PARENT"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    monkeypatch.setenv("DPOFLOW_STATE_ROOT", str(tmp_path))
    monkeypatch.setenv("KFP_RUN_ID", "run-1")

    join_run()
    tell_run({"DPOFLOW_MLFLOW_PARENT": "abc"})
    monkeypatch.delenv(RUN_DIR)
    monkeypatch.delenv("DPOFLOW_MLFLOW_PARENT")
    begin("second").simply(lambda **_: "fine")

    assert os.environ["DPOFLOW_MLFLOW_PARENT"] == "abc"
    record = tmp_path / "runs" / "run-1" / "tasks" / "second.json"
    assert TaskRecord.model_validate_json(record.read_text()).state == "SUCCEEDED"
    monkeypatch.setenv(RUN_DIR, str(tmp_path / "laptop"))
    monkeypatch.setenv("DPOFLOW_MLFLOW_PARENT", "mine")
    join_run()
    assert os.environ["DPOFLOW_MLFLOW_PARENT"] == "mine"


def test_the_same_inputs_run_once_and_publish_the_same_artifact_twice(
    tmp_path: Path, source: Path
) -> None:
    step = Echo()

    first = execute(step, tmp_path / "root", source, to="a")
    again = execute(step, tmp_path / "root", source, to="b")

    assert step.times == 1
    assert first == again == Told(length=len("one hello"))
    assert (
        manifest.verify(tmp_path / "root" / "b").digest == manifest.read(tmp_path / "root/a").digest
    )


def test_a_changed_knob_or_input_runs_again(tmp_path: Path, source: Path) -> None:
    step, root = Echo(), tmp_path / "root"

    execute(step, root, source)
    execute(step, root, source, Knobs(word="bye"))
    execute(step, root, artifact(tmp_path / "other", "two "))

    assert step.times == 3


def test_an_artifact_changed_after_it_was_sealed_is_refused_as_input(
    tmp_path: Path, source: Path
) -> None:
    (source / "text").write_text("forged ")

    with pytest.raises(DataRejected, match="text was changed"):
        execute(Echo(), tmp_path / "root", source)


def test_a_damaged_output_is_never_reused(tmp_path: Path, source: Path) -> None:
    step, root = Echo(), tmp_path / "root"
    execute(step, root, source)
    kept = find(root, manifest.read(root / "a").digest)
    assert kept is not None
    (kept / "text").write_text("rotten")

    execute(step, root, source, to="b")

    assert step.times == 2
    assert (root / "b" / "text").read_text() == "one hello"


def test_work_of_a_failed_attempt_is_there_for_the_next_and_its_outputs_are_not(
    tmp_path: Path, source: Path
) -> None:
    attempts = []

    def flaky(config: Knobs, *, source: Path, said: Path, state: StepState) -> Told:
        attempts.append((sorted(p.name for p in said.iterdir()), (state.work / "half").exists()))
        (said / "half-written").write_text("x")
        (state.work / "half").write_text("kept")
        if len(attempts) == 1:
            raise RuntimeError("power cut")
        (said / "half-written").unlink()
        (said / "text").write_text("whole")
        return Told(length=5)

    with pytest.raises(RuntimeError):
        execute(flaky, tmp_path / "root", source)  # type: ignore[arg-type]
    assert not list((tmp_path / "root").rglob("half-written"))
    execute(flaky, tmp_path / "root", source)  # type: ignore[arg-type]

    assert attempts == [([], False), ([], True)]


def test_two_writers_are_kept_apart_and_the_second_is_told_to_wait(
    tmp_path: Path, source: Path
) -> None:
    def meets_another(config: Knobs, *, source: Path, said: Path, state: StepState) -> Told:
        with pytest.raises(ServiceUnavailable, match="another run"):
            execute(Echo(), tmp_path / "root", source, to="b")
        (said / "text").write_text("mine")
        return Told(length=4)

    execute(meets_another, tmp_path / "root", source)  # type: ignore[arg-type]


def test_a_retry_that_cannot_help_ends_at_once_and_one_that_can_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RUN_DIR, str(tmp_path))

    def failed(kind: str) -> None:
        record = TaskRecord(name="echo", state="FAILED", started=0, error_type=kind, error="why")
        files.write_text(tmp_path / "tasks" / "echo.json", record.model_dump_json())

    failed("DataRejected")
    with pytest.raises(SystemExit) as ended:
        begin("echo")
    assert ended.value.code == DataRejected.exit_code

    failed("ServiceUnavailable")
    begin("echo")
    record = TaskRecord.model_validate_json((tmp_path / "tasks" / "echo.json").read_text())
    assert (record.state, record.attempt) == ("RUNNING", 2)


def test_a_failure_stands_in_the_tasks_record_with_its_kind(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RUN_DIR, str(tmp_path))

    def refuses(config: Knobs, *, source: Path, said: Path, state: StepState) -> Told:
        raise DataRejected("no rows")

    with pytest.raises(DataRejected):
        execute(refuses, tmp_path / "root", source)  # type: ignore[arg-type]

    record = TaskRecord.model_validate_json((tmp_path / "tasks" / "echo.json").read_text())
    assert (record.state, record.error_type, record.error) == ("FAILED", "DataRejected", "no rows")


def test_a_child_dies_with_its_runner_though_a_shell_stands_between(tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    child.write_text(
        textwrap.dedent(
            """
            import os, sys, time
            from pathlib import Path
            from dpoflow.state.lifeline import tie_to_runner
            tie_to_runner()
            Path(sys.argv[1]).write_text(str(os.getpid()))
            while True:
                sum(range(100000))
            """
        )
    )
    runner = tmp_path / "runner.py"
    runner.write_text(
        textwrap.dedent(
            f"""
            import os, subprocess, sys
            os.environ["DPOFLOW_RUNNER_PID"] = str(os.getpid())
            subprocess.run(["sh", "-c", f"{{sys.executable}} {child} {tmp_path}/pid; true"])
            """
        )
    )
    parent = subprocess.Popen([sys.executable, str(runner)])
    written = tmp_path / "pid"
    until(lambda: written.exists() and written.read_text(), "the child wrote its id")
    pid = int(written.read_text())
    os.kill(pid, 0)

    parent.send_signal(signal.SIGKILL)
    parent.wait()

    until(lambda: _is_gone(pid), "the child was gone")


def _is_gone(pid: int) -> bool:
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]
    except FileNotFoundError:
        return True


def test_events_are_read_back_in_order_and_only_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events = Events(path, "train")
    events.say("begun")
    events.progress("training", 3, 10, unit="updates")
    events.metrics(3, {"train/loss": 0.5})
    with path.open("a") as out:
        out.write('{"time": 1, "st')

    seen, offset = read_events(path)
    more, _ = read_events(path, offset)

    assert [event.message for event in seen] == ["begun", "", ""]
    assert (seen[1].done, seen[1].total, seen[1].unit) == (3, 10, "updates")
    assert (seen[2].at, seen[2].metrics) == (3, {"train/loss": 0.5})
    assert more == []


def test_a_replaced_file_is_old_or_new_and_leaves_no_draft(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a", "old")
    files.write_text(tmp_path / "a", "new")

    assert (tmp_path / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
