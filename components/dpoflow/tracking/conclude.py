"""Notes on the pipeline's MLflow run: how its DAG ended, what one of its steps decided.

Reads   DPOFLOW_MLFLOW_PARENT, or MLFLOW_RUN_ID where a platform opened the run
Gives   `run`, `note`; whoever opened the run ends it, not this
"""

import os
import time
from collections.abc import Mapping

from dpoflow.tracking.settings import quiet_mlflow
from dpoflow.tracking.step_run import PARENT

_LONGEST = 4000
"""Of a tag, in characters."""


def run(state: str, message: str) -> str:
    """Tag the run with the DAG's state; returns the state."""
    note(tags={"dpoflow.state": state} | ({"dpoflow.message": message} if message else {}))
    return state


def note(*, tags: Mapping[str, str], metrics: Mapping[str, float] | None = None) -> None:
    """Tag the run, if there is one."""
    run_id = os.environ.get(PARENT) or os.environ.get("MLFLOW_RUN_ID")
    if not (os.environ.get("MLFLOW_TRACKING_URI") and run_id):
        return
    quiet_mlflow()
    from mlflow import MlflowClient
    from mlflow.entities import Metric, RunTag

    now = int(time.time() * 1000)
    MlflowClient().log_batch(
        run_id,
        metrics=[Metric(name, value, now, 0) for name, value in (metrics or {}).items()],
        tags=[RunTag(key, value[:_LONGEST]) for key, value in tags.items()],
    )
