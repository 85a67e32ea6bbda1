"""A team's server, as a client sees it: the gate's endpoints, MLflow's own, files by its proxy.

Reads   MLFLOW_TRACKING_URI, and the credentials that MLflow's own client takes
Gives   `Team`: who one is there, `get`, `post`, `files`, `fetch`, `put`; `team_server`;
        `Refused`: what the gate denied, in its own sentence
Not     what is asked for (submission.py, promotion.py, pull.py)
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlparse

from dpoflow.contracts.errors import ConfigError, DataRejected, GateNotPassed, ServiceUnavailable
from dpoflow.contracts.manifest import FileEntry
from dpoflow.tracking.settings import public, quiet_mlflow, quoted

if TYPE_CHECKING:
    from requests import Response

GATE = "/api/2.0/dpoflow"
MLFLOW = "/api/2.0/mlflow"
_FILES = "/api/2.0/mlflow-artifacts/artifacts"
_CHUNK = 1 << 20
_MAX_DEPTH = 16


class Refused(GateNotPassed):
    """The gate says no; the message is its sentence."""


@dataclass(frozen=True)
class Team:
    """A server that keeps the gate, and who one is there."""

    uri: str
    user: str
    roles: frozenset[str]

    def get(self, route: str, /, **query: str) -> dict[str, Any]:
        """An answer to a question. Raises Refused, ConfigError, ServiceUnavailable."""
        return _told(_send(self.uri, "GET", route, params=query), self.uri)

    def post(self, route: str, /, **body: Any) -> dict[str, Any]:
        """The answer to a write, which is sent once: what became of it is asked for, not guessed.

        Raises Refused, ConfigError, ServiceUnavailable.
        """
        return _told(_send(self.uri, "POST", route, json=body), self.uri)

    @contextlib.contextmanager
    def as_role(self, role: str) -> Iterator[None]:
        """What is refused inside to a user without this role is theirs to mend: ConfigError."""
        try:
            yield
        except Refused as refused:
            if role in self.roles:
                raise
            raise ConfigError(str(refused)) from None

    # ------------------------------------------------------------ files of the artifact root

    def files(self, folder: str) -> dict[str, int]:
        """What lies below a folder of the artifact root: name to bytes; empty if nothing."""
        return dict(self._below(folder.strip("/"), "", 0))

    def _below(self, folder: str, name: str, depth: int) -> Iterator[tuple[str, int]]:
        if depth > _MAX_DEPTH:
            raise DataRejected(f"{folder} has folders more than {_MAX_DEPTH} deep; no model has")
        path = f"{folder}/{name}".rstrip("/")
        for each in self.get(_FILES, path=path).get("files", []):
            inside = f"{name}/{each['path']}".lstrip("/")
            if each.get("is_dir"):
                yield from self._below(folder, inside, depth + 1)
            else:
                yield inside, int(each.get("file_size") or 0)

    def fetch(self, path: str, to: Path | None = None) -> FileEntry:
        """Read a file of the artifact root whole, and perhaps keep it; its bytes and their hash.

        Raises DataRejected where it is not there.
        """
        digest, size = hashlib.sha256(), 0
        with contextlib.ExitStack() as stack:
            reply = stack.enter_context(
                contextlib.closing(_send(self.uri, "GET", _at(path), stream=True))
            )
            if reply.status_code == 404:
                raise DataRejected(f"{path} is not in the artifact store any more")
            _check(reply, self.uri)
            kept = stack.enter_context(to.open("wb")) if to is not None else None
            with _outages_named(self.uri):
                for chunk in reply.iter_content(_CHUNK):
                    digest.update(chunk)
                    size += len(chunk)
                    if kept is not None:
                        kept.write(chunk)
        return FileEntry(sha256=digest.hexdigest(), num_bytes=size)

    def put(self, path: str, source: Path) -> None:
        """Write a file of the artifact root. Raises Refused, ServiceUnavailable."""
        with source.open("rb") as stream:
            _check(_send(self.uri, "PUT", _at(path), data=stream), self.uri)


def team_server() -> Team | None:
    """The server that MLFLOW_TRACKING_URI names, if it keeps the gate; None for any other MLflow.

    Raises ConfigError where it does not know the user, ServiceUnavailable where it is away.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith(("http://", "https://")):
        return None
    reply = _send(uri, "GET", f"{GATE}/gate")
    if reply.status_code == 404:
        return None
    _check(reply, uri)
    told = _object(reply)
    if "gate" not in told:  # a page of something else in front
        return None
    return Team(uri, str(told["user"]), frozenset(told["roles"]))


def asked_team() -> Team:
    """The team's server, for what only such a one can do. ConfigError where there is none."""
    team = team_server()
    if team is None:
        where = public(os.environ.get("MLFLOW_TRACKING_URI", "")) or "not set"
        raise ConfigError(
            f"MLFLOW_TRACKING_URI is {where}, and no server with the approval gate; name the one "
            "that dpoflow server runs"
        )
    return team


def _at(path: str) -> str:
    return f"{_FILES}/{quote(path.strip('/'))}"


def folder_of(uri: str, what: str) -> str:
    """The path below the artifact root that a URI of the proxy names. Raises DataRejected."""
    parsed = urlparse(uri)
    if parsed.scheme != "mlflow-artifacts":
        raise DataRejected(f"the files of {what} do not lie below the server's artifact root")
    return parsed.path.strip("/")


def _send(uri: str, method: str, path: str, **more: Any) -> "Response":
    """One request with the credentials that MLflow's client would send. Reads are tried again."""
    quiet_mlflow()
    from mlflow.utils import credentials, rest_utils

    send: Any = rest_utils.http_request
    who: Any = credentials.get_default_host_creds
    with _outages_named(uri):
        reply: Response = send(
            who(uri),
            path,
            method,
            max_retries=2 if method == "GET" else 0,
            raise_on_status=False,
            **more,
        )
    return reply


@contextlib.contextmanager
def _outages_named(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    try:
        yield
    except (MlflowException, RequestException) as error:
        told = quoted(str(error), uri).partition(" failed with exception ")[0]
        raise ServiceUnavailable(
            f"MLflow at {public(uri)} does not answer ({public(told)}); try again"
        ) from None


def _told(reply: "Response", uri: str) -> dict[str, Any]:
    _check(reply, uri)
    return _object(reply)


def _object(reply: "Response") -> dict[str, Any]:
    """The JSON object of an answer; empty where it is none."""
    try:
        told = reply.json()
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _check(reply: "Response", uri: str) -> None:
    """Raises what a status says."""
    status = reply.status_code
    if status < 400:
        return
    message = _message(reply)
    if status == 401:
        raise ConfigError(
            f"MLflow at {public(uri)} does not know you; set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD"
        )
    if status == 403:
        raise Refused(message)
    if status in (408, 429) or status >= 500:
        raise ServiceUnavailable(f"MLflow at {public(uri)}: {message} (HTTP {status}); try again")
    raise ConfigError(f"MLflow at {public(uri)}: {message} (HTTP {status})")


def _message(reply: "Response") -> str:
    """What an error says, without markup: some are pages."""
    told = _object(reply)
    return str(told.get("message") or told.get("detail") or reply.reason or "an error")[:1000]
