"""Pinning data: every file of every source copied under the sha256 of its bytes.

Reads   the sources of the spec: files, folders, objects of a store
Gives   `find` (what there is, before anything slow), `pin` (a sealed folder), `write_origins`
Not     rows: a file is pinned as it is, and read by validate; the layout is sources/pinned.py
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dpoflow.contracts import manifest
from dpoflow.contracts.errors import ConfigError, DataRejected, ServiceUnavailable
from dpoflow.contracts.spec import REGISTRY, SnapshotConfig, SourceConfig, names_alias
from dpoflow.sources import remote
from dpoflow.sources.downloads import Listed, RemoteFile, download
from dpoflow.sources.files import DataFile, Found, data_files, local_path
from dpoflow.sources.pinned import (
    FILES,
    LINEAGE,
    OURS,
    DataRole,
    Pinned,
    read_pinned,
    write_pinned,
)
from dpoflow.state.events import Events
from dpoflow.state.files import link
from dpoflow.state.step import code_digest
from dpoflow.tracking.feedback import NothingNew

CHUNK = 1 << 20

_KNOBS: dict[DataRole, str] = {
    "new": "data.sources",
    "replayed": "data.sources",  # their pairs may not share names either
    "known": "data.sources",
    "evaluation": "data.evaluation_sets",
    "answers": "evaluate.suites",
    "heldout": "held out before",
    "learnt": "learnt before",
}
"""Where a spec names the files of each role."""


@dataclass(frozen=True)
class Located:
    """One file or object that is there to be pinned."""

    source: SourceConfig
    source_name: str
    file: DataFile | RemoteFile
    role: DataRole


def find(config: SnapshotConfig, root: Path, events: Events) -> list[Located]:
    """Every file of every source; an error names the first that cannot be used."""
    most = int(config.max_download_gb * 2**30)
    quiet, replay = config.unattended, config.replay
    if quiet:
        replay = tuple(each for each in replay if not _is_missing(each.uri, "replayed", events))
    located = [
        *_find(config.sources, root, events, "new", most=most, quiet=quiet),
        *_find(replay, root, events, "replayed", most=most, quiet=quiet),
        *_find(config.evaluation_sets, root, events, "evaluation", most=most),
        *_find(config.answers, root, events, "answers", most=most),
        *_before(config, root, events),
    ]
    _refuse_namesakes(located)
    return located


def _is_missing(uri: str, what: str, events: Events) -> bool:
    """Whether an alias names no version yet; then that is said."""
    if not names_alias(uri):
        return False
    from dpoflow.registry.versions import champion_of  # mlflow: only where it is asked

    if champion_of(uri) is not None:
        return False
    events.say(f"{uri} names no version yet: nothing of it is {what}")
    return True


def _before(config: SnapshotConfig, root: Path, events: Events) -> Iterator[Located]:
    """Files that say on which side prompts were for these versions, and for those before them.

    DataRejected where they are not here for the version that training starts from: it could learn
    what that was tested with. No other version is in the model that will be.
    """
    found: dict[tuple[DataRole, str], Path] = {}
    for uri in config.lineage:
        if _is_missing(uri, "kept apart", events):
            continue
        from dpoflow.registry.versions import data_of, sides_of

        try:
            (folder,), sides = data_of(uri, root), sides_of(uri, root)
        except DataRejected as gone:
            if uri == config.init:
                raise DataRejected(
                    f"train.init starts from {uri}, and which prompts that was tested with is not "
                    f"known, so they could be learnt ({gone}); name the home or volume that it "
                    "was made in, or start from the base with train.init: base"
                ) from None
            events.say(f"which prompts {uri} was tested with is not known ({gone})")
            continue
        for each in read_pinned(folder):
            if each.role in LINEAGE:
                found[each.role, each.name] = folder / FILES / each.sha256
        for side, paths in sides.items():
            for path in paths:
                found[side, f"{manifest.read(path.parent).digest[:16]}/{path.name}"] = path
    before = SourceConfig(uri="lineage", format="canonical")
    for (role, name), path in found.items():
        yield Located(before, "lineage", DataFile(path, name), role)


def _find(
    sources: Iterable[SourceConfig],
    root: Path,
    events: Events,
    role: DataRole,
    *,
    most: int,
    quiet: bool = False,
) -> Iterator[Located]:
    found: Found | Listed
    for source in sources:
        if source.uri.startswith(REGISTRY):
            from dpoflow.registry.versions import pairs_of  # mlflow: only where it is asked

            files = [data_files(str(path)).files[0] for path in pairs_of(source.uri, root)]
            name, found = source.uri, Found(files, [])
        elif remote.is_remote(source.uri):
            name = source.name or remote.name_of(source.uri)
            known = list(_known(source, name, root, events))
            for like, old in known:
                yield Located(like, name, old, "known")
            try:
                found = remote.listed(source, most=most, known=[old.path for _, old in known])
            except NothingNew as none:
                if not quiet:
                    raise DataRejected(str(none)) from None
                events.say(str(none))
                continue
            for told in found.told:
                events.say(told)
        else:
            name, found = local_path(source.uri).name or source.uri, data_files(source.uri)
        name = source.name or name
        if found.ignored and not source.uri.startswith(REGISTRY):
            some = ", ".join(found.ignored[:3])
            events.say(f"{name}: {len(found.ignored)} files are no data files ({some} …)")
        for file in found.files:
            yield Located(source, name, file, role)


def _known(
    source: SourceConfig, name: str, root: Path, events: Events
) -> Iterator[tuple[SourceConfig, DataFile]]:
    """The files of this source in the data of the version that `since` names, and those before.

    They stay in all data that follow: after a night on which nobody said anything, or where only
    something old was said anew, nothing else would tell what was heard last.
    """
    if source.since is None:
        return
    from dpoflow.registry.versions import champion_of, data_of

    version = champion_of(source.since)
    if version is None:
        events.say(f"{name}: {source.since} names no version yet, so all of it is new")
        return
    try:
        folders = data_of(version, root)
    except DataRejected as gone:
        raise DataRejected(
            f"{name}: what is new since {version} is not known ({gone}); name the home or volume "
            "that it was made in, or leave data.sources[].since out"
        ) from None
    known = {
        each.sha256: (folder, each)
        for folder in folders
        for each in read_pinned(folder)
        if each.source == name and each.role in ("new", "replayed", "known")
    }
    what = "is in the data of" if known else "is not in the data of"
    events.say(f"{name}: {what} {version}{'' if known else ', so all of it is new'}")
    for sha256, (folder, each) in known.items():
        like = each.model_dump(include={"format", "licence", "system"})
        called = f"{sha256[:16]}/{each.name.rpartition('/')[2]}"
        yield source.model_copy(update=like), DataFile(folder / FILES / sha256, called)


def pin(located: list[Located], folder: Path, events: Events) -> manifest.Manifest:
    """Copy the files into `folder`, list them, seal it. Downloads of a killed attempt go on."""
    shutil.rmtree(folder, ignore_errors=True)  # what a killed attempt left
    (folder / FILES).mkdir(parents=True)
    downloads = folder.with_name("downloads")
    _room_for(_still_to_come(located, downloads), folder)
    fetched = _download(located, downloads, events)
    pinned = [
        _adopt(entry, fetched[entry.file], folder / FILES)
        if isinstance(entry.file, RemoteFile)
        else _adopt(entry, entry.file.path, folder / FILES)
        if entry.role in OURS
        else _copy(entry, folder / FILES)
        for entry in events.track(located, "pin data", len(located), unit="files")
    ]
    write_pinned(pinned, folder)
    return manifest.seal(folder, "snapshot.data", parents={}, config={}, code=code_digest())


def write_origins(located: list[Located], folder: Path, path: Path) -> None:
    """Where each file of the sealed `folder` came from, and which state of it was taken.

    Beside the content, not in it: the same data from elsewhere are the same data.
    """
    pinned = {(each.role, each.source, each.name): each for each in read_pinned(folder)}
    kept = ((entry, pinned[entry.role, entry.source_name, entry.file.name]) for entry in located)
    told = [
        {
            **_origin(entry.file),
            **each.model_dump(include={"source", "name", "role", "num_bytes", "sha256"}),
        }
        for entry, each in kept
    ]
    path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _origin(file: DataFile | RemoteFile) -> dict[str, str]:
    if isinstance(file, RemoteFile):
        return {"uri": file.uri, "version": file.version}
    origin = {"uri": str(file.path)}
    with suppress(FileNotFoundError):  # by now: what was copied of it is whole
        origin["modified"] = datetime.fromtimestamp(file.path.stat().st_mtime, UTC).isoformat()
    return origin


def _refuse_namesakes(located: list[Located]) -> None:
    names = Counter((_KNOBS[entry.role], entry.source_name, entry.file.name) for entry in located)
    if not names:  # of a schedule, on a quiet night
        return
    (knob, source, file), count = names.most_common(1)[0]
    if count > 1:
        raise ConfigError(
            f"{knob} names {file} of {source} {count} times; "
            f"list it once, or give each source its own {knob}[].name"
        )


def _room_for(num_bytes: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise ServiceUnavailable(
            f"the data needs {num_bytes / 2**20:.0f} MiB and {free / 2**20:.0f} MiB are free "
            "where the state is kept; make room, or name another folder with --home"
        )


def _still_to_come(located: list[Located], downloads: Path) -> int:
    """Bytes; a file whose size no server tells counts for nothing."""

    def missing(file: DataFile | RemoteFile) -> int:
        there = downloads / file.draft if isinstance(file, RemoteFile) else None
        have = there.stat().st_size if there and there.exists() else 0
        return max(0, (file.num_bytes or 0) - have)

    return sum(missing(entry.file) for entry in located)


def _download(located: list[Located], downloads: Path, events: Events) -> dict[RemoteFile, Path]:
    """Every remote file as one of ours; one that is there already is not fetched again."""
    wanted = sorted(
        {entry.file for entry in located if isinstance(entry.file, RemoteFile)},
        key=lambda each: (each.uri, each.draft),
    )
    sizes = [each.num_bytes for each in wanted]
    total = None if None in sizes else sum(size or 0 for size in sizes) >> 20
    before, fetched = 0, dict[RemoteFile, Path]()
    if not wanted:
        return {}
    downloads.mkdir(exist_ok=True)
    for each in wanted:
        fetched[each], done = downloads / each.draft, before

        def progress(have: int, done: int = done) -> None:
            events.progress("download", (done + have) >> 20, total, unit="MiB")

        told = download(each, fetched[each], progress)
        came = fetched[each].stat().st_size
        events.say(f"{each.uri}: {came:,} bytes, {told}")
        before += came
    return fetched


def _adopt(entry: Located, path: Path, target: Path) -> Pinned:
    """What was downloaded stays where it is, too, until the whole step has succeeded."""
    sha256 = manifest.sha256_file(path)
    if not (target / sha256).exists():
        link(path, target / sha256)
    return _pinned(entry, sha256, path.stat().st_size)


def _copy(entry: Located, target: Path) -> Pinned:
    """Copy and hash in one reading. Copies, not links: the owner may edit the file in place."""
    assert isinstance(entry.file, DataFile)
    digest, path, draft = hashlib.sha256(), entry.file.path, target / ".draft"
    num_bytes = 0
    try:
        with path.open("rb") as source, draft.open("wb") as out:
            before = _stamp(os.fstat(source.fileno()))
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                num_bytes += out.write(chunk)
            after = (_stamp(os.fstat(source.fileno())), _stamp(path.stat()))
    except FileNotFoundError:
        raise _changed(entry, "went away") from None
    if after != (before, before) or num_bytes != before[1]:
        raise _changed(entry, "changed")
    draft.rename(target / digest.hexdigest())
    return _pinned(entry, digest.hexdigest(), num_bytes)


def _pinned(entry: Located, sha256: str, num_bytes: int) -> Pinned:
    return Pinned(
        source=entry.source_name,
        name=entry.file.name,
        format=entry.source.format,
        licence=entry.source.licence,
        system=entry.source.system,
        sha256=sha256,
        num_bytes=num_bytes,
        role=entry.role,
    )


def _stamp(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _changed(entry: Located, what: str) -> DataRejected:
    return DataRejected(
        f"{entry.file.name} of {entry.source_name} {what} while it was being copied; "
        "run again when nobody writes to it"
    )
