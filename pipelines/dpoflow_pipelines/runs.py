"""Runs of one home: their names, their folders, their summaries.

    HOME/runs/<name>-<spec digest>-<n>/   run.json, pipeline.yaml, log.txt, tasks/, summary.json
    HOME/summary.json                     copy of the latest

Reads   the home
Gives   `claim_run`, `find_run`, `in_use`, `is_held`, `memory`, `Run`
Not     running (backends/), drawing (progress.py), what stands in a summary (state/summary.py)
"""

import contextlib
import fcntl
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpoflow.contracts.base import canonical_json, sha256_json
from dpoflow.contracts.errors import ConfigError, ServiceUnavailable
from dpoflow.contracts.spec import RunnableName, Spec
from dpoflow.state import files

IR = "pipeline.yaml"
"""The compiled DAG, in a run's folder."""


@dataclass(frozen=True)
class Run:
    """One run of a spec in a home, claimed by this process."""

    home: Path
    run_id: str
    folder: Path
    continued: bool
    """Whether an earlier attempt was cut off and this one goes on with it."""
    pipeline: RunnableName = "align"

    def remember(self, **facts: str) -> None:
        """Add to what the next attempt must know, such as the MLflow run."""
        files.write_text(self.folder / "run.json", json.dumps(self.memory() | facts, indent=1))

    def memory(self) -> dict[str, str]:
        """What earlier attempts noted."""
        return memory(self.folder)


def memory(folder: Path) -> dict[str, str]:
    """What a run's attempts noted."""
    try:
        known: dict[str, str] = json.loads((folder / "run.json").read_text("utf-8"))
    except FileNotFoundError:
        return {}
    return known


@contextlib.contextmanager
def claim_run(
    home: Path,
    spec: Spec,
    apart: Mapping[str, list[str]] | None = None,
    pipeline: RunnableName = "align",
) -> Iterator[Run]:
    """The unfinished run of this spec if there is one, else a new one; nobody else may hold it.

    `apart` is what makes it another run of the same spec: a grid, a cluster.
    """
    runs = files.writable_folder(home / "runs", "the home")
    told: dict[str, Any] = {"apart": apart} if apart else {}
    told |= {"pipeline": pipeline} if pipeline != "align" else {}
    identity = {"spec": spec.model_dump(mode="json"), **told} if told else spec
    prefix = f"{spec.name}-{sha256_json(identity)[:8]}-"
    earlier = {
        int(number): path
        for path in runs.glob(f"{prefix}*")
        if (number := path.name.removeprefix(prefix)).isdecimal()
    }
    highest = max(earlier, default=0)
    last = earlier.get(highest)
    unfinished = last is not None and memory(last).get("state") != "SUCCEEDED"
    if last is None or not unfinished:
        last = runs / f"{prefix}{highest + 1:03d}"
    last.mkdir(exist_ok=True)
    with in_use(home), (last / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServiceUnavailable(
                f"run {last.name} is being run by another process; "
                f"wait for it, or watch it with: "
                f"dpoflow status {last.name} --home {shlex.quote(str(home))}"
            ) from None
        again = (last / "run.json").exists()
        run = Run(home, last.name, last, continued=again, pipeline=pipeline)
        run.remember(spec=canonical_json(spec), state="RUNNING")
        yield run


@contextlib.contextmanager
def in_use(home: Path, *, alone: bool = False) -> Iterator[None]:
    """While something reads and writes in the home, or, `alone`, while it is cleared."""
    with (home / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServiceUnavailable(
                f"a run or a step is at work in {home}; wait for its end"
                if alone
                else f"dpoflow gc is clearing {home}; give the same command again when it is done"
            ) from None
        yield


def is_held(folder: Path) -> bool:
    """Whether a process is at work on the run."""
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def find_run(home: Path, run_id: str | None) -> Path:
    """The folder of a run, the latest when none is named."""
    if run_id is not None:
        folder = home / "runs" / run_id
        if Path(run_id).name != run_id or not (folder / "run.json").exists():
            raise ConfigError(f"no run {run_id!r} under {home / 'runs'}; see: dpoflow status")
        return folder
    folders = [path.parent for path in (home / "runs").glob("*/run.json")]
    if not folders:
        raise ConfigError(f"no run under {home} yet; start one with: dpoflow run SPEC")
    return max(folders, key=lambda folder: (folder / "run.json").stat().st_mtime)
