"""`dpoflow gc`: what a home keeps, and what it can do without.

Kept are the latest runs of each spec's name, those of a cluster that are not known to have
succeeded, every version that an alias names, and all that these
rest on, down to the sources. The rest of HOME/runs, HOME/state, HOME/content and HOME/index goes.
What was paid for stays: answers of endpoints and models, reference log-probabilities.

Reads   a home, and the registry that its runs recorded in
Gives   `survey`, `collect`, `show`
Not     MLflow's own runs and files (`mlflow gc`), the champions of a team's server (its gate)
"""

import contextlib
import json
import os
import shutil
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from dpoflow.contracts import manifest
from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.registry.versions import aliased
from dpoflow.state.step import find, read_records
from dpoflow.tracking.settings import local_uri, public
from dpoflow_pipelines.backends.cluster import BACKEND
from dpoflow_pipelines.runs import in_use, memory

TRASH = ".trash"


@dataclass(frozen=True)
class Survey:
    """What a home holds, sorted into what stays and what goes."""

    runs: tuple[Path, ...]
    """That stay."""
    versions: tuple[str, ...]
    """That an alias names."""
    doomed: tuple[Path, ...]
    """Folders that nothing kept rests on."""
    notes: tuple[Path, ...]
    """Of the index and the content store, on folders that go or are gone."""
    num_bytes: int
    """That the doomed folders free: files that a kept folder shares do not count."""


def survey(home: Path, keep: int) -> Survey:
    """Look, and change nothing.

    Raises ConfigError where there is no run, or another registry than its runs recorded in is set;
    ServiceUnavailable where the registry does not tell what its aliases name.
    """
    folders = sorted(path.parent for path in (home / "runs").glob("*/run.json"))
    if not folders:
        raise ConfigError(f"no run under {home}, so there is nothing to clear; name a --home")
    _check_registry(home, folders)
    runs = sorted({*_latest(folders, keep), *(each for each in folders if _goes_on(each))})
    found = list(aliased(sorted({_spec(each)["registry"]["model"] for each in folders})))
    digests = {each for version in found for each in version.evidence.manifests}
    stays = set(runs)
    for run in runs:
        for record in read_records(run).values():
            if record.state_dir:
                stays.add(home / "state" / Path(record.state_dir).name)
            digests.update(record.outputs.values())
            digests.update(_pinned(record.result or {}))
    stays.update(_below(home, folder) for folder in _ancestry(home, digests))
    doomed = [path for path in _candidates(home, folders) if path not in stays]
    return Survey(
        runs=tuple(runs),
        versions=tuple(version.name for version in found),
        doomed=tuple(doomed),
        notes=tuple(_notes(home, set(doomed))),
        num_bytes=_freed(doomed, stays),
    )


def collect(home: Path, keep: int) -> Survey:
    """Delete what the survey finds. Killed midway, the same command does the rest.

    Raises what `survey` raises, and ServiceUnavailable while a run is at work in the home, before
    anything is deleted.
    """
    with in_use(home, alone=True):
        found = survey(home, keep)
        for note in found.notes:  # first: no note ever names a folder that is half gone
            note.unlink(missing_ok=True)
        for folder in found.doomed:
            _delete(home, folder)
        shutil.rmtree(home / TRASH, ignore_errors=True)
    return found


def show(console: Console, home: Path, found: Survey, *, done: bool) -> None:
    """What stays, what goes, and how much room that makes."""
    for what, kept in (("runs", [run.name for run in found.runs]), ("versions", found.versions)):
        console.print(f"kept {what}: {', '.join(kept) or 'none'}", markup=False, highlight=False)
    by_kind: dict[str, list[Path]] = defaultdict(list)
    for folder in found.doomed:
        by_kind[folder.parent.name].append(folder)
    word = "deleted" if done else "would delete"
    for kind in ("runs", "state", "content"):
        gone = by_kind[kind]
        if kind == "runs" and gone:
            names = ", ".join(run.name for run in gone)
            console.print(f"{word} runs: {names}", markup=False, highlight=False)
        elif gone:
            console.print(f"{word} {len(gone)} folders of {home / kind}", highlight=False)
    freed = f"{found.num_bytes / 1e6:,.1f} MB"
    console.print(
        f"{'freed' if done else 'would free'} {freed}" if found.doomed else "nothing to delete"
    )


# ---------------------------------------------------------------- what stays


def _check_registry(home: Path, runs: Iterable[Path]) -> None:
    """Whether the registry that is asked for its aliases is the one that the runs recorded in."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        os.environ["MLFLOW_TRACKING_URI"] = local_uri(home)
    asked = public(os.environ["MLFLOW_TRACKING_URI"])
    for run in runs:
        with contextlib.suppress(FileNotFoundError, ValueError):
            told = json.loads((run / "summary.json").read_text("utf-8")).get("mlflow") or {}
            if told.get("tracking_uri", asked) != asked:
                raise ConfigError(
                    f"run {run.name} recorded in {told['tracking_uri']}, and {asked} would be "
                    "asked which versions stay; set MLFLOW_TRACKING_URI to that of the runs"
                )


def _goes_on(run: Path) -> bool:
    """Whether a cluster may still be at work on it: nobody here holds such a run."""
    known = memory(run)
    return known.get("backend") == BACKEND and known.get("state") != "SUCCEEDED"


def _latest(folders: Iterable[Path], keep: int) -> list[Path]:
    """The `keep` latest of each spec's name."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    for folder in folders:
        by_name[_spec(folder)["name"]].append(folder)
    return [
        folder
        for runs in by_name.values()
        for folder in sorted(runs, key=lambda run: (run / "run.json").stat().st_mtime)[-keep:]
    ]


def _spec(run: Path) -> dict[str, Any]:
    try:
        spec: dict[str, Any] = json.loads(memory(run)["spec"])
    except (KeyError, ValueError):
        raise DataRejected(
            f"{run / 'run.json'} is damaged, so what that run rests on is not known; delete the "
            "run's folder, or restore it"
        ) from None
    return spec


def _pinned(result: dict[str, Any]) -> Iterator[str]:
    """Digests that a result names: the data and models of a snapshot."""
    for name, value in result.items():
        if name.endswith("_digest") and isinstance(value, str) and value:
            yield value


def _ancestry(home: Path, digests: Iterable[str]) -> Iterator[Path]:
    """The folders of artifacts and of all they were computed from, where they are still here."""
    seen, waiting = set[str](), list(digests)
    while waiting:
        digest = waiting.pop()
        folder = None if digest in seen else find(home, digest)
        seen.add(digest)
        if folder is None or not folder.is_dir():
            continue
        yield folder
        with contextlib.suppress(DataRejected):
            waiting.extend(manifest.read(folder).parents.values())


def _below(home: Path, artifact: Path) -> Path:
    """The folder of HOME/state or HOME/content that an artifact lies in."""
    kind, name = artifact.relative_to(home).parts[:2]
    return home / kind / name


# ---------------------------------------------------------------- what goes


def _candidates(home: Path, runs: Iterable[Path]) -> Iterator[Path]:
    yield from runs
    for kind in ("state", "content"):
        for folder in sorted((home / kind).glob("*")):
            if folder.is_dir() and folder.name != "by-uri":
                yield folder


def _notes(home: Path, doomed: set[Path]) -> Iterator[Path]:
    for note in sorted((home / "index").glob("*")):
        folder = find(home, note.name)
        if folder is None or not folder.is_dir() or _below(home, folder) in doomed:
            yield note
    for note in sorted((home / "content" / "by-uri").glob("*.json")):
        with contextlib.suppress(ValueError):
            digest = str(json.loads(note.read_text("utf-8")).get("digest"))
            folder = home / "content" / digest
            if folder in doomed or not folder.is_dir():
                yield note


def _freed(doomed: Iterable[Path], stays: Iterable[Path]) -> int:
    """Bytes of files that no kept folder shares: artifacts are linked, not copied."""
    elsewhere = {inode for folder in stays for inode, _ in _inodes(folder)}
    return sum(
        {
            inode: size
            for folder in doomed
            for inode, size in _inodes(folder)
            if inode not in elsewhere
        }.values()
    )


def _inodes(folder: Path) -> Iterator[tuple[tuple[int, int], int]]:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            stat = path.stat()
            yield (stat.st_dev, stat.st_ino), stat.st_size


def _delete(home: Path, folder: Path) -> None:
    """Out of sight in one step, then away: a kill leaves nothing that looks whole."""
    trash = home / TRASH / uuid.uuid4().hex
    trash.parent.mkdir(exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)
