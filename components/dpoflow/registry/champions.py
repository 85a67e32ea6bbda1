"""The files of a champion: which they are, how they are copied once, and how they are read again.

    champions/MODEL/VERSION/DIGEST/1/model/…          what the policy's manifest names
                                    evidence.json     beside decision.json and its signature
                                    /2/…              where 1 was left damaged

Reads   a version's own files, its sealed evidence, the protected folder of the artifact root
Gives   `read_sealed`: the files that evidence names; `copy`; `read_copy`
Not     whether a version may be champion (promotion.py, the gate)

Nothing in the protected folder is written twice, so a copy that a crash of the server left short
stays as it is, and the next attempt goes into the folder beside it. Readers take the first that is
whole. No file of a copy is believed before its bytes were hashed.
"""

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dpoflow.contracts.errors import DataRejected, ServiceUnavailable
from dpoflow.contracts.manifest import FileEntry, Manifest, files_digest, sha256_file
from dpoflow.registry.lineage import Evidence
from dpoflow.registry.signature import DECISION, SIGNATURE
from dpoflow.registry.team import Refused, Team
from dpoflow.registry.versions import evidence_tag

EVIDENCE = "evidence.json"
MODEL = "model"
"""The folder of a version's files that a model is loaded from."""
_MAX_EVIDENCE = 64_000_000

Say = Callable[[str], None]


@dataclass(frozen=True)
class Sealed:
    """What a version is, by its evidence."""

    policy: Manifest
    decision_digest: str
    files: Mapping[str, FileEntry]
    """Path in the version's folder to what it must be."""

    @property
    def tag(self) -> str:
        """What its tag dpoflow.evidence must be."""
        return evidence_tag(self.policy.digest, self.decision_digest)


def read_sealed(team: Team, folder: str, what: str) -> Sealed:
    """What the evidence in a folder of the artifact root says, once its digests add up."""
    there = team.files(folder)
    _must_be_there([EVIDENCE], there, folder, what)
    if there[EVIDENCE] > _MAX_EVIDENCE:
        raise DataRejected(f"the evidence of {what} has more than {_MAX_EVIDENCE:,} bytes")
    with tempfile.TemporaryDirectory() as draft:
        path = Path(draft) / EVIDENCE
        entry = team.fetch(f"{folder}/{EVIDENCE}", path)
        return sealed_of(path.read_bytes(), entry, what)


def _must_be_there(names: Iterable[str], there: Mapping[str, int], folder: str, what: str) -> None:
    """Looked up in a listing: of a file that is gone some artifact stores make an outage."""
    if gone := sorted(set(names) - there.keys()):
        raise DataRejected(
            f"{folder}/{gone[0]}, of {what}, is not in the artifact store any more; restore it "
            "from a backup"
        )


def sealed_of(text: bytes, entry: FileEntry, what: str) -> Sealed:
    """The same of evidence that is here. DataRejected where it says nothing true of itself."""
    try:
        evidence = Evidence.model_validate_json(text)
        policy = evidence.manifests[evidence.roots["policy"]]
        decision = evidence.manifests[evidence.roots["decision"]]
    except (ValueError, KeyError):
        raise DataRejected(f"the evidence of {what} is damaged") from None
    for name, named in (("policy", policy), ("decision", decision)):
        if not files_digest(named.files) == named.digest == evidence.roots[name]:
            raise DataRejected(f"the evidence of {what} says nothing true of its {name}")
    files = {f"{MODEL}/{_plain(name, what)}": each for name, each in policy.files.items()}
    files |= {name: each for name, each in decision.files.items() if name in (DECISION, SIGNATURE)}
    return Sealed(policy, decision.digest, {**files, EVIDENCE: entry})


def _plain(name: str, what: str) -> str:
    """A name that stays below the folder it is put into."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name or "\\" in name:
        raise DataRejected(f"the evidence of {what} names a file {name[:200]!r}; that is no name")
    return name


# ---------------------------------------------------------------- copying


def copy(team: Team, source: str, target: str, sealed: Sealed, what: str, say: Say) -> str:
    """Copy a version's files below `target` and read the copy back; the folder that is whole.

    What is there already is not sent again. Raises DataRejected where the source is not what was
    evaluated, Refused where the gate takes no file.
    """
    _must_be_there(sealed.files, team.files(source), source, what)
    for folder in _folders(target):
        there = team.files(folder)
        if not _fits(there, sealed):
            say(f"{folder} was left damaged; copying beside it")
            continue
        for name in sorted(sealed.files.keys() - there.keys()):
            say(f"copying {name} ({sealed.files[name].num_bytes:,} bytes)")
            _send_file(team, f"{source}/{name}", f"{folder}/{name}", sealed.files[name], what)
        wrong = first_wrong(team, folder, sealed)
        if wrong is None:
            return folder
        if not there:
            raise ServiceUnavailable(
                f"the artifact store gives back another {wrong} than it was given; check its disk "
                "or bucket, and try again"
            )
        say(f"{folder}/{wrong} was left damaged; copying beside it")
    raise AssertionError("folders have no end")


def whole_copy(team: Team, target: str, policy_digest: str, what: str) -> Sealed | None:
    """What a copy that stands whole says of itself; None where none does."""
    for folder in _folders(target):
        there = team.files(folder)
        if not there:
            return None
        with contextlib.suppress(DataRejected):  # damaged: others may not be
            sealed = read_sealed(team, folder, what)
            check_policy(sealed, policy_digest, what)
            if (
                there.keys() == sealed.files.keys()
                and _fits(there, sealed)
                and first_wrong(team, folder, sealed) is None
            ):
                return sealed
    return None


def _folders(target: str) -> Iterator[str]:
    return (f"{target}/{number}" for number in itertools.count(1))


def _fits(there: Mapping[str, int], sealed: Sealed) -> bool:
    """Whether all that is there may be part of a whole copy, by its size."""
    return all(
        name in sealed.files and sealed.files[name].num_bytes == size
        for name, size in there.items()
    )


def _send_file(team: Team, source: str, to: str, wanted: FileEntry, what: str) -> None:
    with tempfile.TemporaryDirectory() as draft:
        path = Path(draft) / "file"
        if team.fetch(source, path) != wanted:
            raise DataRejected(
                f"{source} is not the file of {what} that was evaluated: it was changed in the "
                "artifact store; reject the version, and run its spec again"
            )
        if _is_there(team, to):
            return  # another promoter was faster; what is there is read back
        try:
            team.put(to, path)
        except Refused:
            if not _is_there(team, to):
                raise


def _is_there(team: Team, path: str) -> bool:
    folder, _, name = path.rpartition("/")
    return name in team.files(folder)


def first_wrong(team: Team, folder: str, sealed: Sealed) -> str | None:
    """The first file of a copy that is not what was evaluated; None where all are."""
    for name, wanted in sorted(sealed.files.items()):
        if team.fetch(f"{folder}/{name}") != wanted:
            return name
    return None


# ---------------------------------------------------------------- reading


def read_copy(team: Team, target: str, policy_digest: str, what: str, into: Path) -> Sealed:
    """The model's files of a copy, put into `into`, each hashed.

    Raises DataRejected where no copy is whole, or it is of another policy than `policy_digest`.
    """
    fault = None
    for folder in _folders(target):
        if not team.files(folder):
            break
        try:
            sealed = read_sealed(team, folder, what)
            check_policy(sealed, policy_digest, what)
            read_model(team, folder, sealed, what, into)
        except DataRejected as error:
            fault = fault or error
        else:
            return sealed
    raise fault or DataRejected(
        f"the protected copy of {what} is gone from the artifact store; restore it from a backup"
    )


def check_policy(sealed: Sealed, policy_digest: str, what: str) -> None:
    """DataRejected where evidence is about other weights than those that were approved."""
    if sealed.policy.digest != policy_digest:
        raise DataRejected(
            f"the evidence of {what} is about {sealed.policy.digest[:12]}…, and "
            f"{policy_digest[:12]}… was approved; restore it from a backup"
        )


def read_model(team: Team, folder: str, sealed: Sealed, what: str, into: Path) -> None:
    """The model's files from a folder of the artifact root. DataRejected at the first changed."""
    names = [f"{MODEL}/{name}" for name in sealed.policy.files]
    _must_be_there(names, team.files(folder), folder, what)
    for name in sorted(sealed.policy.files):
        path = into / name
        path.parent.mkdir(parents=True, exist_ok=True)
        wanted = sealed.policy.files[name]
        if path.is_file() and sha256_file(path) == wanted.sha256:  # of a download that was killed
            continue
        if team.fetch(f"{folder}/{MODEL}/{name}", path) != wanted:
            raise DataRejected(
                f"{folder}/{MODEL}/{name} is not the file of {what} that was evaluated; nothing "
                "of it is handed over: restore it from a backup"
            )
