"""Note on the pipeline's MLflow run how its DAG ended.

Reads   DPOFLOW_MLFLOW_PARENT, or MLFLOW_RUN_ID where a platform opened the run
Gives   `run`; whoever opened the run ends it, not this
"""

import os

from dpoflow.tracking.settings import quiet_mlflow
from dpoflow.tracking.step_run import PARENT


def run(state: str, message: str) -> str:
    """Tag the run with the DAG's state; returns the state."""
    run_id = os.environ.get(PARENT) or os.environ.get("MLFLOW_RUN_ID")
    if os.environ.get("MLFLOW_TRACKING_URI") and run_id:
        quiet_mlflow()
        from mlflow import MlflowClient

        client = MlflowClient()
        client.set_tag(run_id, "dpoflow.state", state)
        if message:
            client.set_tag(run_id, "dpoflow.message", message[:4000])
    return state
