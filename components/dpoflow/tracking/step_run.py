"""One MLflow run a step, a child of the pipeline's run.

Reads   MLFLOW_TRACKING_URI; DPOFLOW_MLFLOW_PARENT and DPOFLOW_MLFLOW_EXPERIMENT from the runner;
        MLFLOW_RUN_ID where a platform already opened a run for this task: then that run is used and
        never ended
Gives   `step_run`, `metric_name`; events with metrics reach MLflow while the step works
Not     models and versions (registry/)
"""

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dpoflow.contracts.base import Contract, sha256_json
from dpoflow.contracts.errors import ServiceUnavailable
from dpoflow.state.events import read_events
from dpoflow.state.files import write_text
from dpoflow.state.surroundings import PARENT, trace_id
from dpoflow.tables import is_table
from dpoflow.tracking.settings import load_client, public, quoted

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from dpoflow.state.step import StepState

EXPERIMENT = "DPOFLOW_MLFLOW_EXPERIMENT"
STEP_RUN = "DPOFLOW_MLFLOW_STEP_RUN"
CLOSES = "DPOFLOW_MLFLOW_CLOSES"
"""Set where no runner waits for the DAG's end, and the DAG's last task ends the run."""
TRACE_TAG = "dpoflow.trace_id"
"""Of the pipeline's run and of its steps': what their events carry."""
_MAX_PARAM = 500
_REFUSED = re.compile(r"[^\w\-. :/]")
"""What MLflow does not take in a metric's name."""
_MAX_NAME = 250
_TABLES = "mlflow.loggedArtifacts"
"""The tag that MLflow's pages, and `mlflow.load_table`, find tables by."""
_SHOWN = {".json", ".html", ".png"}
_MAX_SHOWN_BYTES = 8_000_000


class Tracked(Protocol):
    """What a step's life tells its tracking."""

    def conclude(self, result: Contract, digests: dict[str, str], *, reused: bool) -> None:
        """The step is done: its result, and the digest of every output."""


class Untracked:
    """No tracking server was named."""

    def conclude(self, result: Contract, digests: dict[str, str], *, reused: bool) -> None:
        """Nothing to tell."""


@contextlib.contextmanager
def step_run(
    step: str, *, task: str, config: dict[str, Any], parents: dict[str, str], state: "StepState"
) -> Iterator[Tracked]:
    """Track a step for as long as the context lasts; a failure inside marks the run FAILED.

    `task` is what the DAG calls it: the run's name.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        yield Untracked()
        return
    load_client()
    with _outages_named(), _tracked(step, task, config, parents, state) as run:
        yield run


@contextlib.contextmanager
def _outages_named() -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise ServiceUnavailable(
            f"MLflow at {public(os.environ['MLFLOW_TRACKING_URI'])} did not take what the step has "
            f"to say ({quoted(error.message)}); the step's work is kept: check the server, and run "
            "the same command again"
        ) from error


@contextlib.contextmanager
def _tracked(
    step: str, task: str, config: dict[str, Any], parents: dict[str, str], state: "StepState"
) -> Iterator[Tracked]:
    from mlflow import MlflowClient

    client = MlflowClient()
    attached = os.environ.get("MLFLOW_RUN_ID")
    run_id = attached or _own_run(client, step, task, state.folder)
    os.environ[STEP_RUN] = run_id
    _log_inputs(client, run_id, config, parents)
    try:
        with _metrics_follow(client, run_id, state.folder):
            yield _Run(client, run_id, state)
    except BaseException as error:
        if not attached:
            with _unless_away():
                client.set_tag(run_id, "dpoflow.error", f"{type(error).__name__}: {error}"[:4000])
                client.set_terminated(run_id, "FAILED")
        raise
    if not attached:
        client.set_terminated(run_id, "FINISHED")


def _own_run(client: "MlflowClient", step: str, task: str, folder: Path) -> str:
    """This task's child run; the one of a killed attempt is continued, so a step has one run."""
    parent, experiment = os.environ.get(PARENT, ""), os.environ.get(EXPERIMENT, "0")
    memory = folder / "mlflow.json"
    identity = {"uri_sha256": sha256_json(os.environ["MLFLOW_TRACKING_URI"]), "parent": parent}
    with contextlib.suppress(FileNotFoundError, ValueError):
        known = json.loads(memory.read_text("utf-8"))
        same = {key: known.get(key) for key in identity} == identity
        if same and _goes_on(client, str(known["run_id"])):
            return str(known["run_id"])
    tags = {"mlflow.runName": task, "dpoflow.step": step}
    if parent:
        tags |= {"mlflow.parentRunId": parent, TRACE_TAG: trace_id()}
    run_id: str = client.create_run(experiment, tags=tags).info.run_id
    write_text(memory, json.dumps(identity | {"run_id": run_id}))
    return run_id


def _goes_on(client: "MlflowClient", run_id: str) -> bool:
    """Whether a run could be opened again: the gate closes those that a version rests on."""
    from mlflow.exceptions import MlflowException

    if client.get_run(run_id).info.lifecycle_stage != "active":
        return False
    try:
        client.update_run(run_id, status="RUNNING")
    except MlflowException as error:
        if error.error_code != "PERMISSION_DENIED":
            raise
        return False
    return True


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield (
                f"{prefix}{key}",
                text if len(text) <= _MAX_PARAM else text[: _MAX_PARAM - 1] + "…",
            )


def _log_inputs(
    client: "MlflowClient", run_id: str, config: dict[str, Any], parents: dict[str, str]
) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    params = [Param(key, value) for key, value in _flat(config)]
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])
    datasets = [
        DatasetInput(
            # MLflow keeps 36 characters of a digest, so the whole one stands in source and tag.
            Dataset(name, digest[:36], "dpoflow", json.dumps({"sha256": digest})),
            [InputTag("mlflow.data.context", name), InputTag("sha256", digest)],
        )
        for name, digest in parents.items()
    ]
    if datasets:
        client.log_inputs(run_id, datasets)


@contextlib.contextmanager
def _metrics_follow(client: "MlflowClient", run_id: str, folder: Path) -> Iterator[None]:
    """Hand metrics from the event log to MLflow, every two seconds and at the end."""
    ended, sender = threading.Event(), _MetricSender(client, run_id, folder)

    def follow() -> None:
        while not ended.wait(2.0):
            with _unless_away():
                sender.send()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        with _unless_away():  # the step's own error is the one to tell
            sender.send()
        raise
    finally:
        ended.set()
        thread.join()
    sender.send()


@contextlib.contextmanager
def _unless_away() -> Iterator[None]:
    """For what may be told later, or must not hide a worse error."""
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException):
        yield


class _MetricSender:
    """Sends each (metric, step) once, though a resumed step says some of them again."""

    def __init__(self, client: "MlflowClient", run_id: str, folder: Path) -> None:
        self._client, self._run_id, self._path = client, run_id, folder / "events.jsonl"
        self._offset, self._sent = 0, set[tuple[str, int]]()

    def send(self) -> None:
        from mlflow.entities import Metric

        events, offset = read_events(self._path, self._offset)
        fresh: dict[tuple[str, int], Metric] = {}
        for event in events:
            for given, value in event.metrics.items():
                name = metric_name(given)
                point = (name, event.at or 0)
                if point not in self._sent and point not in fresh:
                    fresh[point] = Metric(name, value, int(event.time * 1000), event.at or 0)
        metrics = list(fresh.values())
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + 1000])
        self._offset = offset  # what the server did not take is sent again
        self._sent |= fresh.keys()


def metric_name(given: str) -> str:
    """As MLflow takes it: a slice may be called anything, and a name is a path to MLflow."""
    parts = [_REFUSED.sub("_", part) for part in given.split("/")]
    name = "/".join("_" * max(1, len(part)) if not part.strip(".") else part for part in parts)
    if len(name) <= _MAX_NAME:
        return name
    ending = sha256_json(given)[:8]  # two long names that begin alike are two
    return f"{name[: _MAX_NAME - 9].rstrip('/')}_{ending}"


def _numbers(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        name = metric_name(f"{prefix}/{key}")
        if isinstance(value, dict):
            yield from _numbers(value, name)
        elif isinstance(value, int | float):
            yield name, float(value)


class _Run:
    def __init__(self, client: "MlflowClient", run_id: str, state: "StepState") -> None:
        self._client, self._run_id, self._state = client, run_id, state

    def conclude(self, result: Contract, digests: dict[str, str], *, reused: bool) -> None:
        """Log the result's numbers, each output's manifest, and what a browser can show of it."""
        from mlflow.entities import Metric, RunTag

        now, values = int(time.time() * 1000), result.model_dump(mode="json")
        step = str(self._client.get_run(self._run_id).data.tags.get("dpoflow.step", "step"))
        metrics = [Metric(name, value, now, 0) for name, value in _numbers(values, step)]
        tags = [RunTag(f"dpoflow.digest.{name}", digest) for name, digest in digests.items()]
        tags.append(RunTag("dpoflow.reused", str(reused).lower()))
        self._client.log_batch(self._run_id, metrics=metrics, tags=tags)
        tables = []
        for name in digests:
            for path in sorted(self._state.output(name).iterdir()):
                if path.suffix in _SHOWN and path.stat().st_size <= _MAX_SHOWN_BYTES:
                    self._client.log_artifact(self._run_id, str(path), name)
                    tables += [f"{name}/{path.name}"] if is_table(path) else []
        if tables:
            told = [{"path": table, "type": "table"} for table in tables]
            self._client.set_tag(self._run_id, _TABLES, json.dumps(told))
