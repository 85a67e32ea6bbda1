"""`dpoflow server` before it serves: what is missing is said in one line, and no secret is told."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dpoflow_pipelines.server import HARDENED, Serving

SECRETS = {
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "flask-secret-of-the-test",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "admin-secret-of-the-test",
    "DPOFLOW_AUDIT_KEY": "audit-secret-of-the-test-of-32-bytes",
    "DPOFLOW_ROLES_YAML": "reviewer: [rita]",
}


def server(
    home: Path, *more: str, without: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    named = {**SECRETS, **environment}
    named.pop(without, None)
    kept = {key: os.environ[key] for key in ("PATH", "PYTHONPATH") if key in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "dpoflow_pipelines", "server", "--home", str(home), *more],
        env={**kept, "HOME": str(home), **named},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_dry_run_tells_the_command_and_no_secret(tmp_path: Path) -> None:
    uri = "postgresql://mlflow:database-secret@db.example.org/mlflow"

    done = server(
        tmp_path,
        *("--dry-run", "--host", "0.0.0.0", "--allowed-hosts", "mlflow.example.org"),  # noqa: S104
        *("--artifacts", "s3://models/prod"),
        MLFLOW_BACKEND_STORE_URI=uri,
    )

    assert done.returncode == 0, done.stderr
    told = done.stdout + done.stderr
    assert "secret" not in told
    assert "mlflow server --app-name dpoflow-gate --host 0.0.0.0" in told
    assert "--artifacts-destination s3://models/prod --allowed-hosts mlflow.example.org" in told
    assert "MLFLOW_BACKEND_STORE_URI=postgresql://db.example.org/mlflow" in told
    assert all(f"{name}={value}" in told for name, value in HARDENED.items())
    assert not (tmp_path / "server").exists()


@pytest.mark.parametrize(
    ("without", "environment", "words"),
    [
        ("MLFLOW_FLASK_SERVER_SECRET_KEY", {}, "MLFLOW_FLASK_SERVER_SECRET_KEY is not set"),
        ("DPOFLOW_AUDIT_KEY", {}, "the key of the audit log has 0 bytes"),
        ("", {"DPOFLOW_AUDIT_KEY_FILE": "/nowhere/key"}, "/nowhere/key cannot be read"),
        ("DPOFLOW_ROLES_YAML", {}, "no roles: let DPOFLOW_ROLES name a YAML file"),
        ("", {"DPOFLOW_ROLES": "/nowhere/roles"}, "/nowhere/roles cannot be read"),
        ("", {"DPOFLOW_ROLES_YAML": "boss: [rita]"}, "has the role 'boss'"),
        ("", {"DPOFLOW_TRUSTED_SIGNERS": "rita"}, "no Ed25519 key"),
        ("", {"MLFLOW_BACKEND_STORE_URI": "mysql://u:p@h/d"}, "the backend store is mysql://"),
    ],
)
def test_what_is_missing_is_said_before_anything_starts(
    tmp_path: Path, without: str, environment: dict[str, str], words: str
) -> None:
    done = server(tmp_path, without=without, **environment)

    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--port", "0"), "--port must be from 1 to 65535"),
        (("--workers", "0"), "--workers must be 1 or more"),
        (("--host", "0.0.0.0"), "--allowed-hosts mlflow.example.org"),  # noqa: S104
        (("--artifacts", "gs://bucket"), "name s3://BUCKET/PREFIX or a folder"),
    ],
)
def test_what_cannot_be_served_is_refused(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = server(tmp_path, *arguments)

    assert done.returncode == 2
    assert words in done.stderr


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = server(tmp_path, "--port", port)

    assert done.returncode == 2
    assert f"nobody can listen at 127.0.0.1:{port}" in done.stderr


def test_a_database_that_is_away_is_told_without_its_password(tmp_path: Path) -> None:
    uri = "postgresql://u:database-secret@127.0.0.1:1/d"

    done = server(tmp_path, "--port", "5999", MLFLOW_BACKEND_STORE_URI=uri)

    assert done.returncode == 5, done.stderr
    assert "does not answer" in done.stderr
    assert "database-secret" not in done.stderr + done.stdout


def test_one_person_needs_no_database_and_no_bucket(tmp_path: Path) -> None:
    alone = Serving(tmp_path)

    assert alone.backend_uri == f"sqlite:///{tmp_path}/server/mlflow.db"
    assert alone.accounts_uri == f"sqlite:///{tmp_path}/server/accounts.db"
    assert alone.artifacts_uri == f"{tmp_path}/server/artifacts"


def test_a_team_has_its_accounts_in_its_database(tmp_path: Path) -> None:
    team = Serving(tmp_path, backend="postgresql://db/mlflow")

    assert team.accounts_uri == "postgresql://db/mlflow"
