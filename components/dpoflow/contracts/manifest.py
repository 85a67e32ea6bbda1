"""A manifest beside every artifact: what its files are, and what they were made from.

Reads   a folder
Gives   `Manifest` (manifest.json inside that folder), `seal`, `verify`, `sha256_file`
Not     where artifacts live (state/) or how they are shown (tracking/)
"""

import hashlib
import os
from pathlib import Path
from typing import Any

from dpoflow.contracts.base import Contract, canonical_json, sha256_json
from dpoflow.contracts.errors import DataRejected

FILE_NAME = "manifest.json"


class FileEntry(Contract):
    """One file of an artifact."""

    sha256: str
    num_bytes: int


class Manifest(Contract):
    """Content, ancestry and circumstances of one artifact."""

    schema_version: int = 1
    kind: str
    """`step.output`, such as `train.policy`."""
    digest: str
    """sha256 over the sorted (path, sha256) of every file: the artifact's name for good."""
    files: dict[str, FileEntry]
    parents: dict[str, str]
    """Name to digest of each artifact that this one was computed from."""
    config: dict[str, Any]
    code: str
    """sha256 of the dpoflow sources that ran; see `state.step.code_digest`."""
    git_commit: str | None = None
    image_digest: str | None = None


def sha256_file(path: Path) -> str:
    """sha256, in hex, of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _files_of(folder: Path) -> dict[str, FileEntry]:
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != FILE_NAME)
    return {
        path.relative_to(folder).as_posix(): FileEntry(
            sha256=sha256_file(path), num_bytes=path.stat().st_size
        )
        for path in found
    }


def files_digest(files: dict[str, FileEntry]) -> str:
    """The digest of a set of files: independent of listing order, changed by one byte or name."""
    return sha256_json({name: entry.sha256 for name, entry in files.items()})


def digest_of(folder: Path) -> str:
    """What the manifest will call this folder once it is sealed."""
    return files_digest(_files_of(folder))


def seal(
    folder: Path, kind: str, *, parents: dict[str, str], config: dict[str, Any], code: str
) -> Manifest:
    """Hash every file of `folder` and write manifest.json into it."""
    files = _files_of(folder)
    manifest = Manifest(
        kind=kind,
        digest=files_digest(files),
        files=files,
        parents=parents,
        config=config,
        code=code,
        git_commit=os.environ.get("DPOFLOW_GIT_COMMIT"),
        image_digest=os.environ.get("DPOFLOW_IMAGE_DIGEST"),
    )
    (folder / FILE_NAME).write_text(canonical_json(manifest) + "\n", encoding="utf-8")
    return manifest


def read(folder: Path) -> Manifest:
    """The manifest of an artifact; DataRejected where there is none or it cannot be read."""
    try:
        return Manifest.model_validate_json((folder / FILE_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataRejected(
            f"{folder} has no {FILE_NAME}: it is no artifact of dpoflow; name a step's output"
        ) from None
    except ValueError as error:
        raise DataRejected(f"{folder / FILE_NAME} is damaged ({error}); make it again") from None


def verify(folder: Path) -> Manifest:
    """Hash every file again and compare; DataRejected names the first that differs."""
    manifest, seen = read(folder), _files_of(folder)
    for name in sorted(manifest.files.keys() | seen.keys()):
        want, have = manifest.files.get(name), seen.get(name)
        if want is None or have is None or want.sha256 != have.sha256:
            what = "is missing" if have is None else "was added" if want is None else "was changed"
            raise DataRejected(
                f"{folder / name} {what} since {manifest.kind} was sealed; run that step again"
            )
    if files_digest(manifest.files) != manifest.digest:
        raise DataRejected(f"{folder / FILE_NAME} was changed: its digest is not that of its files")
    return manifest
