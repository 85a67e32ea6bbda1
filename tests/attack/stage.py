"""What is attacked: a server with versions in every state, and a look at it past the server.

Gives   `Stage`: makes the versions, and sees the database and the artifact store with its own eyes;
        `Way`, `Answer`: one request, byte for byte as it is written, and what came back
"""

import base64
import hashlib
import http.client
import json
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from sqlalchemy import Engine, create_engine, text
from tests.gate import (
    API,
    GATE,
    GateServer,
    Recorded,
    StockServer,
    evidence_folder,
    log_model,
    password_of,
    promote,
    record,
)
from tests.seaweed import BUCKET, SeaweedFS
from tests.waiting import AT_MOST_S

from dpoflow.registry.versions import evidence_tag

ATTACKERS = {
    "engineer": "ada",
    "reviewer": "rob",
    "pipeline": "pipe",
    "promoter": "prom",
    "admin": "root",
    "nobody": "",
}
"""Role to user. rob is an engineer as well; ada is the author of nearly everything."""
DECISIONS = ("approval", "rejection", "promotion-begun", "promotion-verified", "promoted")
DECISIONS += ("submission", "rollback-asked", "promotion-closed", "champion-again")
_WATCHED = {
    "aliases": ("registered_model_aliases", "name, alias, version", "", ""),
    "tags": ("model_version_tags", "name, version, key, value", "", ""),
    "model tags": ("registered_model_tags", "name, key, value", "", ""),
    "models": ("registered_models", "name", "", ""),
    "versions": (
        "model_versions",
        "name, version, description, current_stage, source, run_id, status",
        "name",
        "name",
    ),
    "runs": ("runs", "run_uuid, name, status, end_time, lifecycle_stage", "run_uuid", "run"),
    "metrics": ("metrics", "run_uuid, key, value, step", "run_uuid", "run"),
    "params": ("params", "run_uuid, key, value", "run_uuid", "run"),
    "run tags": ("tags", "run_uuid, key, value", "run_uuid", "run"),
    "inputs": ("inputs", "source_id, destination_id", "source_id", "run"),
    "logged models": ("logged_models", "model_id, status, lifecycle_stage", "model_id", "model"),
    "logged tags": ("logged_model_tags", "model_id, tag_key, tag_value", "model_id", "model"),
    "logged params": (
        "logged_model_params",
        "model_id, param_key, param_value",
        "model_id",
        "model",
    ),
    "logged metrics": (
        "logged_model_metrics",
        "model_id, metric_name, metric_value",
        "model_id",
        "model",
    ),
    "experiments": (
        "experiments",
        "experiment_id, name, lifecycle_stage",
        "experiment_id",
        "experiment",
    ),
}
"""What is seen of it: a table, its columns, and which of its rows."""


@dataclass(frozen=True)
class Answer:
    status: int
    text: str

    @property
    def message(self) -> str:
        """The sentence, as MLflow's dialogs find it; else the text itself."""
        try:
            return str(json.loads(self.text)["message"])
        except (ValueError, KeyError, TypeError):
            return self.text.strip()


@dataclass(frozen=True)
class Way:
    """A request."""

    method: str
    target: str
    body: Any = None
    """Bytes go as they are, everything else as JSON."""
    headers: Mapping[str, str] = field(default_factory=dict)
    at_once: int = 1

    def send(self, server: GateServer, user: str) -> list[Answer]:
        """What came back, from each of those that went at once."""
        if self.at_once == 1:
            return [self._send(server, user)]
        barrier = threading.Barrier(self.at_once)

        def go(_: int) -> Answer:
            barrier.wait()
            return self._send(server, user)

        with ThreadPoolExecutor(self.at_once) as pool:
            return list(pool.map(go, range(self.at_once)))

    def _send(self, server: GateServer, user: str, target: str = "") -> Answer:
        as_is = self.body is None or isinstance(self.body, bytes)
        body = self.body if as_is else json.dumps(self.body).encode()
        headers = {"Content-Type": "application/json", **self.headers}
        if user:
            word = base64.b64encode(f"{user}:{password_of(user)}".encode()).decode()
            headers = {"Authorization": f"Basic {word}", **headers}
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=AT_MOST_S)
        try:
            connection.request(self.method, target or self.target, body, headers)
            response = connection.getresponse()
            told, status = response.read().decode(errors="replace"), response.status
            location = response.getheader("Location")
        except (ConnectionError, http.client.HTTPException) as error:
            return Answer(0, f"no answer ({type(error).__name__})")
        finally:
            connection.close()
        if status in (307, 308) and location and not target:
            parts = urlsplit(location)
            return self._send(server, user, parts.path + (f"?{parts.query}" if parts.query else ""))
        return Answer(status, told)


class Stage:
    """A server and what lies on it."""

    def __init__(self, server: GateServer, folder: Path, seaweed: SeaweedFS | None = None) -> None:
        self.server, self.folder, self.seaweed = server, folder, seaweed
        self.prefix = "stock/" if isinstance(server, StockServer) else "gate/"
        self.guarded = not isinstance(server, StockServer)
        self.begun_by_parts: tuple[str, dict[str, Any]] | None = None
        self.done_promotion = "0" * 32
        self.champion_files = "champions/support/1"
        self._engine: Engine | None = None

    def set_up(self) -> Self:
        """`support`: 1 is champion, 2 approved, 3 waits, 4 lost; `own` is rob's; `prod` a copy."""
        ada, root = self.server.person("ada"), self.server.person("root")
        self.champion = self._recorded("ada", "support", 1)
        self._begin_by_parts()
        if self.guarded:
            approved = self.server.person("rita").approve(self.champion.subject)
            assert approved.ok, approved.text
            done = promote(self.server, self.champion)
            assert done.ok, done.text
            listed = root.get(f"{GATE}/promotions", model="support").json()["promotions"]
            self.done_promotion = listed[0]["promotion"]
            self.champion_files = listed[0]["target"].removeprefix("mlflow-artifacts:/").strip("/")
        else:
            assert root.alias(self.champion.subject).ok
        self.approved = self._recorded("ada", "support", 2)
        self.waiting = self._recorded("ada", "support", 3)
        self.lost = self._recorded("ada", "support", 4, verdict="reject")
        self.own = self._recorded("rob", "own", 5)
        if self.guarded:
            assert self.server.person("rita").approve(self.approved.subject).ok
            self.theirs = self.server.person("eve").submit("support")
            self.mine = ada.submit("support")
        else:
            self.theirs = self.mine = "0" * 32
        ada.post(f"{API}/registered-models/create", name="prod")
        copied = ada.post(
            f"{API}/model-versions/create", name="prod", source=f"models:/{self.waiting.subject}"
        )
        assert copied.ok, copied.text
        made = ada.post(f"{API}/runs/create", experiment_id=self.waiting.experiment_id)
        self.open_run = str(made.json()["run"]["info"]["run_id"])
        loose = {"experiment_id": self.waiting.experiment_id, "name": "loose"}
        answer = ada.post(f"{API}/logged-models", **loose)
        self.open_model = str(answer.json()["model"]["info"]["model_id"])
        for model in ("support", "prod", "own"):
            self._let_write("registered_model", model)
        for experiment in {self.waiting.experiment_id, self.own.experiment_id}:
            self._let_write("experiment", experiment)
        return self

    def _recorded(self, user: str, name: str, seed: int, **more: Any) -> Recorded:
        person = self.server.person(user)
        submission = person.submit(name) if self.guarded else None
        folder = self.folder / f"{name}-{seed}"
        return record(person, folder, name, submission=submission, seed=seed, **more)

    def _let_write(self, kind: str, name: str) -> None:
        """MLflow's own permission, to everybody: the gate must not lean on it."""
        for user in ("ada", "rob", "pipe", "prom", "rita", "eve"):
            granted = self.server.person("root").post(
                "/api/3.0/mlflow/users/permissions/grant",
                username=user,
                resource_type=kind,
                resource_id=name,
                permission="EDIT" if user != "ada" else "MANAGE",
            )
            assert granted.ok or "already exists" in granted.text, granted.text

    def _begin_by_parts(self) -> None:
        """A file by parts, begun before its version is recorded: its URL outlives that."""
        if self.seaweed is None:
            return
        import requests

        ada = self.server.person("ada")
        folder = self.folder / "late"
        folder.mkdir()
        policy, decision = evidence_folder(self.server, folder, seed=9)
        run_id, model_id, experiment = log_model(ada, folder, "late")
        place = f"{experiment}/models/{model_id}/artifacts/model"
        begun = ada.post(
            f"/api/2.0/mlflow-artifacts/mpu/create/{place}", path="model.safetensors", num_parts=1
        )
        assert begun.ok, begun.text
        told = begun.json()
        put = requests.put(told["credentials"][0]["url"], data=b"other weights", timeout=AT_MOST_S)
        assert put.ok, put.text
        ada.post(f"{API}/registered-models/create", name="late")
        made = ada.post(
            f"{API}/model-versions/create",
            name="late",
            source=f"models:/{model_id}",
            run_id=run_id,
            model_id=model_id,
            tags=[{"key": "dpoflow.evidence", "value": evidence_tag(policy, decision)}],
        )
        assert made.ok, made.text
        part = {"part_number": 1, "etag": put.headers["ETag"]}
        body = {"path": "model.safetensors", "upload_id": told["upload_id"], "parts": [part]}
        self.begun_by_parts = (place, body)

    # ------------------------------------------------------------ past the server

    @property
    def _versions(self) -> tuple[Recorded, ...]:
        return (self.champion, self.approved, self.waiting, self.lost, self.own)

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            self._engine = create_engine(self.server.database)
        return self._engine

    def close(self) -> None:
        if self._engine is not None:
            self._engine.dispose()

    def seen(self) -> dict[str, Any]:
        """All that no attempt may change: from tables and objects, not from the server."""
        versions = self._versions
        keys = {
            "run": [each.run_id for each in versions],
            "model": [each.model_id for each in versions],
            "experiment": [each.experiment_id for each in versions],
            "name": [each.name for each in versions],
        }
        found: dict[str, Any] = {}
        with self.engine.connect() as connection:
            for what, (table, columns, column, kind) in _WATCHED.items():
                told = ", ".join(f"'{key}'" for key in keys.get(kind, ()))
                where = f" WHERE CAST({column} AS VARCHAR(64)) IN ({told})" if column else ""
                asked = f"SELECT {columns} FROM {table}{where}"  # noqa: S608  # our own constants
                found[what] = sorted(str(tuple(row)) for row in connection.execute(text(asked)))
            if self.guarded:
                asked = "SELECT seq, actor, action, subject FROM dpoflow_audit WHERE outcome = "
                rows = connection.execute(text(f"{asked} 'allowed' ORDER BY seq"))
                found["decided"] = [str(tuple(row)) for row in rows if row.action in DECISIONS]
        found["files"] = self.files()
        return found

    def files(self) -> dict[str, str]:
        """Digests of what versions rest on, and of champions, in the artifact store."""
        rests = tuple(
            f"{folder}/"
            for each in self._versions
            for folder in (each.files, f"{each.experiment_id}/{each.run_id}/artifacts")
        )
        if self.begun_by_parts is not None:
            rests += (f"{self.begun_by_parts[0]}/",)
        found = self._objects() if self.seaweed else self._on_disk()
        return {path: told for path, told in found if path.startswith((*rests, "champions/"))}

    def _objects(self) -> list[tuple[str, str]]:
        assert self.seaweed is not None
        pages = self.seaweed.client().get_paginator("list_objects_v2")
        return [
            (each["Key"].removeprefix(self.prefix), each["ETag"])
            for page in pages.paginate(Bucket=BUCKET, Prefix=self.prefix)
            for each in page.get("Contents", [])
        ]

    def _on_disk(self) -> list[tuple[str, str]]:
        root = self.server.folder / "home" / "server" / "artifacts"
        return [
            (str(path.relative_to(root)), hashlib.sha256(path.read_bytes()).hexdigest())
            for path in root.rglob("*")
            if path.is_file()
        ]

    def last_row(self) -> int:
        """Number of the last row of the log."""
        with self.engine.connect() as connection:
            return int(connection.execute(text("SELECT max(seq) FROM dpoflow_audit")).scalar() or 0)

    def rows_since(self, seq: int) -> list[dict[str, Any]]:
        """Rows of the log after that one."""
        asked = text("SELECT actor, action, outcome, detail FROM dpoflow_audit WHERE seq > :seq")
        with self.engine.connect() as connection:
            rows = connection.execute(asked, {"seq": seq}).mappings()
            return [{**row, "detail": json.loads(row["detail"])} for row in rows]
