"""Submitting to Kubeflow, against an HTTP fake of its API: once, whatever is cut off on the way."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from posixpath import normpath
from typing import Any

import pytest
from mlflow import MlflowClient
from pydantic import ValidationError
from tests.fakes.kfp_api import CUT, FakeKfp, times
from tests.fakes.kubernetes_objects import FakeObjects
from tests.mlflow_server import ADMIN, PASSWORD, MlflowServer
from typer.testing import CliRunner, Result

from dpoflow.contracts.errors import ConfigError, DpoflowError, ServiceUnavailable
from dpoflow.contracts.results import RegisterResult, RunCost, RunSummary, TaskCost
from dpoflow.contracts.spec import Spec
from dpoflow.contracts.submitted import Submitted
from dpoflow.images import CPU, GPU
from dpoflow.state.step import TaskRecord
from dpoflow.tracking.pipeline_run import KFP_TAG
from dpoflow_pipelines.backends import cluster
from dpoflow_pipelines.backends.cluster import OnCluster, await_end, cancel, compiled_for, submit
from dpoflow_pipelines.backends.ir import read_ir
from dpoflow_pipelines.backends.kfp_api import ATTEMPTS, KfpApi
from dpoflow_pipelines.cli import app
from dpoflow_pipelines.images_lock import read_lock

LOCK = {
    CPU: f"registry.example/team/dpoflow-python-cpu@sha256:{'a' * 64}",
    GPU: f"registry.example/team/dpoflow-python-gpu@sha256:{'b' * 64}",
}
RUNS = r"POST runs"
WRITES = [
    "POST pipelines",
    "POST pipelines/upload_version",
    "POST experiments",
    "POST runs",
]


def spec_of(**more: Any) -> Spec:
    return Spec.model_validate(
        {
            "name": "desk",
            "model": "hf://org/name@main",
            "data": {"sources": [{"uri": "s3://bucket/pairs"}]},
            **more,
        }
    )


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKfp]:
    for name in ("MLFLOW_TRACKING_URI", "DPOFLOW_KFP_TOKEN", "KF_PIPELINES_SA_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with FakeKfp() as fake:
        yield fake


def api_of(kfp: FakeKfp) -> KfpApi:
    return KfpApi(kfp.url, "dpoflow", pause_s=0.001)


def submitted(kfp: FakeKfp, home: Path, spec: Spec | None = None) -> OnCluster:
    return submit(spec or spec_of(), home, api_of(kfp), images=LOCK)


def test_a_run_has_its_version_experiment_account_and_arguments(
    kfp: FakeKfp, tmp_path: Path
) -> None:
    spec = spec_of()

    there = submitted(kfp, tmp_path, spec)

    run, (version,) = kfp.run(), kfp.versions.values()
    (experiment,) = kfp.stored["experiments"].values()
    given = run.runtime_config.parameters
    told = Submitted.model_validate_json(given.pop("submitted"))
    assert given == {"state_root": "/state", **spec.arguments()}
    assert (told.spec, told.name) == (spec, there.run_id)
    assert run.display_name == there.run_id
    assert run.service_account == "dpoflow-pipeline"
    assert (experiment.display_name, experiment.namespace) == ("desk", "dpoflow")
    assert run.pipeline_version_reference.pipeline_version_id == version.pipeline_version_id
    assert version.display_name.startswith("dpoflow-align-")
    assert there.link == f"{kfp.url}/#/runs/details/{run.run_id}"


def test_the_same_content_is_one_version_and_another_placement_a_second(
    kfp: FakeKfp, tmp_path: Path
) -> None:
    submitted(kfp, tmp_path / "ann")
    submitted(kfp, tmp_path / "ben")
    assert len(kfp.versions) == 1

    submitted(kfp, tmp_path / "ann", spec_of(placement={"train": {"gpus": 8}}))

    assert len(kfp.versions) == 2
    assert len(kfp.stored["pipelines"]) == len(kfp.stored["experiments"]) == 1
    assert len(kfp.stored["runs"]) == 3


def test_a_version_of_that_name_with_other_content_is_refused(kfp: FakeKfp, tmp_path: Path) -> None:
    submitted(kfp, tmp_path / "ann")
    (version,) = kfp.versions.values()
    version.pipeline_spec["pipeline_spec"]["pipelineInfo"]["description"] = "another"

    with pytest.raises(ConfigError, match="with other content than its name says"):
        submitted(kfp, tmp_path / "ben")

    assert len(kfp.stored["runs"]) == 1


@pytest.mark.parametrize("secret", ["dpoflow-signing-key", "dpoflow-mlflow", "dpoflow-promoter"])
@pytest.mark.parametrize("task", ["default", "snapshot", "evaluate"])
def test_a_spec_cannot_read_the_keys_that_vouch_for_what_it_makes(task: str, secret: str) -> None:
    for use in ({"env": {"KEY": "signing.pem"}}, {"path": "/data"}):
        with pytest.raises(ValidationError, match=f"{task}.secrets names {secret}"):
            spec_of(placement={task: {"secrets": [{"name": secret, **use}]}})

    renamed = {"secrets": {"signing": "another"}, task: {"secrets": [{"name": secret, **use}]}}
    with pytest.raises(ValidationError, match=secret):
        spec_of(placement=renamed)


@pytest.mark.parametrize(
    "variable", ["MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "DPOFLOW_SIGNING_KEY"]
)
def test_a_spec_cannot_have_a_steps_own_login_sent_to_a_server_that_it_names(variable: str) -> None:
    source = {"uri": "https://example.org/x.jsonl", "query_env": variable}
    endpoint = {"base_url": "https://example.org/v1", "model": "m", "api_key_env": variable}

    with pytest.raises(ValidationError, match=f"{variable} belongs to the step itself"):
        spec_of(data={"sources": [source]})
    with pytest.raises(ValidationError, match=f"{variable} belongs to the step itself"):
        spec_of(evaluate={"judge": {"kind": "llm", "endpoint": endpoint}})


def test_a_tasks_volumes_stand_beside_the_defaults(tmp_path: Path) -> None:
    placement = {
        "default": {"volumes": [{"claim": "models", "path": "/models"}]},
        "snapshot": {"volumes": [{"claim": "corpora", "path": "/corpora"}]},
    }
    sources = {"sources": [{"uri": "/corpora/pairs.jsonl"}]}
    spec = spec_of(model="/models/base", data=sources, placement=placement)

    compiled_for(spec, tmp_path / "ir.yaml", "align", LOCK)

    platforms = read_ir(tmp_path / "ir.yaml")[1]
    mounts = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-snapshot"]
    paths = {each["mountPath"] for each in mounts["pvcMount"]}
    assert paths == {"/state", "/models", "/corpora"}

    outside = spec_of(model="/models/../etc/base", data=sources, placement=placement)
    with pytest.raises(ConfigError, match=r"/models/\.\./etc/base is a path of this machine"):
        compiled_for(outside, tmp_path / "ir.yaml", "align", LOCK)


def test_the_promoters_pipeline_has_the_promoters_account_and_no_other(tmp_path: Path) -> None:
    spec, ir = tmp_path / "align.yaml", tmp_path / "promote.yaml"
    spec.write_text(json.dumps(spec_of().model_dump(mode="json")))
    lock = tmp_path / "images.lock"
    lock.write_text("".join(f"{name} {digest}\n" for name, digest in LOCK.items()))

    words = ["compile", "promote", str(spec), "-o", str(ir), "--images", str(lock)]
    done = CliRunner().invoke(app, words, catch_exceptions=False)

    assert LOCK[CPU] in done.output
    dag, platforms = read_ir(ir)
    pod = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-promote"]
    (container,) = [each["container"] for each in dag["deploymentSpec"]["executors"].values()]
    assert {each["secretName"] for each in pod["secretAsEnv"]} == {"dpoflow-promoter"}
    assert container["image"] == LOCK[CPU]
    assert {"name": "MLFLOW_TRACKING_URI", "value": spec_of().placement.mlflow_uri} in container[
        "env"
    ]


@pytest.mark.parametrize("lost", ["before", "after"])
@pytest.mark.parametrize("write", WRITES)
def test_a_connection_that_is_cut_at_a_write_makes_nothing_twice(
    kfp: FakeKfp, tmp_path: Path, write: str, lost: str
) -> None:
    cut = times(1, (CUT, None), write)
    if lost == "before":
        kfp.answers = cut
    else:
        kfp.after = cut

    submitted(kfp, tmp_path)

    assert cut("POST", write.removeprefix("POST ")) is None, "it was cut"
    counts = [len(kfp.stored[kind]) for kind in ("pipelines", "experiments", "runs")]
    assert [*counts, len(kfp.versions)] == [1, 1, 1, 1]


def test_a_command_that_died_while_its_run_was_made_finds_it_again(
    kfp: FakeKfp, tmp_path: Path
) -> None:
    kfp.after = times(ATTEMPTS, (CUT, None), RUNS)
    kfp.answers = times(ATTEMPTS * 9, (503, {}), r"GET runs")
    with pytest.raises(ServiceUnavailable):
        submitted(kfp, tmp_path)
    kfp.answers = kfp.after = lambda method, path: None

    first = submitted(kfp, tmp_path)
    again = submitted(kfp, tmp_path)

    assert len(kfp.stored["runs"]) <= 1
    assert (first.kfp_run_id, again.was_there) == (kfp.run().run_id, True)
    assert again.run_id == first.run_id


def test_another_engineers_run_of_the_same_name_is_not_taken_for_ones_own(
    kfp: FakeKfp, tmp_path: Path
) -> None:
    anns, bens = submitted(kfp, tmp_path / "ann"), submitted(kfp, tmp_path / "ben")

    assert anns.run_id == bens.run_id
    assert anns.kfp_run_id != bens.kfp_run_id


@pytest.mark.parametrize(
    ("state", "names", "same_name"),
    [
        *(("SUCCEEDED", 2, False), ("FAILED", 2, True), ("RUNNING", 1, True)),
        *(("CANCELED", 2, True), ("CANCELING", 2, True)),
    ],
)
def test_the_same_command_after_a_run(
    kfp: FakeKfp, tmp_path: Path, state: str, names: int, *, same_name: bool
) -> None:
    first = submitted(kfp, tmp_path)
    kfp.goes_on(state)

    second = submitted(kfp, tmp_path)

    assert len(kfp.stored["runs"]) == names
    assert (second.run_id == first.run_id) is same_name


def test_a_server_that_is_busy_is_asked_again_and_given_up_at_last(
    kfp: FakeKfp, tmp_path: Path
) -> None:
    kfp.answers = times(ATTEMPTS - 1, (503, {"message": "busy"}), r"POST experiments")
    submitted(kfp, tmp_path / "ann")

    kfp.answers = lambda method, path: (503, {"message": "no healthy upstream"})
    with pytest.raises(ServiceUnavailable, match="no healthy upstream"):
        submitted(kfp, tmp_path / "ben")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((401, {"message": "no"}), "does not know you; set DPOFLOW_KFP_TOKEN"),
        ((403, {"message": "denied"}), "denied .*role in namespace dpoflow, or name another"),
        ((404, {"message": "gone"}), "gone"),
        ((400, {"message": "bad"}), "bad"),
    ],
)
def test_what_asking_again_does_not_mend_is_asked_once(
    kfp: FakeKfp, tmp_path: Path, answer: Any, told: str
) -> None:
    kfp.answers = times(1, answer, r"POST experiments")

    with pytest.raises(ConfigError, match=told):
        submitted(kfp, tmp_path)

    assert kfp.writes().count("experiments") == 1


@pytest.mark.parametrize("write", WRITES[:3])
def test_what_a_colleague_made_at_the_same_moment_is_taken(
    kfp: FakeKfp, tmp_path: Path, write: str
) -> None:
    """As if theirs came between our look and our write."""
    kfp.after = times(1, (409, {"message": "already exists"}), write)

    submitted(kfp, tmp_path)

    counts = [len(kfp.stored[kind]) for kind in ("pipelines", "experiments", "runs")]
    assert [*counts, len(kfp.versions)] == [1, 1, 1, 1]


def test_a_name_that_is_taken_by_what_cannot_be_found_is_given_up(
    kfp: FakeKfp, tmp_path: Path
) -> None:
    kfp.answers = times(ATTEMPTS, (409, {"message": "already exists"}), r"POST experiments")

    with pytest.raises(ServiceUnavailable, match="already exists"):
        submitted(kfp, tmp_path)


def test_nobody_there_is_an_outage_that_names_the_address() -> None:
    with pytest.raises(ServiceUnavailable, match=r"127.0.0.1:9 .*--endpoint"):
        KfpApi("http://127.0.0.1:9", "dpoflow", pause_s=0.001)


def test_a_run_that_somebody_deleted_in_kubeflow_is_submitted_anew(
    kfp: FakeKfp, tmp_path: Path
) -> None:
    first = submitted(kfp, tmp_path)
    kfp.stored["runs"].clear()

    again = submitted(kfp, tmp_path)

    assert not again.was_there
    assert again.kfp_run_id != first.kfp_run_id
    assert again.folder == first.folder  # its state is kept, and this one goes on with it


def test_lists_of_several_pages_are_read_to_their_end(kfp: FakeKfp, tmp_path: Path) -> None:
    kfp.page = 1
    for who in ("ann", "ben", "cem"):
        submitted(kfp, tmp_path / who)
    kfp.answers = times(1, (CUT, None), r"POST runs")

    submitted(kfp, tmp_path / "dan")

    assert len(kfp.stored["runs"]) == 4


def test_a_server_for_one_user_is_not_asked_for_namespaces(tmp_path: Path, kfp: FakeKfp) -> None:
    kfp.multi_user = False

    submitted(kfp, tmp_path)

    (experiment,) = kfp.stored["experiments"].values()
    assert experiment.namespace is None


def test_the_token_goes_into_the_header_and_nowhere_else(
    kfp: FakeKfp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPOFLOW_KFP_TOKEN", "tok3n-of-mine")

    submitted(kfp, tmp_path)

    assert kfp.tokens == {"Bearer tok3n-of-mine"}
    kept = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any("tok3n-of-mine" in text for text in kept)


# ---------------------------------------------------------------- before anything is sent


@pytest.mark.parametrize(
    ("more", "images", "told"),
    [
        ({}, {}, "dpoflow-python-cpu:0.1.0.* is no image with a digest"),
        ({"model": "/models/base"}, LOCK, "/models/base is a path of this machine"),
        (
            {"placement": {"train": {"timeout_s": 3600}}, "train": {"backend": "trainjob"}},
            LOCK,
            "placement.train.timeout_s is 3,600",
        ),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_sent(
    kfp: FakeKfp, tmp_path: Path, more: Any, images: Any, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        submit(spec_of(**more), tmp_path, api_of(kfp), images=images)

    assert kfp.writes() == []


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1", "[::1]", "[::]", "a.localhost."])
def test_a_server_that_a_pod_would_look_for_in_itself_is_told_before_anything_is_sent(
    kfp: FakeKfp, tmp_path: Path, address: str
) -> None:
    judge = {
        "kind": "llm",
        "endpoint": {"base_url": f"http://{address}:8000/v1", "model": "judge"},
    }
    for more, told in (
        ({"evaluate": {"judge": judge}}, "a model of evaluate"),
        ({"synthesize": {"judge": judge}}, "a model of synthesize"),
        ({"data": {"sources": [{"uri": f"https://{address}/pairs.jsonl"}]}}, "a source"),
        ({"placement": {"mlflow_uri": f"http://{address}:5000"}}, "placement.mlflow_uri"),
    ):
        with pytest.raises(ConfigError, match=f"{told}.* the pod itself"):
            submit(spec_of(**more), tmp_path, api_of(kfp), images=LOCK)

    assert kfp.writes() == []
    there = {**judge, "endpoint": {"base_url": "http://judge.serving:8000/v1", "model": "judge"}}
    submitted(kfp, tmp_path, spec_of(evaluate={"judge": there}))
    assert len(kfp.stored["runs"]) == 1


@pytest.mark.parametrize("path", ["/state", "/x/../state", "/state/index", "/corpora/new"])
def test_a_volume_that_would_hide_another_is_refused(path: str) -> None:
    volumes = [{"claim": "corpora", "path": "/corpora"}]
    placement = {
        "default": {"volumes": volumes},
        "snapshot": {"volumes": [{"claim": "mine", "path": path}]},
    }

    with pytest.raises(ValidationError, match=f"mine at {normpath(path)}, which hides"):
        spec_of(placement=placement)


@pytest.mark.parametrize(
    "uri", ["sqlite:///mlflow.db", "mlflow.svc:5000", "http://", "http://[::1"]
)
def test_the_tasks_mlflow_is_a_server(uri: str) -> None:
    with pytest.raises(ValidationError, match="mlflow_uri"):
        spec_of(placement={"mlflow_uri": uri})


@pytest.mark.parametrize("scheme", ["http", "mlflow"])
def test_a_password_in_the_address_of_mlflow_is_refused_and_not_repeated(
    asked: list[str], scheme: str
) -> None:
    uri = f"{scheme}://root:hunter2@mlflow:5000"

    told = command(*asked, "--dry-run", "--set", f"placement.mlflow_uri={uri}").exception

    assert isinstance(told, ConfigError)
    assert "placement.mlflow_uri: must" in str(told)
    assert "hunter2" not in str(told)


@pytest.mark.parametrize("uri", ["file:///data/pairs", "ftp://host/pairs", "gs://bucket/pairs"])
def test_what_no_pod_can_read_is_told_before_anything_is_sent(
    kfp: FakeKfp, tmp_path: Path, uri: str
) -> None:
    with pytest.raises(ConfigError, match=r"a path of this machine|is not known here"):
        submit(spec_of(data={"sources": [{"uri": uri}]}), tmp_path, api_of(kfp), images=LOCK)

    assert kfp.writes() == []


def test_a_page_to_log_in_at_is_not_taken_for_kubeflow() -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<html>Who are you?</html>")

        def log_message(self, *given: Any) -> None:
            """Not on standard error."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ConfigError, match="answers with text/html and not as Kubeflow"):
            KfpApi(f"http://127.0.0.1:{server.server_port}", "dpoflow", pause_s=0.001)
        server.shutdown()


def test_what_is_refused_is_not_written_and_a_spec_is_not_written_over(
    asked: list[str], tmp_path: Path
) -> None:
    spec, out = asked[1], tmp_path / "out.yaml"
    before = Path(spec).read_bytes()

    loose = command("compile", "align", spec, "-o", str(out))  # no image has a digest
    over = command("compile", "align", "-o", spec)

    assert "is no image with a digest" in str(loose.exception)
    assert "is there and no compiled pipeline" in str(over.exception)
    assert Path(spec).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["align.yaml", "images.lock"]


def test_a_namespace_that_kubernetes_would_not_take_is_told_as_such(asked: list[str]) -> None:
    told = command(*asked, "--dry-run", "--namespace", "Bad_Name").exception

    assert isinstance(told, ConfigError)
    assert "placement.namespace" in str(told)


def test_tags_are_taken_where_the_spec_says_so_and_paths_where_pods_see_them(
    tmp_path: Path,
) -> None:
    placement = {
        "images": "tag",
        "registry": "registry.example/team",
        "snapshot": {"volumes": [{"claim": "data", "path": "/data"}]},
    }
    spec = spec_of(placement=placement, data={"sources": [{"uri": "/data/pairs"}]})

    images = compiled_for(spec, tmp_path / "ir.yaml", "align", {})

    assert images == [f"registry.example/team/{name}" for name in (CPU, GPU)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("dpoflow-python-cpu:0.1.0 registry.example/cpu:0.1.0", "line 1"),
        (
            f"# both\na:1 x@sha256:{'a' * 64}\na:1 y@sha256:{'b' * 64}",
            "line 3: a:1 stands there twice",
        ),
        ("only-one-word", "line 1"),
    ],
)
def test_a_lock_that_says_nothing_certain_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "images.lock"
    path.write_text(text)

    with pytest.raises(ConfigError, match=told):
        read_lock(path)


# ---------------------------------------------------------------- watching


def test_a_run_is_watched_to_its_failed_task_and_told_in_the_tasks_words(
    kfp: FakeKfp, tmp_path: Path
) -> None:
    there, seen = submitted(kfp, tmp_path), list[dict[str, TaskRecord]]()
    stages: list[dict[str, tuple[str, str]]] = [
        {"snapshot": ("RUNNING", "")},
        {"snapshot": ("SUCCEEDED", ""), "validate": ("SKIPPED", ""), "train": ("RUNNING", "")},
    ]

    def show(names: list[str], records: dict[str, TaskRecord]) -> None:
        seen.append(records)
        if stages:
            kfp.goes_on("RUNNING", **stages.pop(0))
        else:
            kfp.goes_on("FAILED", snapshot=("SUCCEEDED", ""), train=("FAILED", "OOMKilled (137)"))

    with pytest.raises(DpoflowError, match=r"train: OOMKilled \(137\); dpoflow logs desk-"):
        await_end(api_of(kfp), there.folder, show, pause_s=0)

    states = [{name: record.state for name, record in each.items()} for each in seen]
    assert states == [
        {},
        {"snapshot": "RUNNING"},
        {"snapshot": "SUCCEEDED", "validate": "SKIPPED", "train": "RUNNING"},
        {"snapshot": "SUCCEEDED", "train": "FAILED"},
    ]


def test_a_green_run_is_watched_to_its_end_through_an_outage(kfp: FakeKfp, tmp_path: Path) -> None:
    there = submitted(kfp, tmp_path)
    kfp.goes_on("SUCCEEDED", snapshot=("SUCCEEDED", ""))
    kfp.answers = times(ATTEMPTS - 1, (503, {}), r"GET runs/.*")

    await_end(api_of(kfp), there.folder, lambda names, records: None, pause_s=0)


def test_cancelling_ends_a_run_once_and_leaves_one_that_is_over(
    kfp: FakeKfp, tmp_path: Path
) -> None:
    there = submitted(kfp, tmp_path)

    assert cancel(api_of(kfp), there.folder) == "PENDING"
    assert kfp.run().state == "CANCELING"
    kfp.goes_on("SUCCEEDED")
    assert cancel(api_of(kfp), there.folder) == "SUCCEEDED"
    kfp.stored["runs"].clear()
    assert cancel(api_of(kfp), there.folder) == "DELETED"

    assert kfp.writes().count(f"runs/{there.kfp_run_id}:terminate") == 1


# ---------------------------------------------------------------- the commands


def command(*words: str) -> Result:
    return CliRunner().invoke(app, [*words], env={"COLUMNS": "300"})


@pytest.fixture
def asked(kfp: FakeKfp, tmp_path: Path) -> list[str]:
    """What a person gives to submit, of a spec that has all it needs."""
    spec, lock = tmp_path / "align.yaml", tmp_path / "images.lock"
    spec.write_text("{name: desk, model: hf://a/b@c, data: {sources: [{uri: s3://b/p}]}}")
    lock.write_text("".join(f"{name} {pinned}\n" for name, pinned in LOCK.items()))
    home = str(tmp_path / "home")
    return ["submit", str(spec), "--images", str(lock), "--home", home, "--endpoint", kfp.url]


def test_the_command_tells_where_to_look_and_ends_as_the_run_does(
    kfp: FakeKfp, asked: list[str], tmp_path: Path
) -> None:
    def ends(method: str, path: str) -> None:
        if path == "runs":
            kfp.goes_on("FAILED", snapshot=("SUCCEEDED", ""), train=("FAILED", "OOMKilled (137)"))

    kfp.after = ends

    ended = command(*asked, "--wait", "--namespace", "team-a")

    (experiment,) = kfp.stored["experiments"].values()
    run_id = kfp.run().display_name
    assert f"run {run_id} submitted: {kfp.url}/#/runs/details/{kfp.run().run_id}" in ended.stdout
    assert "train FAILED" in ended.stdout
    assert experiment.namespace == "team-a"
    assert "train: OOMKilled (137)" in str(ended.exception)
    status = command("status", run_id, "--home", str(tmp_path / "home")).stdout
    assert status.startswith(f"{run_id} FAILED")
    assert "error: train: OOMKilled (137)" in status


def test_the_status_of_a_run_that_ended_tells_its_version_and_cost_from_mlflow(
    kfp: FakeKfp, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = str(tmp_path / "home")
    server = MlflowServer(tmp_path / "mlflow").start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        run_id = command(*asked).stdout.split()[1]
        before = command("status", run_id, "--home", home).stdout
        _leave_summary(kfp.run().run_id)
        kfp.goes_on("SUCCEEDED", register=("SUCCEEDED", ""))

        after = command("status", run_id, "--home", home).stdout
    finally:
        server.stop()

    assert "recorded" not in before
    assert "recorded desk/3, alias challenger" in after
    assert "cost: 2 GPU hours (train 2 GPU hours)" in after


def _leave_summary(kfp_run_id: str) -> None:
    """As the run's last task does."""
    client = MlflowClient()
    run = client.create_run(client.create_experiment("desk"), tags={KFP_TAG: kfp_run_id})
    version = RegisterResult(model="desk", version=3, alias="challenger", digest="d", uri="u")
    took = TaskCost(gpu_hours=2)
    summary = RunSummary(
        run_id="desk-1",
        name="desk",
        state="SUCCEEDED",
        registry=version,
        cost=RunCost(gpu_hours=2, by_task={"train": took}),
    )
    client.log_text(run.info.run_id, summary.model_dump_json(), "summary.json")


def test_a_run_is_cancelled_by_its_name_and_says_what_is_left(
    kfp: FakeKfp, asked: list[str], tmp_path: Path
) -> None:
    command(*asked)
    run_id, home = kfp.run().display_name, str(tmp_path / "home")

    told = command("cancel", run_id, "--home", home).stdout
    kfp.goes_on("CANCELED")
    again = command("cancel", run_id, "--home", home).stdout

    assert f"{run_id} is told to end" in told
    assert f"{run_id} had ended already: CANCELED" in again


def test_logs_are_those_of_the_runs_own_tasks(
    kfp: FakeKfp, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(*asked)
    home, pods = str(tmp_path / "home"), "/api/v1/namespaces/dpoflow/pods"
    mine = {"pipeline/runid": kfp.run().run_id}
    labels = {
        "driver": mine,
        "impl-1": {**mine, "dpoflow/task": "snapshot"},
        "impl-2": {**mine, "dpoflow/task": "train"},
        "impl-3": {"pipeline/runid": "another", "dpoflow/task": "train"},
    }
    with FakeObjects(tmp_path) as cluster_of:
        monkeypatch.setenv("KUBECONFIG", str(cluster_of.kubeconfig()))
        items = [{"metadata": {"name": name, "labels": own}} for name, own in labels.items()]
        cluster_of.objects[pods] = {"items": items}
        cluster_of.objects |= {f"{pods}/{name}/log": f"I am {name}\nbye" for name in labels}
        everything = command("logs", "--home", home).stdout
        trained = command("logs", kfp.run().display_name, "train", "--home", home).stdout
        none = command("logs", kfp.run().display_name, "merge", "--home", home)

    assert everything.splitlines() == [
        *("snapshot: I am impl-1", "snapshot: bye"),
        *("train: I am impl-2", "train: bye"),
    ]
    assert trained.splitlines() == ["train: I am impl-2", "train: bye"]
    assert "has no pod of" in str(none.exception)


def test_a_dry_run_tells_what_each_task_gets_and_asks_nobody(
    kfp: FakeKfp, asked: list[str]
) -> None:
    told = command(*asked, "--dry-run", "--set", "placement.train.gpus=8").stdout

    assert kfp.requests == []
    assert LOCK[GPU] in told
    lines = told.splitlines()
    assert any(line.split()[:2] == ["train", "8"] for line in lines)
    assert "train: 8Gi of its memory shared" in lines
    assert "snapshot: secret dpoflow-s3 as AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY" in lines


def test_a_run_that_never_reached_kubeflow_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "desk-1"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"backend": "cluster"}))

    with pytest.raises(ConfigError, match="cut off before Kubeflow was heard to take it"):
        cluster.attach(folder)
