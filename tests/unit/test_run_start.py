"""The first task of a run on a cluster: what it opens, once, and what the others hear of it."""

import os
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import load_text
from pydantic import ValidationError

from dpoflow.contracts.base import canonical_json
from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.contracts.results import RunSummary, Used
from dpoflow.contracts.spec import Spec
from dpoflow.contracts.submitted import Submitted
from dpoflow.registry.run_start import start_run
from dpoflow.state.step import TaskRecord, begin
from dpoflow.state.surroundings import RUN_DIR, join_run
from dpoflow.tracking.conclude import run as conclude
from dpoflow.tracking.pipeline_run import open_run

NAMES = (
    *("DPOFLOW_MLFLOW_PARENT", "DPOFLOW_MLFLOW_EXPERIMENT", "DPOFLOW_MLFLOW_CLOSES"),
    *("DPOFLOW_SUBMISSION", "MLFLOW_RUN_ID", RUN_DIR),
)
GPU_HOUR = Used(gpu_seconds=3600)
VERSION = {"model": "desk", "version": 3, "alias": "challenger", "digest": "d", "uri": "u"}
NOTHING_TO_LEARN = {"decision": "skip", "sentence": "Nothing is new.", "new_pairs": 0}


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives what makes this process a new pod of the run."""
    for name in NAMES:  # so that they are as before once the test ends
        monkeypatch.setenv(name, "x")
    monkeypatch.chdir(tmp_path)  # where MLflow keeps files for whoever names no place
    monkeypatch.setenv("DPOFLOW_STATE_ROOT", str(tmp_path))
    monkeypatch.setenv("KFP_RUN_ID", "0c0ffee0-1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")

    def anew() -> None:
        for name in NAMES:
            os.environ.pop(name, None)
        join_run()

    anew()
    return anew


def leave(folder: Path, record: TaskRecord) -> None:
    """As a task does at its end."""
    (folder / "tasks").mkdir(parents=True, exist_ok=True)
    (folder / "tasks" / f"{record.name}.json").write_text(record.model_dump_json())


def told(**more: Any) -> str:
    spec = Spec.model_validate(
        {"name": "desk", "model": "hf://o/n@r", "data": {"sources": [{"uri": "s3://b/p"}]}}
    )
    facts = {"name": "desk-1", "nonce": "n", "spec": spec, **more}
    return canonical_json(Submitted.model_validate(facts))


def test_the_run_is_opened_once_heard_of_by_later_pods_and_closed_with_its_cause(
    tmp_path: Path, pod: Any
) -> None:
    start_run(told(submission="s1"), tmp_path)
    opened = os.environ["DPOFLOW_MLFLOW_PARENT"]
    pod()  # the first task again, in another pod
    start_run(told(submission="s1"), tmp_path)
    assert os.environ["DPOFLOW_MLFLOW_PARENT"] == opened

    pod()
    with pytest.raises(DataRejected), begin("validate").recorded():
        raise DataRejected("no pair is left")
    pod()
    conclude("FAILED", "main: Error (exit code 3)")

    run = MlflowClient().get_run(opened)
    assert os.environ["DPOFLOW_SUBMISSION"] == "s1"
    assert run.info.status == "FAILED"
    assert run.data.tags["mlflow.runName"] == "desk-1"
    assert run.data.tags["dpoflow.message"] == "validate: DataRejected: no pair is left"


def test_a_run_that_goes_on_does_not_keep_what_ended_its_earlier_attempt(
    tmp_path: Path, pod: Any
) -> None:
    start_run(told(), tmp_path)
    opened = os.environ["DPOFLOW_MLFLOW_PARENT"]
    conclude("FAILED", "validate: DataRejected: no pair is left")

    pod()
    start_run(told(), tmp_path)  # its first task, tried again

    going = MlflowClient().get_run(opened)
    assert going.info.status == "RUNNING"
    assert not {"dpoflow.state", "dpoflow.message"} & going.data.tags.keys()
    conclude("SUCCEEDED", "")
    ended = MlflowClient().get_run(opened)
    assert ended.info.status == "FINISHED"
    assert ended.data.tags["dpoflow.state"] == "SUCCEEDED"
    assert "dpoflow.message" not in ended.data.tags


def test_the_end_leaves_the_run_in_one_page_on_the_volume_and_in_mlflow(
    tmp_path: Path, pod: Any
) -> None:
    start_run(told(), tmp_path)
    folder, opened = tmp_path / "runs" / "0c0ffee0-1", os.environ["DPOFLOW_MLFLOW_PARENT"]
    leave(folder, TaskRecord(name="train", state="SUCCEEDED", started=2, ended=602, used=GPU_HOUR))
    leave(folder, TaskRecord(name="snapshot", state="SUCCEEDED", started=1, ended=1.5))
    leave(
        folder, TaskRecord(name="register", state="SUCCEEDED", started=3, ended=4, result=VERSION)
    )

    pod()
    begin("conclude").simply(conclude, state="SUCCEEDED", message="")

    there = RunSummary.model_validate_json((folder / "summary.json").read_text("utf-8"))
    assert [(task.name, task.seconds) for task in there.tasks] == [
        ("snapshot", 0.5),
        ("train", 600.0),
        ("register", 1.0),
    ]
    assert (there.run_id, there.name, there.state, there.error) == (
        "desk-1",
        "desk",
        "SUCCEEDED",
        None,
    )
    assert there.cost is not None
    assert there.cost.gpu_hours == 1.0
    assert there.registry is not None
    assert there.registry.version == 3
    assert load_text(f"runs:/{opened}/summary.json") == (folder / "summary.json").read_text("utf-8")


@pytest.mark.parametrize(
    ("word", "last", "state", "status"),
    [
        ("COMPLETE", "register", "SUCCEEDED", "FINISHED"),  # as ML metadata says it
        ("CACHED", "register", "SUCCEEDED", "FINISHED"),
        ("RUNNING", "register", "SUCCEEDED", "FINISHED"),  # asked for before it was noted
        ("RUNNING", "decide", "SUCCEEDED", "FINISHED"),  # there was nothing to learn
        ("RUNNING", "register", "FAILED", "FAILED"),
        ("RUNNING", "register", "RUNNING", "FAILED"),  # killed outright
        ("RUNNING", "merge", "SUCCEEDED", "FAILED"),  # and the pod of train never began
        ("CANCELED", "register", "SUCCEEDED", "FAILED"),
    ],
)
def test_every_word_that_kubeflow_has_for_an_end_is_understood(
    tmp_path: Path, pod: Any, word: str, last: str, state: Any, status: str
) -> None:
    start_run(told(), tmp_path)
    folder = tmp_path / "runs" / "0c0ffee0-1"
    told_so = {"decide": NOTHING_TO_LEARN, "register": VERSION}
    result = told_so.get(last) if state == "SUCCEEDED" else None
    leave(folder, TaskRecord(name=last, state=state, started=1, ended=2, result=result))

    begin("conclude").simply(conclude, state=word, message="")

    assert MlflowClient().get_run(os.environ["DPOFLOW_MLFLOW_PARENT"]).info.status == status


def test_a_run_ends_though_its_page_cannot_be_made(tmp_path: Path, pod: Any) -> None:
    start_run(told(), tmp_path)
    folder = tmp_path / "runs" / "0c0ffee0-1"
    leave(folder, TaskRecord(name="register", state="SUCCEEDED", started=1, result={"a": 1}))

    with pytest.raises(ValidationError):
        conclude("SUCCEEDED", "")

    assert MlflowClient().get_run(os.environ["DPOFLOW_MLFLOW_PARENT"]).info.status == "FINISHED"


def test_a_platforms_run_that_is_tried_again_does_not_keep_it_either(
    tmp_path: Path, pod: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient()
    theirs = client.create_run(client.create_experiment("theirs")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", theirs)
    conclude("FAILED", "train: ConfigError: no room")

    open_run(tmp_path, experiment="desk", run_name="r", spec_json="{}", known=None)

    tags = client.get_run(theirs).data.tags
    assert not {"dpoflow.state", "dpoflow.message"} & tags.keys()


def test_each_run_of_a_schedule_has_a_name_of_its_own(tmp_path: Path, pod: Any) -> None:
    start_run(told(name="nightly", scheduled=True), tmp_path)

    run = MlflowClient().get_run(os.environ["DPOFLOW_MLFLOW_PARENT"])
    assert run.data.tags["mlflow.runName"] == "nightly-0c0ffee0"


def test_a_platforms_own_run_is_used_and_none_is_opened(
    tmp_path: Path, pod: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "the-platforms")

    start_run(told(), tmp_path)

    assert "DPOFLOW_MLFLOW_PARENT" not in os.environ


def test_on_a_laptop_nothing_is_told_and_nothing_happens(tmp_path: Path, pod: Any) -> None:
    start_run("", tmp_path)

    assert not (tmp_path / "runs").exists()


def test_facts_of_another_version_are_refused_without_repeating_them(
    tmp_path: Path, pod: Any
) -> None:
    with pytest.raises(ConfigError, match="submitted by another version"):
        start_run('{"name": "desk", "surprise": 1}', tmp_path)


def test_a_schedule_of_a_team_needs_the_teams_server(tmp_path: Path, pod: Any) -> None:
    with pytest.raises(ConfigError, match=r"placement\.mlflow_uri"):
        start_run(told(scheduled=True, submission="s1"), tmp_path)
