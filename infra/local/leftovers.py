"""What a pip that was killed leaves in site-packages, told from what it installed whole.

Reads   the RECORD of each distribution there (PyPA's "Recording installed projects")
Gives   `clear`: only whole distributions stay, and the names of those that were not
Not     installing them again (set_up.py), nor what lies outside: pip overwrites scripts and data

pip unpacks a wheel, then writes INSTALLER, then RECORD anew with a line for INSTALLER. So a RECORD
with that line was the last thing pip did, and each file it names has the size it says. Sizes, not
hashes: a process that is killed loses nothing of what it wrote. An upgrade that was killed leaves
the older files renamed to `~…`, and a package that did not get as far as its metadata leaves files
alone: no RECORD names either. What no RECORD names goes, also what somebody put there by hand.
"""

import contextlib
import csv
import os
from pathlib import Path

Record = dict[str, str]
"""Path to size, empty where pip knows none (what Python compiled)."""


def clear(site: Path) -> tuple[int, list[str]]:
    """Leave what is whole: how many distributions that is, and the names of the others."""
    whole, broken = examine(site)
    sweep(site, {path for files in whole.values() for path in files})
    return len(whole), broken


def examine(site: Path) -> tuple[dict[str, Record], list[str]]:
    """The distributions that are whole, with their files, and the names of those that are not."""
    records = {
        info.name.removesuffix(".dist-info"): record(info)
        for info in sorted(site.glob("[!~]*.dist-info"))
    }
    sizes: dict[str, set[str]] = {}
    for files in records.values():
        for path, size in files.items():
            sizes.setdefault(path, set()).add(size)
    whole = {
        name: files
        for name, files in records.items()
        if files and all(right(path, sizes[path]) for path in files)
    }
    return whole, sorted(records.keys() - whole)


def record(info: Path) -> Record:
    """What RECORD names; nothing where pip did not come to its end."""
    try:
        rows = csv.reader((info / "RECORD").read_text(encoding="utf-8").splitlines())
        found = {os.path.normpath(info.parent / path): size for path, _, size in rows}
    except (OSError, ValueError, csv.Error):
        return {}
    return found if str(info / "INSTALLER") in found else {}


def right(path: str, sizes: set[str]) -> bool:
    """Whether a file is there at the size that a record names, where one does.

    Two distributions may hold the same file (mlflow and mlflow-skinny do): either's size will do.
    What Python compiles may be missing, since Python compiles it again.
    """
    try:
        size = os.stat(path).st_size  # noqa: PTH116  # of a hundred thousand files
    except OSError:
        return path.endswith(".pyc")
    return "" in sizes or str(size) in sizes


def sweep(site: Path, keep: set[str]) -> None:
    """Away with each file under `site` that is not to be kept, and with folders left empty."""
    for folder, _, files in os.walk(site, topdown=False):
        for path in (f"{folder}/{name}" for name in files):
            if path not in keep:
                Path(path).unlink()
        with contextlib.suppress(OSError):  # not empty
            Path(folder).rmdir()
