"""From candidates to pairs: who wins, by how much, or why there is no pair.

Reads   a prompt, its candidates, a judge
Gives   `pair_with_reference`, `pairs_by_judge`: pairs, or the reason that there is none
Not     sampling (candidates.py), how a verdict comes about (judge/)

Every two candidates are compared, each comparison in both orders where the order could matter; only
an outcome that names a winner makes a pair.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from itertools import combinations
from statistics import fmean
from typing import Literal, NamedTuple

from dpoflow.contracts.pairs import (
    Message,
    PreferencePair,
    Prompt,
    Provenance,
    Quality,
    Vote,
)
from dpoflow.contracts.spec import SynthesizeConfig
from dpoflow.endpoints.budget import Exhausted
from dpoflow.judge.verdict import Ballot, Choice, Judge, Outcome
from dpoflow.synthesize.candidates import Candidate, Group, Missing
from dpoflow.synthesize.filters import Aside, set_aside

NotAPair = Literal[
    "too_long",
    "over_budget",
    "too_few",
    "empty",
    "identical",
    "repeating",
    "refusal",
    "truncated",
    "tie",
    "inconsistent",
    "invalid",
    "below_margin",
]


_ORDERS: dict[str, Literal["chosen_first", "rejected_first", "unordered"]] = {
    "first_first": "chosen_first",
    "second_first": "rejected_first",
    "unordered": "unordered",
}
_SIDES: dict[Choice, Literal["chosen", "rejected", "tie", "invalid"]] = {
    "first": "chosen",
    "second": "rejected",
    "tie": "tie",
    "invalid": "invalid",
}


class Compared(NamedTuple):
    """Two candidates by their places, and what the judge made of them."""

    first: int
    second: int
    outcome: Outcome


class Judged(NamedTuple):
    """What became of one prompt."""

    pairs: tuple[PreferencePair, ...]
    reason: NotAPair | None
    """Why there is no pair."""
    aside: tuple[Aside | None, ...]
    """Why each candidate was not judged."""
    compared: tuple[Compared, ...]

    def leads(self) -> dict[int, float]:
        """Mean lead of each candidate that was compared, over those it was compared to."""
        return _leads(self.compared)


class _Win(NamedTuple):
    winner: int
    loser: int
    outcome: Outcome


def pair_with_reference(prompt: Prompt, group: Group) -> Judged:
    """A human's answer is preferred to the model's own."""
    assert prompt.reference is not None
    candidates = group.candidates
    aside = tuple(set_aside([each.answer for each in candidates], ()))
    fit = [each for each, why in zip(candidates, aside, strict=True) if why is None]
    if not fit:
        return Judged((), _too_few(aside, group.missing), aside, ())
    if fit[0].answer.text.strip() == prompt.reference.strip():
        return Judged((), "identical", aside, ())
    vote = Vote(annotator="human", verdict="chosen", rationale="a human's answer to this prompt")
    made = Provenance(chosen=None, rejected=fit[0].writer, judge="human")
    pair = _pair(prompt, prompt.reference, fit[0], None, (vote,), made)
    return Judged((pair,), None, aside, ())


async def pairs_by_judge(
    config: SynthesizeConfig, prompt: Prompt, group: Group, judge: Judge
) -> Judged:
    """Pairs among what the policy and others said, as the spec's strategy chooses them."""
    candidates = group.candidates
    aside = tuple(set_aside([each.answer for each in candidates], config.drop))
    fit = [place for place, why in enumerate(aside) if why is None]
    if len(fit) < 2:  # it takes two
        return Judged((), _too_few(aside, group.missing), aside, ())
    if not any(candidates[place].answer.finished for place in fit):
        return Judged((), "truncated", aside, ())
    compared, whole = await _compare(prompt, candidates, fit, judge)
    if not whole:
        return Judged((), "over_budget", aside, compared)
    found = _chosen(config, prompt, compared, fit, candidates)
    if not isinstance(found, list):
        return Judged((), found, aside, compared)
    pairs = tuple(_judged_pair(prompt, candidates, win, judge.id) for win in found)
    return Judged(pairs, None, aside, compared)


def _too_few(aside: Sequence[Aside | None], missing: Sequence[Missing]) -> NotAPair:
    """The commonest reason why candidates are missing or set aside; the first one of a draw."""
    reasons: list[NotAPair] = [*missing, *(why for why in aside if why is not None)]
    return max(reasons, key=reasons.count) if reasons else "too_few"


def _text(candidates: Sequence[Candidate], place: int) -> str:
    return candidates[place].answer.text


async def _compare(
    prompt: Prompt, candidates: Sequence[Candidate], fit: Sequence[int], judge: Judge
) -> tuple[tuple[Compared, ...], bool]:
    """Every comparison that was made, and whether the budget let them all be."""
    couples = list(combinations(fit, 2))
    outcomes = await asyncio.gather(
        *(
            judge.decide(prompt.prompt, _text(candidates, i), _text(candidates, j))
            for i, j in couples
        ),
        return_exceptions=True,
    )
    compared = []
    for (first, second), outcome in zip(couples, outcomes, strict=True):
        if isinstance(outcome, Outcome):
            compared.append(Compared(first, second, outcome))
        elif not isinstance(outcome, Exhausted):
            raise outcome
    return tuple(compared), len(compared) == len(couples)


def _chosen(
    config: SynthesizeConfig,
    prompt: Prompt,
    compared: Sequence[Compared],
    fit: Sequence[int],
    candidates: Sequence[Candidate],
) -> list[_Win] | NotAPair:
    """The comparisons that make pairs, or why none does."""
    if config.strategy == "all_above_margin":
        found = [_win(each, candidates, config.min_margin) for each in compared]
        wins = [win for win in found if isinstance(win, _Win)]
        wins.sort(key=lambda win: (-abs(win.outcome.lead), win.winner, win.loser))
        return wins[: config.max_pairs] or _commonest(found)
    leads = _leads(compared)
    # By mean lead over all others; equal ones in their order.
    ranked = sorted(fit, key=lambda place: -leads[place])
    best = next(place for place in ranked if candidates[place].answer.finished)
    of_best = {
        each.first + each.second - best: each
        for each in compared
        if best in (each.first, each.second)
    }
    if config.strategy == "best_vs_worst":
        worst = ranked[-1]
        if worst == best:  # all that ended were beaten by what was cut
            return "truncated"
        found = [_win(of_best[worst], candidates, config.min_margin)]
    else:
        found = [_win(each, candidates, config.min_margin) for _, each in sorted(of_best.items())]
    wins = [win for win in found if isinstance(win, _Win) and win.winner == best]
    if not wins:
        return _commonest(found)
    draw = hashlib.sha256(f"{config.seed}:{prompt.prompt_id}".encode()).digest()
    return [wins[int.from_bytes(draw[:8], "big") % len(wins)]]


def _leads(compared: Sequence[Compared]) -> dict[int, float]:
    won: dict[int, list[float]] = {}
    for each in compared:
        won.setdefault(each.first, []).append(each.outcome.lead)
        won.setdefault(each.second, []).append(-each.outcome.lead)
    return {place: fmean(leads) for place, leads in won.items()}


def _win(each: Compared, candidates: Sequence[Candidate], min_margin: float) -> _Win | NotAPair:
    outcome = each.outcome
    if outcome.label != "preferred":
        return outcome.label
    if outcome.margin is not None and abs(outcome.margin) <= min_margin:
        return "below_margin"
    first_won = outcome.winner == "first"
    winner, loser = (each.first, each.second) if first_won else (each.second, each.first)
    # Half an answer would teach where not to stop.
    if not candidates[winner].answer.finished:
        return "truncated"
    return _Win(winner, loser, outcome)


def _commonest(found: Sequence[_Win | NotAPair]) -> NotAPair:
    reasons = [each for each in found if not isinstance(each, _Win)]
    # The judge goes round in circles: whom most others beat beat the best.
    return max(reasons, key=reasons.count) if reasons else "inconsistent"


def _judged_pair(
    prompt: Prompt, candidates: Sequence[Candidate], win: _Win, judge: str
) -> PreferencePair:
    outcome = win.outcome if win.outcome.winner == "first" else win.outcome.swapped()
    chosen, rejected = candidates[win.winner], candidates[win.loser]
    requests = [ballot.verdict.request for ballot in outcome.ballots]
    made = Provenance(
        chosen=chosen.writer,
        rejected=rejected.writer,
        judge=judge,
        requests=tuple(request for request in requests if request),
    )
    votes = tuple(vote(ballot) for ballot in outcome.ballots)
    return _pair(prompt, chosen.answer.text, rejected, outcome.margin, votes, made)


def vote(ballot: Ballot) -> Vote:
    """A ballot as a vote, the first answer taken for the chosen one."""
    verdict = ballot.verdict
    return Vote(
        annotator=ballot.judge,
        order=_ORDERS[ballot.order],
        verdict=_SIDES[verdict.choice],
        score=verdict.margin,
        rationale=verdict.rationale,
    )


def _pair(
    prompt: Prompt,
    chosen: str,
    rejected: Candidate,
    margin: float | None,
    votes: tuple[Vote, ...],
    made: Provenance,
) -> PreferencePair:
    text = rejected.answer.text
    return PreferencePair(
        prompt=prompt.prompt,
        chosen=Message(role="assistant", content=chosen),
        rejected=Message(role="assistant", content=text),
        rejected_ended=rejected.answer.finished,
        label="preferred",
        margin=margin,
        votes=votes,
        source=prompt.source,
        provenance=made,
        quality=Quality(chosen_chars=len(chosen), rejected_chars=len(text)),
        split=prompt.split,
        slice=prompt.slice,
    )
