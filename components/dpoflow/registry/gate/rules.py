"""Who may do what: action, user and facts in, allowed or a sentence out. Nothing is written here.

Reads   an action (actions.py), facts of the registry, the book, the case of a version
Gives   `is_guarded`, `judge`: `Allowed` or `Denied`
Not     finding out any of it, nor doing it (app.py)

Admins are bound like everybody: no rule asks for that role.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import singledispatch
from typing import Any, Protocol

from dpoflow.contracts.errors import DataRejected
from dpoflow.registry.gate import actions as act
from dpoflow.registry.gate import book as bk
from dpoflow.registry.gate.book import Book, Opinion, Promotion, lapse_of
from dpoflow.registry.gate.case import Case
from dpoflow.registry.gate.facts import Facts, Seal, SealedKind, VersionFacts, proxied
from dpoflow.registry.gate.roles import Role

CHAMPION, PREVIOUS = act.PROTECTED_ALIASES
HOW_TO = "open the version's Tags and add approval = approve: REASON, or reject: REASON"
NO_PROMOTE = (
    "A version is not promoted by copying it: it becomes champion where it is, once a reviewer has "
    f"approved it ({HOW_TO}) and the promoter has verified its files. A copy brings no evidence "
    "and no approval: leave out its tags dpoflow.*, gate.* and approval if that is all you want."
)


@dataclass(frozen=True)
class Allowed:
    """It may happen."""

    row: str = ""
    """What the log calls it; empty where it is too ordinary for a row."""
    detail: dict[str, Any] = field(default_factory=dict)
    by_gate: bool = False
    """Done by the gate itself: roles count, and MLflow's permissions on the model do not."""
    seals: tuple[Seal, ...] = ()
    """What rests from now on."""


@dataclass(frozen=True)
class Denied:
    """It may not; the sentence says why, and the way out where there is one."""

    sentence: str


Verdict = Allowed | Denied


@dataclass(frozen=True)
class Who:
    """A user and their roles."""

    user: str
    roles: frozenset[Role]

    def holds(self, *roles: Role) -> bool:
        """Whether one of these roles is theirs."""
        return bool(self.roles & set(roles))


class People(Protocol):
    """What rules ask about other users."""

    def is_reviewer(self, user: str) -> bool:
        """Whether the account is there and has the role."""
        ...

    def may_edit(self, user: str, experiment_id: str) -> bool:
        """Whether MLflow lets the user write to the experiment."""
        ...


@dataclass(frozen=True)
class World:
    """What a judgement rests on."""

    facts: Facts
    book: Book
    people: People
    now: datetime
    approval_days: float = 14
    trusted: frozenset[str] = frozenset()
    case: Case | DataRejected | None = None
    """Of the version that an approval is about, read beforehand."""


# ---------------------------------------------------------------- does the gate care at all?


def is_guarded(action: act.Action, facts: Facts) -> bool:  # noqa: C901  # one line a kind
    """Whether rules have a say; needs no user, and at most a look-up by primary key."""
    match action:
        case act.TagVersion():
            return act.is_reserved(action.key)
        case act.TagOther():
            return any(_reserved_elsewhere(key) for key in action.keys)
        case act.CreateVersion():
            return any(act.is_reserved(key) for key, _ in action.tags)
        case act.SetAlias() | act.DeleteAlias():
            return act.protected_alias(action.alias) is not None
        case act.ChangeVersion(how="update"):
            return bool(facts.sealed(("version", action.subject)))
        case act.ChangeVersion(how="delete"):
            return bool(_aliases_of(action, facts))
        case act.ChangeModel():
            return bool(facts.aliases(action.name))
        case act.WriteArtifact():
            return _is_held(action, facts)
        case act.WriteRun():
            return bool(facts.sealed(*_runs(action)))
        case act.WriteLoggedModel():
            return bool(facts.sealed(*(("model", each) for each in action.model_ids)))
        case act.DeleteExperiment():
            return bool(facts.sealed(("experiment", action.experiment_id)))
        case act.CreateExperiment():
            return bool(action.artifact_location)
    return True


def _reserved_elsewhere(key: str) -> bool:
    """On models and logged models, where dpoflow.* is anybody's."""
    return act.is_reserved(key) and not act.skeleton(key).startswith("dpoflow.")


def _aliases_of(action: act.ChangeVersion, facts: Facts) -> list[str]:
    return sorted(
        alias for alias, version in facts.aliases(action.name).items() if version == action.version
    )


def _is_held(action: act.WriteArtifact, facts: Facts) -> bool:
    if action.path in ("", act.CHAMPIONS) or action.path.startswith(f"{act.CHAMPIONS}/"):
        return True
    return bool(facts.sealed(*_folders(action.path), ("above", action.path)))


def _runs(action: act.WriteRun) -> list[tuple[SealedKind, str]]:
    return [("run", each) for each in action.run_ids]


def _folders(path: str) -> list[tuple[SealedKind, str]]:
    return [("files", each) for each in above(path)]


def above(path: str) -> list[str]:
    """A path and every folder over it: `a/b` gives a and a/b."""
    parts = path.split("/")
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


# ---------------------------------------------------------------- may it happen?


@singledispatch
def judge(action: Any, who: Who, world: World) -> Verdict:
    """What follows for a guarded action."""
    raise AssertionError(f"no rule for {action!r}")


@judge.register
def _(action: act.Closed, who: Who, world: World) -> Verdict:
    return Denied(action.sentence)


@judge.register
def _(action: act.ManageAccount, who: Who, world: World) -> Verdict:
    return Allowed(row=f"account-{action.how}")  # MLflow says who may


@judge.register
def _(action: act.CreateExperiment, who: Who, world: World) -> Verdict:
    return Denied(
        f"The experiment {action.name!r} may not name a place for its artifacts: this server keeps "
        "them itself, so that evaluated files rest; leave artifact_location out."
    )


@judge.register
def _(action: act.DeleteExperiment, who: Who, world: World) -> Verdict:
    return Denied(
        f"Experiment {action.experiment_id} holds a run or a model that a version rests on; delete "
        "other runs one by one."
    )


@judge.register
def _(action: act.WriteLoggedModel, who: Who, world: World) -> Verdict:
    return Denied(
        f"Logged model {action.subject} is the evidence of a version and rests as it was "
        "evaluated; log a new one."
    )


@judge.register
def _(action: act.WriteRun, who: Who, world: World) -> Verdict:
    seals = world.facts.sealed(*_runs(action))
    if action.how not in ("delete", "restore") and _may_still_end(seals, who, world.facts):
        return Allowed()
    return Denied(
        f"Run {action.subject} is the source of a version and rests as it was evaluated; "
        "start a new run."
    )


def _may_still_end(seals: Sequence[Seal], who: Who, facts: Facts) -> bool:
    """The step that recorded the version tells its own end in the run; then that rests, too.

    Every one of them: what names a run that goes on beside one that rests writes to neither.
    """
    return bool(seals) and all(
        seal.run and seal.sealed_by == who.user and _goes_on(seal.run, facts) for seal in seals
    )


def _goes_on(run_id: str, facts: Facts) -> bool:
    run = facts.run(run_id)
    return run is not None and run.status in ("RUNNING", "SCHEDULED")


@judge.register
def _(action: act.WriteArtifact, who: Who, world: World) -> Verdict:
    path = action.path
    if not path:
        return Denied("The whole artifact root cannot be written or deleted at once.")
    if path.split("/")[0] == act.CHAMPIONS:
        return _champion_file(action, who, world)
    held = world.facts.sealed(*_folders(path))
    if not held:
        return Denied(f"{path} has files below it that a version rests on, so it stays.")
    if action.how != "delete" and _may_still_end(held, who, world.facts):
        return Allowed()
    return Denied(
        f"{held[0].name} holds files that a version rests on, and they stay as they were "
        "evaluated; log a new model."
    )


def _champion_file(action: act.WriteArtifact, who: Who, world: World) -> Verdict:
    if not who.holds("promoter"):
        return Denied("champions/ is written by the promoter alone, from a version's own files.")
    if action.how == "delete":
        return Denied("What lies in champions/ stays: nobody deletes a champion's files here.")
    going = [
        each
        for each in world.book.all_open()
        if each.state == "begun" and action.path.startswith(f"{proxied(each.target)}/")
    ]
    if not going:
        return Denied(
            f"No promotion that has begun copies to {action.path}; begin one with "
            "POST /api/2.0/dpoflow/promotions and copy to its target."
        )
    if action.how != "drop parts" and world.facts.has_file(action.path):
        return Denied(f"{action.path} is there already, and each champion's file is written once.")
    row = "" if action.how == "begin by parts" else "champion-file"
    return Allowed(row, {"promotion": going[0].id, "how": action.how}, by_gate=True)


@judge.register
def _(action: act.ChangeModel, who: Who, world: World) -> Verdict:
    names = ", ".join(sorted(world.facts.aliases(action.name)))
    return Denied(
        f"{action.name} has the aliases {names}, so it cannot be {action.how}d: those who load "
        "them would be left with nothing, or with another model."
    )


@judge.register
def _(action: act.ChangeVersion, who: Who, world: World) -> Verdict:
    if action.how == "stage":
        return Denied(
            "Stages are off: a version becomes champion by approval, and nothing else says what is "
            f"in use ({HOW_TO})."
        )
    if action.how == "delete":
        names = ", ".join(_aliases_of(action, world.facts))
        return Denied(f"{action.subject} has the alias {names}, so it cannot be deleted.")
    if who.holds("pipeline", "promoter"):
        return Allowed("description", by_gate=True)
    return Denied(
        f"The description of {action.subject} is what the evaluation found, and only the pipeline "
        "and the promoter change it; say what you think in approval, or in a tag of your own."
    )


@judge.register
def _(action: act.TagOther, who: Who, world: World) -> Verdict:
    key = next(key for key in action.keys if _reserved_elsewhere(key))
    return Denied(
        f"The tag {key!r} is the gate's word, on model versions alone; give the {action.what} "
        "a tag of another name."
    )


@judge.register
def _(action: act.DeleteAlias, who: Who, world: World) -> Verdict:
    return Denied(
        f"The alias {action.alias!r} is not deleted, by nobody: it moves when another version is "
        "approved, or back with dpoflow review rollback."
    )


# ---------------------------------------------------------------- tags of versions


@judge.register
def _(action: act.TagVersion, who: Who, world: World) -> Verdict:
    key = action.key
    if not act.is_exact(key):
        return Denied(_looks_like(key, "approval, approval.*, gate.* or dpoflow.*"))
    if key.startswith("dpoflow."):
        return Denied(
            f"{key} says what was evaluated, and stands as it was when {action.subject} was "
            "recorded; evaluate again for another."
        )
    if key == act.APPROVAL:
        return _opinion(action, who, world)
    if key.startswith("approval."):
        if who.holds("promoter"):
            return Allowed("tag", {"key": key, "value": action.value}, by_gate=True)
        return Denied(f"{key} is written by the promoter alone; to approve, {HOW_TO}.")
    return _gate_tag(action, who, world)


def _looks_like(name: str, what: str) -> str:
    return (
        f"{name!r} looks like {what}, which the gate keeps, and is not spelled like it; "
        "choose another name."
    )


def _gate_tag(action: act.TagVersion, who: Who, world: World) -> Verdict:
    if not who.holds("pipeline", "promoter"):
        return Denied(f"{action.key} is written by the pipeline and the promoter alone.")
    if action.key == "gate.submission":
        version = world.facts.version(action.name, action.version)
        if action.value is None or (version and "gate.submission" in version.tags):
            return Denied(
                "gate.submission says whose run this version came from, and is not changed "
                "afterwards."
            )
        if world.book.submission(action.value) is None:
            return Denied(f"There is no submission {action.value!r} on this server.")
    return Allowed("tag", {"key": action.key, "value": action.value}, by_gate=True)


_SAID = re.compile(r"\s*(approve|reject)\s*:\s*(\S.*)", re.IGNORECASE | re.DOTALL)


def _opinion(action: act.TagVersion, who: Who, world: World) -> Verdict:
    if not who.holds("reviewer"):
        return Denied(
            f"Only reviewers approve or reject, and {who.user} is none; ask one to {HOW_TO}."
        )
    if action.value is None:
        return Denied(
            "An approval is not taken away by deleting its tag; set approval to reject: REASON."
        )
    said = _SAID.fullmatch(action.value)
    if said is None:
        return Denied(
            "approval must be approve: REASON or reject: REASON, with a reason that others can "
            "follow."
        )
    version = world.facts.version(action.name, action.version)
    if version is None:
        return Denied(f"There is no version {action.subject}.")
    reason = said[2].strip()
    not_theirs = _not_theirs(version, who, world)
    if isinstance(not_theirs, Denied):
        return not_theirs
    detail = {
        "reason": reason,
        "submission": version.tags["gate.submission"],
        "champion": world.facts.aliases(action.name).get(CHAMPION),
        "policy_digest": version.tags.get("dpoflow.policy_digest", ""),
        "decision_digest": version.tags.get("dpoflow.decision_digest", ""),
    }
    if said[1].lower() == "reject":
        return Allowed(bk.REJECTED, detail, by_gate=True)
    fault = _fault(version, not_theirs, world)
    if fault:
        return Denied(f"{action.subject} cannot be approved: {fault}.")
    return Allowed(bk.APPROVED, detail, by_gate=True)


def _not_theirs(version: VersionFacts, who: Who, world: World) -> bk.Submission | Denied:
    """The submission behind a version, unless the reviewer is behind it themselves."""
    named = version.tags.get("gate.submission")
    submission = world.book.submission(named) if named else None
    what = f"{version.name}/{version.version}"
    if submission is None:
        return Denied(
            f"{what} names no submission of this server, so nobody knows whose work it is, and "
            "nobody can approve it; run its spec against this server with your own credentials."
        )
    if submission.user == who.user:
        return Denied(f"{who.user} submitted {what}, and nobody judges their own work.")
    if submission.owner == who.user:
        return Denied(
            f"{who.user} owns the schedule that made {what}, and nobody judges their own work."
        )
    return submission


def _fault(version: VersionFacts, submission: bk.Submission, world: World) -> str | None:
    """What speaks against approving; None where nothing does."""
    case = world.case
    if case is None or isinstance(case, DataRejected):
        return str(case or "it has no evidence").rstrip(".")
    if not world.facts.sealed(("model", version.model_id)):
        return "its files are not sealed, so they may have changed since; register it again"
    if case.signer is None:
        return "its decision is unsigned, so nobody vouches for it"
    if case.signer not in world.trusted:
        return f"its decision is signed by {case.signer}, whom this server does not trust"
    if case.verdict != "promote":
        return f"its verdict is {case.verdict} ({case.sentence.rstrip('.')})"
    if submission.model != version.name:
        return f"its submission was for {submission.model}"
    if submission.sections.get("evaluate") != case.evaluate_digest:
        return "it was evaluated by other rules than its submission names"
    if world.facts.aliases(version.name).get(CHAMPION) == version.version:
        return "it is champion already"
    if version.run_id and _goes_on(version.run_id, world.facts):  # its figures may change
        return "the run that recorded it still goes on; approve it once that has ended"
    return None


# ---------------------------------------------------------------- new versions


@judge.register
def _(action: act.CreateVersion, who: Who, world: World) -> Verdict:
    keys = [key for key, _ in action.tags if act.is_reserved(key)]
    if action.is_copy:
        return Denied(NO_PROMOTE)
    if not all(act.is_exact(key) for key in keys):
        odd = next(key for key in keys if not act.is_exact(key))
        return Denied(_looks_like(odd, "a tag of the gate"))
    if len(set(keys)) != len(keys):
        return Denied("A tag of the gate stands twice in this version, and once is what counts.")
    approval = [key for key in keys if key.startswith(act.APPROVAL)]
    if approval:
        return Denied(
            f"A new version brings no {approval[0]} along: a reviewer gives it afterwards."
        )
    if not who.holds("engineer", "pipeline"):
        return Denied(
            f"{who.user} has no role that records evaluated versions; ask an admin for the role "
            "engineer."
        )
    tags = dict(action.tags)
    for key in keys:
        if key.startswith("gate.") and (
            denied := _gate_tag_at_create(key, tags[key], action, who, world)
        ):
            return denied
    if "dpoflow.evidence" not in tags:
        return Allowed("version")
    return _evaluated(action, who, world)


def _gate_tag_at_create(
    key: str, value: str, action: act.CreateVersion, who: Who, world: World
) -> Denied | None:
    if key != "gate.submission":
        return None if who.holds("pipeline") else Denied(f"{key} is written by the pipeline alone.")
    submission = world.book.submission(value)
    if submission is None:
        return Denied(f"There is no submission {value!r} on this server.")
    if submission.user != who.user and not who.holds("pipeline"):
        return Denied(f"Submission {value} is {submission.user}'s; quote one of your own.")
    if submission.model != action.name:
        return Denied(f"Submission {value} is for {submission.model}, not for {action.name}.")
    return None


def _evaluated(action: act.CreateVersion, who: Who, world: World) -> Verdict:
    """A version with evidence: what it rests on is sealed."""
    model = world.facts.logged_model(action.model_id) if action.model_id else None
    if model is None:
        return Denied(
            "A version with evidence names the logged model that it rests on (model_id), and "
            f"{action.model_id or 'none'} is known here."
        )
    folder = proxied(model.artifact_location)
    if action.source != f"models:/{action.model_id}":
        return Denied(
            f"The source of a version with evidence is its logged model, "
            f"models:/{action.model_id}, and this one's is {action.source}."
        )
    if folder is None:
        return Denied(
            "The files of that logged model do not lie below this server's artifact root; log it "
            "through this server."
        )
    if action.run_id != model.source_run_id:
        return Denied(
            f"That logged model came from run {model.source_run_id or 'none'}, and the version "
            f"names {action.run_id or 'none'}."
        )
    run = world.facts.run(action.run_id) if action.run_id else None
    experiments = {model.experiment_id, *([run.experiment_id] if run else [])}
    if not all(world.people.may_edit(who.user, each) for each in sorted(experiments)):
        return Denied(
            f"{who.user} may not write to the experiment of that logged model, and a version with "
            "evidence seals it."
        )
    detail = {"model_id": action.model_id, "run_id": action.run_id}
    detail |= {key: value for key, value in action.tags if act.is_reserved(key)}
    seals = [
        Seal("model", action.model_id, who.user, ""),
        *_files(folder, who.user, ""),
        *(Seal("experiment", each, who.user, "") for each in sorted(experiments)),
    ]
    if run:
        seals.append(Seal("run", run.run_id, who.user, run.run_id))
        if below := proxied(run.artifact_uri):
            seals += _files(below, who.user, run.run_id)
    return Allowed("version", detail, seals=tuple(seals))


def _files(folder: str, user: str, run: str) -> list[Seal]:
    return [
        Seal("files", folder, user, run),
        *(Seal("above", each, user, "") for each in above(folder)[:-1]),
    ]


# ---------------------------------------------------------------- champions


@judge.register
def _(action: act.SetAlias, who: Who, world: World) -> Verdict:
    alias = act.protected_alias(action.alias)
    if action.alias != alias:
        return Denied(_looks_like(action.alias, f"the alias {alias}"))
    if not who.holds("promoter"):
        return Denied(
            f"{alias} moves by approval alone: {HOW_TO}; the promoter then verifies the files and "
            "moves it."
        )
    going, last = world.book.open_promotion(action.name), world.book.champion(action.name)
    if alias == PREVIOUS:
        steps = [each for each in (going, last) if each and each.come_from == action.version]
        if steps:
            return Allowed("previous-champion", {"promotion": steps[0].id}, by_gate=True)
        return Denied(
            f"No promotion of {action.name} comes from version {action.version}, so it is not the "
            "previous champion."
        )
    if last and last.version == action.version and not (going and going.at > last.at):
        return Allowed(bk.AGAIN, promoted_detail(last), by_gate=True)
    if going is None or going.version != action.version:
        return Denied(f"No promotion of {action.subject} has begun; begin one first.")
    if going.state != "verified":
        return Denied(
            f"The files of {action.subject} were not verified yet; hash the copy and report it."
        )
    if lapsed := standing(going, world):
        return Denied(f"{action.subject} does not become champion: {lapsed}.")
    return Allowed(bk.PROMOTED, promoted_detail(going), by_gate=True)


def promoted_detail(going: Promotion) -> dict[str, Any]:
    """What the row says that makes a champion."""
    return going.told() | {"state": "done"}


def standing(going: Promotion, world: World) -> str | None:
    """Why what a promotion rests on counts no more; None while it does."""
    if world.facts.aliases(going.model).get(CHAMPION) != going.come_from:
        return "champion has changed since it began"
    subject = f"{going.model}/{going.version}"
    basis = rollback_of if going.kind == "rollback" else approval_of
    found = basis(subject, world)
    if isinstance(found, str):
        return found
    if found[1] != going.policy_digest:
        return "what it rests on is about other files now"
    return None


def approval_of(subject: str, world: World) -> tuple[int, str] | str:
    """Row and policy digest of the approval that a version has now, or why it has none."""
    opinion = world.book.opinion(subject)
    if opinion is None:
        return f"nobody has approved it; {HOW_TO}"
    if not opinion.approves:
        return f"{opinion.reviewer} rejected it: {opinion.reason}"
    if world.book.used(opinion.seq, subject.rpartition("/")[0]):
        # Champion may be again what it was when this was given: after a rollback.
        return f"its approval by {opinion.reviewer} made it champion once; approve it anew"
    if lapsed := lapsed_of(subject, opinion, world):
        return f"its approval by {opinion.reviewer} has lapsed: {lapsed}"
    return opinion.seq, opinion.policy_digest


def lapsed_of(subject: str, opinion: Opinion, world: World) -> str | None:
    """Why an approval counts no more, as things are now."""
    name, _, number = subject.rpartition("/")
    version = world.facts.version(name, number)
    if version is None:
        return "the version is gone"
    return lapse_of(
        opinion,
        champion=world.facts.aliases(name).get(CHAMPION),
        now=world.now,
        days=world.approval_days,
        is_reviewer=world.people.is_reviewer(opinion.reviewer),
        policy_digest=version.tags.get("dpoflow.policy_digest", ""),
        decision_digest=version.tags.get("dpoflow.decision_digest", ""),
    )


def rollback_of(subject: str, world: World) -> tuple[int, str] | str:
    """Row and policy digest of the request to go back to a version, or why there is none."""
    name, _, version = subject.rpartition("/")
    asked, before = world.book.rollback(subject), world.book.was_champion(name, version)
    if asked is None or before is None:
        return "no reviewer asked to go back to it; dpoflow review rollback does"
    if world.book.used(asked.seq, name):
        return "that rollback is done; ask again for another"
    if asked.detail.get("champion") != world.facts.aliases(name).get(CHAMPION):
        return "champion has changed since the rollback was asked for"
    if (world.now - asked.time).days >= world.approval_days:
        return f"it was asked for more than {world.approval_days:g} days ago"
    if not world.people.is_reviewer(asked.actor):
        return f"{asked.actor} is no reviewer any more"
    return asked.seq, before.policy_digest
