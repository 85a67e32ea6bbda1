"""A live server with the gate: what is denied to whom, in which words, and the road to champion.

One server for all of it, since each takes a while to start; each test has a model of its own.
"""

import itertools
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from tests.gate import (
    API,
    GATE,
    PEOPLE,
    GateServer,
    Recorded,
    copy_files,
    log_model,
    password_of,
    promote,
    record,
    sentence,
)
from tests.waiting import AT_MOST_S

from dpoflow.contracts.base import sha256_json
from dpoflow.contracts.errors import ConfigError
from dpoflow.state.step import StepState
from dpoflow.tracking.pipeline_run import PipelineRun, open_run
from dpoflow.tracking.step_run import step_run

ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
EVERYBODY = sorted(PEOPLE)
NOT_THE_PROMOTER = [user for user in EVERYBODY if user != "prom"]
NOT_A_REVIEWER = [user for user in EVERYBODY if "reviewer" not in PEOPLE[user]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GateServer]:
    made = GateServer(tmp_path_factory.mktemp("gate"))
    try:
        yield made.start("--workers", "2")
    finally:
        made.kill()


@pytest.fixture(scope="module")
def case(server: GateServer) -> Recorded:
    """A version of ada's, submitted, evaluated, sealed; nobody has said anything of it."""
    ada = server.person("ada")
    return record(ada, server.folder / "case", "case", submission=ada.submit("case"))


def fresh(server: GateServer, name: str, number: int = 1, **more: Any) -> Recorded:
    ada = server.person("ada")
    folder = server.folder / f"{name}-{number}"
    return record(ada, folder, name, submission=ada.submit(name), seed=number, **more)


def denied(server: GateServer, user: str, answer: requests.Response) -> str:
    """The sentence of a denial, which stands in the log under the real user."""
    told = sentence(answer)
    last = [row for row in server.rows(outcome="denied") if row["actor"] == user][-1]
    assert last["detail"]["why"] == told
    return told


def champion(server: GateServer, name: str) -> str | None:
    told = server.person("root").get(f"{API}/registered-models/get", name=name).json()
    aliases = {
        each["alias"]: each["version"] for each in told["registered_model"].get("aliases", [])
    }
    return aliases.get("champion")


# ---------------------------------------------------------------- the road


def test_approved_copied_verified_and_only_then_champion(server: GateServer) -> None:
    version = fresh(server, "road")
    promoter = server.person("prom")

    assert "nobody has approved it" in sentence(promote(server, version))
    assert server.person("rita").approve(version.subject, "it reads well").ok
    begun = promoter.post(
        f"{GATE}/promotions", model="road", version="1", kind="promotion", reason="approved"
    ).json()
    assert begun["state"] == "begun"
    assert begun["from"] is None
    assert "were not verified yet" in sentence(promoter.alias(version.subject))
    assert all(answer.ok for answer in copy_files(promoter, version, begun["target"]))
    wrong = promoter.post(
        f"{GATE}/promotions/{begun['promotion']}/verified", policy_digest="0" * 64
    )
    assert "the files are not those that were evaluated" in sentence(wrong)
    assert champion(server, "road") is None
    assert promote(server, version).ok  # from the beginning: what is done is not done twice

    assert champion(server, "road") == "1"
    rows = [row for row in server.rows(outcome="allowed") if row["subject"] == "road/1"]
    told = [(row["actor"], row["action"]) for row in rows if row["action"] != "version-recorded"]
    assert told == [
        ("rita", "approval"),
        ("prom", "promotion-begun"),
        ("prom", "promotion-verified"),
        ("prom", "promoted"),
    ]
    assert rows[1]["detail"]["policy_digest"] == version.policy_digest
    assert promoter.get(f"{GATE}/drift").json() == {"drift": []}


def test_a_second_champion_lets_the_first_be_previous_and_back(server: GateServer) -> None:
    first, second = fresh(server, "second", 1), fresh(server, "second", 2)
    rita = server.person("rita")
    assert rita.approve(first.subject).ok
    assert promote(server, first).ok
    assert rita.approve(second.subject).ok
    assert promote(server, second).ok
    assert champion(server, "second") == "2"

    asked = {"model": "second", "version": "1"}
    assert "none" in sentence(server.person("ada").post(f"{GATE}/rollbacks", **asked, reason="x"))
    assert "needs a reason" in sentence(rita.post(f"{GATE}/rollbacks", **asked, reason=" "))
    assert "no reviewer asked" in sentence(promote(server, first, "rollback"))
    assert rita.post(f"{GATE}/rollbacks", **asked, reason="2 swears").ok
    assert promote(server, first, "rollback").ok

    assert champion(server, "second") == "1"
    assert "no reviewer asked" in sentence(promote(server, second, "rollback"))
    assert "champion already" in sentence(promote(server, first, "rollback"))


def test_an_approval_lapses_when_champion_moves(server: GateServer) -> None:
    first, second = fresh(server, "lapse", 1), fresh(server, "lapse", 2)
    rita = server.person("rita")
    assert rita.approve(first.subject).ok
    assert rita.approve(second.subject).ok
    assert promote(server, first).ok

    told = sentence(promote(server, second))
    assert (
        "its approval by rita has lapsed: champion was none when it was given, and is version 1"
        in told
    )
    [review] = [
        each
        for each in rita.get(f"{GATE}/reviews", model="lapse").json()["reviews"]
        if each["version"] == "2"
    ]
    assert review["state"] == "lapsed"
    assert rita.approve(second.subject, "still").ok
    assert promote(server, second).ok


def test_a_later_rejection_by_any_reviewer_takes_an_approval_back(server: GateServer) -> None:
    version = fresh(server, "reject")
    assert server.person("rita").approve(version.subject).ok
    assert server.person("rob").tag(version.subject, "approval", "reject: it swears").ok

    assert "rob rejected it: it swears" in sentence(promote(server, version))


def test_a_reviewer_who_lost_the_role_or_the_account_has_approved_nothing(
    server: GateServer,
) -> None:
    version = fresh(server, "gone")
    assert server.person("rob").approve(version.subject).ok
    server.set_roles({**PEOPLE, "rob": ["engineer"]})
    try:
        assert "rob is no reviewer any more" in sentence(promote(server, version))
    finally:
        server.set_roles(PEOPLE)


def test_many_promoters_at_once_make_one_champion(server: GateServer) -> None:
    version = fresh(server, "many")
    assert server.person("rita").approve(version.subject).ok
    answers: list[requests.Response] = []

    def go() -> None:
        answers.append(
            server.person("prom").post(
                f"{GATE}/promotions", model="many", version="1", kind="promotion", reason="x"
            )
        )

    threads = [threading.Thread(target=go) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["promotion"] for answer in answers}) == 1
    assert len(server.rows(action="promotion-begun", subject="many/1")) == 1


# ---------------------------------------------------------------- who approves


@pytest.mark.parametrize("user", NOT_A_REVIEWER)
def test_only_reviewers_approve_or_reject(server: GateServer, case: Recorded, user: str) -> None:
    for value in ("approve: x", "reject: x"):
        told = denied(server, user, server.person(user).tag(case.subject, "approval", value))
        assert told.startswith("Only reviewers approve or reject")


@pytest.mark.parametrize("value", ["approve", "approve:", "approve:  ", "yes", "", "approved: x"])
def test_an_opinion_needs_its_form_and_a_reason(
    server: GateServer, case: Recorded, value: str
) -> None:
    answer = server.person("rita").tag(case.subject, "approval", value)

    assert "approve: REASON or reject: REASON" in denied(server, "rita", answer)


def test_nobody_judges_their_own_work(server: GateServer) -> None:
    rob = server.person("rob")
    version = record(rob, server.folder / "own", "own", submission=rob.submit("own"))

    for value in ("approve: mine", "reject: mine"):
        answer = rob.tag(version.subject, "approval", value)
        assert "nobody judges their own work" in denied(server, "rob", answer)
    assert server.person("rita").approve(version.subject).ok


def test_the_owner_of_a_schedule_does_not_judge_what_it_made(server: GateServer) -> None:
    rob, pipe = server.person("rob"), server.person("pipe")
    schedule = rob.submit("nightly", schedule={"name": "nightly"})
    submission = pipe.submit("nightly", schedule=schedule)
    version = record(pipe, server.folder / "nightly", "nightly", submission=submission)

    answer = rob.approve(version.subject)

    assert "rob owns the schedule" in denied(server, "rob", answer)
    assert server.person("rita").approve(version.subject).ok


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("unsigned", {"signed": False}, "unsigned"),
        ("lost", {"verdict": "reject"}, "its verdict is reject"),
        ("unclear", {"verdict": "inconclusive"}, "its verdict is inconclusive"),
        ("otherwise", {"evaluate": "f" * 64}, "by other rules than its submission names"),
    ],
)
def test_what_does_not_speak_for_itself_is_not_approved(
    server: GateServer, name: str, more: dict[str, Any], words: str
) -> None:
    version = fresh(server, name, **more)
    rita = server.person("rita")

    assert words in denied(server, "rita", rita.approve(version.subject))
    assert rita.tag(version.subject, "approval", "reject: no").ok


def test_without_a_submission_there_is_no_approval(server: GateServer) -> None:
    version = record(server.person("ada"), server.folder / "nosub", "nosub")

    answer = server.person("rita").approve(version.subject)

    assert "names no submission of this server" in denied(server, "rita", answer)


def test_an_approval_is_not_for_another_version(server: GateServer) -> None:
    """The same decision under other weights: the promoter's hash is another."""
    good = fresh(server, "replay", 1)
    assert server.person("rita").approve(good.subject).ok
    bad = fresh(server, "replay", 2)

    assert "nobody has approved it" in sentence(promote(server, bad))


# ---------------------------------------------------------------- tags


@pytest.mark.parametrize("user", ["ada", "prom", "root"])
@pytest.mark.parametrize("key", ["dpoflow.verdict", "dpoflow.new", "Approval", "appro\u200bval"])
def test_what_was_evaluated_is_not_retagged(
    server: GateServer, case: Recorded, user: str, key: str
) -> None:
    answer = server.person(user).tag(case.subject, key, "approve: x")
    assert answer.status_code == 403, answer.text
    gone = server.person(user).delete(
        f"{API}/model-versions/delete-tag", name=case.name, version=case.version, key=key
    )
    assert gone.status_code == 403, gone.text


@pytest.mark.parametrize("user", NOT_THE_PROMOTER)
def test_the_promoters_tags_are_the_promoters(
    server: GateServer, case: Recorded, user: str
) -> None:
    told = denied(server, user, server.person(user).tag(case.subject, "approval.by", "rita"))
    assert "written by the promoter alone" in told
    if user != "pipe":
        denied(server, user, server.person(user).tag(case.subject, "gate.state", "promoted"))


def test_a_submission_is_not_changed_afterwards(server: GateServer, case: Recorded) -> None:
    other = server.person("eve").submit("case")

    for user in ("ada", "pipe", "prom", "root"):
        denied(server, user, server.person(user).tag(case.subject, "gate.submission", other))


def test_ordinary_tags_are_whoever_may_edits(server: GateServer, case: Recorded) -> None:
    assert server.person("ada").tag(case.subject, "note", "approve: me").ok


@pytest.mark.parametrize("route", ["registered-models", "model-versions"])
@pytest.mark.parametrize("key", ["approval", "approval.by", "gate.submission", "\uff41pproval"])
def test_reserved_tags_are_not_brought_along(server: GateServer, route: str, key: str) -> None:
    ada = server.person("ada")
    ada.post(f"{API}/registered-models/create", name="brought")
    tags = [{"key": "a", "value": "b"}, {"key": key, "value": "approve: x"}]
    name = f"brought-{len(key)}" if route == "registered-models" else "brought"

    answer = ada.post(f"{API}/{route}/create", name=name, source="s3://b/x", tags=tags)

    denied(server, "ada", answer)


def test_reserved_tags_are_not_put_on_models(server: GateServer, case: Recorded) -> None:
    ada = server.person("ada")
    body = {"name": case.name, "key": "approval", "value": "approve: x"}
    denied(server, "ada", ada.post(f"{API}/registered-models/set-tag", **body))
    denied(server, "ada", ada.delete(f"{API}/registered-models/delete-tag", **body))


# ---------------------------------------------------------------- aliases, stages, copies


@pytest.mark.parametrize(
    ("user", "alias"),
    [
        *((user, "champion") for user in EVERYBODY),
        *(("ada", alias) for alias in ("previous_champion", "Champion", "ｃhampion", "сhampion")),
        *(("prom", alias) for alias in ("previous_champion", "Champion", "ｃhampion", "сhampion")),
    ],
)
def test_champion_is_set_and_deleted_by_nobody(
    server: GateServer, case: Recorded, user: str, alias: str
) -> None:
    person = server.person(user)

    denied(server, user, person.alias(case.subject, alias))
    denied(
        server, user, person.delete(f"{API}/registered-models/alias", name=case.name, alias=alias)
    )
    assert champion(server, case.name) is None


def test_other_aliases_are_whoever_may_edits(server: GateServer, case: Recorded) -> None:
    assert server.person("ada").alias(case.subject, "challenger").ok
    assert server.person("ada").alias(case.subject, "champions-table").ok


@pytest.mark.parametrize("user", EVERYBODY)
def test_stages_are_off(server: GateServer, case: Recorded, user: str) -> None:
    answer = server.person(user).post(
        f"{API}/model-versions/transition-stage",
        name=case.name,
        version=case.version,
        stage="Production",
        archive_existing_versions=True,
    )

    assert "Stages are off" in denied(server, user, answer)


def test_promote_model_answers_with_the_way_to_do_it(server: GateServer, case: Recorded) -> None:
    """As the page's button does: the version's tags come along."""
    ada = server.person("ada")
    ada.post(f"{API}/registered-models/create", name="prod")
    tags = [{"key": key, "value": value} for key, value in case.tags.items()]
    copy = {"name": "prod", "source": f"models:/{case.subject}", "run_id": case.run_id}

    told = denied(server, "ada", ada.post(f"{API}/model-versions/create", **copy, tags=tags))

    assert "A version is not promoted by copying it" in told
    assert ada.post(f"{API}/model-versions/create", **copy).ok  # a copy, and no more than that
    denied(server, "ada", ada.alias("prod/1"))
    denied(server, "rita", server.person("rita").approve("prod/1"))


@pytest.mark.parametrize("user", ["ada", "root"])
def test_what_has_an_alias_is_not_deleted_or_renamed(server: GateServer, user: str) -> None:
    subject = "held/1"
    ada, person = server.person("ada"), server.person(user)
    if not ada.get(f"{API}/registered-models/get", name="held").ok:
        fresh(server, "held")
        assert ada.alias(subject, "challenger").ok

    for spelled in ("1", "01", "+1", " 1"):
        answer = person.delete(f"{API}/model-versions/delete", name="held", version=spelled)
        denied(server, user, answer)
    denied(server, user, person.delete(f"{API}/registered-models/delete", name="held"))
    denied(
        server, user, person.post(f"{API}/registered-models/rename", name="held", new_name="free")
    )


# ---------------------------------------------------------------- what was evaluated rests


@pytest.mark.parametrize("user", EVERYBODY)
def test_files_of_an_evaluated_version_rest(server: GateServer, case: Recorded, user: str) -> None:
    person = server.person(user)
    run_files = f"{case.experiment_id}/{case.run_id}/artifacts"
    for path in (
        f"{case.files}/model/model.safetensors",
        f"{case.files}/new.txt",
        f"{case.files}//model/./config.json",
        f"{case.files}/model%2Fconfig.json",
        f"{case.files}/model%252Fconfig.json",
        f"{run_files}/x.txt",
    ):
        for prefix in (ARTIFACTS, ARTIFACTS.replace("/api/", "/ajax-api/")):
            answer = person.send("PUT", f"{prefix}/{path}", data=b"other weights")
            assert answer.status_code == 403, (path, answer.status_code, answer.text)
    for path in (case.files, f"{case.experiment_id}", f"{case.experiment_id}/models/", run_files):
        answer = person.send("DELETE", f"{ARTIFACTS}/{path}")
        assert answer.status_code == 403, (path, answer.status_code, answer.text)
    for step in ("create", "complete", "abort"):
        answer = person.post(
            f"/api/2.0/mlflow-artifacts/mpu/{step}/{case.files}/model",
            path="model.safetensors",
            num_parts=1,
            upload_id="x",
            parts=[{"part_number": 1, "etag": "x"}],
        )
        assert answer.status_code == 403, answer.text
    answer = person.send(
        "POST",
        f"/ajax-api/2.0/mlflow/upload-artifact?run_uuid={case.run_id}&path=x.txt",
        data=b"x",
    )
    assert answer.status_code == 403, answer.text
    told = denied(
        server, user, person.post(f"{API}/artifacts/presigned-upload-url", run_id="x", path="y")
    )
    assert "presigned" in told


@pytest.mark.parametrize("user", EVERYBODY)
def test_the_run_and_the_logged_model_of_a_version_rest(
    server: GateServer, case: Recorded, user: str
) -> None:
    person = server.person(user)
    run, other = {"run_id": case.run_id}, "0" * 32
    now = {"timestamp": 1, "step": 0}
    for path, body in (
        ("log-metric", {**run, "key": "win_rate", "value": 1.0, **now}),
        ("log-metric", {"run_uuid": case.run_id, "key": "win_rate", "value": 1.0, **now}),
        ("log-metric", {"runId": case.run_id, "key": "win_rate", "value": 1.0, **now}),
        ("log-parameter", {**run, "key": "beta", "value": "1"}),
        ("log-batch", {**run, "metrics": [{"key": "win_rate", "value": 1.0, **now}]}),
        ("log-metric", {"run_id": other, "model_id": case.model_id, "key": "w", "value": 1, **now}),
        (
            "log-batch",
            {
                "run_id": other,
                "metrics": [{"model_id": case.model_id, "key": "w", "value": 1.0, **now}],
            },
        ),
        ("set-tag", {**run, "key": "note", "value": "x"}),
        ("delete-tag", {**run, "key": "note"}),
        ("update", {**run, "status": "RUNNING"}),
        ("delete", run),
        ("restore", run),
        ("log-inputs", {**run, "datasets": []}),
        ("outputs", {**run, "models": []}),
    ):
        answer = person.post(f"{API}/runs/{path}", **body)
        assert answer.status_code == 403, (path, answer.status_code, answer.text)
    model = f"{API}/logged-models/{case.model_id}"
    for answer in (
        person.patch(f"{model}/tags", tags=[{"key": "note", "value": "x"}]),
        person.delete(f"{model}/tags/note"),
        person.patch(model, model_id=case.model_id, status="LOGGED_MODEL_UPLOAD_FAILED"),
        person.post(f"{model}/params", params=[{"key": "a", "value": "b"}]),
        person.delete(model),
        person.post(f"{API}/experiments/delete", experiment_id=case.experiment_id),
    ):
        assert answer.status_code == 403, answer.text


def test_the_step_that_recorded_a_version_may_still_end(server: GateServer) -> None:
    version = fresh(server, "ending", end=False)
    ada = server.person("ada")
    late = {"run_id": version.run_id, "key": "seconds", "value": 1.0, "timestamp": 1}

    assert ada.post(f"{API}/runs/log-metric", **late).ok
    denied(server, "eve", server.person("eve").post(f"{API}/runs/log-metric", **late))
    denied(server, "ada", ada.post(f"{API}/runs/delete", run_id=version.run_id))
    early = denied(server, "rita", server.person("rita").approve(version.subject))
    assert "still goes on" in early
    assert ada.post(f"{API}/runs/update", run_id=version.run_id, status="FINISHED").ok
    assert server.person("rita").approve(version.subject).ok

    denied(server, "ada", ada.post(f"{API}/runs/log-metric", **late))


def test_a_run_that_may_still_end_opens_no_other_that_is_named_beside_it(
    server: GateServer,
) -> None:
    going = fresh(server, "going", end=False)
    ended, ada = fresh(server, "ended"), server.person("ada")
    upload = "/ajax-api/2.0/mlflow/upload-artifact"
    for one, other in itertools.permutations((going.run_id, ended.run_id)):
        tag = {"run_id": one, "run_uuid": other, "key": "note", "value": "x"}
        denied(server, "ada", ada.post(f"{API}/runs/set-tag", **tag))
        both = f"{upload}?run_uuid={one}&run_uuid={other}&path=x.txt"
        denied(server, "ada", ada.send("POST", both, data=b"x"))


def test_a_logged_model_rests_also_where_only_the_body_names_it(
    server: GateServer, case: Recorded
) -> None:
    ada = server.person("ada")
    made = ada.post(f"{API}/logged-models", experiment_id=case.experiment_id, name="own").json()
    own = f"{API}/logged-models/{made['model']['info']['model_id']}"

    for name in ("model_id", "modelId"):
        body = {name: case.model_id, "status": "LOGGED_MODEL_UPLOAD_FAILED"}
        denied(server, "ada", ada.patch(own, **body))


def test_a_path_that_no_file_has_is_refused_at_once(server: GateServer) -> None:
    answer = server.anybody().send("PUT", f"{ARTIFACTS}/{'a/' * 20_000}x", data=b"x")

    assert answer.status_code in (401, 403)


def test_a_step_that_is_run_again_beside_a_sealed_run_makes_another(
    server: GateServer, case: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StepState(server.folder / "again" / "state" / "key", "register")
    state.folder.mkdir(parents=True)
    told = {"uri_sha256": sha256_json(server.url), "parent": "", "run_id": case.run_id}
    (state.folder / "mlflow.json").write_text(json.dumps(told))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password_of("ada"))
    monkeypatch.setenv("DPOFLOW_MLFLOW_EXPERIMENT", case.experiment_id)
    monkeypatch.setenv("DPOFLOW_MLFLOW_STEP_RUN", "")

    with step_run("register", task="register", config={}, parents={}, state=state):
        made = os.environ["DPOFLOW_MLFLOW_STEP_RUN"]

    assert made != case.run_id
    got = server.person("ada").get(f"{API}/runs/get", run_id=made).json()["run"]["info"]
    assert got["status"] == "FINISHED"


def test_a_run_that_another_account_may_not_write_to_is_its_owners_to_mend(
    server: GateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(user: str, known: str | None = None) -> PipelineRun:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password_of(user))
        return open_run(
            server.folder, experiment="shared-name", run_name="r", spec_json="{}", known=known
        )

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    adas = opened("ada")

    for known in (None, adas.run_id):
        with pytest.raises(ConfigError, match="pipe may not write to the experiment shared-name"):
            opened("pipe", known)


def test_nobody_seals_what_they_may_not_write(server: GateServer) -> None:
    run_id, model_id, _ = log_model(
        server.person("ada"), _small(server.folder / "theirs"), "theirs"
    )
    eve = server.person("eve")
    eve.post(f"{API}/registered-models/create", name="thief")
    body = {
        "name": "thief",
        "source": f"models:/{model_id}",
        "run_id": run_id,
        "model_id": model_id,
        "tags": [{"key": "dpoflow.evidence", "value": "x"}],
    }

    told = denied(server, "eve", eve.post(f"{API}/model-versions/create", **body))

    assert "may not write to the experiment" in told
    assert (
        server.person("ada")
        .post(f"{API}/runs/set-tag", run_id=run_id, key="mine", value="still")
        .ok
    )


def _small(folder: Path) -> Path:
    folder.mkdir()
    (folder / "x.txt").write_text("x")
    return folder


def test_a_source_in_anothers_folder_is_no_evidence(server: GateServer, case: Recorded) -> None:
    """Own logged model, another's files."""
    run_id, model_id, _ = log_model(server.person("ada"), _small(server.folder / "mine"), "mine")
    ada = server.person("ada")
    for source in (
        f"mlflow-artifacts:/{case.files}",
        f"models:/{case.model_id}",
        f"models:/{model_id}/../{case.model_id}",
    ):
        answer = ada.post(
            f"{API}/model-versions/create",
            name="case",
            source=source,
            run_id=run_id,
            model_id=model_id,
            tags=[{"key": key, "value": value} for key, value in case.tags.items()],
        )
        denied(server, "ada", answer)


def test_an_experiment_cannot_keep_its_files_in_a_sealed_folder(
    server: GateServer, case: Recorded
) -> None:
    answer = server.person("eve").post(
        f"{API}/experiments/create",
        name="inside",
        artifact_location=f"mlflow-artifacts:/{case.files}",
    )

    denied(server, "eve", answer)


def test_only_the_promoter_changes_the_description_of_a_case(
    server: GateServer, case: Recorded
) -> None:
    body = {"name": case.name, "version": case.version, "description": "**promote**: sure"}
    for user in ("ada", "rita", "root"):
        denied(server, user, server.person(user).patch(f"{API}/model-versions/update", **body))
    assert server.person("pipe").patch(f"{API}/model-versions/update", **body).ok


@pytest.mark.parametrize("user", EVERYBODY)
def test_champions_is_nobodys_without_a_promotion(server: GateServer, user: str) -> None:
    person = server.person(user)
    for path in ("champions/x", "champions/case/1/x", "champions//case/x", "./champions/x"):
        answer = person.send("PUT", f"{ARTIFACTS}/{path}", data=b"x")
        assert answer.status_code == 403, (path, answer.status_code, answer.text)
    assert person.send("DELETE", f"{ARTIFACTS}/champions").status_code == 403
    assert person.send("DELETE", f"{ARTIFACTS}/").status_code in (403, 404, 405)


def test_a_champions_file_is_written_once(server: GateServer) -> None:
    version = fresh(server, "once")
    assert server.person("rita").approve(version.subject).ok
    promoter = server.person("prom")
    begun = promoter.post(
        f"{GATE}/promotions", model="once", version="1", kind="promotion", reason="x"
    ).json()
    copy_files(promoter, version, begun["target"])
    path = begun["target"].removeprefix("mlflow-artifacts:/")

    again = promoter.send("PUT", f"{ARTIFACTS}/{path}/config.json", data=b"{}")

    assert "written once" in denied(server, "prom", again)
    assert server.person("norole").send("GET", f"{ARTIFACTS}/{path}/config.json").ok


# ---------------------------------------------------------------- ways around


def test_no_spelling_of_a_path_goes_around(server: GateServer, case: Recorded) -> None:
    body = {"name": case.name, "version": case.version, "alias": "champion"}
    ada = server.person("ada")
    for path in (
        f"{API}/registered-models/alias",
        f"{API}/registered-models/alias/",
        f"/{API}/registered-models/alias",
        f"{API}//registered-models/alias",
        f"{API}/registered-models%2Falias",
        f"{API}/registered-models/%61lias",
        f"{API}/registered-models/./alias",
        f"{API}/x/../registered-models/alias",
        f"{API}/Registered-Models/alias",
        f"{API}/registered-models/alias?name=x",
        f"{API}/registered-models/alias;x",
        f"{API}/registered-models/alias%00",
        f"{API.replace('/api/', '/ajax-api/')}/registered-models/alias",
        f"{API.replace('2.0', '3.0')}/registered-models/alias",
    ):
        request = requests.Request("POST", f"{server.url}/", json=body).prepare()
        request.url = f"{server.url}{path}"  # as written: requests would tidy it up
        request.prepare_auth(ada.session.auth)
        answer = ada.session.send(request, timeout=AT_MOST_S)
        assert answer.status_code in (403, 404, 405), (path, answer.status_code, answer.text)
        if answer.status_code == 403:
            assert denied(server, "ada", answer)
    assert champion(server, case.name) is None


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b'{"name":"case","version":"1","alias":"x","alias":"champion"}', {}),
        (b'{"name":"case","version":"1","alias":"champion","alias":"x"}', {"Expect": "x"}),
        (b'"{\\"name\\":\\"case\\",\\"version\\":\\"1\\",\\"alias\\":\\"champion\\"}"', {}),
        ('{"name":"case","version":"1","alias":"champion"}'.encode("utf-16"), {}),
        (b'\xef\xbb\xbf{"name":"case","version":"1","alias":"champion"}', {}),
        (b'{"name":"case","version":"1","alias":"\\u0063hampion"}', {}),
        (
            b"name=case&version=1&alias=champion",
            {"Content-Type": "application/x-www-form-urlencoded"},
        ),
        (b'{"name":"case","version":1,"alias":"champion"}', {}),
        (b'{"name":"case","version":"1","alias":"champion"}', {"X-HTTP-Method-Override": "GET"}),
        (b'{"name":"case","version":"1","alias":"champion"}', {"Content-Type": "text/plain"}),
        (b"[" * 100_000, {}),
        (b'{"a":"' + b"x" * 17_000_000 + b'"}', {}),
        (b"", {}),
    ],
)
def test_no_body_goes_around(
    server: GateServer, case: Recorded, body: bytes, headers: dict[str, str]
) -> None:
    answer = server.person("ada").send(
        "POST",
        f"{API}/registered-models/alias",
        data=body,
        headers={"Content-Type": "application/json", **headers},
    )

    assert not answer.ok or b"champion" not in json.dumps(answer.text).encode()
    assert champion(server, case.name) is None


def test_a_body_in_chunks_is_judged_whole(server: GateServer, case: Recorded) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"name":"case","version":"1",'
        yield b'"alias":"champion"}'

    answer = server.person("ada").send("POST", f"{API}/registered-models/alias", data=chunks())

    denied(server, "ada", answer)


def test_graphql_moves_nothing(server: GateServer, case: Recorded) -> None:
    asked = (
        'mutation { mlflowSetRegisteredModelAlias(input: {name: "case"}) { apiError { code } } }'
    )

    answer = server.person("ada").post("/graphql", query=asked)

    assert "errors" in answer.json()
    assert champion(server, case.name) is None


def test_strangers_are_unknown_and_said_to_be(server: GateServer, case: Recorded) -> None:
    nobody = server.anybody()
    assert nobody.alias(case.subject).status_code == 401
    assert nobody.get(f"{GATE}/gate").status_code == 401
    wrong = server.person("rita")
    wrong.session.auth = ("rita", "wrong")
    assert wrong.approve(case.subject).status_code == 401
    rows = [row for row in server.rows(outcome="denied") if row["subject"] == case.subject]
    assert {row["actor"] for row in rows[-2:]} == {""}
    asked = {"model": case.name, "version": case.version, "kind": "promotion", "reason": "x"}
    assert nobody.post(f"{GATE}/promotions", **asked).status_code == 401
    assert server.rows(outcome="denied", action="promotions")[-1]["actor"] == ""


def test_two_names_at_once_are_none(server: GateServer, case: Recorded) -> None:
    rita, eve = server.person("rita"), server.person("eve")
    header = requests.Request("GET", server.url, auth=rita.session.auth).prepare().headers
    other = requests.Request("GET", server.url, auth=eve.session.auth).prepare().headers
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=AT_MOST_S)
    connection.putrequest("POST", f"{API}/model-versions/set-tag")
    for each in (header, other):
        connection.putheader("Authorization", each["Authorization"])
    body = json.dumps({"name": "case", "version": "1", "key": "approval", "value": "approve: x"})
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body.encode())

    assert connection.getresponse().status == 401
    connection.close()


def test_another_sites_page_cannot_use_a_reviewers_browser(
    server: GateServer, case: Recorded
) -> None:
    before = len(server.rows(action="approval"))
    answer = server.person("rita").send(
        "POST",
        f"{API}/model-versions/set-tag",
        json={"name": "case", "version": "1", "key": "approval", "value": "approve: x"},
        headers={"Origin": "https://evil.example"},
    )
    other = server.person("rita").send("GET", f"{GATE}/gate", headers={"Host": "evil.example"})

    assert answer.status_code == 403
    assert other.status_code == 403
    assert len(server.rows(action="approval")) == before


def test_a_route_that_nobody_knows_is_no_route(server: GateServer) -> None:
    answer = server.person("root").post(f"{API}/model-versions/crown", name="case", version="1")

    assert answer.status_code == 404
    assert answer.json()["error_code"] == "ENDPOINT_NOT_FOUND"


def test_a_file_that_arrives_after_its_folder_was_sealed_is_not_kept(server: GateServer) -> None:
    """Begun before the version was recorded, ended afterwards."""
    ada = server.person("ada")
    name = "slow"
    sealed = threading.Event()
    answers: list[requests.Response] = []
    folder = server.folder / "slow"
    version: list[Recorded] = []
    place: list[str] = []
    ready = threading.Event()

    def body() -> Iterator[bytes]:
        yield b"other "
        ready.set()
        assert sealed.wait(AT_MOST_S)
        yield b"weights"

    def put() -> None:
        answers.append(server.person("ada").send("PUT", place[0], data=body()))

    from tests.gate import evidence_folder

    folder.mkdir()
    policy, decision = evidence_folder(server, folder)
    run_id, model_id, experiment = log_model(ada, folder, name)
    place.append(f"{ARTIFACTS}/{experiment}/models/{model_id}/artifacts/model/config.json")
    thread = threading.Thread(target=put)
    thread.start()
    assert ready.wait(AT_MOST_S)
    from dpoflow.registry.versions import evidence_tag

    ada.post(f"{API}/registered-models/create", name=name)
    made = ada.post(
        f"{API}/model-versions/create",
        name=name,
        source=f"models:/{model_id}",
        run_id=run_id,
        model_id=model_id,
        tags=[{"key": "dpoflow.evidence", "value": evidence_tag(policy, decision)}],
    )
    assert made.ok, made.text
    sealed.set()
    thread.join()

    assert answers[0].status_code == 403
    kept = ada.send("GET", place[0]).content
    assert kept == (folder / "model" / "config.json").read_bytes()
    assert not version


# ---------------------------------------------------------------- submissions and the log


def test_a_submission_is_whose_credentials_opened_it(server: GateServer) -> None:
    ada = server.person("ada")
    submission = ada.submit("mine", nonce="1" * 32)

    assert ada.submit("mine", nonce="1" * 32) == submission
    assert server.person("eve").submit("mine", nonce="1" * 32) != submission
    told = server.person("eve").get(f"{GATE}/submissions/{submission}").json()
    assert (told["user"], told["owner"], told["schedule"]) == ("ada", "ada", None)
    other = {
        "model": "mine",
        "spec_digest": "6" * 64,
        "sections": {"evaluate": "e" * 64},
        "nonce": "1" * 32,
        "schedule": None,
    }
    answer = ada.post(f"{GATE}/submissions", **other)
    assert "nonce was used for another submission" in denied(server, "ada", answer)
    for user in ("rita", "norole", "root", "prom"):
        answer = server.person(user).post(f"{GATE}/submissions", **other)
        assert "no engineer" in denied(server, user, answer)


def test_nobody_quotes_anothers_submission(server: GateServer) -> None:
    theirs = server.person("eve").submit("quoted")
    ada = server.person("ada")
    ada.post(f"{API}/registered-models/create", name="quoted")

    for value in (theirs, "0" * 32):
        answer = ada.post(
            f"{API}/model-versions/create",
            name="quoted",
            source="s3://bucket/x",
            tags=[{"key": "gate.submission", "value": value}],
        )
        denied(server, "ada", answer)


def test_the_log_is_whole_and_tells_who_made_accounts(server: GateServer) -> None:
    rita = server.person("rita")

    assert rita.get(f"{GATE}/audit/verify").json()["whole"] is True
    assert server.rows(action="account-create", subject="eve")[0]["actor"] == "root"
    answer = server.person("eve").get(f"{GATE}/audit")
    assert "read by reviewers" in denied(server, "eve", answer)
    assert not any("password" in json.dumps(row) for row in server.rows())


def test_who_am_i(server: GateServer) -> None:
    assert server.person("rob").get(f"{GATE}/gate").json() == {
        "gate": 1,
        "user": "rob",
        "roles": ["engineer", "reviewer"],
    }
    assert server.person("norole").get(f"{GATE}/gate").json()["roles"] == []
