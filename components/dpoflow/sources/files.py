"""From a URI to data files, and from a data file to rows.

Reads   a file or folder of JSON, JSON lines, CSV (plain, .gz or .zst), Parquet or Arrow
Gives   `data_files` (sorted), `read_rows` (row id and row, streamed)
Not     what the rows mean (formats/), pinning (snapshot/), counting bad rows (validate/)

A damaged file is refused whole: half a file is another data set. A row that is sound JSON but no
object, or that repeats a key, comes back as a `Quarantine` for the caller to count.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn
from urllib.parse import unquote, urlsplit

from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.sources import arrow_rows, csv_rows, json_rows, parquet_rows
from dpoflow.sources.json_rows import Raw
from dpoflow.sources.streams import PACKED

PLAIN = (".jsonl", ".json", ".csv")
SUFFIXES = (
    *PLAIN,
    *(f"{each}{packed}" for each in PLAIN for packed in PACKED),
    ".parquet",
    ".arrow",
)
_STATE = "state.json"
"""Beside .arrow files, it says that `datasets` saved them to disk."""
KNOWN = "a file or folder of " + ", ".join(SUFFIXES)


@dataclass(frozen=True)
class DataFile:
    """One file of a source."""

    path: Path
    name: str
    """Path inside the source's folder, with `/`; the file's own name where the source is a file."""

    @property
    def num_bytes(self) -> int:
        """As it is now."""
        return self.path.stat().st_size


@dataclass(frozen=True)
class Found:
    """What a URI names."""

    files: list[DataFile]
    """Sorted by name."""
    ignored: list[str]
    """Files in the folder that are no data files by their name."""


def data_files(uri: str) -> Found:
    """The data files that `uri` names, each seen to exist, to open and not to be empty."""
    root = local_path(uri)
    why = _why_not(root)
    if why:
        shown = uri[:200] if uri.isprintable() else ascii(uri[:200])
        raise ConfigError(
            f"data.sources[].uri {shown} {why}; a relative path starts at the "
            "spec's folder, one given with --set where you are"
        )
    if root.is_dir():
        found = _in_folder(root, uri)
    elif root.is_file():
        found = Found([DataFile(root, root.name)], [])
    else:
        raise DataRejected(f"{uri} is neither a file nor a folder; give {KNOWN}")
    for file in found.files:
        _look_at(file)
    return found


def read_rows(
    path: Path, name: str, *, max_line_mb: float, max_unpacked_gb: float = 64
) -> Iterator[tuple[str, Raw]]:
    """Rows of one file with their ids: `name:line`, or `name:row` where rows are not lines."""
    limit, most = int(max_line_mb * 2**20), int(max_unpacked_gb * 2**30)
    suffix = suffix_of(name) or ""
    if suffix == ".parquet":
        rows = parquet_rows.read(path, name)
    elif suffix == ".arrow":
        rows = arrow_rows.read(path, name)
    elif suffix.startswith(".csv"):
        rows = csv_rows.read(path, name, limit=limit, most=most)
    else:
        rows = json_rows.read(path, name, limit=limit, most=most)
    empty = True
    for number, row in rows:
        empty = False
        yield f"{name}:{number}", row
    if empty:
        raise DataRejected(f"{name} holds no rows; fill it, or take it out of the spec")


def suffix_of(name: str) -> str | None:
    """The suffix that says how a file is read; None for a name that says nothing to us."""
    fitting = [suffix for suffix in SUFFIXES if name.lower().endswith(suffix)]
    return max(fitting, key=len, default=None)


def data_names(names: Iterable[str]) -> set[str]:
    """Those of a folder's files that are data by their names; notes and caches are not."""
    every = [PurePosixPath(name) for name in names]
    tables = {path.parent for path in every if path.suffix.lower() == ".arrow"}
    saved = tables & {path.parent for path in every if path.name == _STATE}
    above = {folder.parent for folder in saved}

    def is_data(path: PurePosixPath) -> bool:
        hidden = any(part.startswith(".") for part in path.parts)  # also Argilla's settings
        if hidden or suffix_of(path.name) is None:
            return False
        if path.parent in saved:  # what `map` and `filter` leave there is somebody's next step
            return path.suffix.lower() == ".arrow" and not path.name.startswith("cache-")
        return not (path.name == "dataset_dict.json" and path.parent in above)

    return {path.as_posix() for path in every if is_data(path)}


def local_path(uri: str) -> Path:
    """The path that a URI names on this machine."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    if scheme is None:
        return Path(uri)
    parts = urlsplit(uri)
    if scheme[1].lower() == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    shown = uri.partition("?")[0]  # a query may be a signature
    raise ConfigError(
        f"data.sources[].uri {shown} cannot be read: {scheme[1]}:// is not known here; "
        f"give {KNOWN}, as a path, as file:///path or as s3://BUCKET/PREFIX, or one file as "
        "https://HOST/PATH"
    )


def _why_not(root: Path) -> str:
    """Why there is nothing at `root`; empty where there is. From 3.14 on `exists` does not say."""
    try:
        root.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last for a zero byte in it
        return "does not exist"
    except OSError as error:  # such as a name that is too long
        return f"cannot be a path ({error.strerror})"
    return ""


def _in_folder(root: Path, uri: str) -> Found:
    found = {
        (Path(folder) / name).relative_to(root).as_posix(): Path(folder) / name
        for folder, _, names in os.walk(root, onerror=_raise_unreadable)
        for name in names
    }
    data = data_names(found)
    files = [DataFile(path, name) for name, path in found.items() if name in data]
    ignored = [name for name in found if name not in data]
    if not files:
        held = f"holds none of its {len(ignored)} files in" if ignored else "is empty; we read"
        raise DataRejected(f"{uri} {held} {', '.join(SUFFIXES)}; name a folder that has data")
    return Found(sorted(files, key=lambda file: file.name), sorted(ignored))


def _look_at(file: DataFile) -> None:
    if not file.name.isprintable():
        raise DataRejected(f"{file.name!a} has a name that cannot be printed; rename the file")
    if suffix_of(file.name) is None:
        raise DataRejected(
            f"{file.name} has no suffix that we can read; we read {', '.join(SUFFIXES)}"
        )
    if not file.path.is_file():
        raise DataRejected(f"{file.name} is not a regular file, or a link to nowhere; remove it")
    try:
        with file.path.open("rb") as stream:
            empty = not stream.read(1)
    except OSError as error:
        _raise_unreadable(error)
    if empty:
        raise DataRejected(f"{file.name} is empty (0 bytes); remove it or fetch it again")


def _raise_unreadable(error: OSError) -> NoReturn:
    raise DataRejected(
        f"{error.filename} cannot be read ({error.strerror}); give this user the right to read it"
    ) from None
