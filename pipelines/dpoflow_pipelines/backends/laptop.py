"""Run a compiled DAG on this machine: kfp.local, one subprocess a task.

Reads   a compiled pipeline (YAML) and its arguments
Gives   `run_on_laptop`, `task_names`; what ran is read from the tasks' own records, never from what
        kfp.local reports (it calls a skipped branch a success)
Not     drawing progress (progress.py), naming runs (runs.py)
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from dpoflow.contracts.errors import BY_NAME, DpoflowError
from dpoflow.state.lifeline import RUNNER_PID
from dpoflow.state.step import TaskRecord
from dpoflow.state.surroundings import RUN_DIR

ALWAYS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "true",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
    "PYTHONHASHSEED": "0",
}


class TaskFailed(DpoflowError):
    """A task ended in an error that was nobody's config, data or service: a bug."""


def task_names(ir: Path) -> list[str]:
    """Every task of the DAG that runs code, in the order in which a person would read them."""
    spec = next(iter(YAML(typ="safe").load_all(ir.read_text("utf-8"))))

    def walk(dag: dict[str, Any]) -> Iterator[str]:
        waiting = dict(dag["tasks"])
        while waiting:  # topological, ties by name
            ready = [
                name
                for name, task in sorted(waiting.items())
                if not waiting.keys() & set(task.get("dependentTasks", ()))
            ]
            for name in ready:
                component = spec["components"][waiting.pop(name)["componentRef"]["name"]]
                if "dag" in component:
                    yield from walk(component["dag"])
                else:
                    yield name

    return list(walk(spec["root"]["dag"]))


def read_records(run_dir: Path) -> dict[str, TaskRecord]:
    """What the tasks of a run have said of themselves so far."""
    found = {}
    for path in sorted((run_dir / "tasks").glob("*.json")):
        with contextlib.suppress(FileNotFoundError):
            record = TaskRecord.model_validate_json(path.read_text("utf-8"))
            found[record.name] = record
    return found


def run_on_laptop(
    ir: Path, arguments: Mapping[str, str], *, run_dir: Path, environment: Mapping[str, str]
) -> None:
    """Run the DAG to its end; kfp's and the tasks' output goes to `run_dir`/log.txt.

    Raises the error of the task that failed, as its own kind; AssertionError if a task is missing.
    """
    from kfp import local
    from kfp.components import load_component_from_file

    shutil.rmtree(run_dir / "tasks", ignore_errors=True)  # records of an attempt that was killed
    (run_dir / "tasks").mkdir(parents=True)
    shutil.rmtree(run_dir / "kfp", ignore_errors=True)
    surroundings = {**ALWAYS, **environment, RUN_DIR: str(run_dir), RUNNER_PID: str(os.getpid())}
    os.environ.pop("MLFLOW_RUN_ID", None)  # the parent is ours or attached; steps get their own
    os.environ.update(surroundings)
    with (
        (run_dir / "log.txt").open("a", encoding="utf-8", buffering=1) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        local.init(
            local.SubprocessRunner(use_venv=False),
            pipeline_root=str(run_dir / "kfp"),
            workspace_root=str(run_dir / "kfp-workspace"),  # kfp.local deletes it
            raise_on_error=False,
        )
        load_component_from_file(str(ir))(**arguments)
    shutil.rmtree(run_dir / "kfp", ignore_errors=True)  # outputs live in the steps' state
    _assert_all_succeeded(task_names(ir), read_records(run_dir), run_dir / "log.txt")


def _assert_all_succeeded(names: list[str], records: dict[str, TaskRecord], log: Path) -> None:
    for name in names:
        record = records.get(name)
        if record is not None and record.state == "FAILED":
            kind = BY_NAME.get(record.error_type or "", TaskFailed)
            raise kind(f"{name}: {record.error}")
    missing = [name for name in names if name not in records or records[name].state != "SUCCEEDED"]
    if missing:
        raise TaskFailed(
            f"{', '.join(missing)} never reported success (killed, or out of memory?); "
            f"the end of {log} says more; the same command continues"
        )
