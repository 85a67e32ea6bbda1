"""A tracking server that people share: who we are there, and its refusals in our words.

Reads   MLFLOW_TRACKING_URI and MLflow's own credentials (MLFLOW_TRACKING_USERNAME, …)
Gives   `connect`, `require_users`, `explained`, `experiment_id`, `pages`
Not     what is asked of it (labels.py, feedback.py)
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from dpoflow.contracts.errors import ConfigError, ServiceUnavailable
from dpoflow.tracking.settings import public, quiet_mlflow, quoted

if TYPE_CHECKING:
    from mlflow import MlflowClient

_WHO = "/api/2.0/mlflow/users/current"
_PAGE = 100


def connect(what: str) -> "MlflowClient":
    """A client, once the server has answered; `what` needs it. Raises ConfigError, Unavailable."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        raise ConfigError(
            f"{what} lies in MLflow: set MLFLOW_TRACKING_URI to the server, such as "
            "https://mlflow.example.org"
        )
    quiet_mlflow()
    from mlflow import MlflowClient

    if _is_server(uri):
        with explained(what):
            _ask_who(uri)  # tried twice, where every other call would be tried for minutes
    return MlflowClient(uri)


def require_users(what: str) -> str:
    """The name that the server knows us by. ConfigError where it asks nobody for a name."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    name = None
    if _is_server(uri):
        quiet_mlflow()
        with explained(what):
            name = _ask_who(uri)
    if name is None:
        raise ConfigError(
            f"{what}: MLflow at {public(uri)} asks nobody who they are, so a label could say "
            "anything of who gave it; use a server with users, such as mlflow server "
            "--app-name basic-auth"
        )
    return name


def _is_server(uri: str) -> bool:
    return uri.lower().startswith(("http://", "https://"))


def _ask_who(uri: str) -> str | None:
    """The user of our credentials; None where the server has no users."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request, verify_rest_response

    ask: Any = http_request
    as_us: Any = get_default_host_creds
    reply = ask(as_us(uri), _WHO, "GET", max_retries=1, timeout=30, raise_on_status=False)
    if reply.status_code == 404:
        return None
    verify_rest_response(reply, _WHO)
    user = reply.json().get("user")
    return str(user["username"]) if isinstance(user, dict) and user.get("username") else None


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """What MLflow raises, by who must act: ConfigError or ServiceUnavailable."""
    from mlflow.exceptions import MlflowException

    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    try:
        yield
    except MlflowException as error:
        told, where = quoted(error.message, uri), f"MLflow at {public(uri)}"
        if error.error_code == "UNAUTHENTICATED":
            raise ConfigError(
                f"{what}: {where} does not know these credentials; set MLFLOW_TRACKING_USERNAME "
                "and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            ) from None
        if error.error_code == "PERMISSION_DENIED":
            raise ConfigError(
                f"{what}: {where} does not allow it to this user ({told}); the README of tracking "
                "says which permission on the experiment it takes"
            ) from None
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"):
            raise ConfigError(f"{what}: {where} refuses ({told})") from None
        raise ServiceUnavailable(
            f"{what}: {where} does not answer as it should ({told}); check the server, and give "
            "the same command again"
        ) from None


def experiment_id(client: "MlflowClient", name: str, what: str) -> str:
    """Of the experiment called `name`. ConfigError where there is none."""
    with explained(what):
        found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        uri = public(os.environ.get("MLFLOW_TRACKING_URI", ""))
        how = "was deleted from" if found else "is not in"
        raise ConfigError(
            f"{what}: the experiment {name} {how} MLflow at {uri}, or is hidden from this user; "
            "mend the name"
        )
    return str(found.experiment_id)


def pages(ask: Callable[..., Any], *given: Any, **more: Any) -> Iterator[Any]:
    """Everything that `ask` lists, page after page."""
    token = None
    while True:
        page = ask(*given, max_results=_PAGE, page_token=token, **more)
        yield from page
        token = page.token
        if not token:
            return
