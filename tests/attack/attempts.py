"""What is tried, by everybody: each attempt is one thing that nobody may do that way.

Gives   `attempts`: those that make sense for a role, with the kind of attack that each is
Not     what the server should say (the program holds all of them to the same)
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.attack.stage import ATTACKERS, Stage, Way
from tests.gate import API, GATE

ARTIFACTS = "/api/2.0/mlflow-artifacts"
PARTS = "/api/2.0/mlflow-artifacts/mpu"
JSON = "application/json"
WEIGHTS = b"other weights"
ALIAS = f"{API}/registered-models/alias"
SET_TAG = f"{API}/model-versions/set-tag"
CREATE = f"{API}/model-versions/create"


@dataclass(frozen=True)
class Attempt:
    kind: str
    name: str
    way: Way
    not_for: tuple[str, ...] = ()
    """Roles that may do this."""
    by_mlflow: bool = False
    """MLflow's own permissions say no, and the log says that it came to nothing."""
    harmless: bool = False
    """What it answers says nothing, since it never does anything to what is looked at."""


def attempts(stage: Stage, role: str) -> Iterator[Attempt]:
    """Those that this role may not do; what destroys most comes last."""
    groups = (
        _at_create,
        _tags,
        _look_alikes,
        _aliases,
        _copies,
        _stages,
        _opinions,
        _replays,
        _spellings,
        _bodies,
        _clocks,
        _endpoints,
        _accounts,
        _runs,
        _logged_models,
        _files,
        _champions,
        _deletions,
    )
    for group in groups:
        for each in group(stage, role):
            if role not in each.not_for:
                yield each


def _tag(key: str, value: str, subject: str, method: str = "POST") -> Way:
    name, _, version = subject.rpartition("/")
    if method == "DELETE":
        body = {"name": name, "version": version, "key": key}
        return Way("DELETE", f"{API}/model-versions/delete-tag", body)
    return Way("POST", SET_TAG, {"name": name, "version": version, "key": key, "value": value})


def _alias(alias: str, subject: str, **more: Any) -> Way:
    name, _, version = subject.rpartition("/")
    return Way("POST", ALIAS, {"name": name, "alias": alias, "version": version}, **more)


def _at_create(stage: Stage, role: str) -> Iterator[Attempt]:
    kind = "tags forged at create"

    def version(what: str, tags: list[tuple[str, str]], *not_for: str, **more: Any) -> Attempt:
        told = [{"key": key, "value": value} for key, value in tags]
        body = {"name": "support", "source": "s3://elsewhere/x", "tags": told, **more}
        return Attempt(kind, f"a new version {what}", Way("POST", CREATE, body), not_for)

    yes = "approve: read it"
    mine, theirs = stage.waiting, stage.theirs
    yield version("that brings approval", [("approval", yes)])
    yield version("that brings approval.by", [("approval.by", "rita")])
    yield version("that brings gate.state", [("gate.state", "promoted")], "pipeline")
    yield version("with a fullwidth approval", [("\uff41pproval", yes)])
    yield version("with a zero-width approval", [("appro\u200bval", yes)])
    yield version("with approval in capitals", [("APPROVAL", yes)])
    yield version("with a harmless tag first", [("note", "x"), ("approval", yes)])
    yield version("with a tag of the gate twice", [("gate.submission", theirs)] * 2)
    yield version("quoting eve's submission", [("gate.submission", theirs)], "pipeline")
    yield version("quoting a submission that is not", [("gate.submission", "f" * 32)])
    evidence = list(mine.tags.items())
    yield version("with another's evidence, files elsewhere", evidence)
    yield version(
        "with evidence, its source in a sealed folder",
        evidence,
        source=f"mlflow-artifacts:/{mine.files}",
        model_id=mine.model_id,
        run_id=mine.run_id,
    )
    yield version(
        "with evidence under another run",
        evidence,
        source=f"models:/{mine.model_id}",
        model_id=mine.model_id,
        run_id=stage.own.run_id,
    )
    forged = [{"key": "approval", "value": yes}]
    body = {"name": f"forged-by-{role}", "tags": forged}
    create_model = Way("POST", f"{API}/registered-models/create", body)
    yield Attempt(kind, "a new model that brings approval", create_model)
    body = {"experiment_id": mine.experiment_id, "name": "forged", "tags": forged}
    create_logged = Way("POST", f"{API}/logged-models", body)
    yield Attempt(kind, "a new logged model that brings approval", create_logged)


def _tags(stage: Stage, role: str) -> Iterator[Attempt]:
    kind, waiting, approved = "tags forged afterwards", stage.waiting, stage.approved
    for key, value, not_for in (
        ("approval.by", "rita", ("promoter",)),
        ("approval.state", "approved", ("promoter",)),
        ("gate.state", "promoted", ("promoter", "pipeline")),
        ("gate.submission", stage.theirs, ()),
        ("dpoflow.verdict", "promote at once", ()),
        ("dpoflow.policy_digest", "0" * 64, ()),
        ("dpoflow.evidence", "x", ()),
        ("dpoflow.new", "x", ()),
    ):
        yield Attempt(kind, f"set {key}", _tag(key, value, waiting.subject), not_for)
    for key, not_for in (
        ("approval", ()),
        ("approval.by", ("promoter",)),
        ("gate.submission", ()),
        ("dpoflow.evidence", ()),
        ("dpoflow.policy_digest", ()),
    ):
        yield Attempt(kind, f"delete {key}", _tag(key, "", approved.subject, "DELETE"), not_for)
    on_model = {"name": "support", "key": "approval", "value": "approve: all of it"}
    yield Attempt(
        kind, "set approval on the model", Way("POST", f"{API}/registered-models/set-tag", on_model)
    )
    on_model |= {"key": "gate.state"}
    yield Attempt(
        kind,
        "delete gate.state of the model",
        Way("DELETE", f"{API}/registered-models/delete-tag", on_model),
    )


def _look_alikes(stage: Stage, role: str) -> Iterator[Attempt]:
    kind, waiting = "look-alike names", stage.waiting.subject
    for told, key in (
        ("capital", "Approval"),
        ("zero-width", "appro\u200bval"),
        ("fullwidth", "\uff41pproval"),
        ("cyrillic", "\u0430pproval"),
        ("spaced", "approval "),
        ("cyrillic gate", "g\u0430te.state"),
        ("soft hyphen", "gate\u00ad.submission"),
        ("null-lettered", "approval\0"),
    ):
        yield Attempt(kind, f"a {told} tag", _tag(key, "approve: x", waiting))
    for told, alias in (
        ("capital", "Champion"),
        ("fullwidth", "\uff43hampion"),
        ("cyrillic", "\u0441hampion"),
        ("zero-width", "cham\u200bpion"),
        ("spaced", " champion"),
        ("hyphened", "previous-champion"),
        ("null-lettered", "champion\0"),
    ):
        yield Attempt(kind, f"a {told} alias", _alias(alias, waiting))


def _aliases(stage: Stage, role: str) -> Iterator[Attempt]:
    kind = "champion moved by hand"
    for what, subject in (
        ("the version that waits", stage.waiting.subject),
        ("the approved version, without a promotion", stage.approved.subject),
        ("the version that lost", stage.lost.subject),
        ("a version of another model", stage.own.subject),
        ("a version that is not", "support/99"),
        ("a model with a null letter in its name", "support\0/3"),
    ):
        yield Attempt(kind, f"champion on {what}", _alias("champion", subject))
    yield Attempt(
        kind, "previous_champion on one", _alias("previous_champion", stage.waiting.subject)
    )
    for alias in ("champion", "previous_champion", "CHAMPION"):
        body = {"name": "support", "alias": alias}
        yield Attempt(kind, f"delete {alias}", Way("DELETE", ALIAS, body))
    yield Attempt(kind, "champion, twenty at once", _alias("champion", "support/3", at_once=20))


def _copies(stage: Stage, role: str) -> Iterator[Attempt]:
    kind, waiting = "a copy crowned", stage.waiting
    told = [{"key": key, "value": value} for key, value in waiting.tags.items()]
    for what, source in (
        ("as Promote model does", f"models:/{waiting.subject}"),
        ("of the alias", "models:/support@champion"),
        ("in capitals", f"MODELS:/{waiting.subject}"),
        ("with a space before", f" models:/{waiting.subject}"),
    ):
        body = {"name": "prod", "source": source, "run_id": waiting.run_id, "tags": told}
        yield Attempt(kind, f"copy with its tags, {what}", Way("POST", CREATE, body))
    yield Attempt(kind, "champion on the copy", _alias("champion", "prod/1"))
    yield Attempt(kind, "previous_champion on the copy", _alias("previous_champion", "prod/1"))
    yield Attempt(kind, "approve the copy", _tag("approval", "approve: as before", "prod/1"))


def _stages(stage: Stage, role: str) -> Iterator[Attempt]:
    kind, path = "stages", f"{API}/model-versions/transition-stage"
    for target, prefix in (("Production", ""), ("Archived", ""), ("Staging", "ajax")):
        body = {"name": "support", "version": "3", "stage": target}
        body |= {"archive_existing_versions": "true"} if not prefix else {}
        where = path.replace("/api/", "/ajax-api/") if prefix else path
        yield Attempt(kind, f"to {target}", Way("POST", where, body))


def _opinions(stage: Stage, role: str) -> Iterator[Attempt]:
    kind = "approved by oneself, or without a case"
    own, lost = stage.own.subject, stage.lost.subject
    yield Attempt(
        kind, "approve one's own, or without the role", _tag("approval", "approve: x", own)
    )
    yield Attempt(kind, "reject one's own, or without the role", _tag("approval", "reject: x", own))
    yield Attempt(kind, "approve what lost", _tag("approval", "approve: I like it", lost))
    for what, value in (
        ("no reason", "approve:"),
        ("a reason of spaces", "approve:   "),
        ("no form", "yes"),
        ("nothing", ""),
    ):
        tag = _tag("approval", value, stage.waiting.subject)
        yield Attempt(kind, f"approve with {what}", tag)
    missing = _tag("approval", "approve: x", "support/99")
    yield Attempt(kind, "approve a version that is not", missing)


def _replays(stage: Stage, role: str) -> Iterator[Attempt]:
    kind, approved, waiting = "an approval replayed", stage.approved, stage.waiting
    begin = {"model": "support", "version": "3", "kind": "promotion", "reason": "as 2"}
    yield Attempt(kind, "promote 3 by the approval of 2", Way("POST", f"{GATE}/promotions", begin))
    for key in ("dpoflow.policy_digest", "dpoflow.decision_digest", "dpoflow.evidence"):
        tag = _tag(key, approved.tags[key], waiting.subject)
        yield Attempt(kind, f"{key} of 2 put on 3", tag)
    yield Attempt(
        kind,
        "approval of 2 copied to 3",
        _tag("approval", "approve: read it", waiting.subject),
        ("reviewer",),
    )
    weights = f"{ARTIFACTS}/artifacts/{approved.files}/model/model.safetensors"
    after = "approved, then overwritten"
    yield Attempt(after, "weights put", Way("PUT", weights, WEIGHTS))
    yield Attempt(after, "weights deleted", Way("DELETE", weights))
    decision = f"{ARTIFACTS}/artifacts/{approved.files}/decision.json"
    yield Attempt(after, "decision put", Way("PUT", decision, b"{}"))
    digest = _tag("dpoflow.decision_digest", "1" * 64, approved.subject)
    yield Attempt(after, "its digest changed", digest)


def _spellings(stage: Stage, role: str) -> Iterator[Attempt]:
    kind = "spellings of a path"
    body = {"name": "support", "version": "3", "alias": "champion"}
    for path in (
        f"{ALIAS}/",
        f"/{ALIAS}",
        f"{API}//registered-models/alias",
        f"{API}/registered-models%2Falias",
        f"{API}/registered-models%252Falias",
        f"{API}/registered-models/%61lias",
        f"{API}/registered-models/./alias",
        f"{API}/x/../registered-models/alias",
        f"{GATE}/../mlflow/registered-models/alias",
        f"{API}/Registered-Models/alias",
        f"{ALIAS}?name=other&alias=x",
        f"{ALIAS};x",
        f"{ALIAS}%00",
        f"{ALIAS}%20",
        f"{ALIAS}%0a",
        f"{ALIAS}#x",
        ALIAS.replace("/api/", "/ajax-api/"),
        ALIAS.replace("/api/", "//ajax-api//"),
        ALIAS.replace("2.0", "3.0"),
        f"/mlflow{ALIAS}",
        f"{stage.server.url}{ALIAS}",
    ):
        yield Attempt(kind, f"champion by {path}", Way("POST", path, body))
    for method in ("PUT", "PATCH", "post", "PROPFIND"):
        yield Attempt(kind, f"champion by {method}", Way(method, ALIAS, body))
    headers = {"X-HTTP-Method-Override": "GET", "X-Original-URL": "/health"}
    overridden = Way("POST", ALIAS, body, headers)
    yield Attempt(kind, "champion, said to be a GET", overridden)
    forwarded = {"X-Forwarded-User": "prom", "X-Remote-User": "prom", "X-Forwarded-Prefix": "/x"}
    yield Attempt(kind, "champion, said to be prom's", Way("POST", ALIAS, body, forwarded))


def _bodies(stage: Stage, role: str) -> Iterator[Attempt]:
    kind, plain = "spellings of a body", '{"name":"support","version":"3","alias":"champion"}'
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    multipart = {"Content-Type": "multipart/form-data; boundary=x"}
    part = b'--x\r\nContent-Disposition: form-data; name="alias"\r\n\r\nchampion\r\n--x--\r\n'
    for what, body, headers in (
        ("the alias twice", b'{"name":"support","version":"3","alias":"x","alias":"champion"}', {}),
        ("the model twice", b'{"name":"x","version":"3","alias":"champion","name":"support"}', {}),
        ("JSON in JSON", json.dumps(plain).encode(), {}),
        ("UTF-16", plain.encode("utf-16"), {}),
        ("UTF-32", plain.encode("utf-32"), {}),
        ("a byte order mark", b"\xef\xbb\xbf" + plain.encode(), {}),
        ("an escaped letter", plain.replace('"champ', '"\\u0063hamp').encode(), {}),
        ("half a surrogate", plain.replace("pion", "pion\\ud800").encode(), {}),
        ("the version as a number", plain.replace('"3"', "3").encode(), {}),
        ("the version as 03", plain.replace('"3"', '"03"').encode(), {}),
        ("a form", b"name=support&version=3&alias=champion", form),
        ("JSON said to be a form", plain.encode(), form),
        ("a multipart form", part, multipart),
        ("text/plain", plain.encode(), {"Content-Type": "text/plain"}),
        ("gzip that is none", plain.encode(), {"Content-Encoding": "gzip"}),
        ("a list", f"[{plain}]".encode(), {}),
        ("a hundred thousand brackets", b"[" * 100_000, {}),
        ("17 MB before it", b" " * 17_000_000 + plain.encode(), {}),
        ("17 MB in it", plain.replace("{", '{"pad":"' + "x" * 17_000_000 + '",').encode(), {}),
    ):
        yield Attempt(kind, f"champion by {what}", Way("POST", ALIAS, body, headers))
    empty = Way("POST", ALIAS, b"")
    yield Attempt(kind, "champion by nothing, which names no alias", empty, harmless=True)
    asked = (
        'mutation { mlflowSetRegisteredModelAlias(input: {name: "support"}) { apiError { code }}}'
    )
    graphql = Way("POST", "/graphql", {"query": asked})
    yield Attempt("GraphQL", "champion by a mutation", graphql, harmless=True)
    several = Way("POST", "/graphql", [{"query": asked}] * 20)
    yield Attempt("GraphQL", "twenty mutations in one body", several, harmless=True)


def _clocks(stage: Stage, role: str) -> Iterator[Attempt]:
    kind = "clocks"
    for what, date in (("1970", "Thu, 01 Jan 1970 00:00:00 GMT"), ("2099", "x, 99 Xyz 2099")):
        skewed = {"Date": date, "If-Unmodified-Since": date}
        way = _alias("champion", stage.waiting.subject, headers=skewed)
        yield Attempt(kind, f"champion, in {what}", way)
    begin = {"model": "support", "version": "3", "kind": "promotion", "reason": "x"}
    past = Way("POST", f"{GATE}/promotions", {**begin, "at": "1970-01-01T00:00:00Z"})
    yield Attempt(kind, "a promotion dated back", past)
    for what, stamp in (("before 1970", -1), ("in 300 million years", 2**63 - 1)):
        metric = {"run_id": stage.waiting.run_id, "key": "win_rate", "value": 1, "timestamp": stamp}
        way = Way("POST", f"{API}/runs/log-metric", metric)
        yield Attempt(kind, f"a metric measured {what}", way)


def _endpoints(stage: Stage, role: str) -> Iterator[Attempt]:
    kind, nonce = "the gate's own endpoints", "0" * 32
    begin = {"model": "support", "version": "2", "kind": "promotion", "reason": "x"}
    yield Attempt(
        kind, "begin the promotion of 2", Way("POST", f"{GATE}/promotions", begin), ("promoter",)
    )
    twenty = Way("POST", f"{GATE}/promotions", {**begin, "version": "3"}, at_once=20)
    yield Attempt(kind, "twenty promotions of 3 at once", twenty)
    back = Way("POST", f"{GATE}/promotions", {**begin, "kind": "rollback"})
    yield Attempt(kind, "a rollback nobody asked for", back)
    rollback = {"model": "support", "version": "3"}
    for what, body in (
        ("without a reason", {**rollback, "reason": " "}),
        ("with no reason at all", rollback),
        ("to a version that never was champion", {**rollback, "reason": "x"}),
        ("to a version that is not", {**rollback, "version": "99", "reason": "x"}),
        ("in another's name", {**rollback, "reason": "x", "user": "rita"}),
    ):
        yield Attempt(kind, f"a rollback {what}", Way("POST", f"{GATE}/rollbacks", body))
    done = stage.done_promotion
    verified = Way("POST", f"{GATE}/promotions/{done}/verified", {"policy_digest": "0" * 64})
    yield Attempt(kind, "verified, with another digest", verified)
    submission = {
        "model": "support",
        "spec_digest": "5" * 64,
        "sections": {"evaluate": "e" * 64},
        "nonce": nonce,
        "schedule": None,
    }
    in_name = Way("POST", f"{GATE}/submissions", {**submission, "user": "eve"})
    yield Attempt(kind, "a submission in eve's name", in_name)
    schedule = Way("POST", f"{GATE}/submissions", {**submission, "schedule": stage.theirs})
    yield Attempt(kind, "a submission for a schedule that is none", schedule)
    audit = Way("GET", f"{GATE}/audit?from=1")
    yield Attempt(kind, "read the log", audit, ("reviewer", "admin", "promoter"))
    for method in ("PUT", "DELETE", "PATCH", "POST"):
        way = Way(method, f"{GATE}/audit", {"rows": []})
        yield Attempt(kind, f"{method} the log", way)
    other = {"name": "support", "version": "3", "alias": "champion", "promotion": done}
    yield Attempt(kind, "champion, quoting a promotion done", Way("POST", ALIAS, other))


def _accounts(stage: Stage, role: str) -> Iterator[Attempt]:
    kind, users = "accounts", f"{API}/users"
    password = "a-password-of-the-attack"  # noqa: S105  # of nobody
    own = ATTACKERS[role]
    for what, method, path, body in (
        ("an account of one's own", "POST", "create", {"username": "rita2", "password": password}),
        ("the reviewer's password", "PATCH", "update-password", {"username": "rita"}),
        ("oneself made admin", "PATCH", "update-admin", {"username": own, "is_admin": True}),
        ("the reviewer's account deleted", "DELETE", "delete", {"username": "rita"}),
    ):
        given = {**body, "password": password} if path == "update-password" else body
        way = Way(method, f"{users}/{path}", given)
        yield Attempt(kind, what, way, ("admin",), by_mlflow=True)
    yield Attempt(kind, "sign up", Way("POST", "/signup", {"username": "x", "password": password}))
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    by_form = Way("POST", f"{API}/users/create-ui", b"username=x&password=y", form)
    yield Attempt(kind, "sign up by a form", by_form)


def _runs(stage: Stage, role: str) -> Iterator[Attempt]:
    kind, waiting = "the run of an evaluated version", stage.waiting
    run, now = {"run_id": waiting.run_id}, {"timestamp": 1, "step": 0}
    other = stage.open_run
    dataset = {"name": "d", "digest": "1", "source_type": "x", "source": "x"}
    for what, path, body in (
        ("a metric", "log-metric", {**run, "key": f"win-{role}", "value": 1.0, **now}),
        (
            "a metric by run_uuid",
            "log-metric",
            {"run_uuid": run["run_id"], "key": f"uuid-{role}", "value": 1, **now},
        ),
        (
            "a metric by runId",
            "log-metric",
            {"runId": run["run_id"], "key": f"camel-{role}", "value": 1, **now},
        ),
        (
            "a metric of its logged model by another run",
            "log-metric",
            {"run_id": other, "model_id": waiting.model_id, "key": f"m-{role}", "value": 1, **now},
        ),
        ("a parameter", "log-parameter", {**run, "key": f"beta-{role}", "value": "1"}),
        (
            "a batch",
            "log-batch",
            {**run, "metrics": [{"key": f"batch-{role}", "value": 1.0, **now}]},
        ),
        (
            "a batch of another run, its logged model named within",
            "log-batch",
            {
                "run_id": other,
                "metrics": [
                    {"model_id": waiting.model_id, "key": f"within-{role}", "value": 1.0, **now}
                ],
            },
        ),
        ("a tag", "set-tag", {**run, "key": "note", "value": f"x-{role}"}),
        ("a tag deleted", "delete-tag", {**run, "key": "mlflow.runName"}),
        ("its end", "update", {**run, "status": "RUNNING"}),
        ("its name", "update", {**run, "run_name": f"better-{role}"}),
        ("a model", "log-model", {**run, "model_json": '{"run_id":"x","artifact_path":"x"}'}),
        ("inputs", "log-inputs", {**run, "datasets": [{"dataset": dataset}]}),
        ("outputs", "outputs", {**run, "models": [{"model_id": waiting.model_id, "step": 0}]}),
    ):
        yield Attempt(kind, f"{what} written", Way("POST", f"{API}/runs/{path}", body))
    below = f"/ajax-api/2.0/mlflow/upload-artifact?run_uuid={waiting.run_id}&path=x.txt"
    yield Attempt(kind, "a file uploaded to it", Way("POST", below, WEIGHTS))
    out = f"..%5C..%5Cmodels%5C{waiting.model_id}%5Cartifacts%5Cmodel"
    path = f"/ajax-api/2.0/mlflow/upload-artifact?run_uuid={other}&path={out}%5Cconfig.json"
    outside = Way("POST", path, f"other words of {role}".encode())
    yield Attempt(kind, "a file uploaded to another run, by a path that leaves it", outside)
    traces = {"run_id": waiting.run_id, "trace_ids": ["tr-1"]}
    yield Attempt(kind, "traces linked to it", Way("POST", f"{API}/traces/link-to-run", traces))
    inside = {
        "name": f"inside-{role}",
        "artifact_location": f"mlflow-artifacts:/{waiting.files}",
    }
    create = Way("POST", f"{API}/experiments/create", inside)
    yield Attempt(kind, "an experiment that keeps its files in there", create)


def _logged_models(stage: Stage, role: str) -> Iterator[Attempt]:
    kind, waiting = "the logged model of an evaluated version", stage.waiting
    model = f"{API}/logged-models/{waiting.model_id}"
    tags = {"tags": [{"key": "note", "value": f"x-{role}"}]}
    params = {"params": [{"key": f"a-{role}", "value": "b"}]}
    failed = {"model_id": waiting.model_id, "status": "LOGGED_MODEL_UPLOAD_FAILED"}
    yield Attempt(kind, "tagged", Way("PATCH", f"{model}/tags", tags))
    yield Attempt(kind, "a tag deleted", Way("DELETE", f"{model}/tags/note", {}))
    yield Attempt(kind, "parameters written", Way("POST", f"{model}/params", params))
    yield Attempt(kind, "called failed", Way("PATCH", model, failed))
    elsewhere = f"{API}/logged-models/{stage.open_model}"
    yield Attempt(kind, "called failed, by another's path", Way("PATCH", elsewhere, failed))


def _files(stage: Stage, role: str) -> Iterator[Attempt]:
    kind, waiting = "artifacts of an evaluated version", stage.waiting
    files, below = waiting.files, f"{ARTIFACTS}/artifacts"
    run_files = f"{waiting.experiment_id}/{waiting.run_id}/artifacts"
    words = f"other weights of {role}".encode()
    for what, path in (
        ("the weights", f"{files}/model/model.safetensors"),
        ("the evidence", f"{files}/evidence.json"),
        ("the signature", f"{files}/signature.json"),
        ("a new file", f"{files}/new-{role}.txt"),
        ("a file below its run", f"{run_files}/new-{role}.txt"),
        ("by //", f"{files}//model/config.json"),
        ("by /./", f"{files}/./model/config.json"),
        ("by %2F", f"{files}/model%2Fconfig.json"),
        ("by %252F", f"{files}/model%252Fconfig.json"),
        ("by ..", f"{files}/x/../model/config.json"),
        ("by %2e%2e", f"{files}/x/%2e%2e/model/config.json"),
        ("by backslashes, which SeaweedFS takes for slashes", f"{files}\\model\\config.json"),
        ("by %5C", f"{files}%5Cmodel%5Cconfig.json"),
        ("by %255C", f"{files}%255Cmodel%255Cconfig.json"),
        ("by a null byte", f"{files}/model/config.json%00.txt"),
        ("by a space after it", f"{files}/model/config.json%20"),
    ):
        yield Attempt(kind, f"put: {what}", Way("PUT", f"{below}/{path}", words))
    ajax = f"{below}/{files}/model/config.json".replace("/api/", "/ajax-api/")
    yield Attempt(kind, "put: by ajax-api", Way("PUT", ajax, words))
    parts = f"{files}/model"
    part = {"path": "model.safetensors", "num_parts": 1}
    ended = {**part, "upload_id": "x", "parts": [{"part_number": 1, "etag": "x"}]}
    yield Attempt(kind, "by parts: begun", Way("POST", f"{PARTS}/create/{parts}", part))
    yield Attempt(kind, "by parts: ended", Way("POST", f"{PARTS}/complete/{parts}", ended))
    yield Attempt(kind, "by parts: dropped", Way("POST", f"{PARTS}/abort/{parts}", ended))
    other = {**part, "path": f"/x/{files}/model/model.safetensors"}
    way = Way("POST", f"{PARTS}/create/{parts}", other)
    yield Attempt(kind, "by parts: another path in the body", way)
    if stage.begun_by_parts is not None:
        place, body = stage.begun_by_parts
        way = Way("POST", f"{PARTS}/complete/{place}", body)
        yield Attempt(kind, "by parts: begun before it was recorded, ended now", way)
    for told in ({"model_id": waiting.model_id}, {"run_id": waiting.run_id}):
        asked = {**told, "path": "model/model.safetensors", "expiration": 86_400}
        way = Way("POST", f"{API}/artifacts/presigned-upload-url", asked)
        yield Attempt(kind, f"a presigned URL by {next(iter(told))}", way)


def _champions(stage: Stage, role: str) -> Iterator[Attempt]:
    kind, below = "files below champions/", f"{ARTIFACTS}/artifacts"
    place = stage.champion_files
    for what, path in (
        ("over the champion's weights", f"{place}/model.safetensors"),
        ("beside them", f"{place}/new-{role}.txt"),
        ("of another version", f"champions/support/3/{stage.waiting.policy_digest}/config.json"),
        ("by //", f"champions//support/x-{role}"),
        ("by /./", f"./champions/x-{role}"),
        ("by %2F", f"champions%2Fx-{role}"),
        ("by ..", f"x/../champions/x-{role}"),
    ):
        yield Attempt(kind, f"put {what}", Way("PUT", f"{below}/{path}", WEIGHTS))
    begin = Way("POST", f"{PARTS}/create/{place}", {"path": "model.safetensors", "num_parts": 1})
    yield Attempt(kind, "begun by parts", begin)
    for what, path in (
        ("the champion's weights", f"{place}/model.safetensors"),
        ("its folder", place),
        ("all of it", "champions"),
        ("all of it, with a slash", "champions/"),
    ):
        yield Attempt(kind, f"deleted: {what}", Way("DELETE", f"{below}/{path}"))


def _deletions(stage: Stage, role: str) -> Iterator[Attempt]:
    kind, waiting = "deleted, renamed, described anew", stage.waiting
    described = {"name": "support", "version": "3", "description": f"**promote**, says {role}"}
    yield Attempt(
        kind,
        "the description of a case",
        Way("PATCH", f"{API}/model-versions/update", described),
        ("pipeline", "promoter"),
    )
    for version in ("1", "01", "+1", " 1"):
        body = {"name": "support", "version": version}
        way = Way("DELETE", f"{API}/model-versions/delete", body)
        yield Attempt(kind, f"champion deleted as {version!r}", way)
    for what, method, path, body in (
        ("its model renamed", "POST", "rename", {"name": "support", "new_name": f"by-{role}"}),
        ("its model deleted", "DELETE", "delete", {"name": "support"}),
    ):
        yield Attempt(kind, what, Way(method, f"{API}/registered-models/{path}", body))
    run = {"run_id": waiting.run_id}
    yield Attempt(kind, "its run deleted", Way("POST", f"{API}/runs/delete", run))
    yield Attempt(kind, "its run restored", Way("POST", f"{API}/runs/restore", run))
    model = f"{API}/logged-models/{waiting.model_id}"
    yield Attempt(kind, "its logged model deleted", Way("DELETE", model, {}))
    below = f"{ARTIFACTS}/artifacts"
    for what, path in (
        ("a file", f"{waiting.files}/model/model.safetensors"),
        ("its folder", waiting.files),
        ("its folder by /", f"{waiting.files}/"),
        ("the folder of all models", f"{waiting.experiment_id}/models"),
        ("the folder of its experiment", waiting.experiment_id),
    ):
        yield Attempt(kind, f"deleted: {what}", Way("DELETE", f"{below}/{path}"))
    experiment = {"experiment_id": waiting.experiment_id}
    way = Way("POST", f"{API}/experiments/delete", experiment)
    yield Attempt(kind, "its experiment deleted", way)
