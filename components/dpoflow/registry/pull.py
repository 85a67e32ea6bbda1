"""A model for those who serve it: downloaded, held against evidence and log, then there at once.

Reads   a team's server
Gives   `pull`: a folder that transformers and vLLM load, with its manifest.json
Not     serving it

The folder is named last: whoever sees it sees a model whose every file was hashed. What a killed
download left beside it is used again.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpoflow.contracts import manifest
from dpoflow.contracts.base import canonical_json
from dpoflow.contracts.errors import ConfigError, DataRejected, ServiceUnavailable
from dpoflow.registry import champions
from dpoflow.registry.promotion import (
    CHAMPION,
    aliases_of,
    check_tags,
    promotions_of,
    source_of,
    version_of,
)
from dpoflow.registry.team import GATE, Team, folder_of
from dpoflow.state.files import write_text

Say = Callable[[str], None]


@dataclass(frozen=True)
class Pulled:
    """What stands in the folder now."""

    model: str
    version: str
    policy_digest: str
    folder: Path
    champion: bool
    """Whether it is champion, by the log."""
    was_promoted: bool
    """False: nobody approved it; its files are those that were evaluated, and that is all."""
    was_there: bool
    """Whether the folder held it before."""


def pull(team: Team, name: str, folder: Path, say: Say) -> Pulled:
    """Put the model of `NAME@ALIAS` or `NAME/VERSION` into `folder`.

    Raises DataRejected where log, registry and files do not tell one story, ConfigError where the
    folder holds something else or there is no such version, ServiceUnavailable.
    """
    _check_log(team)
    model, version = _named(team, name)
    done = [each for each in promotions_of(team, model) if each["state"] == "done"]
    champion = done[-1]["version"] if done else None
    if name.endswith(f"@{CHAMPION}") and champion != version:
        raise DataRejected(
            f"the registry says that {name} is version {version}, and the log says "
            f"{champion or 'none'}: somebody went past the server; see dpoflow review list"
        )
    last = next((each for each in reversed(done) if each["version"] == version), None)
    what = f"{model}/{version}"
    digest, was_there = _put(team, what, version_of(team, model, version), last, folder, say)
    return Pulled(model, version, digest, folder, champion == version, bool(last), was_there)


def _check_log(team: Team) -> None:
    told = team.get(f"{GATE}/audit/verify")
    if not told["whole"]:
        raise DataRejected(f"nothing is handed over: {told['fault']}")


def _named(team: Team, name: str) -> tuple[str, str]:
    """Model and version."""
    model, at, alias = name.partition("@")
    if at and model and alias:
        aliases = aliases_of(team, model)
        if alias not in aliases:
            there = ", ".join(sorted(aliases)) or "no alias"
            raise ConfigError(f"{model} has no alias {alias!r}; it has {there}")
        return model, aliases[alias]
    model, _, version = name.rpartition("/")
    if not model or not version.isdecimal():
        raise ConfigError(f"{name!r} names no version; write NAME@champion or NAME/VERSION")
    return model, str(int(version))


def _put(
    team: Team,
    what: str,
    version: Mapping[str, Any],
    promoted: Mapping[str, Any] | None,
    folder: Path,
    say: Say,
) -> tuple[str, bool]:
    """The digest of the model that stands in `folder` now, and whether it did before."""
    own = "" if promoted else source_of(team, version, what)
    evidence = champions.read_sealed(team, own, what) if own else None
    if evidence:
        check_tags(version, evidence, what)
    digest = evidence.policy.digest if evidence else str(promoted and promoted["policy_digest"])
    if _holds(folder, digest):
        return digest, True
    with _draft(folder, digest, what) as draft:
        say(f"downloading {what} beside {folder}")
        if evidence:
            champions.read_model(team, own, evidence, what, draft)
        elif promoted:
            target = folder_of(promoted["target"], what)
            evidence = champions.read_copy(team, target, digest, what, draft)
        assert evidence is not None
        write_text(draft / manifest.FILE_NAME, canonical_json(evidence.policy) + "\n")
        if manifest.verify(draft).digest != digest:
            raise DataRejected(f"{draft} is not {what} as it was evaluated; remove it")
        draft.rename(folder)
    return digest, False


def _holds(folder: Path, policy_digest: str) -> bool:
    """Whether the folder has this model already. ConfigError where it has anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if (folder / manifest.FILE_NAME).is_file() and (manifest.read(folder).digest == policy_digest):
        try:
            manifest.verify(folder)
        except DataRejected:
            raise DataRejected(
                f"{folder} holds this model, and its files were changed since; remove it, and pull "
                "again"
            ) from None
        return True
    raise ConfigError(f"{folder} holds something else, which stays; name a new folder")


@contextlib.contextmanager
def _draft(folder: Path, digest: str, what: str) -> Iterator[Path]:
    """A folder beside `folder` that is ours alone; what a killed pull of the same left is in it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.parent / f".{folder.name}.{digest[:16]}.part"
    draft.mkdir(exist_ok=True)
    held = os.open(draft, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise ServiceUnavailable(
            f"another pull of {what} writes to {folder}; wait for it, and give the same command"
        ) from None
    try:
        yield draft
    finally:
        os.close(held)
