"""What a person sees of runs and schedules on a cluster.

Reads   a spec, a home, a server of Kubeflow Pipelines
Gives   one function for each command of cluster_cli.py, and `show_cluster_status`
Not     what is asked of the server (backends/cluster.py, schedules.py)
"""

import datetime as dt
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from dpoflow.contracts.errors import ConfigError
from dpoflow.contracts.spec import RunnableName, Spec
from dpoflow.state.step import TaskRecord
from dpoflow_pipelines import schedules
from dpoflow_pipelines.backends import cluster
from dpoflow_pipelines.backends.kfp_api import KfpApi, endpoint_of
from dpoflow_pipelines.backends.laptop import task_names
from dpoflow_pipelines.images_lock import default_lock, read_lock
from dpoflow_pipelines.placement import TIMEOUT_S, placed_for, wanted
from dpoflow_pipelines.progress import task_table
from dpoflow_pipelines.runs import find_run, memory
from dpoflow_pipelines.show import show_figures

SCHEDULED: RunnableName = "retrain"
"""The DAG that schedules run."""
PAUSE_S = 5.0


def lock_of(path: Path | None) -> dict[str, str]:
    """The lock that was named, or the repository's own."""
    return read_lock(path) if path else default_lock()


def in_namespace(sets: Sequence[str] | None, namespace: str | None) -> list[str]:
    """What lies over a spec, with `--namespace` last."""
    return [*(sets or []), *([f"placement.namespace={namespace}"] if namespace else [])]


def show_dry(
    console: Console, spec: Spec, pipeline: RunnableName, images: Mapping[str, str]
) -> None:
    """What would be submitted; nobody is asked."""
    with tempfile.TemporaryDirectory() as folder:
        ir = Path(folder) / "dag.yaml"
        names = cluster.compiled_for(spec, ir, pipeline, images)
        _, version, _ = cluster.version_of(ir)
        tasks = task_names(ir)
    console.print(f"[bold]{version}[/] for namespace {spec.placement.namespace}", highlight=False)
    for image in names:
        console.print(f"  {image}", markup=False, highlight=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("task", "GPUs", "processors", "memory", "at most"):
        table.add_column(column)
    for told in placed_rows(spec, tasks):
        table.add_row(*told)
    console.print(table)
    for task in tasks:
        if more := "; ".join(besides(spec, task)):
            console.print(f"{task}: {more}", markup=False, highlight=False, soft_wrap=True)
    console.print("nothing was submitted")


def placed_rows(spec: Spec, tasks: list[str]) -> list[tuple[str, ...]]:
    """Each task with what it gets."""
    config = placed_for(spec)
    rows: list[tuple[str, ...]] = []
    for task in tasks:
        got = wanted(config, task)
        hours = (got.timeout_s or TIMEOUT_S[task]) / 3600
        kind = f" {got.gpu_type}" if got.gpus and got.gpu_type else ""
        rows.append(
            (task, f"{got.gpus or ''}{kind}", got.cpu or "", got.memory or "", f"{hours:.3g} h")
        )
    return rows


def besides(spec: Spec, task: str) -> Iterator[str]:
    """What a task gets besides; of secrets the names."""
    got = wanted(placed_for(spec), task)
    if got.shared_memory:
        yield f"{got.shared_memory} of its memory shared"
    if got.node_selector:
        yield f"on nodes with {', '.join(f'{k}={v}' for k, v in got.node_selector.items())}"
    if got.tolerations:
        taints = (f"{each.key or 'every taint'}" for each in got.tolerations)
        yield f"tolerates {', '.join(taints)}"
    for volume in got.volumes or ():
        yield f"volume {volume.claim} at {volume.path}"
    for secret in got.secrets or ():
        yield f"secret {secret.name} as {', '.join([*secret.env, *filter(None, [secret.path])])}"


def submit_spec(
    console: Console,
    spec: Spec,
    home: Path,
    *,
    endpoint: str | None,
    pipeline: RunnableName,
    images: Mapping[str, str],
    wait: bool,
) -> None:
    """Submit, tell where to look, and perhaps wait. Raises what ended the run."""
    api = KfpApi(endpoint_of(endpoint), spec.placement.namespace)
    there = cluster.submit(spec, home, api, pipeline=pipeline, images=images)
    word = "is there already:" if there.was_there else "submitted:"
    console.print(f"run [bold]{there.run_id}[/] {word} {there.link}", highlight=False)
    where = there.mlflow or f"experiment {spec.name}, once the first task runs"
    console.print(f"MLflow: {where}", markup=False, highlight=False)
    if api.namespace is None:
        console.print(
            "[yellow]warning:[/] this Kubeflow has one namespace for everybody, its own, and runs "
            f"there; {spec.placement.namespace} is not asked for",
            highlight=False,
        )
    if not wait:
        console.print(f"dpoflow status {there.run_id} tells how far it is", highlight=False)
        return
    try:
        _watch(console, api, there.folder)
    except KeyboardInterrupt:
        console.print(f"the run goes on; dpoflow status {there.run_id} tells how far it is")
        raise
    _show_summary(console, there.folder)


def _watch(console: Console, api: KfpApi, folder: Path) -> None:
    """A live table on a terminal, a line for each change elsewhere."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4) as live:
            cluster.await_end(
                api,
                folder,
                lambda names, records: live.update(task_table(names, records)),
                pause_s=PAUSE_S,
            )
        return
    states: dict[str, str] = {}

    def tell(names: list[str], records: dict[str, TaskRecord]) -> None:
        for name in names:
            record = records.get(name)
            if record is not None and states.get(name) != record.state:
                states[name] = record.state
                console.print(f"{name} {record.state}", markup=False, highlight=False)

    cluster.await_end(api, folder, tell, pause_s=PAUSE_S)


def show_cluster_status(console: Console, folder: Path) -> None:
    """Kubeflow's word for a run, and its tasks."""
    known = cluster.attach(folder)
    api = KfpApi(known["endpoint"], known["namespace"])
    state, names, records, said = cluster.look(api, folder)
    console.print(f"[bold]{folder.name}[/] {state}", highlight=False)
    console.print(task_table(names, records))
    console.print(
        cluster.link_of(known["endpoint"], known["kfp_run_id"]), markup=False, highlight=False
    )
    if said:
        console.print(f"error: {said}", markup=False, highlight=False)
    if state in cluster.ENDED:
        _show_summary(console, folder)


def _show_summary(console: Console, folder: Path) -> None:
    """The verdict and the cost, where the run's end left them and MLflow is in reach."""
    summary = cluster.summary_of(folder)
    if summary is not None:
        show_figures(console, summary)


def cancel_run(console: Console, home: Path, run_id: str) -> None:
    """End a run on the cluster."""
    folder = find_run(home, run_id)
    if memory(folder).get("backend") != cluster.BACKEND:
        raise ConfigError(f"run {run_id} is one of this machine; stop it with ctrl-C where it runs")
    known = cluster.attach(folder)
    state = cluster.cancel(KfpApi(known["endpoint"], known["namespace"]), folder)
    if state in cluster.ENDED:
        word = "is being ended" if state == "CANCELING" else "had ended"
        console.print(f"{run_id} {word} already: {state}", highlight=False)
        return
    console.print(
        f"{run_id} is told to end. A TrainJob should go with the task that waits for it, and its "
        "pods have their grace period for a checkpoint; training in the task's own pod goes on "
        "from its latest (train.save_steps). The same submit command continues it.",
        markup=False,
        highlight=False,
    )


def show_logs(home: Path, run_id: str | None, task: str | None) -> None:
    """What a run printed, here or in its pods."""
    folder = find_run(home, run_id)
    if memory(folder).get("backend") != cluster.BACKEND:
        if task is not None:
            raise ConfigError("a run of this machine has one log for all its tasks; leave TASK out")
        path = folder / "log.txt"
        sys.stdout.write(path.read_text("utf-8", "replace") if path.is_file() else "")
        return
    if cluster.write_logs(folder, task, sys.stdout) == 0:
        raise ConfigError(
            f"the cluster has no pod of {folder.name}{f' for {task}' * bool(task)} (any more); "
            "placement.ttl_s says how long they stay"
        )


# ---------------------------------------------------------------- schedules


def create_schedule(
    console: Console,
    api: KfpApi,
    name: str,
    spec: Spec,
    cron: str,
    home: Path,
    images: dict[str, str],
) -> None:
    """Make it, or put it in the place of the one of its name."""
    made, gone = schedules.create(name, spec, cron, home, api, pipeline=SCHEDULED, images=images)
    word = "updated" if gone else "made"
    state = "" if made.enabled else ", and paused as it was: dpoflow schedule resume"
    console.print(f"schedule [bold]{name}[/] {word}: {made.cron}{state}", highlight=False)


def show_schedules(console: Console, api: KfpApi) -> None:
    """A row each."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("schedule", "cron", "state", "version"):
        table.add_column(column)
    for each in schedules.listed(api):
        state = "[green]on[/]" if each.enabled else "[yellow]paused[/]"
        table.add_row(each.name, each.cron, state, each.version_id)
    console.print(table)


def moment(text: str) -> dt.datetime:
    """A time with its zone; UTC where it names none. Raises ConfigError."""
    try:
        told = dt.datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--since takes a time such as 2026-01-31T02:00, got '{text}'") from None
    return told if told.tzinfo else told.replace(tzinfo=dt.UTC)
