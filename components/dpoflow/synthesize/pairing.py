"""From candidates to pairs: who wins, by how much, or why there is no pair.

Reads   a prompt, its candidates, a judge
Gives   `pair_with_reference`, `pair_by_judge`; a pair, or the reason that there is none
Not     sampling (policy/generate.py), scoring (judge/)
"""

import re
from typing import Literal, NamedTuple

from dpoflow.contracts.pairs import (
    Message,
    PreferencePair,
    Prompt,
    Provenance,
    Quality,
    Vote,
)
from dpoflow.judge.rubric import RubricJudge, Score
from dpoflow.policy.generate import Answer

NotAPair = Literal["empty", "truncated", "identical", "tie", "below_margin"]


# The end of a sentence, and not the dot of "1." in a list.
_SENTENCE_END = re.compile(r"(?<![\s\d])[.!?][\"')\]]?(?=\s)")


class Candidate(NamedTuple):
    """An answer as a judge sees it."""

    text: str
    ended: bool
    """Whether the model itself ended here. Where it was cut, what is left ends with a sentence."""


def usable(answers: list[Answer]) -> list[Candidate] | NotAPair:
    """Candidates worth judging, in their order.

    An answer that was cut at the limit goes back to its last whole sentence: half a sentence would
    teach where not to stop. It may lose a comparison; it may not win one, since it never ended.
    """
    told = [answer for answer in answers if answer.text.strip()]
    if not told:
        return "empty"
    whole = (_whole(answer) for answer in told)
    return [candidate for candidate in whole if candidate is not None] or "truncated"


def _whole(answer: Answer) -> Candidate | None:
    if answer.finished:
        return Candidate(answer.text, ended=True)
    ends = [match.end() for match in _SENTENCE_END.finditer(answer.text)]
    return Candidate(answer.text[: ends[-1]], ended=False) if ends else None


def pair_with_reference(
    prompt: Prompt, answers: list[Answer], provenance: Provenance
) -> PreferencePair | NotAPair:
    """A human's answer is preferred to the model's own."""
    assert prompt.reference is not None
    candidates = usable(answers)
    if isinstance(candidates, str):
        return candidates
    if candidates[0].text.strip() == prompt.reference.strip():
        return "identical"
    vote = Vote(annotator="human", verdict="chosen", rationale="a human's answer to this prompt")
    return _pair(prompt, prompt.reference, candidates[0].text, None, vote, provenance)


def pair_by_judge(
    prompt: Prompt,
    answers: list[Answer],
    judge: RubricJudge,
    provenance: Provenance,
    *,
    min_margin: float,
) -> PreferencePair | NotAPair:
    """The best-scored candidate against the worst, where they differ by more than `min_margin`."""
    candidates = usable(answers)
    if isinstance(candidates, str):
        return candidates
    if len({candidate.text for candidate in candidates}) < 2:
        return "identical"
    question = prompt.prompt[-1].content
    # Ties between equal scores fall to the earlier candidate, so the same texts give the same pair.
    ranked = sorted(candidates, key=lambda answer: -judge.score(question, answer.text).total)
    best = next((candidate for candidate in ranked if candidate.ended), None)
    if best is None:
        return "truncated"
    worst = ranked[-1]
    scores = judge.score(question, best.text), judge.score(question, worst.text)
    margin = scores[0].total - scores[1].total
    if margin <= 0:
        return "tie"
    if margin <= min_margin:
        return "below_margin"
    vote = Vote(
        annotator=provenance.judge, verdict="chosen", score=margin, rationale=_rationale(*scores)
    )
    return _pair(prompt, best.text, worst.text, margin, vote, provenance)


def _rationale(best: Score, worst: Score) -> str:
    gaps = {name: best.by_check[name] - worst.by_check[name] for name in best.by_check}
    told = [f"{name} {gap:+.2f}" for name, gap in sorted(gaps.items()) if abs(gap) >= 0.01]
    return f"{best.total:.2f} against {worst.total:.2f}: {', '.join(told)}"


def _pair(
    prompt: Prompt,
    chosen: str,
    rejected: str,
    margin: float | None,
    vote: Vote,
    provenance: Provenance,
) -> PreferencePair:
    return PreferencePair(
        prompt=prompt.prompt,
        chosen=Message(role="assistant", content=chosen),
        rejected=Message(role="assistant", content=rejected),
        label="preferred",
        margin=margin,
        votes=(vote,),
        source=prompt.source,
        provenance=provenance,
        quality=Quality(chosen_chars=len(chosen), rejected_chars=len(rejected)),
        split=prompt.split,
        slice=prompt.slice,
    )
