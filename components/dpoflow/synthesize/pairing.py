"""From candidates to pairs: who wins, by how much, or why there is no pair.

Reads   a prompt, its candidates, a judge
Gives   `pair_with_reference`, `pair_by_judge`; a pair, or the reason that there is none
Not     sampling (policy/generate.py), scoring (judge/)
"""

from typing import Literal

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

NotAPair = Literal["too_long", "empty", "truncated", "identical", "tie", "below_margin"]


def usable(answers: list[Answer]) -> list[Answer] | NotAPair:
    """Candidates that say something, in their order.

    One that was cut at the limit may lose a comparison, as the text that it is, without an end. It
    may not win one: half an answer would teach where not to stop.
    """
    return [answer for answer in answers if answer.text.strip()] or "empty"


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
    return _pair(prompt, prompt.reference, candidates[0], None, vote, provenance)


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
    best = next((candidate for candidate in ranked if candidate.finished), None)
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
    return _pair(prompt, best.text, worst, margin, vote, provenance)


def _rationale(best: Score, worst: Score) -> str:
    gaps = {name: best.by_check[name] - worst.by_check[name] for name in best.by_check}
    told = [f"{name} {gap:+.2f}" for name, gap in sorted(gaps.items()) if abs(gap) >= 0.01]
    return f"{best.total:.2f} against {worst.total:.2f}: {', '.join(told)}"


def _pair(
    prompt: Prompt,
    chosen: str,
    rejected: Answer,
    margin: float | None,
    vote: Vote,
    provenance: Provenance,
) -> PreferencePair:
    return PreferencePair(
        prompt=prompt.prompt,
        chosen=Message(role="assistant", content=chosen),
        rejected=Message(role="assistant", content=rejected.text),
        rejected_ended=rejected.finished,
        label="preferred",
        margin=margin,
        votes=(vote,),
        source=prompt.source,
        provenance=provenance,
        quality=Quality(chosen_chars=len(chosen), rejected_chars=len(rejected.text)),
        split=prompt.split,
        slice=prompt.slice,
    )
