"""Submissions, approvals and promotions, as the audit log tells them.

Reads   rows of the log (audit.py), which are checked one by one as they are read
Gives   `Book`: what was submitted, approved and promoted; `lapse_of`
Not     whether something may be (rules.py), the registry (facts.py)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from dpoflow.registry.gate.audit import Entry

SUBMISSION = "submission"
APPROVED, REJECTED = "approval", "rejection"
BEGUN, VERIFIED, PROMOTED, CLOSED = (
    "promotion-begun",
    "promotion-verified",
    "promoted",
    "promotion-closed",
)
AGAIN = "champion-again"
"""Champion was set to what it is. It stands for `promoted` where that row's own write failed: of
two promoters at once MLflow may take the second's alone."""
ROLLBACK = "rollback-asked"
UNDONE = "undone"
"""A row whose write MLflow did not take; it counts for nothing."""

Rows = Callable[[Sequence[str], str | None], list[Entry]]


@dataclass(frozen=True)
class Submission:
    """A run that somebody asked for, by their own name."""

    id: str
    user: str
    model: str
    spec_digest: str
    sections: dict[str, str]
    """Section of the spec to sha256."""
    schedule: str | None
    """Name of the schedule that it was, or was made for."""
    owner: str
    """Whose schedule it is; the user where there is none."""
    body: dict[str, Any]
    at: str


@dataclass(frozen=True)
class Opinion:
    """What a reviewer said of a version."""

    seq: int
    at: datetime
    reviewer: str
    approves: bool
    reason: str
    policy_digest: str
    decision_digest: str
    champion: str | None
    """The version that was champion then."""


@dataclass(frozen=True)
class Promotion:
    """A version on its way to being champion."""

    id: str
    model: str
    version: str
    kind: Literal["promotion", "rollback"]
    policy_digest: str
    target: str
    come_from: str | None
    """The version that was champion when it began."""
    basis: int
    """The row of the log that it rests on: an approval, or a request to roll back."""
    state: Literal["begun", "verified", "done", "closed"]
    at: str

    def told(self) -> dict[str, Any]:
        """As clients are told."""
        return {
            "promotion": self.id,
            "model": self.model,
            "version": self.version,
            "kind": self.kind,
            "policy_digest": self.policy_digest,
            "target": self.target,
            "from": self.come_from,
            "state": self.state,
        }


def lapse_of(
    opinion: Opinion,
    *,
    champion: str | None,
    now: datetime,
    days: float,
    is_reviewer: bool,
    policy_digest: str,
    decision_digest: str,
) -> str | None:
    """Why an approval counts no more; None while it does."""
    if (opinion.policy_digest, opinion.decision_digest) != (policy_digest, decision_digest):
        return "it was given to other files and another decision"
    if champion != opinion.champion:
        was, is_now = (
            f"version {each}" if each else "none" for each in (opinion.champion, champion)
        )
        return f"champion was {was} when it was given, and is {is_now} now"
    if now - opinion.at > timedelta(days=days):
        return f"it is older than {days:g} days"
    if not is_reviewer:
        return f"{opinion.reviewer} is no reviewer any more"
    return None


class Book:
    """What the log tells."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def submission(self, submission_id: str) -> Submission | None:
        """None where nobody opened it."""
        rows = self._rows([SUBMISSION], submission_id)
        return _submission(rows[0]) if rows else None

    def opinion(self, subject: str) -> Opinion | None:
        """The last word on a version; any later rejection takes an approval back."""
        said = self._live([APPROVED, REJECTED], subject)
        return _opinion(said[-1]) if said else None

    def approved_subjects(self) -> dict[str, str]:
        """Versions whose last word is an approval, with its reason."""
        said = {each.subject: each for each in self._live([APPROVED, REJECTED], None)}
        return {
            subject: str(last.detail["reason"])
            for subject, last in said.items()
            if last.action == APPROVED
        }

    def asked_back(self) -> dict[str, str]:
        """Versions that somebody asked to go back to, with the last reason."""
        return {each.subject: str(each.detail["reason"]) for each in self._rows([ROLLBACK], None)}

    def begun_models(self) -> list[str]:
        """Those that a promotion ever began for."""
        return sorted({str(entry.detail["model"]) for entry in self._rows([BEGUN], None)})

    def promotions(self, model: str) -> list[Promotion]:
        """Oldest first, each with the state it is in."""
        steps = [
            entry
            for entry in self._live([BEGUN, VERIFIED, PROMOTED, AGAIN, CLOSED], None)
            if entry.detail.get("model") == model
        ]
        found: dict[str, Promotion] = {}
        states: dict[str, Any] = {
            VERIFIED: "verified",
            PROMOTED: "done",
            AGAIN: "done",
            CLOSED: "closed",
        }
        for entry in steps:
            told = entry.detail
            if entry.action == BEGUN:
                found[told["promotion"]] = _promotion(entry, "begun")
            else:
                before = found[told["promotion"]]
                state = states[entry.action]
                found[before.id] = Promotion(**{**vars(before), "state": state, "at": entry.at})
        return list(found.values())

    def all_open(self) -> list[Promotion]:
        """Of every model."""
        return [going for model in self.begun_models() if (going := self.open_promotion(model))]

    def open_promotion(self, model: str) -> Promotion | None:
        """There is one at most."""
        going = [each for each in self.promotions(model) if each.state in ("begun", "verified")]
        return going[-1] if going else None

    def promotion(self, promotion_id: str) -> Promotion | None:
        """By its id."""
        for entry in self._rows([BEGUN], None):
            if entry.detail.get("promotion") == promotion_id:
                of_model = self.promotions(entry.detail["model"])
                return next(each for each in of_model if each.id == promotion_id)
        return None

    def champion(self, model: str) -> Promotion | None:
        """The promotion that made the champion, as the log has it."""
        entries = [
            entry
            for entry in self._live([PROMOTED, AGAIN], None)
            if entry.detail.get("model") == model
        ]
        if not entries:
            return None
        last = entries[-1].detail["promotion"]
        return next(each for each in self.promotions(model) if each.id == last)

    def was_champion(self, model: str, version: str) -> Promotion | None:
        """The last promotion that made this version champion."""
        done = [
            each
            for each in self.promotions(model)
            if each.state == "done" and each.version == version
        ]
        return done[-1] if done else None

    def promoted_models(self) -> list[str]:
        """Those that ever had a champion."""
        return sorted({str(entry.detail["model"]) for entry in self._live([PROMOTED, AGAIN], None)})

    def rollback(self, subject: str) -> Entry | None:
        """The last request to go back to a version."""
        asked = self._rows([ROLLBACK], subject)
        return asked[-1] if asked else None

    def used(self, row: int, model: str) -> bool:
        """Whether a promotion that rests on this row is done."""
        return any(each.basis == row and each.state == "done" for each in self.promotions(model))

    def _live(self, actions: Sequence[str], subject: str | None) -> list[Entry]:
        """Rows whose write happened."""
        rows = self._rows([*actions, UNDONE], subject)
        undone = {entry.detail.get("row") for entry in rows if entry.action == UNDONE}
        return [each for each in rows if each.action != UNDONE and each.seq not in undone]


def _submission(entry: Entry) -> Submission:
    told = entry.detail
    return Submission(
        id=entry.subject,
        user=entry.actor,
        model=told["model"],
        spec_digest=told["spec_digest"],
        sections=told["sections"],
        schedule=told["schedule"],
        owner=told["owner"],
        body=told["body"],
        at=entry.at,
    )


def _opinion(entry: Entry) -> Opinion:
    told = entry.detail
    return Opinion(
        seq=entry.seq,
        at=entry.time,
        reviewer=entry.actor,
        approves=entry.action == APPROVED,
        reason=told["reason"],
        policy_digest=told.get("policy_digest", ""),
        decision_digest=told.get("decision_digest", ""),
        champion=told.get("champion"),
    )


def _promotion(entry: Entry, state: Literal["begun"]) -> Promotion:
    told = entry.detail
    return Promotion(
        id=told["promotion"],
        model=told["model"],
        version=told["version"],
        kind=told["kind"],
        policy_digest=told["policy_digest"],
        target=told["target"],
        come_from=told["from"],
        basis=told["basis"],
        state=state,
        at=entry.at,
    )
