"""The MLflow run of a whole pipeline run: opened by whoever starts it, parent of every step's run.

Reads   MLFLOW_TRACKING_URI, and MLFLOW_RUN_ID where someone else opened the run
Gives   `open_run`, `PipelineRun`, `close_run`; for who waits elsewhere `run_of`,
        `message_of` and `summary_of`
Not     step runs (step_run.py)
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from dpoflow.contracts.errors import ConfigError, ServiceUnavailable
from dpoflow.contracts.results import RunState, RunSummary
from dpoflow.tracking.settings import artifact_location, local_uri, public, quiet_mlflow, quoted

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STATE = "dpoflow.state"
MESSAGE = "dpoflow.message"
"""Tags of how the DAG ended, and of what ended it where it failed."""
KFP_TAG = "dpoflow.kfp_run_id"
"""Kubeflow's id of a run, on its MLflow run."""


@dataclass(frozen=True)
class PipelineRun:
    """An open MLflow run."""

    tracking_uri: str
    experiment_id: str
    run_id: str
    ours: bool
    """Whether we opened it, and so may end it."""


def open_run(
    home: Path,
    *,
    experiment: str,
    run_name: str,
    spec_json: str,
    known: str | None,
    kfp_run_id: str | None = None,
) -> PipelineRun:
    """Attach to MLFLOW_RUN_ID if it is set, continue `known` if it is there, else open a run.

    Raises ConfigError where this account may not write there, ServiceUnavailable.
    """
    quiet_mlflow()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri = os.environ.get("MLFLOW_TRACKING_URI") or local_uri(home)
    try:
        client = MlflowClient(uri)
        attached = os.environ.get("MLFLOW_RUN_ID")
        if attached:
            theirs = client.get_run(attached)
            _forget_ending(client, theirs)
            return PipelineRun(uri, theirs.info.experiment_id, attached, ours=False)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            place = artifact_location(home) if uri.startswith("sqlite:") else None
            experiment_id = client.create_experiment(experiment, artifact_location=place)
        else:
            experiment_id = found.experiment_id
            if found.lifecycle_stage != "active":
                raise ConfigError(
                    f"the MLflow experiment {experiment} was deleted; give the spec another name, "
                    f"or restore it: mlflow experiments restore -x {experiment_id}"
                )
        earlier = None if known is None else _active(client, known)
        if earlier is not None:
            client.update_run(earlier.info.run_id, status="RUNNING")
            _forget_ending(client, earlier)
            return PipelineRun(uri, experiment_id, earlier.info.run_id, ours=True)
        tags = {"mlflow.runName": run_name, "dpoflow.run_id": run_name}
        tags |= {KFP_TAG: kfp_run_id} if kfp_run_id else {}
        run_id = client.create_run(experiment_id, tags=tags).info.run_id
        client.log_text(run_id, spec_json, "spec.json")
    except MlflowException as error:
        if error.error_code == "PERMISSION_DENIED" or "error code 403" in error.message:
            who = os.environ.get("MLFLOW_TRACKING_USERNAME") or "this account"
            raise ConfigError(
                f"{who} may not write to the experiment {experiment} of MLflow at {public(uri)}, "
                "which somebody else made; give it EDIT there, or the spec another name"
            ) from None
        raise ServiceUnavailable(
            f"MLflow at {public(uri)} did not accept the run ({quoted(error.message, uri)}); "
            "check MLFLOW_TRACKING_URI and try again"
        ) from error
    return PipelineRun(uri, experiment_id, run_id, ours=True)


def run_of(kfp_run_id: str, experiment: str) -> PipelineRun | None:
    """The run that the first task of a run on a cluster opened; None before it has.

    Raises ServiceUnavailable.
    """
    quiet_mlflow()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri, client = os.environ["MLFLOW_TRACKING_URI"], MlflowClient()
    try:
        within = client.get_experiment_by_name(experiment)
        wanted = f"tags.`{KFP_TAG}` = '{kfp_run_id}'"
        found = client.search_runs([within.experiment_id], wanted) if within else []
    except MlflowException as error:
        raise ServiceUnavailable(
            f"MLflow at {public(uri)} did not tell of the run ({quoted(error.message, uri)})"
        ) from error
    return (
        PipelineRun(uri, found[0].info.experiment_id, found[0].info.run_id, False)
        if found
        else None
    )


def message_of(run_id: str) -> str:
    """What ended a pipeline's run, as its last task noted it; empty where it noted nothing."""
    quiet_mlflow()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return str(MlflowClient().get_run(run_id).data.tags.get(MESSAGE, ""))
    except MlflowException as error:
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        raise ServiceUnavailable(
            f"MLflow at {public(uri)} did not tell of the run ({quoted(error.message, uri)})"
        ) from error


def summary_of(run: PipelineRun) -> RunSummary | None:
    """The summary that the run's end left there.

    None before, where MLflow does not answer, and where another version of dpoflow wrote it.
    """
    quiet_mlflow()
    from mlflow.artifacts import load_text
    from mlflow.exceptions import MlflowException

    try:
        text = load_text(f"runs:/{run.run_id}/summary.json")
        return RunSummary.model_validate_json(text)
    except (MlflowException, OSError, ValidationError):
        return None


def _active(client: "MlflowClient", run_id: str) -> "Run | None":
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException:
        return None
    return run if run.info.lifecycle_stage == "active" else None


def _forget_ending(client: "MlflowClient", run: "Run") -> None:
    """How an earlier attempt ended is not how this one does."""
    for tag in {STATE, MESSAGE} & run.data.tags.keys():
        client.delete_tag(run.info.run_id, tag)


def close_run(run: PipelineRun, state: RunState, summary_json: str) -> None:
    """Log the summary, and end the run if it is ours."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(run.tracking_uri)
        client.log_text(run.run_id, summary_json, "summary.json")
        if run.ours:
            client.set_terminated(run.run_id, "FINISHED" if state == "SUCCEEDED" else "FAILED")
    except MlflowException as error:
        raise ServiceUnavailable(
            f"MLflow at {public(run.tracking_uri)} did not take the summary "
            f"({quoted(error.message, run.tracking_uri)}); the same command tells it again"
        ) from error
