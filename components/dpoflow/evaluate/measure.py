"""What is measured of the models' answers to held-out prompts.

Reads   what each model said (heard.py), a rubric
Gives   `Comparison` of two answers to one prompt; `measures_of` everything said
Not     asking judges (compare.py), intervals (statistics.py), gates (decide.py)
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import exp, isfinite
from statistics import fmean, median

from dpoflow.contracts.base import Contract
from dpoflow.contracts.rubric import Rubric
from dpoflow.evaluate.heard import Heard, answered_by_all, scored_by_both
from dpoflow.evaluate.names import BASE, CANDIDATE, HELDOUT
from dpoflow.judge.rubric import RubricJudge
from dpoflow.judge.verdict import Outcome
from dpoflow.policy.answers import refuses, repeats
from dpoflow.policy.generate import Answer
from dpoflow.texts.language import language_of
from dpoflow.texts.plain import plain


class Comparison(Contract):
    """The candidate's answer to a prompt beside another's, and what the judge made of them."""

    suite: str = HELDOUT
    prompt_id: str
    turn: int = 1
    slice: str
    question: str
    against: str
    """Whose answer the other one is: base, champion; of a suite, its answers."""
    theirs: str
    candidate: str
    outcome: float | None
    """1 the candidate won, 0 it lost, 0.5 a tie; None without a judge or a readable verdict."""
    reasons: tuple[str, ...] = ()
    """The judge's, one an order where it gave any."""
    their_scores: dict[str, float] = {}
    candidate_scores: dict[str, float] = {}
    """Check to mark."""
    heldout_difference: float | None = None
    """Mean mark of the checks kept out of training, the candidate's minus the other's."""


def points(outcome: Outcome) -> float | None:
    """The first answer's share of one comparison: ties and disagreement between orders count half.

    None where the judge's verdict could not be read: that is no comparison.
    """
    if outcome.label == "invalid":
        return None
    return {"first": 1.0, "second": 0.0, None: 0.5}[outcome.winner]


def reasons_of(outcome: Outcome) -> tuple[str, ...]:
    """What the judge gave as reasons, the answers named by what they are."""
    told = []
    for _, order, verdict in outcome.ballots:
        if verdict.rationale:
            shown = {"first_first": "candidate as A: ", "second_first": "candidate as B: "}
            told.append(shown.get(order, "") + verdict.rationale)
    return tuple(told)


def unseen_difference(
    rubric: Rubric | None, question: str, candidate: str, theirs: str
) -> float | None:
    """By how much the candidate scores higher on checks kept out of training, if there are any."""
    if rubric is None or all(check.half != "heldout" for check in rubric.checks):
        return None
    unseen = RubricJudge(rubric, half="heldout")
    return unseen.score(question, candidate).total - unseen.score(question, theirs).total


def perplexity(negative_log_likelihoods: Sequence[tuple[float, int]]) -> float:
    """exp of the mean negative log-likelihood a token, over all tokens of all answers."""
    if not negative_log_likelihoods:
        return float("nan")
    total, tokens = (sum(part) for part in zip(*negative_log_likelihoods, strict=True))
    try:
        return exp(total / tokens) if tokens else float("nan")
    except OverflowError:  # beyond 1e308: no model of anything
        return float("inf")


def finished_share(answers: Sequence[Answer]) -> float:
    """Share of answers that ended by themselves, said something, and do not go round in circles."""
    fine = [a for a in answers if a.finished and a.text.strip() and not repeats(a.text)]
    return len(fine) / len(answers)


def length_ratio(candidate: Sequence[Answer], theirs: Sequence[Answer]) -> float:
    """Median tokens an answer, the candidate's over the other's."""
    below = median(answer.num_tokens for answer in theirs)
    above = median(answer.num_tokens for answer in candidate)
    return above / below if below else float("nan")


def duplicates(answers: Sequence[Answer]) -> float:
    """Share of the answers that another prompt got word for word."""
    times = Counter(plain(answer.text) for answer in answers)
    return fmean(times[plain(answer.text)] > 1 for answer in answers)


def length_ratios(heard: Mapping[str, Heard]) -> dict[str, float]:
    """Of the candidate's answers to each opponent's; none where a token is another unit to both."""
    prompts, candidate = answered_by_all(heard), heard[CANDIDATE]
    ratios = {
        name: length_ratio(_answers(candidate, prompts), _answers(each, prompts))
        for name, each in heard.items()
        if prompts and each is not candidate and each.vocabulary == candidate.vocabulary
    }
    return {name: ratio for name, ratio in ratios.items() if isfinite(ratio)}


def measures_of(heard: Mapping[str, Heard]) -> dict[str, float]:
    """Figures of the candidate's words beside the base's; what is no number is left out."""
    prompts, pairs = answered_by_all(heard), scored_by_both(heard)
    if not prompts:
        return {}
    candidate, base = (_answers(heard[name], prompts) for name in (CANDIDATE, BASE))
    own = perplexity([heard[BASE].own[at] for at in prompts])
    theirs = perplexity([heard[BASE].others[at] for at in prompts])
    alike = heard[CANDIDATE].vocabulary == heard[BASE].vocabulary
    before = perplexity([(-each.chosen, each.num_tokens) for _, each in pairs.values()])
    after = perplexity([(-each.chosen, each.num_tokens) for each, _ in pairs.values()])
    measures = {
        "base_perplexity": own,
        "candidate_perplexity": theirs,
        "perplexity_ratio": theirs / own,
        "heldout_perplexity": after,
        "base_heldout_perplexity": before,
        "heldout_perplexity_ratio": after / before if alike else float("nan"),
        "finished": finished_share(candidate),
        "base_finished": finished_share(base),
        "empty": _share(candidate, lambda text: not text.strip()),
        "repeating": _share(candidate, repeats),
        "duplicate_answers": duplicates(candidate),
        "refusing": _share(candidate, refuses),
        "base_refusing": _share(base, refuses),
        "other_language": _drift(candidate, base),
    }
    return {name: value for name, value in measures.items() if isfinite(value)}


def _answers(of: Heard, prompts: Sequence[str]) -> list[Answer]:
    return [of.answers[HELDOUT][at][0] for at in prompts]


def _share(answers: Sequence[Answer], does: Callable[[str], bool]) -> float:
    return fmean(does(answer.text) for answer in answers)


def _drift(candidate: Sequence[Answer], base: Sequence[Answer]) -> float:
    """Share of the prompts that the candidate answers in another language than the base does.

    Where a text is too short to tell, it counts as the same.
    """
    told = [
        (language_of(ours.text), language_of(theirs.text))
        for ours, theirs in zip(candidate, base, strict=True)
    ]
    return fmean(None not in (ours, theirs) and ours != theirs for ours, theirs in told)
