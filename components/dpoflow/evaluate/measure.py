"""What is measured of two models' answers to the same prompts.

Reads   answers of candidate and base, a rubric, log-probabilities under the base
Gives   `Comparison` of one prompt, `measures` over all of them
Not     intervals (statistics.py), gates (decide.py)
"""

from collections import Counter
from collections.abc import Sequence
from math import exp
from statistics import median

from dpoflow.contracts.base import Contract
from dpoflow.judge.rubric import RubricJudge
from dpoflow.policy.generate import Answer

_PHRASE, _TIMES = 4, 3


class Comparison(Contract):
    """Both answers to one held-out prompt, and what the judge made of them."""

    prompt_id: str
    slice: str
    question: str
    base: str
    candidate: str
    outcome: float | None
    """1 the candidate won, 0 it lost, 0.5 a tie; None without a judge."""
    base_scores: dict[str, float] = {}
    candidate_scores: dict[str, float] = {}
    """Check to mark."""
    heldout_difference: float | None = None
    """Mean mark of the checks kept out of training, candidate minus base."""


def repeats(text: str) -> bool:
    """Whether some run of four words occurs more than three times."""
    words = text.split()
    runs = Counter(tuple(words[i : i + _PHRASE]) for i in range(len(words) - _PHRASE + 1))
    return bool(runs) and max(runs.values()) > _TIMES


def outcome(judge: RubricJudge, question: str, candidate: str, base: str) -> float:
    """The candidate's share of one comparison, ties half, the mean of both orders."""
    points = {"first": 1.0, "tie": 0.5, "second": 0.0}
    forward = points[judge.compare(question, candidate, base).verdict]
    backward = 1.0 - points[judge.compare(question, base, candidate).verdict]
    return (forward + backward) / 2


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
