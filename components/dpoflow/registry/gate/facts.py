"""What rules need to know of the registry, and what is sealed.

Reads   MLflow's own server-side stores; the table dpoflow_sealed
Gives   `Facts`, what rules ask; `StoreFacts`, which looks it up; `Seal`, `seal`, `unseal`
Not     decisions and evidence (case.py), submissions and approvals (book.py)
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dpoflow.registry.gate.audit import lookups_of

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_LOGGED_MODEL = re.compile(r"models:/(m-[0-9a-f]{32})")

SealedKind = Literal["run", "model", "experiment", "files", "above", "version"]
"""`files` is a folder of the artifact root with all below it; `above` one that has such inside."""


@dataclass(frozen=True)
class Seal:
    """Something that rests as it was evaluated."""

    kind: SealedKind
    name: str
    sealed_by: str
    run: str
    """The step's run that may still end: until it is FINISHED, whoever sealed it writes to it."""


@dataclass(frozen=True)
class VersionFacts:
    """A model version as the registry holds it."""

    name: str
    version: str
    tags: dict[str, str]
    model_id: str
    """Of its source, which the registry keeps; the id itself it does not."""
    run_id: str
    source: str
    description: str
    stage: str = "None"


@dataclass(frozen=True)
class LoggedModelFacts:
    """A logged model: where its files lie, and the run it came from."""

    model_id: str
    experiment_id: str
    artifact_location: str
    source_run_id: str


@dataclass(frozen=True)
class RunFacts:
    """A run: where its files lie, and whether it has ended."""

    run_id: str
    experiment_id: str
    artifact_uri: str
    status: str


class Facts(Protocol):
    """What rules ask."""

    def version(self, name: str, version: str) -> VersionFacts | None:
        """None where there is none."""
        ...

    def aliases(self, name: str) -> dict[str, str]:
        """Alias to version; empty where there is no such model."""
        ...

    def sealed(self, *asked: tuple[SealedKind, str]) -> tuple[Seal, ...]:
        """Those of `asked` that are sealed."""
        ...

    def run(self, run_id: str) -> RunFacts | None:
        """None where there is none."""
        ...

    def logged_model(self, model_id: str) -> LoggedModelFacts | None:
        """None where there is none."""
        ...

    def has_file(self, path: str) -> bool:
        """Whether there is something at this path of the artifact root."""
        ...


class StoreFacts:
    """Looked up where MLflow keeps it."""

    def __init__(self, engine: "Engine") -> None:
        self._lookups = lookups_of(engine)

    def version(self, name: str, version: str) -> VersionFacts | None:
        """From the registry store."""
        from mlflow.exceptions import MlflowException

        if not version.isdecimal():
            return None
        try:
            return _version_facts(_registry().get_model_version(name, version))
        except MlflowException as error:
            _none_if_absent(error)
            return None

    def versions(self, name: str) -> list[VersionFacts]:
        """Every version of a model, newest first."""
        found, token = [], None
        quoted = name.replace("'", "''")
        while True:
            page = _registry().search_model_versions(
                f"name = '{quoted}'" if name else None, max_results=1000, page_token=token
            )
            found += [_version_facts(each) for each in page]
            token = page.token
            if not token:
                return sorted(found, key=lambda each: (each.name, -int(each.version)))

    def models(self) -> dict[str, dict[str, str]]:
        """Every registered model with its aliases."""
        found: dict[str, dict[str, str]] = {}
        token = None
        while True:
            page = _registry().search_registered_models(max_results=1000, page_token=token)
            for each in page:
                found[each.name] = {key: str(value) for key, value in each.aliases.items()}
            token = page.token
            if not token:
                return found

    def aliases(self, name: str) -> dict[str, str]:
        """From the registry store."""
        from mlflow.exceptions import MlflowException

        try:
            model = _registry().get_registered_model(name)
        except MlflowException as error:
            _none_if_absent(error)
            return {}
        return {alias: str(version) for alias, version in model.aliases.items()}

    def sealed(self, *asked: tuple[SealedKind, str]) -> tuple[Seal, ...]:
        """By primary key, and past SQLAlchemy's own language: most writes of a server ask this."""
        from sqlalchemy.exc import DBAPIError

        if not asked:
            return ()
        try:
            return self._sealed(asked)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
            return self._sealed(asked)  # a database that came back: the pool is a fresh one now

    def _sealed(self, asked: Sequence[tuple[SealedKind, str]]) -> tuple[Seal, ...]:
        mark = "?" if self._lookups.dialect.name == "sqlite" else "%s"
        by_kind: dict[str, list[str]] = {}
        for kind, name in asked:
            by_kind.setdefault(kind, []).append(name)
        # One branch a kind: sqlite takes the key for these, and scans for pairs in a list.
        where = " OR ".join(
            f"(kind = {mark} AND name IN ({', '.join(mark for _ in names)}))"
            for names in by_kind.values()
        )
        statement = f"SELECT kind, name, sealed_by, run FROM dpoflow_sealed WHERE {where}"  # noqa: S608  # only placeholders are put in
        values = tuple(word for kind, names in by_kind.items() for word in (kind, *names))
        with self._lookups.connect() as connection:
            rows = connection.exec_driver_sql(statement, values).fetchall()
        return tuple(Seal(*row) for row in rows)

    def run(self, run_id: str) -> RunFacts | None:
        """From the tracking store."""
        from mlflow.exceptions import MlflowException

        try:
            info = _tracking().get_run(run_id).info
        except MlflowException as error:
            _none_if_absent(error)
            return None
        return RunFacts(run_id, str(info.experiment_id), str(info.artifact_uri), str(info.status))

    def logged_model(self, model_id: str) -> LoggedModelFacts | None:
        """From the tracking store."""
        from mlflow.exceptions import MlflowException

        try:
            found = _tracking().get_logged_model(model_id)
        except MlflowException as error:
            _none_if_absent(error)
            return None
        return LoggedModelFacts(
            model_id,
            str(found.experiment_id),
            str(found.artifact_location),
            str(found.source_run_id or ""),
        )

    def has_file(self, path: str) -> bool:
        """In the artifact root, by listing its folder."""
        import posixpath

        listed = artifact_root().list_artifacts(posixpath.dirname(path) or None)
        return any(posixpath.basename(each.path) == posixpath.basename(path) for each in listed)


def seal(connection: "Connection", seals: Sequence[Seal]) -> list[Seal]:
    """Seal what is not sealed, in a turn of the log; gives what was new."""
    from sqlalchemy import text

    statement = text(
        "INSERT INTO dpoflow_sealed (kind, name, sealed_by, run) "
        "VALUES (:kind, :name, :sealed_by, :run) ON CONFLICT (kind, name) DO NOTHING"
    )
    return [each for each in seals if connection.execute(statement, vars(each)).rowcount]


def unseal(connection: "Connection", seals: Sequence[Seal]) -> None:
    """For a version that was not recorded after all, in a turn of the log."""
    from sqlalchemy import text

    statement = text("DELETE FROM dpoflow_sealed WHERE kind = :kind AND name = :name")
    for each in seals:
        connection.execute(statement, {"kind": each.kind, "name": each.name})


def artifact_root() -> Any:
    """The store below the server's artifact proxy."""
    from mlflow.server import handlers

    root: Any = handlers._get_artifact_repo_mlflow_artifacts  # noqa: SLF001
    return root()


def proxied(uri: str) -> str | None:
    """The path below the artifact root that a URI of the proxy names; None for other places."""
    from urllib.parse import urlparse

    parsed = urlparse(uri)
    return parsed.path.strip("/") if parsed.scheme == "mlflow-artifacts" else None


def _registry() -> Any:
    from mlflow.server import handlers

    return handlers._get_model_registry_store()  # noqa: SLF001


def _tracking() -> Any:
    from mlflow.server import handlers

    return handlers._get_tracking_store()  # noqa: SLF001


def _none_if_absent(error: Any) -> None:
    if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
        raise error


def _version_facts(found: Any) -> VersionFacts:
    return VersionFacts(
        name=str(found.name),
        version=str(found.version),
        tags=dict(found.tags),
        model_id=named[1] if (named := _LOGGED_MODEL.fullmatch(str(found.source))) else "",
        run_id=str(found.run_id or ""),
        source=str(found.source or ""),
        description=str(found.description or ""),
        stage=str(found.current_stage or "None"),
    )
