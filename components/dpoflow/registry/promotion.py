"""The promoter: what reviewers approved becomes champion, and on the same road back.

    begin → copy the files → hash the copy → verified → previous_champion → champion

Reads   a team's server: what is due, versions, their files
Gives   `promote_due`, one round over everything; `promote`, one version; `drift_of`
Not     the rules: the gate judges each step again (registry/gate)

Each step may be done again, by this promoter or by another at the same time: the gate answers a
promotion that has begun with itself, a file is there once, an alias that stands is set again.
Whoever is killed leaves a promotion that the next round goes on with. The aliases move last, so a
copy that fails leaves both as they were.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dpoflow.contracts.errors import (
    ConfigError,
    DataRejected,
    DpoflowError,
    GateNotPassed,
    ServiceUnavailable,
)
from dpoflow.registry.champions import Sealed, check_policy, copy, read_sealed, whole_copy
from dpoflow.registry.team import GATE, MLFLOW, Refused, Team, folder_of

CHAMPION, PREVIOUS = "champion", "previous_champion"
_OPEN = ("begun", "verified")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Due:
    """A version to promote or to go back to."""

    model: str
    version: str
    kind: str
    reason: str

    @property
    def subject(self) -> str:
        """As people name it."""
        return f"{self.model}/{self.version}"


@dataclass(frozen=True)
class Outcome:
    """What became of one."""

    due: Due
    error: DpoflowError | None
    """None: it is champion."""


def promote_due(team: Team, say: Say) -> list[Outcome]:
    """One round. What fails keeps nothing else from being tried."""
    told = team.get(f"{GATE}/promotions")
    going = {each["model"]: each for each in told["promotions"] if each["state"] in _OPEN}
    due = sorted(
        (Due(**each) for each in told["due"]),
        # One that has begun goes first: it is in the way of others of its model.
        key=lambda each: (each.model, going.get(each.model, {}).get("version") != each.version),
    )
    _mend(team, told["promotions"], {each.model for each in due}, say)
    outcomes: list[Outcome] = []
    stuck = dict[str, str]()
    for each in due:
        if each.model in stuck:
            waits = GateNotPassed(f"it waits for {stuck[each.model]}, which goes first")
            outcomes.append(Outcome(each, waits))
            continue
        outcomes.append(_tried(team, each, say))
        if outcomes[-1].error is not None:
            stuck[each.model] = each.subject
    return outcomes


def _tried(team: Team, due: Due, say: Say) -> Outcome:
    try:
        promote(team, due, say)
    except DpoflowError as error:
        return Outcome(due, error)
    return Outcome(due, None)


def promote(team: Team, due: Due, say: Say) -> None:
    """Make a version champion, or find that it is.

    Raises Refused with the gate's sentence, DataRejected where files are not what was evaluated,
    ServiceUnavailable where something is away: the same again goes on from there.
    """
    begun: dict[str, Any] = {}
    with team.as_role("promoter"):
        try:
            begun = _begin(team, due)
            if begun["state"] == "begun":
                begun = _verify(team, due, begun, say)
            if begun["state"] != "done":
                _crown(team, begun)
        except Refused:
            if not _is_done(team, due, begun):
                raise
            say(f"another promoter made {due.subject} champion")
            return
    say(f"{due.subject} is champion")


def _begin(team: Team, due: Due) -> dict[str, Any]:
    body = {"model": due.model, "version": due.version, "kind": due.kind, "reason": due.reason}
    return team.post(f"{GATE}/promotions", **body)


def _verify(team: Team, due: Due, begun: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """See to it that a whole copy stands, and report it; the promotion as it is then."""
    road = f"{GATE}/promotions/{begun['promotion']}"
    try:
        _copy(team, due, begun, say)
        return team.post(f"{road}/verified", policy_digest=begun["policy_digest"])
    except Refused:
        now = team.get(road)
        if now["state"] in ("verified", "done"):  # by another promoter, who hashed a copy, too
            return now
        raise


def _copy(team: Team, due: Due, begun: Mapping[str, Any], say: Say) -> None:
    what, digest = due.subject, str(begun["policy_digest"])
    version = version_of(team, due.model, due.version)
    target = folder_of(begun["target"], what)
    sealed = whole_copy(team, target, digest, what)
    if sealed is not None:  # of an earlier time as champion, or of an attempt that was killed
        check_tags(version, sealed, what)
        say(f"a whole copy of {what} is there")
        return
    source = source_of(team, version, what)
    sealed = read_sealed(team, source, what)
    check_policy(sealed, digest, what)
    check_tags(version, sealed, what)
    copy(team, source, target, sealed, what, say)


def _crown(team: Team, begun: Mapping[str, Any]) -> None:
    if begun["from"]:
        _set_alias(team, begun["model"], begun["from"], PREVIOUS)
    _set_alias(team, begun["model"], begun["version"], CHAMPION)


def _is_done(team: Team, due: Due, begun: Mapping[str, Any]) -> bool:
    """Whether this promotion is done by now; where it had not begun, whether the version has it."""
    done = [each for each in promotions_of(team, due.model) if each["state"] == "done"]
    if begun:
        return any(each["promotion"] == begun["promotion"] for each in done)
    return bool(done) and done[-1]["version"] == due.version


def _mend(team: Team, promotions: list[Mapping[str, Any]], going: set[str], say: Say) -> None:
    """Where somebody was killed at the last step, the aliases are what the log has.

    A server between its row and the alias leaves the champion of before; a promotion that was
    refused at its last step leaves previous_champion ahead. Anything else is drift, and is told.
    `going` are models on whose aliases somebody may be at work.
    """
    last = {each["model"]: each for each in promotions if each["state"] == "done"}
    for model, done in sorted(last.items()):
        if model in going:
            continue
        try:
            aliases = aliases_of(team, model)
            wanted = {PREVIOUS: done["from"]} if done["from"] else {}
            if aliases.get(CHAMPION) == done["from"]:
                wanted[CHAMPION] = done["version"]
            for alias, version in wanted.items():
                if aliases.get(alias) != version:
                    _set_alias(team, model, version, alias)
                    say(f"{alias} of {model} is {version} again, as the log has it")
        except (ConfigError, Refused) as error:  # model or version are gone: drift says so, too
            say(f"the aliases of {model} stay as they are: {error}")


# ---------------------------------------------------------------- what a server holds


def promotions_of(team: Team, model: str) -> list[dict[str, Any]]:
    """Every promotion of a model, oldest first."""
    found: list[dict[str, Any]] = team.get(f"{GATE}/promotions", model=model)["promotions"]
    return found


def drift_of(team: Team) -> list[str]:
    """Where the registry names another champion than the log, in words."""
    return [
        f"{each['model']}: the registry says champion is {each['registry'] or 'none'}, and the log "
        f"says {each['log'] or 'none'}: somebody went past the server"
        for each in team.get(f"{GATE}/drift")["drift"]
    ]


def version_of(team: Team, model: str, version: str) -> dict[str, Any]:
    """A version as the registry has it."""
    told = team.get(f"{MLFLOW}/model-versions/get", name=model, version=version)
    found: dict[str, Any] = told["model_version"]
    return found


def tags_of(version: Mapping[str, Any]) -> dict[str, str]:
    """Its tags."""
    return {each["key"]: each.get("value", "") for each in version.get("tags", [])}


def aliases_of(team: Team, model: str) -> dict[str, str]:
    """Alias to version."""
    told = team.get(f"{MLFLOW}/registered-models/get", name=model)["registered_model"]
    return {each["alias"]: str(each["version"]) for each in told.get("aliases", [])}


def source_of(team: Team, version: Mapping[str, Any], what: str) -> str:
    """The folder of the artifact root that a version's own files lie in."""
    scheme, _, model_id = str(version.get("source", "")).partition(":/")
    if scheme != "models" or not model_id.startswith("m-"):
        raise DataRejected(f"{what} rests on no logged model, so it has no evidence")
    told = team.get(f"{MLFLOW}/logged-models/{model_id}")["model"]["info"]
    return folder_of(told["artifact_uri"], what)


def check_tags(version: Mapping[str, Any], sealed: Sealed, what: str) -> None:
    """DataRejected where the evidence is not what the version's tags say."""
    tags = tags_of(version)
    for key, wanted in (
        ("dpoflow.evidence", sealed.tag),
        ("dpoflow.policy_digest", sealed.policy.digest),
        ("dpoflow.decision_digest", sealed.decision_digest),
    ):
        if tags.get(key) != wanted:
            raise DataRejected(
                f"the evidence of {what} is not that of its tag {key}: it was changed in the "
                "artifact store; reject the version, and run its spec again"
            )


def _set_alias(team: Team, model: str, version: str, alias: str) -> None:
    """Raises what kept it from being set; another promoter may have set it meanwhile."""
    try:
        team.post(f"{MLFLOW}/registered-models/alias", name=model, alias=alias, version=version)
    except (ConfigError, ServiceUnavailable):  # MLflow's store takes one of two at the same time
        if aliases_of(team, model).get(alias) != version:
            raise
