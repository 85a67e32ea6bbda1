"""Several annotators' votes on two answers, as one pair.

Reads   ballots: who voted, and for what
Gives   `Ballot`, `decided`
Not     how a layout writes votes down: votes.py, argilla.py, label_studio.py

More than half of all votes decide: for an answer the pair is preferred, for a tie it is a tie, and
where no side has them it is inconsistent; the last two are kept for audit. The margin is the share
of votes for the chosen answer minus that of votes against it. A ballot that was never finished
decides nothing, and is kept with the pair as an invalid vote, so that reports can count it.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

from dpoflow.contracts.pairs import Label, Message, PreferencePair, Source, Vote
from dpoflow.sources.formats.messages import Row, pair
from dpoflow.sources.reasons import Quarantine

Choice = Literal["first", "second", "tie", "invalid"]
Order = Literal["chosen_first", "rejected_first"]


class Ballot(NamedTuple):
    """What one annotator said of two answers."""

    annotator: str
    choice: Choice
    turned: bool = False
    """The second answer stood first when this annotator saw them."""
    rationale: str | None = None


def decided(
    row: Row,
    origin: Source,
    prompt: tuple[Message, ...],
    answers: Sequence[str],
    ballots: Sequence[Ballot],
    *,
    slice_field: str = "slice",
) -> PreferencePair:
    """The pair that `ballots` on the two `answers` make, with every vote."""
    said = [ballot.choice for ballot in ballots if ballot.choice != "invalid"]
    if not said:
        raise Quarantine("no_vote", f"{len(ballots)} unfinished")
    if twice := [who for who, n in Counter(each.annotator for each in ballots).items() if n > 1]:
        raise Quarantine("ambiguous", f"{twice[0][:40]} voted more than once")
    first, second, half = said.count("first"), said.count("second"), len(said) / 2
    chosen: Choice = "second" if second > first else "first"
    label: Label = (
        "preferred"
        if max(first, second) > half
        else "tie"
        if said.count("tie") > half
        else "inconsistent"
    )
    good, bad = answers if chosen == "first" else (answers[1], answers[0])
    return pair(
        row,
        origin,
        prompt,
        good,
        bad,
        margin=abs(first - second) / len(said),
        label=label,
        votes=tuple(_vote(ballot, chosen) for ballot in ballots),
        slice_field=slice_field,
    )


def _vote(ballot: Ballot, chosen: Choice) -> Vote:
    shown_first: Choice = "second" if ballot.turned else "first"
    order: Order = "chosen_first" if chosen == shown_first else "rejected_first"
    verdict: Literal["chosen", "rejected", "tie", "invalid"]
    if ballot.choice in ("tie", "invalid"):
        verdict = ballot.choice
    else:
        verdict = "chosen" if ballot.choice == chosen else "rejected"
    return Vote(
        annotator=ballot.annotator, order=order, verdict=verdict, rationale=ballot.rationale
    )
