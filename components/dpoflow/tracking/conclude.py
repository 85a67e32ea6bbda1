"""Notes on the pipeline's MLflow run: how its DAG ended, what it cost, what a step decided.

Reads   DPOFLOW_MLFLOW_PARENT, or MLFLOW_RUN_ID where a platform opened the run; the records of the
        run's tasks
Gives   `run`, `note`; whoever opened the run ends it, and this only where no runner waits for the
        DAG
"""

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from dpoflow.state.step import TaskRecord
from dpoflow.state.surroundings import PARENT, RUN_DIR, trace_id
from dpoflow.state.usage import cost_of
from dpoflow.tracking.pipeline_run import MESSAGE, STATE
from dpoflow.tracking.settings import quiet_mlflow
from dpoflow.tracking.step_run import CLOSES, TRACE_TAG

_LONGEST = 4000
"""Of a tag, in characters."""


def run(state: str, message: str) -> str:
    """Tell the run the DAG's state, what ended it and what it cost; returns the state."""
    records = _records()
    told, cost = _cause(records) or message, cost_of(records)
    tags = {STATE: state, MESSAGE: told, TRACE_TAG: trace_id()}
    run_id = note(
        tags={name: value for name, value in tags.items() if value},
        metrics={"cost/gpu_hours": cost.gpu_hours, "cost/money": cost.money},
    )
    if run_id and os.environ.get(CLOSES):
        from mlflow import MlflowClient

        ended = "FINISHED" if state == "SUCCEEDED" else "FAILED"
        MlflowClient().set_terminated(run_id, ended)
    return state


def note(*, tags: Mapping[str, str], metrics: Mapping[str, float] | None = None) -> str | None:
    """Tag the run, if there is one; its id."""
    run_id = os.environ.get(PARENT) or os.environ.get("MLFLOW_RUN_ID")
    if not (os.environ.get("MLFLOW_TRACKING_URI") and run_id):
        return None
    quiet_mlflow()
    from mlflow import MlflowClient
    from mlflow.entities import Metric, RunTag

    now = int(time.time() * 1000)
    MlflowClient().log_batch(
        run_id,
        metrics=[Metric(name, value, now, 0) for name, value in (metrics or {}).items()],
        tags=[RunTag(key, value[:_LONGEST]) for key, value in tags.items()],
    )
    return run_id


def _records() -> list[TaskRecord]:
    folder = os.environ.get(RUN_DIR)
    paths = sorted((Path(folder) / "tasks").glob("*.json")) if folder else []
    return [TaskRecord.model_validate_json(path.read_text("utf-8")) for path in paths]


def _cause(records: Iterable[TaskRecord]) -> str:
    """`task: Kind: message` of the first task that failed; empty where none says so."""
    failed = [record for record in records if record.state == "FAILED" and record.ended]
    if not failed:
        return ""
    first = min(failed, key=lambda record: record.ended or 0.0)
    return f"{first.name}: {first.error_type}: {first.error}"
