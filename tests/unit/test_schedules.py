"""Schedules: their clock, their update by name, and what was missed; against the fake of KFP."""

import datetime as dt
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kfp_server_api as kfp_models
import pytest
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from ruamel.yaml import YAML
from tests.fakes.kfp_api import CUT, NOW, FakeKfp, times
from typer.testing import CliRunner

from dpoflow.contracts.errors import ConfigError
from dpoflow.contracts.spec import RunnableName, Spec
from dpoflow.contracts.submitted import Submitted
from dpoflow.images import CPU, GPU
from dpoflow_pipelines import schedules
from dpoflow_pipelines.backends.kfp_api import KfpApi
from dpoflow_pipelines.cli import app
from dpoflow_pipelines.schedules import Schedule, check_cron

LOCK = {
    CPU: f"registry.example/team/dpoflow-python-cpu@sha256:{'a' * 64}",
    GPU: f"registry.example/team/dpoflow-python-gpu@sha256:{'b' * 64}",
}
NIGHTLY = "0 0 2 * * *"
DAG: RunnableName = "retrain"


def spec_of(**more: Any) -> Spec:
    given = {
        "name": "desk",
        "model": "hf://org/name@main",
        "data": {"sources": [{"uri": "s3://b/p"}]},
    }
    return Spec.model_validate({**given, **more})


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKfp]:
    for name in ("MLFLOW_TRACKING_URI", "DPOFLOW_KFP_TOKEN", "KF_PIPELINES_SA_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with FakeKfp() as fake:
        yield fake


def api_of(kfp: FakeKfp) -> KfpApi:
    return KfpApi(kfp.url, "dpoflow", pause_s=0.001)


def created(kfp: FakeKfp, home: Path, *, cron: str = NIGHTLY, **more: Any) -> tuple[Schedule, int]:
    given = {"pipeline": DAG, "images": LOCK}
    return schedules.create("nightly", spec_of(**more), cron, home, api_of(kfp), **given)


def recurring(kfp: FakeKfp) -> list[Any]:
    return list(kfp.stored["recurringruns"].values())


@pytest.mark.parametrize(
    "cron", [NIGHTLY, "5 */10 * * * ?", "0 30 1-5,22 1 jan-mar MON-FRI", "0 0 */6 * * 0,6"]
)
def test_six_fields_that_the_scheduler_takes_are_taken(cron: str) -> None:
    assert check_cron(cron) == cron


@pytest.mark.parametrize(
    ("cron", "told"),
    [
        ("0 2 * * *", r"has five fields.*write '0 0 2 \* \* \*'"),
        ("every night", "has 2 fields, and Kubeflow's have six"),
        ("0 0 25 * * *", "'25' as its hour, which is 0 to 23"),
        ("0 61 2 * * *", "'61' as its minute"),
        ("0 0 2 0 * *", "'0' as its day of the month"),
        ("0 0 2 * * 7", "'7' as its day of the week"),
        ("0 0 5-1 * * *", "'5-1' as its hour"),
        ("0 0 */0 * * *", "as its hour"),
        ("0 0 2 * foo *", "'foo' as its month"),
        ("0 0 2, * * *", "as its hour"),
        ("", "has 0 fields"),
        ("* * * * * *", "'\\*' as its second, which is many runs a minute"),
        ("*/10 * * * * ?", "many runs a minute"),
    ],
)
def test_any_other_cron_is_refused_with_what_to_write(cron: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_cron(cron)


def test_a_schedule_runs_one_at_a_time_and_catches_nothing_up(kfp: FakeKfp, tmp_path: Path) -> None:
    made, gone = created(kfp, tmp_path)

    (found,) = recurring(kfp)
    told = Submitted.model_validate_json(found.runtime_config.parameters["submitted"])
    assert (found.display_name, found.trigger.cron_schedule.cron) == ("nightly", NIGHTLY)
    assert (found.max_concurrency, found.no_catchup, found.mode) == ("1", True, "ENABLE")
    assert found.service_account == "dpoflow-pipeline"
    assert (told.name, told.scheduled, told.spec) == ("nightly", True, spec_of())
    assert (made.name, made.enabled, gone) == ("nightly", True, 0)


def test_an_update_by_name_makes_the_new_one_before_the_old_one_goes(
    kfp: FakeKfp, tmp_path: Path
) -> None:
    created(kfp, tmp_path)
    (old,) = recurring(kfp)
    kfp.requests.clear()

    _, gone = created(kfp, tmp_path, cron="0 0 3 * * *", train={"beta": 0.2})

    (new,) = recurring(kfp)
    assert (gone, new.trigger.cron_schedule.cron) == (1, "0 0 3 * * *")
    writes = [(method, path) for method, path in kfp.requests if "recurringruns" in path]
    writes = [each for each in writes if each[0] != "GET"]
    assert writes == [
        ("POST", "recurringruns"),
        ("DELETE", f"recurringruns/{old.recurring_run_id}"),
    ]


def test_a_paused_schedule_stays_paused_when_it_is_updated(kfp: FakeKfp, tmp_path: Path) -> None:
    created(kfp, tmp_path)
    schedules.pause(api_of(kfp), "nightly")

    made, _ = created(kfp, tmp_path, cron="0 0 3 * * *")

    assert not made.enabled
    schedules.resume(api_of(kfp), "nightly")
    assert [each.enabled for each in schedules.listed(api_of(kfp))] == [True]


@pytest.mark.parametrize("lost", ["before", "after"])
def test_the_same_command_again_and_a_connection_that_is_cut_leave_one_schedule(
    kfp: FakeKfp, tmp_path: Path, lost: str
) -> None:
    cut = times(1, (CUT, None), r"POST recurringruns")
    if lost == "before":
        kfp.answers = cut
    else:
        kfp.after = cut

    first, _ = created(kfp, tmp_path)
    again, gone = created(kfp, tmp_path)

    assert len(recurring(kfp)) == 1
    assert (again.recurring_run_id, gone) == (first.recurring_run_id, 0)


def test_recurring_runs_that_somebody_else_made_are_left_alone(
    kfp: FakeKfp, tmp_path: Path
) -> None:
    created(kfp, tmp_path)
    (ours,) = recurring(kfp)
    theirs = kfp_models.V2beta1RecurringRun(
        recurring_run_id="theirs", display_name="nightly", experiment_id=ours.experiment_id
    )
    kfp.stored["recurringruns"]["theirs"] = theirs

    created(kfp, tmp_path, cron="0 0 3 * * *")
    many = schedules.delete(api_of(kfp), "nightly")

    assert many == 1
    assert [each.recurring_run_id for each in recurring(kfp)] == ["theirs"]


def test_what_is_not_there_is_told_with_what_is(kfp: FakeKfp, tmp_path: Path) -> None:
    created(kfp, tmp_path)

    with pytest.raises(ConfigError, match="no schedule 'hourly'; there are: nightly"):
        schedules.pause(api_of(kfp), "hourly")


def test_a_trigger_that_is_cut_off_makes_one_run_of_what_the_schedule_runs(
    kfp: FakeKfp, tmp_path: Path
) -> None:
    created(kfp, tmp_path)
    kfp.after = times(1, (CUT, None), r"POST runs")

    made = schedules.trigger(api_of(kfp), "nightly")

    run, (schedule,) = kfp.run(), recurring(kfp)
    assert made == run.run_id
    assert run.runtime_config.parameters == schedule.runtime_config.parameters
    assert run.pipeline_version_reference == schedule.pipeline_version_reference
    assert run.display_name.startswith("nightly-by-hand-")


@pytest.mark.parametrize(
    ("state", "days", "runs"),
    [
        (None, 0, 1),  # there was none
        ("SUCCEEDED", 1, 1),  # before that time
        ("SUCCEEDED", -1, 0),
        ("RUNNING", -1, 0),
        ("FAILED", -1, 1),
    ],
)
def test_what_was_missed_is_made_up_for_by_one_run(
    kfp: FakeKfp, tmp_path: Path, state: str | None, days: int, runs: int
) -> None:
    created(kfp, tmp_path)
    if state is not None:
        schedules.trigger(api_of(kfp), "nightly")
        kfp.goes_on(state)
    before = len(kfp.stored["runs"])

    made = schedules.backfill(api_of(kfp), "nightly", NOW + dt.timedelta(days=days))

    assert len(kfp.stored["runs"]) - before == runs
    assert (made is not None) is bool(runs)


@pytest.mark.parametrize(
    ("state", "begun", "runs"),
    [
        ("SUCCEEDED", 1, 0),  # after that time, by a schedule that was updated since
        ("SUCCEEDED", -1, 1),
        ("RUNNING", -1, 0),  # it began before, and goes on: it takes what there is
        ("PENDING", -1, 0),
        ("CANCELED", 1, 1),
    ],
)
def test_runs_from_before_an_update_count_and_so_does_one_that_goes_on(
    kfp: FakeKfp, tmp_path: Path, state: str, begun: int, runs: int
) -> None:
    created(kfp, tmp_path)
    schedules.trigger(api_of(kfp), "nightly")
    kfp.goes_on(state)
    created(kfp, tmp_path, cron="0 0 3 * * *", train={"beta": 0.2})

    made = schedules.backfill(api_of(kfp), "nightly", NOW - dt.timedelta(days=begun))

    assert len(kfp.stored["runs"]) - 1 == runs
    assert (made is not None) is bool(runs)


def test_runs_of_another_schedule_and_of_people_make_up_for_nothing(
    kfp: FakeKfp, tmp_path: Path
) -> None:
    created(kfp, tmp_path)
    schedules.trigger(api_of(kfp), "nightly")
    kfp.goes_on("SUCCEEDED")
    told = json.loads(kfp.run().runtime_config.parameters["submitted"])
    others = [{**told, "name": "weekly"}, {**told, "scheduled": False}]
    for submitted in (*map(json.dumps, others), "no JSON", ""):
        kfp.run().runtime_config.parameters["submitted"] = submitted

        made = schedules.backfill(api_of(kfp), "nightly", NOW - dt.timedelta(days=1))

        assert made is not None
        del kfp.stored["runs"][made]


def test_resources_for_git_hold_the_dag_and_the_version_that_create_would_use(
    kfp: FakeKfp, tmp_path: Path
) -> None:
    pipeline, version = YAML(typ="safe").load_all(schedules.gitops(spec_of(), DAG, LOCK))
    created(kfp, tmp_path)

    assert pipeline["apiVersion"] == version["apiVersion"] == "pipelines.kubeflow.org/v2beta1"
    assert (pipeline["kind"], version["kind"]) == ("Pipeline", "PipelineVersion")
    assert version["spec"]["pipelineName"] == pipeline["metadata"]["name"] == "dpoflow-retrain"
    assert pipeline["metadata"]["namespace"] == "dpoflow"
    (uploaded,) = kfp.versions.values()
    assert version["metadata"]["name"] == uploaded.display_name
    dag = json_format.ParseDict(version["spec"]["pipelineSpec"], pipeline_spec_pb2.PipelineSpec())
    assert dag.pipeline_info.name == "dpoflow-retrain"
    json_format.ParseDict(version["spec"]["platformSpec"], pipeline_spec_pb2.PlatformSpec())


# ---------------------------------------------------------------- whose it is


@pytest.fixture
def team(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """A server that answers as the gate does to one engineer; gives what it was told."""
    told: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, body: dict[str, Any]) -> None:
            text = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self) -> None:
            self._answer({"gate": 1, "user": "ann", "roles": ["engineer"]})

        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._answer({"submission": "5" * 32})

        def log_message(self, *arguments: Any) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    yield told
    server.shutdown()
    server.server_close()


def test_a_teams_server_is_told_whose_schedule_it_is_once(
    kfp: FakeKfp, tmp_path: Path, team: list[dict[str, Any]]
) -> None:
    created(kfp, tmp_path)
    created(kfp, tmp_path)

    (schedule,) = recurring(kfp)
    submitted = Submitted.model_validate_json(schedule.runtime_config.parameters["submitted"])
    (asked,) = team
    assert asked["schedule"] == {"name": "nightly"}
    assert submitted.submission == "5" * 32


def test_a_schedule_whose_runs_nobody_could_approve_is_refused_and_made_once_that_is_mended(
    kfp: FakeKfp, tmp_path: Path, team: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ConfigError, match="nobody could ever approve"):
        created(kfp, tmp_path, evaluate={"signer": "c" * 64})
    unsigned, _ = created(kfp, tmp_path)  # nobody has to approve that
    assert (team, len(recurring(kfp))) == ([], 1)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", where)
    created(kfp, tmp_path)

    (schedule,) = recurring(kfp)
    submitted = Submitted.model_validate_json(schedule.runtime_config.parameters["submitted"])
    assert (len(team), submitted.submission) == (1, "5" * 32)
    assert schedule.recurring_run_id != unsigned.recurring_run_id


# ---------------------------------------------------------------- the command


def test_the_command_names_what_is_wrong_before_it_asks_anybody(tmp_path: Path) -> None:
    path = tmp_path / "align.yaml"
    path.write_text("{name: desk, model: hf://a/b@c, data: {sources: [{uri: s3://b/p}]}}")

    five = CliRunner().invoke(
        app, ["schedule", "create", "nightly", str(path), "--cron", "0 2 * * *"]
    )
    nowhere = CliRunner().invoke(
        app,
        ["schedule", "create", "nightly", str(path), "--cron", NIGHTLY],
        env={"KF_PIPELINES_ENDPOINT": ""},
    )

    assert "has five fields" in str(five.exception)
    assert "name it with --endpoint" in str(nowhere.exception)
