"""What a judge says of two answers, and what is left of it once the order is swapped.

Reads   nothing
Gives   `Verdict` (one order), `Outcome` (both), `settle`, `counted`, the `Judge` protocol
Not     how a verdict comes about: rubric.py, llm.py, reward.py, panel.py
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from dpoflow.contracts.base import Contract
from dpoflow.contracts.pairs import Label, Message

Side = Literal["first", "second"]
Choice = Literal["first", "second", "tie", "invalid"]

_HALF = 0.5 + 1e-9
"""Of all weight, and no rounding error of it."""

Order = Literal["first_first", "second_first", "unordered"]
_OTHER_ORDER: dict[Order, Order] = {
    "first_first": "second_first",
    "second_first": "first_first",
    "unordered": "unordered",
}
_OTHER: dict[Choice, Choice] = {
    "first": "second",
    "second": "first",
    "tie": "tie",
    "invalid": "invalid",
}


class Verdict(Contract):
    """What was said of two answers in one order."""

    choice: Choice
    margin: float | None = None
    """Of the first over the second, in the judge's unit; None where it gives no number."""
    rationale: str | None = None
    request: str | None = None
    """Key of the request that it came from."""

    def swapped(self) -> "Verdict":
        """The same said of the two the other way round."""
        margin = None if self.margin is None else -self.margin
        return self.model_copy(update={"choice": _OTHER[self.choice], "margin": margin})


class Ballot(NamedTuple):
    """One verdict about `first` and `second`, whichever of them was shown first."""

    judge: str
    order: Order
    verdict: Verdict

    def swapped(self) -> "Ballot":
        """The same of the two answers the other way round."""
        return Ballot(self.judge, _OTHER_ORDER[self.order], self.verdict.swapped())


class Outcome(NamedTuple):
    """What a judge makes of two answers, once nothing hangs on their order."""

    label: Label
    """`preferred` names a winner; the other three never make a pair."""
    winner: Side | None
    margin: float | None
    """Of the first over the second, on a scale where 1 is all there is; None where the judge gives
    no number, or none that holds."""
    ballots: tuple[Ballot, ...]

    def swapped(self) -> "Outcome":
        """The same of the two answers the other way round."""
        sides: dict[Side | None, Side | None] = {"first": "second", "second": "first", None: None}
        margin = None if self.margin is None else -self.margin
        ballots = tuple(ballot.swapped() for ballot in self.ballots)
        return Outcome(self.label, sides[self.winner], margin, ballots)

    @property
    def lead(self) -> float:
        """Of the first over the second: the margin, or a bare win as 1 and no win as 0."""
        if self.margin is not None:
            return self.margin
        return {"first": 1.0, "second": -1.0, None: 0.0}[self.winner]


class Judge(Protocol):
    """Compares two answers to one conversation."""

    id: str
    """Names the judge so that a changed rubric, template or model is another judge."""

    async def decide(self, conversation: Sequence[Message], first: str, second: str) -> Outcome:
        """Both orders where the order could matter."""


def settle(judge: str, forward: Verdict, backward: Verdict) -> Outcome:
    """Two verdicts on the same answers, `backward` with their order swapped when it was asked.

    Agreement on a winner is `preferred`, on none a `tie`; disagreement is `inconsistent`; a verdict
    that could not be read makes the whole `invalid`.
    """
    turned = backward.swapped()
    ballots = (Ballot(judge, "first_first", forward), Ballot(judge, "second_first", turned))
    if "invalid" not in (forward.choice, turned.choice) and forward.choice != turned.choice:
        return Outcome("inconsistent", None, None, ballots)
    given = [margin for margin in (forward.margin, turned.margin) if margin is not None]
    choice = "invalid" if turned.choice == "invalid" else forward.choice
    return _plain(choice, sum(given) / len(given) if given else None, ballots)


def unordered(judge: str, verdict: Verdict) -> Outcome:
    """Of a judge that looks at each answer alone: there is no order to swap."""
    return _plain(verdict.choice, verdict.margin, (Ballot(judge, "unordered", verdict),))


def _plain(choice: Choice, margin: float | None, ballots: tuple[Ballot, ...]) -> Outcome:
    if choice == "invalid":
        return Outcome("invalid", None, None, ballots)
    if choice == "tie":
        return Outcome("tie", None, margin, ballots)
    return Outcome("preferred", choice, margin, ballots)


def counted(outcomes: Sequence[tuple[Outcome, float]]) -> Outcome:
    """A vote of several outcomes with their weights: more than half of all weight wins.

    Weight that was inconsistent, invalid or a tie counts for neither side and still counts. The
    margin is the first's share of all weight minus the second's.
    """
    total = sum(weight for _, weight in outcomes)
    ballots = tuple(ballot for outcome, _ in outcomes for ballot in outcome.ballots)

    def share(label: Label, winner: Side | None = None) -> float:
        return sum(w for o, w in outcomes if (o.label, o.winner) == (label, winner)) / total

    first, second = share("preferred", "first"), share("preferred", "second")
    if max(first, second) > _HALF:
        return Outcome(
            "preferred", "first" if first > second else "second", first - second, ballots
        )
    if share("tie") > _HALF:
        return Outcome("tie", None, first - second, ballots)
    label: Label = "invalid" if share("invalid") > _HALF else "inconsistent"
    return Outcome(label, None, None, ballots)
