"""What speaks for a version: its decision, who signed it, its evidence, held against its tags.

Reads   decision.json, signature.json and evidence.json beside the model's files; the version's
        tags; DPOFLOW_TRUSTED_SIGNERS: public keys, in hex, separated by commas
Gives   `Case`, or DataRejected with what does not fit
Not     the weights: whoever promotes hashes those (never a request handler), see book.py
"""

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpoflow.contracts.errors import ConfigError, DataRejected, ServiceUnavailable
from dpoflow.contracts.manifest import files_digest
from dpoflow.contracts.results import Decision
from dpoflow.registry.gate.facts import LoggedModelFacts, VersionFacts, artifact_root, proxied
from dpoflow.registry.lineage import Evidence
from dpoflow.registry.signature import DECISION, SIGNATURE, signer_of
from dpoflow.registry.versions import evidence_tag

TRUSTED = "DPOFLOW_TRUSTED_SIGNERS"
EVIDENCE = "evidence.json"
_MAX_BYTES = 64_000_000


@dataclass(frozen=True)
class Case:
    """A version whose decision, evidence and tags tell one story."""

    verdict: str
    sentence: str
    policy_digest: str
    decision_digest: str
    evaluate_digest: str
    """sha256 of the spec's evaluate section, as the decision has it."""
    signer: str | None


def trusted_signers(environment: Mapping[str, str]) -> frozenset[str]:
    """Public keys in hex. ConfigError at one that is none."""
    named = [each.strip().lower() for each in environment.get(TRUSTED, "").split(",")]
    keys = frozenset(each for each in named if each)
    for key in keys:
        if len(key) != 64 or set(key) - set("0123456789abcdef"):
            raise ConfigError(
                f"{TRUSTED} has {key[:80]!r}, which is no Ed25519 key in 64 hex digits"
            )
    return keys


def read_case(version: VersionFacts, model: LoggedModelFacts) -> Case:
    """Raises DataRejected where a file is missing, changed, or of another version."""
    location = proxied(model.artifact_location)
    if location is None:
        raise DataRejected(
            "its files do not lie below this server's artifact root, so nobody can say that they "
            "rest as they were evaluated"
        )
    with tempfile.TemporaryDirectory() as draft:
        folder = Path(draft)
        for name in (DECISION, SIGNATURE, EVIDENCE):
            _fetch(f"{location}/{name}", folder / name)
        return case_of(folder, version.tags)


def case_of(folder: Path, tags: Mapping[str, str]) -> Case:
    """The case in `folder`, held against the version's tags."""
    decision = _parsed(folder / DECISION, Decision)
    evidence = _parsed(folder / EVIDENCE, Evidence)
    policy = evidence.roots.get("policy", "")
    decided = evidence.roots.get("decision", "")
    for name, digest in evidence.roots.items():
        manifest = evidence.manifests.get(digest)
        if manifest is None or files_digest(manifest.files) != digest:
            raise DataRejected(f"its evidence says nothing true of the {name}")
    files = evidence.manifests[decided].files if decided else {}
    told = hashlib.sha256((folder / DECISION).read_bytes()).hexdigest()
    if DECISION not in files or files[DECISION].sha256 != told:
        raise DataRejected("its decision.json is not the one that its evidence names")
    for what, seen, wanted in (
        ("dpoflow.policy_digest", tags.get("dpoflow.policy_digest"), policy),
        ("dpoflow.decision_digest", tags.get("dpoflow.decision_digest"), decided),
        ("dpoflow.evidence", tags.get("dpoflow.evidence"), evidence_tag(policy, decided)),
    ):
        if not wanted or seen != wanted:
            raise DataRejected(f"its tag {what} is not what its evidence says")
    if decision.digests.get("policy") != policy:
        raise DataRejected("its decision is on another policy than its evidence")
    return Case(
        verdict=decision.verdict,
        sentence=decision.sentence,
        policy_digest=policy,
        decision_digest=decided,
        evaluate_digest=decision.digests.get("config", ""),
        signer=signer_of(folder),
    )


def _parsed(path: Path, kind: Any) -> Any:
    if not path.exists():
        raise DataRejected(f"it has no {path.name}")
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValueError:
        raise DataRejected(f"its {path.name} is damaged") from None


def _fetch(path: str, to: Path) -> None:
    """One file of the artifact root, if it is there."""
    import posixpath

    with _outages_named(to.name):
        root = artifact_root()
        listed = root.list_artifacts(posixpath.dirname(path))
        found = [each for each in listed if each.path == path and not each.is_dir]
        sizes = [each.file_size or 0 for each in found]
        if found and max(sizes) <= _MAX_BYTES:
            root._download_file(path, str(to))  # noqa: SLF001  # the public one makes folders
    if found and max(sizes) > _MAX_BYTES:
        raise DataRejected(f"its {to.name} has more than {_MAX_BYTES:,} bytes")


@contextlib.contextmanager
def _outages_named(name: str) -> Iterator[None]:
    """ServiceUnavailable for whatever an artifact store throws: each kind has its own errors."""
    try:
        yield
    except Exception as error:
        raise ServiceUnavailable(
            f"the artifact store does not hand out {name} ({type(error).__name__}); try again"
        ) from error
