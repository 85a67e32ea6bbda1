"""The gate's own endpoints, all JSON, below /api/2.0/dpoflow.

    GET  /gate                       who you are here
    POST /submissions                a run of yours begins; GET /submissions/ID
    GET  /reviews?model=NAME         versions with a case, and where each stands
    POST /rollbacks                  a reviewer asks to go back
    POST /promotions                 the promoter begins; then /promotions/ID/verified
    GET  /promotions?model=NAME      what was promoted, and what is due; GET /promotions/ID
    GET  /audit?from=SEQ&limit=N     rows of the log; GET /audit/verify: whether it is whole
    GET  /drift                      aliases that are not what the log says

Reads   requests, the book, the registry
Gives   `Api.answer`; `Reply`
Not     MLflow's own routes (app.py)
"""

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from dpoflow.contracts.base import canonical_json, sha256_json
from dpoflow.contracts.errors import DataRejected
from dpoflow.registry.gate import audit, book, rules
from dpoflow.registry.gate.actions import (
    CHAMPIONS,
    MAX_BODY_BYTES,
    READS,
    Unreadable,
    json_of,
)
from dpoflow.registry.gate.rules import CHAMPION, Who, World

if TYPE_CHECKING:
    from dpoflow.registry.gate.app import Office
    from dpoflow.registry.gate.audit import Turn

API = "/api/2.0/dpoflow"
_HEX = re.compile(r"[0-9a-f]{64}")
_NONCE = re.compile(r"[0-9a-f]{32}")
_MAX_PAGE = 1000


@dataclass(frozen=True)
class Reply:
    """An answer."""

    status: int
    body: bytes
    content_type: str = "application/json"

    @classmethod
    def of(cls, value: Any) -> "Reply":
        """200 with JSON."""
        return cls(200, canonical_json(value).encode())

    @classmethod
    def error(cls, status: int, code: str, message: str) -> "Reply":
        """As MLflow's errors look."""
        return cls(status, json.dumps({"error_code": code, "message": message}).encode())

    @classmethod
    def denied(cls, sentence: str) -> "Reply":
        """403 with the sentence that MLflow's dialogs show."""
        return cls.error(403, "PERMISSION_DENIED", sentence)

    @classmethod
    def away(cls, sentence: str) -> "Reply":
        """503: nothing was decided, and nothing happened."""
        return cls.error(503, "TEMPORARILY_UNAVAILABLE", sentence)

    @classmethod
    def unknown(cls) -> "Reply":
        """401."""
        return cls.error(401, "UNAUTHENTICATED", "You are not authenticated: no such user here.")


class _Denied(Exception):
    """A guarded endpoint says no: it is in the log, and this is the sentence."""

    def __init__(self, sentence: str, subject: str = "") -> None:
        super().__init__(sentence)
        self.sentence, self.subject = sentence, subject


class _Wrong(Exception):
    """The request is no such request."""

    def __init__(self, sentence: str, status: int = 400) -> None:
        super().__init__(sentence)
        self.sentence, self.status = sentence, status


class Api:
    """Our endpoints."""

    def __init__(self, office: "Office") -> None:
        from mlflow.server.handlers import _add_static_prefix

        self._office = office
        self.prefix = str(_add_static_prefix(API))
        self._routes: list[tuple[str, re.Pattern[str], Callable[..., Any]]] = [
            ("GET", re.compile(r"/gate"), self._gate),
            ("POST", re.compile(r"/submissions"), self._submit),
            ("GET", re.compile(r"/submissions/([0-9a-f]{32})"), self._submission),
            ("GET", re.compile(r"/reviews"), self._reviews),
            ("POST", re.compile(r"/rollbacks"), self._roll_back),
            ("POST", re.compile(r"/promotions"), self._promote),
            ("GET", re.compile(r"/promotions"), self._promotions),
            ("GET", re.compile(r"/promotions/([0-9a-f]{32})"), self._promotion),
            ("POST", re.compile(r"/promotions/([0-9a-f]{32})/verified"), self._verified),
            ("GET", re.compile(r"/audit"), self._audit),
            ("GET", re.compile(r"/audit/verify"), self._verify),
            ("GET", re.compile(r"/drift"), self._drift),
        ]

    def answer(
        self,
        method: str,
        path: str,
        query: str,
        body: bytes | None,
        headers: Sequence[tuple[bytes, bytes]],
    ) -> Reply:
        """What a request below the prefix is answered."""
        user, below = self._office.identity.user_of(headers), path.removeprefix(self.prefix)
        if user is None:
            if method not in READS:
                detail = {"method": method, "path": path, "why": "nobody this server knows"}
                self._office.log.append("", _name(below), below[:256], "denied", detail)
            return Reply.unknown()
        who = self._office.who(user)
        for verb, pattern, call in self._routes:
            match = pattern.fullmatch(below)
            if match and verb == method:
                return self._call(call, who, below, (*match.groups(),), query, body)
        if any(pattern.fullmatch(below) for _, pattern, _ in self._routes):
            return Reply.error(405, "BAD_REQUEST", f"{below} takes no {method}.")
        return Reply.error(404, "ENDPOINT_NOT_FOUND", "There is no such route.")

    def _call(
        self,
        call: Callable[..., Any],
        who: Who,
        below: str,
        parts: tuple[str, ...],
        query: str,
        body: bytes | None,
    ) -> Reply:
        try:
            return Reply.of(call(who, *parts, _Asked(query, body)))
        except Unreadable as error:
            return Reply.error(400, "INVALID_PARAMETER_VALUE", f"{error}.".capitalize())
        except _Wrong as error:
            code = "RESOURCE_DOES_NOT_EXIST" if error.status == 404 else "INVALID_PARAMETER_VALUE"
            return Reply.error(error.status, code, error.sentence)
        except _Denied as error:
            detail = {"why": error.sentence, "path": f"{self.prefix}{below}"}
            self._office.log.append(who.user, _name(below), error.subject, "denied", detail)
            return Reply.denied(error.sentence)

    # ------------------------------------------------------------ who

    def _gate(self, who: Who, asked: "_Asked") -> Any:
        return {"gate": 1, "user": who.user, "roles": sorted(who.roles)}

    # ------------------------------------------------------------ submissions

    def _submit(self, who: Who, asked: "_Asked") -> Any:
        told = asked.told("model", "spec_digest", "sections", "nonce", "schedule")
        model, nonce = asked.text("model"), asked.text("nonce", _NONCE)
        body = {
            "model": model,
            "spec_digest": asked.text("spec_digest", _HEX),
            "sections": _sections(told["sections"]),
            "schedule": told["schedule"],
        }
        submission_id = hashlib.sha256(f"{who.user}\0{nonce}".encode()).hexdigest()[:32]
        with self._office.log.exclusively() as turn:
            known = book.Book(turn.rows)
            before = known.submission(submission_id)
            if before is None:
                name, owner = self._schedule(who, told["schedule"], known, model)
                detail = {**body, "body": body, "schedule": name, "owner": owner}
                turn.append(who.user, book.SUBMISSION, submission_id, "allowed", detail)
                return {"submission": submission_id}
        if before.body != body:
            raise _Denied("This nonce was used for another submission; make a new one.", model)
        return {"submission": submission_id}

    def _schedule(
        self, who: Who, told: Any, known: book.Book, model: str
    ) -> tuple[str | None, str]:
        """Name and owner of the schedule of a submission. Raises _Denied, _Wrong."""
        if isinstance(told, str):
            made = known.submission(told)
            if made is None or made.schedule is None:
                raise _Wrong(f"schedule {told[:80]!r} is no submission that made a schedule.")
            if not who.holds("pipeline") and made.owner != who.user:
                raise _Denied(f"{who.user} may not submit for {made.owner}'s schedule.", model)
            if made.model != model:
                raise _Denied(f"That schedule is for {made.model}, not for {model}.", model)
            return made.schedule, made.owner
        if not who.holds("engineer"):
            raise _Denied(
                f"{who.user} is no engineer; submissions are opened by engineers, or by the "
                "pipeline for one of their schedules.",
                model,
            )
        if told is None:
            return None, who.user
        if isinstance(told, dict) and set(told) == {"name"} and isinstance(told["name"], str):
            return str(told["name"])[:256], who.user
        raise _Wrong('schedule must be null, {"name": NAME}, or the id of a submission.')

    def _submission(self, who: Who, submission_id: str, asked: "_Asked") -> Any:
        found = book.Book(self._office.log.rows).submission(submission_id)
        if found is None:
            raise _Wrong("There is no such submission.", 404)
        return {
            "submission": found.id,
            "user": found.user,
            "owner": found.owner,
            "model": found.model,
            "spec_digest": found.spec_digest,
            "sections": found.sections,
            "schedule": found.schedule,
            "at": found.at,
        }

    # ------------------------------------------------------------ reviews

    def _reviews(self, who: Who, asked: "_Asked") -> Any:
        world = self._office.world(self._office.log.rows)
        versions = [
            each
            for each in self._office.facts.versions(asked.given("model") or "")
            if "dpoflow.evidence" in each.tags
        ]
        aliases = {name: world.facts.aliases(name) for name in {each.name for each in versions}}
        return {
            "reviews": [
                self._review(each.name, each.version, each, aliases[each.name], world)
                for each in versions
            ]
        }

    def _review(
        self, name: str, number: str, version: Any, aliases: Mapping[str, str], world: World
    ) -> dict[str, Any]:
        subject = f"{name}/{number}"
        opinion = world.book.opinion(subject)
        named = version.tags.get("gate.submission")
        submission = world.book.submission(named) if named else None
        state, why = _state(subject, opinion, world)
        return {
            "model": name,
            "version": number,
            "verdict": version.tags.get("dpoflow.verdict"),
            "sentence": _first_line(version.description),
            "submission": named,
            "submitter": submission.user if submission else None,
            "owner": submission.owner if submission else None,
            "state": state,
            "why": why,
            "reviewer": opinion.reviewer if opinion else None,
            "reason": opinion.reason if opinion else None,
            "policy_digest": version.tags.get("dpoflow.policy_digest"),
            "decision_digest": version.tags.get("dpoflow.decision_digest"),
            "model_id": version.model_id,
            "champion": aliases.get(CHAMPION) == number,
        }

    # ------------------------------------------------------------ promotions and rollbacks

    def _roll_back(self, who: Who, asked: "_Asked") -> Any:
        asked.told("model", "version", "reason")
        model, version = asked.text("model"), asked.text("version")
        reason, subject = asked.text("reason").strip(), f"{model}/{version}"
        if not who.holds("reviewer"):
            raise _Denied(f"Only reviewers ask to go back, and {who.user} is none.", subject)
        if not reason:
            raise _Denied("A rollback needs a reason that others can follow.", subject)
        with self._office.log.exclusively() as turn:
            world = self._office.world(turn.rows)
            champion = world.facts.aliases(model).get(CHAMPION)
            before = world.book.was_champion(model, version)
            sentence, row = None, 0
            if before is None or world.facts.version(model, version) is None:
                sentence = f"{subject} was never champion, so there is no going back to it."
            elif champion == version:
                sentence = f"{subject} is champion already."
            else:
                detail = {"model": model, "reason": reason, "champion": champion}
                row = turn.append(who.user, book.ROLLBACK, subject, "allowed", detail).seq
        if sentence:
            raise _Denied(sentence, subject)
        return {"rollback": row, "model": model, "version": version}

    def _promote(self, who: Who, asked: "_Asked") -> Any:
        told = asked.told("model", "version", "kind", "reason")
        model, version = asked.text("model"), asked.text("version")
        kind, subject = told["kind"], f"{model}/{version}"
        if kind not in ("promotion", "rollback"):
            raise _Wrong("kind must be promotion or rollback.")
        if not who.holds("promoter"):
            raise _Denied(f"Only the promoter promotes, and {who.user} is none.", subject)
        with self._office.log.exclusively() as turn:
            world = self._office.world(turn.rows)
            going = world.book.open_promotion(model)
            sentence = _in_the_way(going, version, kind, world)
            same = going and (going.version, going.kind) == (version, kind)
            if going and same and rules.standing(going, world) is None:
                return going.told()
            if sentence is None:
                found = _may_begin(subject, kind, world)
                if isinstance(found, tuple):
                    if going:
                        self._close(turn, who, going, world)
                    return self._begin(turn, who, subject, told, found, world)
                sentence = found
        raise _Denied(f"{subject} is not promoted: {sentence}.", subject)

    def _begin(
        self,
        turn: "Turn",
        who: Who,
        subject: str,
        told: Mapping[str, Any],
        basis: tuple[int, str],
        world: World,
    ) -> Any:
        model, _, version = subject.rpartition("/")
        detail = {
            "promotion": secrets.token_hex(16),
            "model": model,
            "version": version,
            "kind": told["kind"],
            "reason": told["reason"],
            "policy_digest": basis[1],
            "target": f"mlflow-artifacts:/{CHAMPIONS}/{_folder_of(model)}/{version}/{basis[1]}",
            "from": world.facts.aliases(model).get(CHAMPION),
            "basis": basis[0],
        }
        turn.append(who.user, book.BEGUN, subject, "allowed", detail)
        begun = book.Book(turn.rows).open_promotion(model)
        assert begun is not None
        return begun.told()

    def _close(self, turn: "Turn", who: Who, going: book.Promotion, world: World) -> None:
        detail = {
            "promotion": going.id,
            "model": going.model,
            "why": rules.standing(going, world) or "",
        }
        subject = f"{going.model}/{going.version}"
        turn.append(who.user, book.CLOSED, subject, "allowed", detail)

    def _promotions(self, who: Who, asked: "_Asked") -> Any:
        world, wanted = self._office.world(self._office.log.rows), asked.given("model")
        models = [wanted] if wanted else world.book.begun_models()
        return {
            "promotions": [
                {**each.told(), "at": each.at}
                for model in models
                for each in world.book.promotions(model)
            ],
            "due": _due(wanted, world),
        }

    def _promotion(self, who: Who, promotion_id: str, asked: "_Asked") -> Any:
        found = book.Book(self._office.log.rows).promotion(promotion_id)
        if found is None:
            raise _Wrong("There is no such promotion.", 404)
        return found.told()

    def _verified(self, who: Who, promotion_id: str, asked: "_Asked") -> Any:
        asked.told("policy_digest")
        digest = asked.text("policy_digest", _HEX)
        if not who.holds("promoter"):
            raise _Denied(f"Only the promoter verifies, and {who.user} is none.", promotion_id)
        sentence = None
        with self._office.log.exclusively() as turn:
            world = self._office.world(turn.rows)
            going = world.book.promotion(promotion_id)
            if going is None:
                raise _Wrong("There is no such promotion.", 404)
            subject = f"{going.model}/{going.version}"
            if digest != going.policy_digest:
                sentence = (
                    f"the copy is {digest[:12]}…, and what was approved is "
                    f"{going.policy_digest[:12]}…: the files are not those that were evaluated"
                )
            elif going.state == "closed":
                sentence = "this promotion was closed"
            elif going.state == "begun":
                sentence = rules.standing(going, world)
                if sentence is None:
                    detail = {"promotion": going.id, "model": going.model, "policy_digest": digest}
                    turn.append(who.user, book.VERIFIED, subject, "allowed", detail)
                    return {**going.told(), "state": "verified"}
            if sentence is None:  # said before
                return going.told()
        raise _Denied(f"{subject} is not verified: {sentence}.", subject)

    # ------------------------------------------------------------ the log

    def _audit(self, who: Who, asked: "_Asked") -> Any:
        if not who.holds("reviewer", "admin", "promoter"):
            raise _Denied("The audit log is read by reviewers, admins and the promoter.", "audit")
        first, limit = asked.number("from", 1), asked.number("limit", 100)
        rows = self._office.log.page(first, min(max(limit, 1), _MAX_PAGE))
        return {"rows": [vars(entry) for entry in rows], "next": rows[-1].seq + 1 if rows else None}

    def _verify(self, who: Who, asked: "_Asked") -> Any:
        try:
            whole = audit.verify(self._office.log.engine, self._office.log.key)
        except DataRejected as error:
            return {"whole": False, "fault": str(error), "rows": None, "head": None}
        return {"whole": True, "fault": None, "rows": whole.rows, "head": whole.head}

    def _drift(self, who: Who, asked: "_Asked") -> Any:
        known = book.Book(self._office.log.rows)
        found = []
        models = self._office.facts.models()
        for name in sorted({*models, *known.promoted_models()}):
            last = known.champion(name)
            said, seen = last.version if last else None, models.get(name, {}).get(CHAMPION)
            if said != seen:
                found.append({"model": name, "log": said, "registry": seen})
        return {"drift": found}


class _Asked:
    """A request's query and body."""

    def __init__(self, query: str, body: bytes | None) -> None:
        self._query, self._body = parse_qs(query, keep_blank_values=True), body
        self._told: dict[str, Any] = {}

    def told(self, *keys: str) -> dict[str, Any]:
        """The body with these keys and no other; those that are left out are null."""
        if self._body is None:
            raise _Wrong(f"The body has more than {MAX_BODY_BYTES:,} bytes.")
        told = json_of(self._body)
        if strange := sorted(set(told) - set(keys)):
            raise _Wrong(f"There is no {strange[0]!r} here; there are {', '.join(keys)}.")
        self._told = {key: told.get(key) for key in keys}
        return self._told

    def text(self, key: str, pattern: re.Pattern[str] = re.compile(r".{1,1000}", re.DOTALL)) -> str:
        """A text of the body."""
        value = self._told[key]
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)  # versions
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise _Wrong(f"{key} must be a text, as {pattern.pattern}.")
        if "\0" in value:
            raise _Wrong(f"{key} holds a null letter, and no name does.")
        return value

    def given(self, key: str) -> str | None:
        """A text of the query."""
        return self._query[key][-1] if key in self._query else None

    def number(self, key: str, otherwise: int) -> int:
        """A number of the query."""
        given = self.given(key)
        if given is None:
            return otherwise
        if not given.isdecimal() or len(given) > 18:
            raise _Wrong(f"{key} must be a number.")
        return int(given)


def _name(below: str) -> str:
    """What the log calls a call: the first part of its path, which has room for 64 letters."""
    return below.strip("/").partition("/")[0][:64]


def _sections(told: Any) -> dict[str, str]:
    if not isinstance(told, dict) or not told or len(told) > 64:
        raise _Wrong("sections must map each section of the spec to its sha256.")
    for key, value in told.items():
        if not isinstance(value, str) or not _HEX.fullmatch(value):
            raise _Wrong(f"sections.{key} must be a sha256 in hex.")
    return dict(told)


def _in_the_way(going: book.Promotion | None, version: str, kind: str, world: World) -> str | None:
    """Why another promotion cannot begin beside the open one; None where it may, or is that one."""
    if going is None or rules.standing(going, world) is not None:
        return None
    if (going.version, going.kind) == (version, kind):
        return None
    return f"the {going.kind} of version {going.version} is under way, and one goes at a time"


def _may_begin(subject: str, kind: str, world: World) -> tuple[int, str] | str:
    """What a promotion would rest on, or why it may not begin."""
    name, _, version = subject.rpartition("/")
    if world.facts.version(name, version) is None:
        return "there is no such version"
    if world.facts.aliases(name).get(CHAMPION) == version:
        return "it is champion already"
    basis = rules.rollback_of if kind == "rollback" else rules.approval_of
    return basis(subject, world)


def _due(wanted: str | None, world: World) -> list[dict[str, Any]]:
    """What the promoter should promote or go back to now."""
    bases = {"promotion": rules.approval_of, "rollback": rules.rollback_of}
    found = []
    for kind, subjects in (
        ("promotion", world.book.approved_subjects()),
        ("rollback", world.book.asked_back()),
    ):
        for subject, reason in subjects.items():
            model, _, version = subject.rpartition("/")
            if wanted in (None, model) and isinstance(bases[kind](subject, world), tuple):
                found.append({"model": model, "version": version, "kind": kind, "reason": reason})
    return found


def _state(subject: str, opinion: book.Opinion | None, world: World) -> tuple[str, str | None]:
    """Where a version stands: waiting, approved, rejected, lapsed or promoted; and why."""
    name, _, version = subject.rpartition("/")
    if world.book.was_champion(name, version):
        return "promoted", None
    if opinion is None:
        return "waiting", None
    if not opinion.approves:
        return "rejected", opinion.reason
    lapsed = rules.lapsed_of(subject, opinion, world)
    return ("lapsed", lapsed) if lapsed else ("approved", opinion.reason)


def _first_line(description: str) -> str:
    lines = description.strip().splitlines()
    return lines[0] if lines else ""


def _folder_of(model: str) -> str:
    """A model's folder below champions/: its name, where that is a plain one."""
    return model if re.fullmatch(r"\w[\w.-]{0,100}", model, re.ASCII) else sha256_json(model)[:32]
