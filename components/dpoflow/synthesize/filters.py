"""Candidates that are not worth a judge's time.

Reads   the candidates of one prompt
Gives   `set_aside`: for each, why it is not judged, or None
Not     which of the others wins (pairing.py)
"""

from collections.abc import Collection, Sequence
from typing import Literal

from dpoflow.policy.answers import refuses, repeats
from dpoflow.policy.generate import Answer

Aside = Literal["empty", "identical", "truncated", "repeating", "refusal"]


def set_aside(answers: Sequence[Answer], drop: Collection[str]) -> list[Aside | None]:
    """Why each is not judged. Of identical answers the first one stays."""
    seen, why = set[str](), list[Aside | None]()
    for answer in answers:
        told = _wrong(answer, drop)
        if told is None and answer.text.strip() in seen:
            told = "identical"
        seen.add(answer.text.strip())
        why.append(told)
    return why


def _wrong(answer: Answer, drop: Collection[str]) -> Aside | None:
    if not answer.text.strip():
        return "empty"
    if "truncated" in drop and not answer.finished:
        return "truncated"
    if "repeating" in drop and repeats(answer.text):
        return "repeating"
    return "refusal" if "refusal" in drop and refuses(answer.text) else None
