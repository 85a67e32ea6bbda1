"""How MLflow is used everywhere here: silent, no telemetry, one place for local stores.

Gives   `quiet_mlflow`, `load_client`, `local_uri`, `artifact_location`, `public`, `quoted`
"""

import logging
import os
import re
from pathlib import Path

from dpoflow.state.imports import load


def quiet_mlflow() -> None:
    """Before mlflow is imported: no telemetry, no progress bars, no hints on standard error."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def load_client() -> None:
    """Import mlflow as a task needs it, without pandas and scipy, as its skinny edition has it.

    For a process that ends with its task: `mlflow.pyfunc` cannot be imported in it any more.
    """
    quiet_mlflow()
    load("mlflow", without=("pandas", "scipy"))


def local_uri(home: Path) -> str:
    """The tracking store of a laptop: sqlite under the home."""
    return f"sqlite:///{home.resolve()}/mlflow.db"


def artifact_location(home: Path) -> str:
    """Where a laptop's experiments put artifacts: a folder under the home."""
    return (home.resolve() / "mlartifacts").as_uri()


def public(uri: str) -> str:
    """A URI without user and password, for files and eyes."""
    return re.sub(r"^([\w.+-]+://)[^/]*@", r"\1", uri)


def quoted(message: str, uri: str | None = None) -> str:
    """The beginning of what MLflow says, which may hold the whole tracking URI."""
    secret = uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    return (message.replace(secret, public(secret)) if secret else message)[:200]
