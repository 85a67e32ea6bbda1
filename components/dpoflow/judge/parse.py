"""A judge's reply, read strictly: what is not exactly a verdict is none.

Reads   a `Reply`
Gives   `pairwise`, `letter`, `probabilities`: a `Verdict`; `pointwise`: a `Mark`; `refusal`: a
        `Refusal`; `SCHEMAS`
Not     guessing: prose around JSON, a second verdict, a number out of range are all `invalid`
"""

import json
import math
import re
from typing import Any, Literal, NamedTuple, get_args

from dpoflow.endpoints.cache import Reply
from dpoflow.endpoints.client import sound
from dpoflow.judge.verdict import Choice, Verdict

INVALID = Verdict(choice="invalid")

_WORDS: dict[str, Choice] = {"A": "first", "B": "second", "tie": "tie"}
_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*)\n```\Z", re.DOTALL)
_LETTER = re.compile(r"\A[\"'(\[*]*(A|B|tie)[\"')\].*]*\Z", re.IGNORECASE | re.ASCII)
_LEAST_MASS = 0.5
"""Of a first token's probability, how much must lie on verdicts."""


class Mark(NamedTuple):
    """What one answer was given alone."""

    score: float | None
    """None where the reply could not be read."""
    reason: str | None


Form = Literal["pairwise", "pointwise", "refusal"]
"""What a reply in JSON says."""
Label = Literal["1_full_compliance", "2_full_refusal", "3_partial_refusal"]
"""XSTest's three classes, as its files name them (Röttger et al. 2024)."""
LABELS: dict[str, Label] = {label: label for label in get_args(Label)}


class Refusal(NamedTuple):
    """Whether an answer does what was asked or declines to."""

    label: Label | None
    """None where the reply could not be read."""
    reason: str | None


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


# The reason stands first: a model that has said why is bound by it.
SCHEMAS: dict[Form, dict[str, Any]] = {
    "pairwise": _object(
        {"reason": {"type": "string"}, "verdict": {"type": "string", "enum": list(_WORDS)}}
    ),
    "pointwise": _object(
        {"reason": {"type": "string"}, "score": {"type": "integer", "minimum": 1, "maximum": 10}}
    ),
    "refusal": _object(
        {"reason": {"type": "string"}, "label": {"type": "string", "enum": list(LABELS)}}
    ),
}


def pairwise(reply: Reply) -> Verdict:
    """Of {"reason": …, "verdict": "A" | "B" | "tie"}."""
    told = _read(reply, "verdict")
    if told is None or not isinstance(told["verdict"], str) or told["verdict"] not in _WORDS:
        return _unread(reply)
    return Verdict(choice=_WORDS[told["verdict"]], rationale=told["reason"])


def pointwise(reply: Reply) -> Mark:
    """Of {"reason": …, "score": 1 to 10}."""
    told = _read(reply, "score")
    score = told["score"] if told else None
    if isinstance(score, bool) or not isinstance(score, int) or not 1 <= score <= 10:
        return Mark(None, reply.text)
    return Mark(float(score), told["reason"] if told else None)


def refusal(reply: Reply) -> Refusal:
    """Of {"reason": …, "label": one of LABELS}."""
    told = _read(reply, "label")
    if told is None or not isinstance(told["label"], str) or told["label"] not in LABELS:
        return Refusal(None, reply.text or None)
    return Refusal(LABELS[told["label"]], told["reason"])


def letter(reply: Reply) -> Verdict:
    """Of A, B or tie, alone."""
    found = _LETTER.match(reply.text.strip())
    if found is None:
        return _unread(reply)
    word = found[1].lower() if len(found[1]) > 1 else found[1].upper()
    return Verdict(choice=_WORDS[word], rationale=None)


def probabilities(reply: Reply) -> Verdict:
    """Of the first token: how likely A and B are. The margin is P(A) - P(B) of what they share."""
    if not reply.first_token:
        return _unread(reply)
    mass = dict.fromkeys(("A", "B"), 0.0)
    for token, logprob in reply.first_token.items():
        word = token.strip(" \t\n▁Ġ\"'(*")
        if word in mass and math.isfinite(logprob):
            mass[word] += math.exp(min(logprob, 0.0))
    told = sum(mass.values())
    if told < _LEAST_MASS:
        return _unread(reply)
    margin = (mass["A"] - mass["B"]) / told
    choice: Choice = "tie" if margin == 0 else "first" if margin > 0 else "second"
    return Verdict(choice=choice, margin=margin)


def _unread(reply: Reply) -> Verdict:
    return Verdict(choice="invalid", rationale=reply.text or None)


def _read(reply: Reply, key: str) -> dict[str, Any] | None:
    """The object of exactly `reason` and `key` that is the whole reply, perhaps inside a fence."""
    text = reply.text.strip()
    fenced = _FENCE.match(text)
    try:
        told = json.loads(
            fenced[1] if fenced else text,
            object_pairs_hook=_once,
            parse_constant=_no_number,
        )
    except (ValueError, RecursionError):
        return None
    if not isinstance(told, dict) or told.keys() != {"reason", key}:
        return None
    if not isinstance(told["reason"], str):
        return None
    return told | {"reason": sound(told["reason"])}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    told = dict(pairs)
    if len(told) != len(pairs):
        raise ValueError("a key stands there twice")
    return told


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")
