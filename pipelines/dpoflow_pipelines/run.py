"""`dpoflow run`: one spec through the whole DAG on this machine, and a summary at the end.

Reads   a spec, a home
Gives   `run_spec`, `compile_to`
Not     the terminal's grammar (cli.py), how tasks are started (backends/)
"""

import contextlib
import importlib
import os
import secrets
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, get_args

from rich.console import Console

from dpoflow.contracts.base import canonical_json
from dpoflow.contracts.errors import (
    ConfigError,
    DataRejected,
    DpoflowError,
    GateNotPassed,
    ServiceUnavailable,
)
from dpoflow.contracts.results import MlflowSummary, RunState, RunSummary
from dpoflow.contracts.spec import REGISTRY, PipelineName, RunnableName, Spec
from dpoflow.registry.submission import QUOTED, open_submission
from dpoflow.sources import remote
from dpoflow.sources.files import data_files, local_path
from dpoflow.state import files
from dpoflow.state.step import read_records
from dpoflow.state.summary import NO_VERDICT, summarise
from dpoflow_pipelines.backends.laptop import Runner, not_to_run, on_laptop, task_names
from dpoflow_pipelines.grid import Point, configs_of, grid_of
from dpoflow_pipelines.progress import following, settled, task_table
from dpoflow_pipelines.runs import IR, Run, claim_run

if TYPE_CHECKING:
    from dpoflow.contracts.placement import PlacementConfig


class Interrupted(DpoflowError):
    """Somebody stopped the run; nothing is lost."""

    def __init__(self, number: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name}; the same command continues the run"
        )
        self.exit_code = 128 + number


def compile_to(
    path: Path,
    name: PipelineName = "align",
    placement: "PlacementConfig | None" = None,
    images: Mapping[str, str] | None = None,
) -> None:
    """Compile the DAG called `name` to `path`, atomically; for a cluster with a `placement`.

    `images` says which digest an image has: see images_lock.py.
    """
    module = importlib.import_module(f"dpoflow_pipelines.{name}")
    _compile(getattr(module, name), path, placement, images)


def compile_sweep(path: Path, points: Sequence[Point]) -> None:
    """Compile the DAG of a sweep to `path`, atomically."""
    from dpoflow_pipelines.align import sweep

    _compile(sweep(configs_of(points)), path)


def _compile(
    pipeline: Any,
    path: Path,
    placement: "PlacementConfig | None" = None,
    images: Mapping[str, str] | None = None,
) -> None:
    from kfp import compiler, dsl

    if placement is not None:  # its tasks are made anew: they ask where they are placed
        from dpoflow_pipelines.placement import Placing, placing

        how, info = Placing(placement, images or {}), pipeline.pipeline_spec.pipeline_info
        with placing(how):
            pipeline = dsl.pipeline(
                name=info.name, description=info.description, pipeline_config=how.pipeline_config
            )(pipeline.pipeline_func)
    draft = path.with_name(f".{path.stem}.draft.yaml")
    try:
        compiler.Compiler().compile(pipeline, str(draft))
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def check_sources(spec: Spec) -> None:
    """Whether data and model are there at all: a typo is told before there is a run."""
    pinned = spec.snapshot
    for source in (*pinned.sources, *pinned.replay, *pinned.evaluation_sets, *pinned.answers):
        if remote.is_remote(source.uri):
            remote.look(source, most=int(pinned.max_download_gb * 2**30))
        elif not source.uri.startswith(REGISTRY):
            data_files(source.uri)
    models = [
        ("model", pinned.model),
        ("train.init", pinned.init),
        ("train.reference", pinned.reference),
        ("evaluate.champion", pinned.champion),
        *(("a judge's model", uri) for uri in pinned.judges),
    ]
    for key, uri in models:
        if uri is None or "://" in uri or uri.startswith(REGISTRY) or Path(uri).is_dir():
            continue
        what = "is a file" if Path(uri).exists() else "does not exist"
        raise ConfigError(
            f"{key} {uri} {what}; name a folder with safetensors and a tokenizer, "
            "package://PACKAGE/FILE.gguf, or hf://ORG/NAME@REVISION"
        )


def check_suites(spec: Spec) -> None:
    """Whether questions and answers of suites that lie here are what their kind takes.

    Evaluation comes last, and reads them again as they were pinned. Raises ConfigError,
    DataRejected.
    """
    from dpoflow.evaluate.suites import read_suite
    from dpoflow_pipelines.rows import local_rows

    for number, suite in enumerate(spec.evaluate.suites):
        where = f"evaluate.suites[{number}] ({suite.name})"
        files = [each for each in (suite.uri, suite.answers) if each is not None]
        if any(remote.is_remote(each) for each in files):
            continue
        for each in files:
            if not local_path(each).exists():
                raise ConfigError(f"{where}: {each} does not exist; name a file of the suite")
        answers = () if suite.answers is None else local_rows(suite.answers, where)
        try:
            read_suite(suite, local_rows(suite.uri, where), answers)
        except DataRejected as error:
            raise DataRejected(f"{where}: {error}") from None


def check_machine(spec: Spec) -> None:
    """Whether this machine has what the spec asks for: told before candidates are drawn."""
    if any(suite.kind == "harness" for suite in spec.evaluate.suites):
        from dpoflow.evaluate.harness import check_installed

        check_installed(spec.evaluate)
    if spec.train.device != "cuda" or spec.train.backend == "trainjob":
        return
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            "train.device cuda: this machine shows torch no GPU; run where there is one, or set "
            "train.device: auto"
        )


def run_spec(
    spec: Spec,
    home: Path,
    console: Console,
    *,
    require: str | None = None,
    points: Sequence[Point] = (),
    pipeline: RunnableName = "align",
    runner: Runner | None = None,
) -> RunSummary:
    """Run `spec` to its end, or continue the run of it that was cut off; with `points`, a sweep.

    `runner` is how its tasks are started; without one each is a process on this machine.

    Raises the failed task's error; GateNotPassed if `require` asks for another verdict than the
    run's, unless it found nothing to learn: then there is no candidate that could have one. The
    summary is written whenever a task was started.
    """
    files.writable_folder(home, "the home")
    with (
        claim_run(home, spec, grid_of(points), pipeline) as run,
        _stopped_by_sigterm(),
        contextlib.nullcontext(runner) if runner else on_laptop(run.folder) as started,
    ):
        word = "continuing" if run.continued else "starting"
        console.print(f"{word} run [bold]{run.run_id}[/] in {home}", highlight=False)
        try:
            summary = _run(spec, run, console, points, started)
        except KeyboardInterrupt as stop:
            raise _interrupted(stop) from None
        except DpoflowError as error:
            run.remember(error=str(error))  # also where it ended before there was a summary
            raise
    verdict = summary.evaluation.get("verdict")
    if require is not None and verdict not in (require, NO_VERDICT):
        raise GateNotPassed(
            f"the verdict is {verdict}, not {require}: {summary.evaluation.get('sentence')}"
        )
    return summary


def _run(
    spec: Spec, run: Run, console: Console, points: Sequence[Point], runner: Runner
) -> RunSummary:
    from dpoflow.tracking.pipeline_run import close_run, open_run
    from dpoflow.tracking.settings import public

    with console.status("opening MLflow") if console.is_terminal else contextlib.nullcontext():
        submission = None if points else submit_to_team(spec, run)  # a sweep registers nothing
        tracked = open_run(
            run.home,
            experiment=spec.name,
            run_name=run.run_id,
            spec_json=canonical_json(spec),
            known=run.memory().get("mlflow_run_id"),
        )
    run.remember(mlflow_run_id=tracked.run_id)
    ir = run.folder / IR
    if points:
        compile_sweep(ir, points)
    else:
        compile_to(ir, run.pipeline)
    names = task_names(ir)
    mlflow = MlflowSummary(tracking_uri=public(tracked.tracking_uri), run_id=tracked.run_id)

    def conclude(state: RunState, error: str | None) -> RunSummary:
        records = read_records(run.folder)
        summary = summarise(
            run.home,
            records,
            run_id=run.run_id,
            name=spec.name,
            pipeline=run.pipeline,
            tasks=names,
            skipped=not_to_run(ir, records),
            state=state,
            error=error,
            mlflow=mlflow,
            grid=grid_of(points),
        )
        text = summary.model_dump_json(indent=2) + "\n"
        for place in (run.folder, run.home):
            files.write_text(place / "summary.json", text)
        return summary

    conclude("RUNNING", None)
    environment = {
        "MLFLOW_TRACKING_URI": tracked.tracking_uri,
        "DPOFLOW_MLFLOW_PARENT": tracked.run_id,
        "DPOFLOW_MLFLOW_EXPERIMENT": tracked.experiment_id,
        QUOTED: submission or "",  # not that of an earlier run in this process
    }
    arguments = {"state_root": str(run.home), **spec.arguments(run.pipeline)}
    if points:  # they bring their own train sections, and nothing is registered
        del arguments["train_config"], arguments["registry_config"]
    try:
        with following(console, run.folder, names):
            runner(ir, arguments, run.folder, environment)
    except BaseException as error:
        told = _interrupted(error) if isinstance(error, KeyboardInterrupt) else error
        text = str(told) if isinstance(told, DpoflowError) else type(told).__name__
        summary = conclude("FAILED", text)
        run.remember(state="FAILED")
        try:
            close_run(tracked, "FAILED", summary.model_dump_json(indent=2))
        except ServiceUnavailable as away:
            console.print(f"warning: {away}", markup=False, highlight=False)
        console.print(task_table(names, settled(read_records(run.folder))))
        raise
    summary = conclude("SUCCEEDED", None)
    close_run(tracked, "SUCCEEDED", summary.model_dump_json(indent=2))
    run.remember(state="SUCCEEDED")  # last: a run cut off before this is continued, and closed
    records = read_records(run.folder)
    console.print(task_table(names, records, skipped=not_to_run(ir, records)))
    return summary


def submit_to_team(spec: Spec, run: Run) -> str | None:
    """Tell a team's server, by the user's own name, that this run begins; None for other MLflows.

    A run that is continued, or told twice, has one submission: its nonce is noted first.
    """
    from dpoflow.registry.team import team_server

    team = team_server()
    if team is None:
        return None
    if "nonce" not in run.memory():
        run.remember(nonce=secrets.token_hex(16))
    submission = open_submission(team, spec, run.memory()["nonce"])
    run.remember(submission=submission)
    return submission


def _interrupted(stop: KeyboardInterrupt) -> Interrupted:
    return Interrupted(stop.args[0] if stop.args else signal.SIGINT)


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the run like ctrl-C: summary written, tasks gone with this process."""

    def stop(number: int, _frame: FrameType | None) -> None:
        # Of all exceptions only this one is not held up until the running task ends by itself.
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def runnable(name: str) -> RunnableName:
    """The pipeline of that name that a spec is run by."""
    known: dict[str, RunnableName] = {each: each for each in get_args(RunnableName)}
    if name in known:
        return known[name]
    more = "; dpoflow review promote does on this machine what it does" * (name == "promote")
    raise ConfigError(f"--pipeline takes align or retrain, got '{name}'{more}")


def default_home() -> Path:
    """DPOFLOW_HOME, or .dpoflow here."""
    return Path(os.environ.get("DPOFLOW_HOME") or ".dpoflow")
