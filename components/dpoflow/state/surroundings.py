"""What tasks of one run know of it: on a laptop from their runner, on a cluster from each other.

    ROOT/runs/<KFP run id>/surroundings.json   left by the run's first task

A pod's environment is fixed when the DAG is compiled, so nothing of one run can stand in it but
Kubeflow's own id of the run, which is a label of every pod.

Reads   DPOFLOW_RUN_DIR of a laptop's runner; DPOFLOW_STATE_ROOT and KFP_RUN_ID of a placed task
Gives   `join_run` when a task begins, `tell_run` for the first of them; `trace_id` of the run
Not     what is told (registry/run_start.py)
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from dpoflow.state import files

RUN_DIR = "DPOFLOW_RUN_DIR"
"""Where tasks leave their records."""
PARENT = "DPOFLOW_MLFLOW_PARENT"
"""The MLflow run of the whole pipeline."""
STATE_ROOT = "DPOFLOW_STATE_ROOT"
KFP_RUN_ID = "KFP_RUN_ID"
_TOLD = "surroundings.json"
_OURS = "DPOFLOW_"


def join_run() -> None:
    """Find the run's folder, and take over what its first task told. Nothing on a laptop."""
    root, run_id = os.environ.get(STATE_ROOT), os.environ.get(KFP_RUN_ID)
    if not root or not run_id or os.environ.get(RUN_DIR):
        return
    folder = Path(root) / "runs" / run_id
    os.environ[RUN_DIR] = str(folder)
    os.environ.update(told_of_run(folder))


def trace_id() -> str:
    """The run's trace id as W3C Trace Context has it, 32 hex digits; empty without an MLflow run.

    MLflow's own id of the run, which is one already, so that either finds the other.
    """
    run_id = os.environ.get(PARENT, "")
    if not run_id or re.fullmatch("[0-9a-f]{32}", run_id):
        return run_id
    return hashlib.sha256(run_id.encode()).hexdigest()[:32]


def told_of_run(folder: Path) -> dict[str, str]:
    """What was told so far: variables of ours, and no others."""
    try:
        told = json.loads((folder / _TOLD).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    return {str(name): str(value) for name, value in told.items() if name.startswith(_OURS)}


def tell_run(told: Mapping[str, str]) -> None:
    """For this task and those after it."""
    os.environ.update(told)
    folder = Path(os.environ[RUN_DIR])
    known = told_of_run(folder) | dict(told)
    files.write_text(folder / _TOLD, json.dumps(known, indent=1) + "\n")
