"""The life of one step: find its state, keep others out, run or reuse, seal, publish.

    ROOT/state/<key>/            key = sha256(step, config, digests of the inputs, code)
        lock                     held while someone writes here
        events.jsonl             progress, for people
        work/                    checkpoints and caches: what a killed run continues from
        outputs/<name>/          artifacts, each with a manifest; whole once done.json exists
        done.json                the result; written last
        usage.json               what the work took, by run: see usage.py
    ROOT/index/<digest>          where the artifact of that digest lies
    ROOT/runs/<run id>/tasks/    one record a task, for the runner: see `TaskRecord`

Reads   a step's config and input artifacts
Gives   `begin`, `Task`, `StepState`, `code_digest`; `later`, `read_records` of a run; `find`,
        `refer` and `follow` for artifacts
Not     what a step computes, nor how events become MLflow metrics (tracking/)
"""

import contextlib
import fcntl
import functools
import hashlib
import importlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import dpoflow
from dpoflow.contracts import manifest
from dpoflow.contracts.base import Contract, canonical_json, sha256_json
from dpoflow.contracts.errors import BY_NAME, DataRejected, DpoflowError, ServiceUnavailable
from dpoflow.contracts.results import TaskState, Used
from dpoflow.state import files
from dpoflow.state.events import Events
from dpoflow.state.imports import unswept
from dpoflow.state.lifeline import tie_to_runner
from dpoflow.state.machine import set_thread_defaults
from dpoflow.state.surroundings import RUN_DIR, join_run
from dpoflow.state.usage import Usage

REFERENCE = "reference.json"
"""In an artifact that only names another one, beside a copy of its manifest."""
_DIGEST = re.compile("[0-9a-f]{64}")

RETRIES = 2
"""How often a pipeline begins a task again that failed and may yet succeed."""

Config = TypeVar("Config", bound=Contract)
Result = TypeVar("Result", bound=Contract)


class TaskRecord(Contract):
    """What a task tells its runner: kept under the run, named for the task."""

    name: str
    state: TaskState
    started: float
    attempt: int = 1
    """Of this run of the pipeline, which tries a task again."""
    ended: float | None = None
    reused: bool = False
    state_dir: str = ""
    result: dict[str, Any] | None = None
    outputs: dict[str, str] = {}
    """Name to digest of each artifact."""
    used: Used = Used()
    """By this run, whichever of its attempts did the work."""
    used_before: Used = Used()
    """By other runs, for what this one found done, or begun."""
    error_type: str | None = None
    error: str | None = None


def read_records(run_dir: Path) -> dict[str, TaskRecord]:
    """What the tasks of a run have said of themselves so far."""
    found = {}
    for path in sorted((run_dir / "tasks").glob("*.json")):
        with contextlib.suppress(FileNotFoundError):
            record = TaskRecord.model_validate_json(path.read_text("utf-8"))
            found[record.name] = record
    return found


@functools.cache
def code_digest() -> str:
    """sha256 over the sources of dpoflow: another program must not continue this one's state."""
    root, digest = Path(dpoflow.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def index(root: Path, digest: str, folder: Path) -> None:
    """Note where the artifact `digest` lies, relative to the root: how a trace finds it again."""
    files.write_text(root / "index" / digest, folder.relative_to(root).as_posix() + "\n")


def find(root: Path, digest: str) -> Path | None:
    """The folder of artifact `digest`, if this root has it."""
    try:
        return root / (root / "index" / digest).read_text("utf-8").strip()
    except FileNotFoundError:
        return None


def refer(folder: Path, target: Path) -> None:
    """Make `target` an artifact that only names what lies in `folder`, and none of its bytes.

    A cluster uploads whatever is in an artifact, and downloads it again for each task that reads
    it: a model would travel four times.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    shutil.copyfile(folder / manifest.FILE_NAME, target / manifest.FILE_NAME)
    digest = manifest.read(folder).digest
    files.write_text(target / REFERENCE, json.dumps({"digest": digest}) + "\n")


def follow(root: Path, artifact: Path) -> Path:
    """The folder with the files of `artifact`, which may only name it. Raises DataRejected."""
    try:
        digest = str(json.loads((artifact / REFERENCE).read_text("utf-8"))["digest"])
    except FileNotFoundError:
        return artifact
    except (ValueError, KeyError, TypeError):
        raise DataRejected(
            f"{artifact / REFERENCE} is damaged; run the step that wrote it"
        ) from None
    folder = find(root, digest) if _DIGEST.fullmatch(digest) else None
    if folder is None or manifest.read(folder).digest != digest:
        raise DataRejected(
            f"the artifact {digest[:12]}… that {artifact} names is not under {root} any more; run "
            "the step that made it again (on a cluster with placement.cache=false)"
        )
    return folder


class StepState:
    """One step's folder, locked: where it works, speaks and puts its outputs."""

    def __init__(self, folder: Path, step: str) -> None:
        self.folder = folder
        self.work = folder / "work"
        """Survives a kill; whatever is here must be safe to continue from at any instant."""
        self.root = folder.parent.parent
        """The root that all steps share, for content-addressed stores."""
        self.events = Events(folder / "events.jsonl", step)
        self.usage = Usage(folder)

    def output(self, name: str) -> Path:
        """The folder of output artifact `name`; emptied at the start of every attempt."""
        return self.folder / "outputs" / name

    def done(self) -> dict[str, Any] | None:
        """The result of a finished earlier attempt whose outputs are still whole, if any."""
        try:
            record: dict[str, Any] = json.loads((self.folder / "done.json").read_text("utf-8"))
        except FileNotFoundError:
            return None
        try:
            for name in record["outputs"]:
                manifest.verify(self.output(name))
        except DataRejected as damage:
            self.events.say(f"computing again: {damage}", passing=True)
            return None
        return record

    def start_afresh(self, outputs: list[str]) -> None:
        """Empty output folders, and a work folder that keeps what it has."""
        (self.folder / "done.json").unlink(missing_ok=True)
        self.drop_outputs()
        for name in outputs:
            self.output(name).mkdir(parents=True)
        self.work.mkdir(exist_ok=True)

    def drop_outputs(self) -> None:
        """Leave nothing half-written; what is in the work folder stays."""
        shutil.rmtree(self.folder / "outputs", ignore_errors=True)

    def seal(
        self,
        step: str,
        result: Contract,
        parents: dict[str, str],
        config: dict[str, Any],
        outputs: list[str],
    ) -> dict[str, Any]:
        """Give every output its manifest and its place in the index, then say that all is done."""
        digests = {}
        for name in outputs:
            sealed = manifest.seal(
                self.output(name),
                f"{step}.{name}",
                parents=parents,
                config=config,
                code=code_digest(),
            )
            digests[name] = sealed.digest
            index(self.root, sealed.digest, self.output(name))
        record = {"result": result.model_dump(mode="json"), "outputs": digests}
        files.write_text(self.folder / "done.json", json.dumps(record, indent=1))
        shutil.rmtree(self.work, ignore_errors=True)  # checkpoints and caches have served
        return record


@contextlib.contextmanager
def _locked(folder: Path, step: str) -> Iterator[StepState]:
    files.writable_folder(folder, f"the state of {step}")
    with (folder / "lock").open("a") as lock:  # flock: let go by the kernel however we end
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServiceUnavailable(
                f"{step} is being computed by another run (state {folder.name[:12]}); "
                "wait for it and give the same command again"
            ) from None
        yield StepState(folder, step)


class Task:
    """One task of a pipeline run: its record under the run, and the way to execute its step."""

    def __init__(self, step: str, suffix: str = "") -> None:
        name = f"{step}{suffix}"
        self.step, self.name = step, name
        folder = os.environ.get(RUN_DIR)
        self._path = Path(folder) / "tasks" / f"{name}.json" if folder else None
        self._record = TaskRecord(name=name, state="RUNNING", started=time.time())

    def _write(self, **changes: Any) -> None:
        self._record = self._record.model_copy(update=changes)
        if self._path is not None:
            files.write_text(self._path, self._record.model_dump_json(indent=1))

    def _earlier(self) -> TaskRecord | None:
        if self._path is None or not self._path.exists():
            return None
        return TaskRecord.model_validate_json(self._path.read_text("utf-8"))

    @staticmethod
    def _hopeless(record: TaskRecord) -> DpoflowError | None:
        kind = BY_NAME.get(record.error_type or "")
        if record.state != "FAILED" or kind is None or kind is ServiceUnavailable:
            return None
        return kind(record.error or "")

    def begin(self) -> None:
        """Tie the process to its runner, and end a retry that cannot help."""
        tie_to_runner()
        earlier = self._earlier()
        if earlier is not None and (error := self._hopeless(earlier)) is not None:
            log = sys.stdout  # what a task prints is its log
            log.write(f"not tried again: {type(error).__name__}: {error}\n")
            sys.exit(error.exit_code)
        self._write(attempt=1 if earlier is None else earlier.attempt + 1)

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """What is raised inside stands in the task's record, and goes on."""
        try:
            yield
        except DpoflowError as error:
            kind, text = type(error).__name__, str(error)
            self._write(state="FAILED", ended=time.time(), error_type=kind, error=text)
            raise
        except BaseException as error:
            kind = type(error).__name__
            text = f"{kind}: {error}"
            self._write(state="FAILED", ended=time.time(), error_type=kind, error=text)
            raise

    def execute(
        self,
        run: Callable[..., Result],
        config: Config,
        *,
        root: str,
        inputs: Mapping[str, str] | None = None,
        outputs: Mapping[str, str] | None = None,
        kind: type[Result],
        reuse: bool = True,
        by_reference: Collection[str] = (),
    ) -> Result:
        """Run the step, or take its result from an earlier run of the same inputs.

        `inputs` are artifact folders; `outputs` are where Kubeflow wants the artifacts, those of
        `by_reference` as a name for what stays in the state. The step is called as
        `run(config, **inputs, **outputs, state=...)` with paths. With `reuse` off it always runs
        (the snapshot must look at its sources each time).

        Raises what the step raises, once it stands in the task's record.
        """
        with self.recorded():
            return self._execute(
                run,
                config,
                Path(root),
                {name: follow(Path(root), Path(path)) for name, path in (inputs or {}).items()},
                dict(outputs or {}),
                kind,
                reuse,
                by_reference,
            )

    def simply(self, run: Callable[..., str], **facts: str) -> str:
        """Run something that has no state, recorded like a step."""
        with self.recorded():
            result = run(**facts)
        self._write(state="SUCCEEDED", ended=time.time())
        return result

    def _execute(
        self,
        run: Callable[..., Result],
        config: Config,
        root: Path,
        inputs: dict[str, Path],
        outputs: dict[str, str],
        kind: type[Result],
        reuse: bool,
        by_reference: Collection[str],
    ) -> Result:
        from dpoflow.tracking.step_run import step_run

        parents = {name: manifest.verify(path).digest for name, path in inputs.items()}
        settings = json.loads(canonical_json(config))
        identity = {"step": self.step, "config": settings, "parents": parents}
        key = sha256_json(identity | {"code": code_digest()})
        with (
            _locked(root / "state" / key, self.step) as state,
            step_run(
                self.step, task=self.name, config=settings, parents=parents, state=state
            ) as tracked,
        ):
            self._write(state_dir=str(state.folder))
            done = state.done() if reuse else None
            if done is None:
                state.start_afresh(list(outputs))
                targets = {name: state.output(name) for name in outputs}
                try:
                    with state.usage.counted():
                        result = run(config, **inputs, **targets, state=state)
                except BaseException:
                    state.drop_outputs()
                    self._write(used=state.usage.mine, used_before=state.usage.others)
                    raise
                done = state.seal(self.step, result, parents, settings, list(outputs))
                reused = False
            else:
                result, reused = kind.model_validate(done["result"]), True
                for name, digest in done["outputs"].items():
                    index(state.root, digest, state.output(name))  # its parents are this run's
            for name, target in outputs.items():
                hand_over = refer if name in by_reference else files.publish
                hand_over(state.output(name), Path(target))
            digests: dict[str, str] = done["outputs"]
            tracked.conclude(result, digests, reused=reused)
        self._write(
            state="SUCCEEDED",
            ended=time.time(),
            reused=reused,
            result=done["result"],
            outputs=digests,
            used=state.usage.mine,
            used_before=state.usage.others,
        )
        return result


def later(name: str) -> Callable[..., Any]:
    """The function MODULE:NAME, imported once it is called: a step that is done needs no torch."""
    module, _, function = name.partition(":")

    def run(*given: Any, **named: Any) -> Any:
        with unswept():
            loaded = importlib.import_module(module)
        return getattr(loaded, function)(*given, **named)

    return run


def begin(step: str, suffix: str = "") -> Task:
    """Start of every component: before anything heavy is imported.

    `suffix` tells apart the tasks of a DAG that has the step several times.
    """
    set_thread_defaults()
    join_run()
    task = Task(step, suffix)
    task.begin()
    return task
