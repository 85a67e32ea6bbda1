"""Writes that are there whole or not at all.

Gives   `write_text`, `replace`, `link` (a hard link where it can), `publish` (a folder so)
Not     hashing (contracts/manifest.py)
"""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from dpoflow.contracts.errors import ConfigError


def write_text(path: Path, text: str) -> None:
    """Replace `path` in one step: a reader, or a kill, sees the old text or the new."""
    replace(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Put what `write` writes in the place of `path` once it is on the disk.

    The draft's name is drawn: process ids are the same small numbers in every container.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        write(draft)
        with draft.open("rb") as written:
            os.fsync(written.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def link(source: str | Path, target: str | Path) -> None:
    """Make `target` the same file, or a copy where the file system cannot."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def publish(folder: Path, target: Path) -> None:
    """Make `target` the same tree as `folder`, sharing the bytes where the file system can.

    Artifacts are never changed in place, so a shared inode is safe.
    """
    if target.is_dir():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder, target, copy_function=link)


def writable_folder(path: Path, what: str) -> Path:
    """`path`, made and proven writable; ConfigError says what cannot be written and why."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"{what} {path} cannot be written ({error.strerror}); "
            "name another folder with --home or DPOFLOW_HOME"
        ) from None
    return path
