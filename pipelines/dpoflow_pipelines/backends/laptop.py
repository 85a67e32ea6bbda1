"""Run a compiled DAG on this machine: kfp.local, one process a task.

Reads   a compiled pipeline (YAML) and its arguments
Gives   `on_laptop`, `run_dag` for other ways of starting tasks, `task_names`, `not_to_run`; what
        ran is read from the tasks' own records, never from what kfp.local reports (it calls a
        skipped branch a success)
Not     drawing progress (progress.py), naming runs (runs.py), containers (containers.py), what a
        task's process is forked from (forkserver.py)
"""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from dpoflow.contracts.errors import BY_NAME, DpoflowError
from dpoflow.state.lifeline import RUNNER_PID
from dpoflow.state.step import TaskRecord, read_records
from dpoflow.state.surroundings import RUN_DIR
from dpoflow_pipelines.backends.forkserver import ForkServer
from dpoflow_pipelines.backends.ir import read_ir

if TYPE_CHECKING:
    from kfp.local.status import Status

ALWAYS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "true",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
    "PYTHONHASHSEED": "0",
}


_EQUALS = re.compile(r"inputs\.parameter_values\['(?P<input>[\w-]+)'\] == '(?P<word>[\w-]+)'")
"""The one kind of condition that our DAGs have; kfp.local gets others wrong."""

_RETURNS = {"decide": "decision"}
"""What a component that returns one word takes it from: a field of its step's result."""


class TaskFailed(DpoflowError):
    """A task ended in an error that was nobody's config, data or service: a bug."""


def task_names(ir: Path) -> list[str]:
    """Every task of the DAG that runs code, in the order in which a person would read them."""
    return [name for name, _ in _walk(read_ir(ir)[0])]


def not_to_run(ir: Path, records: Mapping[str, TaskRecord]) -> set[str]:
    """Tasks in branches that the results of earlier tasks rule out.

    A branch whose condition is anything but one task's word being equal to another word, or whose
    word is not known yet, rules nothing out: its tasks are missed when they do not run.
    """
    return {
        name
        for name, branches in _walk(read_ir(ir)[0])
        if any(_is_ruled_out(branch, records) for branch in branches)
    }


def _walk(spec: dict[str, Any]) -> Iterator[tuple[str, tuple[dict[str, Any], ...]]]:
    """Each task that runs code, with the conditional tasks that it lies in."""

    def walk(
        dag: dict[str, Any], branches: tuple[dict[str, Any], ...]
    ) -> Iterator[tuple[str, tuple[dict[str, Any], ...]]]:
        waiting = dict(dag["tasks"])
        while waiting:  # topological, ties by name
            ready = [
                name
                for name, task in sorted(waiting.items())
                if not waiting.keys() & set(task.get("dependentTasks", ()))
            ]
            for name in ready:
                task = waiting.pop(name)
                component = spec["components"][task["componentRef"]["name"]]
                conditional = "condition" in task.get("triggerPolicy", {})
                within = (*branches, task) if conditional else branches
                if "dag" in component:
                    yield from walk(component["dag"], within)
                else:
                    yield name, within

    yield from walk(spec["root"]["dag"], ())


def _is_ruled_out(branch: dict[str, Any], records: Mapping[str, TaskRecord]) -> bool:
    asked = _EQUALS.fullmatch(branch["triggerPolicy"]["condition"])
    if asked is None:
        return False
    given = branch["inputs"]["parameters"].get(asked["input"], {}).get("taskOutputParameter")
    task = given["producerTask"] if given else ""
    record = records.get(task)
    if record is None or record.state != "SUCCEEDED" or record.result is None:
        return False
    word = record.result.get(_RETURNS.get(task, ""))
    return isinstance(word, str) and word != asked["word"]


class Runner(Protocol):
    """A way to run a compiled DAG on this machine to its end.

    Raises the error of the task that failed, as its own kind; TaskFailed if a task is missing.
    """

    def __call__(
        self, ir: Path, arguments: Mapping[str, str], run_dir: Path, environment: Mapping[str, str]
    ) -> None:
        """`environment` is what every task is told; kfp's and the tasks' output goes to a log."""


@contextlib.contextmanager
def on_laptop(run_dir: Path) -> Iterator[Runner]:
    """Give a `Runner`: each task is a process, and ends with this one.

    What tasks import is imported from now on, beside whatever the caller does meanwhile.
    """
    os.environ.pop("MLFLOW_RUN_ID", None)  # the parent is ours or attached; steps get their own
    os.environ.update({**ALWAYS, RUN_DIR: str(run_dir), RUNNER_PID: str(os.getpid())})
    if not hasattr(os, "pidfd_open"):  # not Linux: a fork of what was imported is not safe there
        yield partial(_run, None)
        return
    with (run_dir / "log.txt").open("a", encoding="utf-8") as log, ForkServer(log) as server:
        yield partial(_run, server)


def _run(
    server: ForkServer | None,
    ir: Path,
    arguments: Mapping[str, str],
    run_dir: Path,
    environment: Mapping[str, str],
) -> None:
    from kfp import local
    from kfp.local import subprocess_task_handler

    os.environ.update(environment)
    forking = (
        contextlib.nullcontext()
        if server is None
        else handled_by(subprocess_task_handler, "SubprocessTaskHandler", partial(_Fork, server))
    )
    with forking:
        run_dag(ir, arguments, run_dir=run_dir, runner=local.SubprocessRunner(use_venv=False))


class _Fork:
    """One attempt at one task, for kfp.local: a fork instead of a Python that imports all anew."""

    def __init__(
        self,
        server: ForkServer,
        image: str,
        full_command: list[str],
        pipeline_root: str,
        runner: Any,
        env_vars: dict[str, str] | None = None,
    ) -> None:
        self._server, self._command, self._environment = server, full_command, env_vars or {}

    def run(self) -> "Status":
        """To its end; what it printed goes to our standard output."""
        from kfp.local.status import Status

        code = self._server.run(self._command, {**os.environ, **self._environment})
        return Status.FAILURE if code else Status.SUCCESS


@contextlib.contextmanager
def handled_by(module: ModuleType, name: str, handler: Callable[..., Any]) -> Iterator[None]:
    """Have kfp.local start tasks by `handler`: it looks its own up by name for each task."""
    theirs = getattr(module, name)
    setattr(module, name, handler)
    try:
        yield
    finally:
        setattr(module, name, theirs)


def run_dag(
    ir: Path,
    arguments: Mapping[str, str],
    *,
    run_dir: Path,
    runner: Any,
    ended: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Run the DAG by one of kfp.local's runners; what is printed goes to `run_dir`/log.txt.

    `ended` is looked at when all is over: task to how its process ended, where that is known.
    Raises as a `Runner`.
    """
    from kfp import local
    from kfp.components import load_component_from_file

    shutil.rmtree(run_dir / "tasks", ignore_errors=True)  # records of an attempt that was killed
    (run_dir / "tasks").mkdir(parents=True)
    shutil.rmtree(run_dir / "kfp", ignore_errors=True)
    log_path = run_dir / "log.txt"
    with (
        log_path.open("a", encoding="utf-8", buffering=1) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        local.init(
            runner,
            pipeline_root=str(run_dir / "kfp"),
            workspace_root=str(run_dir / "kfp-workspace"),  # kfp.local deletes it
            raise_on_error=False,
        )
        load_component_from_file(str(ir))(**arguments)
    shutil.rmtree(run_dir / "kfp", ignore_errors=True)  # outputs live in the steps' state
    records = read_records(run_dir)
    _assert_ran(task_names(ir), records, not_to_run(ir, records), log_path, ended)


def _assert_ran(
    names: list[str],
    records: dict[str, TaskRecord],
    skipped: set[str],
    log: Path,
    ended: Mapping[str, str],
) -> None:
    """Every task succeeded but those `skipped`, and none of these was begun."""
    for name in names:
        record = records.get(name)
        if record is not None and record.state == "FAILED":
            kind = BY_NAME.get(record.error_type or "", TaskFailed)
            raise kind(f"{name}: {record.error}")
    if begun := [name for name in names if name in skipped and name in records]:
        raise TaskFailed(
            f"{', '.join(begun)} ran, though the run was to end without; the end of {log} says more"
        )
    missing = [
        name
        for name in names
        if name not in skipped and (name not in records or records[name].state != "SUCCEEDED")
    ]
    if missing:
        known = [f"{name} {ended[name]}" for name in missing if name in ended]
        why = "; ".join(known) or "killed, or out of memory?"
        raise TaskFailed(
            f"{', '.join(missing)} never reported success ({why}); "
            f"the end of {log} says more; the same command continues"
        )
