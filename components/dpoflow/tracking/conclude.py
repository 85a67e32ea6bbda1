"""Note on the pipeline's MLflow run how its DAG ended.

Reads   DPOFLOW_MLFLOW_PARENT, or MLFLOW_RUN_ID where a platform opened the run; the records of the
        run's tasks
Gives   `run`; whoever opened the run ends it, and this only where no runner waits for the DAG
"""

import os
from pathlib import Path

from dpoflow.state.step import TaskRecord
from dpoflow.state.surroundings import RUN_DIR
from dpoflow.tracking.settings import quiet_mlflow
from dpoflow.tracking.step_run import CLOSES, PARENT


def run(state: str, message: str) -> str:
    """Tag the run with the DAG's state and what ended it; returns the state."""
    run_id = os.environ.get(PARENT) or os.environ.get("MLFLOW_RUN_ID")
    if os.environ.get("MLFLOW_TRACKING_URI") and run_id:
        quiet_mlflow()
        from mlflow import MlflowClient

        client = MlflowClient()
        client.set_tag(run_id, "dpoflow.state", state)
        if told := _cause() or message:
            client.set_tag(run_id, "dpoflow.message", told[:4000])
        if os.environ.get(CLOSES):
            ended = "FINISHED" if state == "SUCCEEDED" else "FAILED"
            client.set_terminated(run_id, ended)
    return state


def _cause() -> str:
    """`task: Kind: message` of the first task that failed; empty where none says so."""
    folder = os.environ.get(RUN_DIR)
    paths = sorted((Path(folder) / "tasks").glob("*.json")) if folder else []
    records = [TaskRecord.model_validate_json(path.read_text("utf-8")) for path in paths]
    failed = [record for record in records if record.state == "FAILED" and record.ended]
    if not failed:
        return ""
    first = min(failed, key=lambda record: record.ended or 0.0)
    return f"{first.name}: {first.error_type}: {first.error}"
