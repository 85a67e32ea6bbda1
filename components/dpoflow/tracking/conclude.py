"""Notes on the pipeline's MLflow run: how its DAG ended, what it cost, what a step decided.

Reads   DPOFLOW_MLFLOW_PARENT, or MLFLOW_RUN_ID where a platform opened the run; the records of the
        run's tasks
Gives   `run`, `note`; whoever opened the run ends it, and this only where no runner waits for the
        DAG, which then has its summary.json from here too
"""

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dpoflow.contracts.results import MlflowSummary
from dpoflow.state import files
from dpoflow.state.step import TaskRecord, read_records
from dpoflow.state.summary import summarise
from dpoflow.state.surroundings import KFP_RUN_ID, PARENT, RUN_DIR, STATE_ROOT, trace_id
from dpoflow.state.usage import cost_of
from dpoflow.tracking.pipeline_run import MESSAGE, STATE
from dpoflow.tracking.settings import load_client, public
from dpoflow.tracking.step_run import CLOSES, TRACE_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LONGEST = 4000
"""Of a tag, in characters."""

_WELL = ("SUCCEEDED", "COMPLETE", "CACHED")
"""The second and third are ML metadata's, whose words Kubeflow's driver hands on."""
_UNSURE = ("", "RUNNING", "PENDING", "UNKNOWN", "STATE_UNSPECIFIED", "RUNTIME_STATE_UNSPECIFIED")
"""Heard where the driver asks before it is noted; then the last task's own record says it."""


def run(state: str, message: str) -> str:
    """Tell the run the DAG's state, what ended it and what it cost; returns the state."""
    folder = os.environ.get(RUN_DIR)
    records = read_records(Path(folder)) if folder else {}
    state = _ended(state, records)
    told, cost = _cause(records.values()) or message, cost_of(records.values())
    tags = {STATE: state, MESSAGE: told, TRACE_TAG: trace_id()}
    run_id = note(
        tags={name: value for name, value in tags.items() if value},
        metrics={"cost/gpu_hours": cost.gpu_hours, "cost/money": cost.money},
    )
    if run_id is None:
        return state
    from mlflow import MlflowClient

    client, succeeded = MlflowClient(), state == "SUCCEEDED"
    try:
        if folder and os.environ.get(KFP_RUN_ID):
            _leave_summary(client, run_id, Path(folder), records, None if succeeded else told)
    finally:
        if os.environ.get(CLOSES):
            client.set_terminated(run_id, "FINISHED" if succeeded else "FAILED")
    return state


def note(*, tags: Mapping[str, str], metrics: Mapping[str, float] | None = None) -> str | None:
    """Tag the run, if there is one; its id."""
    run_id = os.environ.get(PARENT) or os.environ.get("MLFLOW_RUN_ID")
    if not (os.environ.get("MLFLOW_TRACKING_URI") and run_id):
        return None
    load_client()
    from mlflow import MlflowClient
    from mlflow.entities import Metric, RunTag

    now = int(time.time() * 1000)
    MlflowClient().log_batch(
        run_id,
        metrics=[Metric(name, value, now, 0) for name, value in (metrics or {}).items()],
        tags=[RunTag(key, value[:_LONGEST]) for key, value in tags.items()],
    )
    return run_id


def _leave_summary(
    client: "MlflowClient",
    run_id: str,
    folder: Path,
    records: Mapping[str, TaskRecord],
    error: str | None,
) -> None:
    """On the run, and on the volume beside its records: of the tasks that began, this one aside."""
    info = client.get_run(run_id).info
    began = sorted(records.values(), key=lambda record: record.started)
    summary = summarise(
        Path(os.environ[STATE_ROOT]),
        records,
        run_id=info.run_name,
        name=client.get_experiment(info.experiment_id).name,
        pipeline="retrain" if "decide" in records else "align",
        tasks=[record.name for record in began if record.name != "conclude"],
        state="SUCCEEDED" if error is None else "FAILED",
        error=error,
        mlflow=MlflowSummary(tracking_uri=public(os.environ["MLFLOW_TRACKING_URI"]), run_id=run_id),
    )
    text = summary.model_dump_json(indent=2) + "\n"
    files.write_text(folder / "summary.json", text)
    client.log_text(run_id, text, "summary.json")


def _ended(word: str, records: Mapping[str, TaskRecord]) -> str:
    """How a DAG ended, of the word that Kubeflow has for it."""
    if word in _WELL:
        return "SUCCEEDED"
    if word not in _UNSURE:
        return word
    # No cache answers for these two; a task whose pod never began has left no record at all.
    last, decided = records.get("register"), records.get("decide")
    recorded = last is not None and last.state == "SUCCEEDED"
    skipped = decided is not None and (decided.result or {}).get("decision") == "skip"
    return "SUCCEEDED" if recorded or skipped else "FAILED"


def _cause(records: Iterable[TaskRecord]) -> str:
    """`task: Kind: message` of the first task that failed; empty where none says so."""
    failed = [record for record in records if record.state == "FAILED" and record.ended]
    if not failed:
        return ""
    first = min(failed, key=lambda record: record.ended or 0.0)
    return f"{first.name}: {first.error_type}: {first.error}"
