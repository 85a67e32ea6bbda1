"""Starting a server with the gate, once it is sure that its workers will not die of it.

Reads   the environment that the workers will have
Gives   `check_settings`; `check_ready`: tables, log and admin account are there, or one error says
        what is missing; `run_mlflow`
Not     what the command line says (dpoflow_pipelines/server.py)
"""

import os

from dpoflow.contracts.errors import ConfigError, ServiceUnavailable
from dpoflow.registry.gate import audit
from dpoflow.registry.gate.case import trusted_signers
from dpoflow.registry.gate.roles import Roles
from dpoflow.tracking.settings import quiet_mlflow, quoted


def check_settings() -> None:
    """What needs no database. Raises ConfigError."""
    if not os.environ.get("MLFLOW_FLASK_SERVER_SECRET_KEY"):
        raise ConfigError(
            "MLFLOW_FLASK_SERVER_SECRET_KEY is not set; give the server a secret of its own, such "
            "as what openssl rand -hex 32 prints, the same at each start"
        )
    audit.own_key()
    Roles(os.environ)
    trusted_signers(os.environ)


def check_ready(backend: str) -> None:
    """Make MLflow's accounts and the log where they are missing.

    Raises ConfigError, DataRejected, ServiceUnavailable. Once it returns, workers need not make
    the admin account, and so do not race for it.
    """
    engine = audit.engine_of(backend)
    try:
        audit.Log(engine, audit.own_key()).prepare()
    finally:
        engine.dispose()
    quiet_mlflow()
    from mlflow.exceptions import MlflowException
    from mlflow.server import auth
    from sqlalchemy.exc import SQLAlchemyError

    try:
        auth.bootstrap_admin_user()
    except MlflowException as error:
        raise ConfigError(quoted(error.message)) from None
    except SQLAlchemyError as error:
        raise ServiceUnavailable(
            f"the database of accounts does not answer ({type(error).__name__}); check that it runs"
        ) from None


def run_mlflow(arguments: list[str]) -> None:
    """MLflow's own command in this process, which has all of it loaded; ends with the server."""
    from mlflow.cli import cli

    cli.main(args=arguments, prog_name="mlflow")
