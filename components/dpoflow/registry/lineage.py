"""The chain of evidence: from a model back to its sources, each artifact by sha256.

Reads   manifests under a root (state/step.py keeps the index)
Gives   `ancestry` for the evidence of a version, `walk` that hashes everything again
Not     MLflow (versions.py)
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from dpoflow.contracts import manifest
from dpoflow.contracts.base import Contract
from dpoflow.contracts.errors import DataRejected
from dpoflow.contracts.manifest import Manifest, files_digest
from dpoflow.state.step import find

VERSION = "version"
"""The parent of a model that came from the registry: the policy of that version, where this root
has it. So the chain goes on to the version before, and ends where a home no longer holds it."""


class Evidence(Contract):
    """Every artifact that a version rests on; `roots` are where the walk begins."""

    schema_version: int = 1
    roots: dict[str, str]
    """Name to digest: policy, decision."""
    manifests: dict[str, Manifest]
    """Digest to manifest, parents included down to the sources."""


def ancestry(root: Path, roots: Mapping[str, str]) -> Evidence:
    """The manifests of `roots` and of all they were computed from."""
    manifests: dict[str, Manifest] = {}
    waiting = list(roots.items())
    while waiting:
        name, digest = waiting.pop()
        if digest in manifests or (name == VERSION and not _is_here(root, digest)):
            continue
        manifests[digest] = manifest.read(_folder(root, digest))
        waiting.extend(manifests[digest].parents.items())
    return Evidence(roots=dict(roots), manifests=dict(sorted(manifests.items())))


def walk(root: Path, evidence: Evidence) -> Iterator[tuple[str, Manifest, Path]]:
    """Each artifact from the roots to the sources, once, after its files were hashed again.

    Raises DataRejected at the first that is gone, changed, or not what the evidence says.
    """
    seen, waiting = set[str](), list(evidence.roots.items())
    while waiting:
        name, digest = waiting.pop(0)
        if digest in seen or (name == VERSION and digest not in evidence.manifests):
            continue
        seen.add(digest)
        folder, recorded = _folder(root, digest), evidence.manifests.get(digest)
        if recorded is None or files_digest(recorded.files) != digest:
            raise DataRejected(f"the evidence says nothing true of {name} ({digest[:12]}…)")
        if manifest.verify(folder).digest != digest:
            raise DataRejected(
                f"{folder} is not what the evidence recorded as {name} ({digest[:12]}…); "
                "restore it from a backup, or run the spec again"
            )
        yield name, recorded, folder
        waiting.extend(recorded.parents.items())


def _is_here(root: Path, digest: str) -> bool:
    folder = find(root, digest)
    return folder is not None and folder.is_dir()


def _folder(root: Path, digest: str) -> Path:
    folder = find(root, digest)
    if folder is None or not folder.is_dir():
        raise DataRejected(
            f"artifact {digest[:12]}… is not under {root} any more; "
            "name the home it was made in with --home, or run the spec again"
        )
    return folder
