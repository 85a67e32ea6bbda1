"""What is measured of two models' answers to the same prompts.

Reads   answers of candidate and base, a rubric, log-probabilities under the base
Gives   `Comparison` of one prompt, `measures` over all of them
Not     intervals (statistics.py), gates (decide.py)
"""

from collections.abc import Sequence
from math import exp
from statistics import median

from dpoflow.contracts.base import Contract
from dpoflow.contracts.rubric import Rubric
from dpoflow.judge.rubric import RubricJudge
from dpoflow.judge.verdict import Outcome
from dpoflow.policy.answers import repeats
from dpoflow.policy.generate import Answer


class Comparison(Contract):
    """Both answers to one held-out prompt, and what the judge made of them."""

    prompt_id: str
    slice: str
    question: str
    base: str
    candidate: str
    outcome: float | None
    """1 the candidate won, 0 it lost, 0.5 a tie; None without a judge or a readable verdict."""
    base_scores: dict[str, float] = {}
    candidate_scores: dict[str, float] = {}
    """Check to mark."""
    heldout_difference: float | None = None
    """Mean mark of the checks kept out of training, candidate minus base."""


def points(outcome: Outcome) -> float | None:
    """The first answer's share of one comparison: ties and disagreement between orders count half.

    None where the judge's verdict could not be read: that is no comparison.
    """
    if outcome.label == "invalid":
        return None
    return {"first": 1.0, "second": 0.0, None: 0.5}[outcome.winner]


def unseen_difference(
    rubric: Rubric | None, question: str, candidate: str, base: str
) -> float | None:
    """By how much the candidate scores higher on checks kept out of training, if there are any."""
    if rubric is None or all(check.half != "heldout" for check in rubric.checks):
        return None
    unseen = RubricJudge(rubric, half="heldout")
    return unseen.score(question, candidate).total - unseen.score(question, base).total


def perplexity(negative_log_likelihoods: Sequence[tuple[float, int]]) -> float:
    """exp of the mean negative log-likelihood a token, over all tokens of all answers."""
    total, tokens = (sum(part) for part in zip(*negative_log_likelihoods, strict=True))
    return exp(total / tokens) if tokens else float("nan")


def finished_share(answers: Sequence[Answer]) -> float:
    """Share of answers that ended by themselves, said something, and do not go round in circles."""
    fine = [a for a in answers if a.finished and a.text.strip() and not repeats(a.text)]
    return len(fine) / len(answers)


def length_ratio(candidate: Sequence[Answer], base: Sequence[Answer]) -> float:
    """Median tokens an answer, candidate over base."""
    below = median(answer.num_tokens for answer in base)
    above = median(answer.num_tokens for answer in candidate)
    return above / below if below else float("nan")
