"""`dpoflow server`: MLflow's server with the approval gate around it, hardened by default.

    HOME/server/mlflow.db       runs, models, the audit log (or PostgreSQL)
    HOME/server/accounts.db     who may log in (the same PostgreSQL, where there is one)
    HOME/server/artifacts       files (or s3://)
    HOME/server/auth.ini        MLflow's settings of accounts

Reads   secrets from the environment alone: MLFLOW_FLASK_SERVER_SECRET_KEY, DPOFLOW_AUDIT_KEY_FILE,
        MLFLOW_AUTH_ADMIN_PASSWORD at the first start; DPOFLOW_ROLES, DPOFLOW_TRUSTED_SIGNERS
Gives   `serve`, `Serving`
Not     the gate (dpoflow/registry/gate)
"""

import configparser
import io
import os
import shlex
import socket
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from dpoflow.contracts.errors import ConfigError
from dpoflow.state.files import writable_folder, write_text
from dpoflow.tracking.settings import public

BACKEND = "MLFLOW_BACKEND_STORE_URI"
HARDENED = {
    "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_REMOTE_ASSISTANT": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "true",
    "MLFLOW_ENABLE_WORKSPACES": "false",
    "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "false",
}
"""What the server's environment says, whatever it said before."""


@dataclass(frozen=True)
class Serving:
    """What to serve, and where."""

    home: Path
    host: str = "127.0.0.1"
    port: int = 5000
    backend: str | None = None
    artifacts: str | None = None
    allowed_hosts: str | None = None
    workers: int | None = None

    @property
    def folder(self) -> Path:
        """Of everything that this machine keeps for the server."""
        return self.home.resolve() / "server"

    @property
    def backend_uri(self) -> str:
        """Of runs, models and the log."""
        return self.backend or f"sqlite:///{self.folder}/mlflow.db"

    @property
    def accounts_uri(self) -> str:
        """Of accounts: a file beside sqlite's, the same database elsewhere."""
        own = self.backend_uri.startswith("sqlite:")
        return f"sqlite:///{self.folder}/accounts.db" if own else self.backend_uri

    @property
    def artifacts_uri(self) -> str:
        """Of files, which nobody reaches but through the server."""
        return self.artifacts or str(self.folder / "artifacts")

    def command(self) -> list[str]:
        """Without secrets: those are in the environment alone."""
        # The names that clients may call the server by; a port is part of what they send.
        default = f"localhost:{self.port},127.0.0.1:{self.port},{self.host}:{self.port}"
        return [
            *("mlflow", "server", "--app-name", "dpoflow-gate"),
            *("--host", self.host, "--port", str(self.port)),
            *("--artifacts-destination", self.artifacts_uri),
            *("--allowed-hosts", self.allowed_hosts or default),
            *("--workers", str(self.workers or 2)),
        ]


def serve(serving: Serving, console: Console, *, dry_run: bool) -> None:
    """Serve until the server ends; a dry run only tells."""
    from dpoflow.registry.gate.ready import check_ready, check_settings, run_mlflow

    _check(serving)
    if dry_run:
        _tell(serving, console)
        check_settings()
        return
    check_settings()
    _check_port(serving)
    writable_folder(serving.folder, "the server's folder")
    os.environ.update(HARDENED)
    os.environ[BACKEND] = serving.backend_uri
    os.environ["MLFLOW_AUTH_CONFIG_PATH"] = str(_write_accounts(serving))
    check_ready(serving.backend_uri)
    os.environ["_MLFLOW_AUTH_ADMIN_BOOTSTRAPPED"] = "true"
    console.print(f"MLflow with the gate at http://{serving.host}:{serving.port}", highlight=False)
    run_mlflow(serving.command()[1:])


def _check(serving: Serving) -> None:
    if not 1 <= serving.port <= 65535:
        raise ConfigError(f"--port must be from 1 to 65535, got {serving.port}")
    if serving.workers is not None and serving.workers < 1:
        raise ConfigError(f"--workers must be 1 or more, got {serving.workers}")
    scheme = serving.backend_uri.partition(":")[0].partition("+")[0]
    if scheme not in ("sqlite", "postgresql"):
        raise ConfigError(
            f"the backend store is {scheme}://…, and the gate keeps its log in sqlite or "
            "PostgreSQL; name a postgresql:// store"
        )
    where = serving.artifacts_uri.partition("://")
    if where[1] and where[0] not in ("s3", "file"):
        raise ConfigError(f"--artifacts is {where[0]}://…; name s3://BUCKET/PREFIX or a folder")
    if serving.host not in ("127.0.0.1", "localhost", "::1") and not serving.allowed_hosts:
        raise ConfigError(
            f"--host {serving.host} is reached from elsewhere, so say by which names: "
            "--allowed-hosts mlflow.example.org"
        )


def _check_port(serving: Serving) -> None:
    family = socket.AF_INET6 if ":" in serving.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((serving.host, serving.port))
        except OSError as error:
            raise ConfigError(
                f"nobody can listen at {serving.host}:{serving.port} ({error.strerror}); stop what "
                "does, or name another --port"
            ) from None


def _write_accounts(serving: Serving) -> Path:
    """MLflow's settings of accounts; may hold the database's password, so nobody else reads it."""
    settings = configparser.RawConfigParser()
    settings["mlflow"] = {
        "default_permission": "READ",
        "database_uri": serving.accounts_uri.replace("%", "%%"),  # MLflow's parser interpolates
        "admin_username": os.environ.get("MLFLOW_AUTH_ADMIN_USERNAME", "admin"),
        # A hash a request would cost more than most requests; the gate asks the store each time.
        "auth_cache_ttl_seconds": "30",
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
    }
    text = io.StringIO()
    settings.write(text)
    path = serving.folder / "auth.ini"
    before = os.umask(0o077)
    try:
        write_text(path, text.getvalue())
    finally:
        os.umask(before)
    return path


def _tell(serving: Serving, console: Console) -> None:
    console.print(shlex.join(serving.command()), highlight=False)
    console.print(f"{BACKEND}={public(serving.backend_uri)}", highlight=False)
    for name, value in HARDENED.items():
        console.print(f"{name}={value}", highlight=False)
