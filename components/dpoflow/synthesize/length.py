"""Whether the longer answer wins: a judge's oldest bias, told and, if wanted, taken out.

Reads   pairs
Gives   `length_bias`, `balanced`, `is_judged`
Not     judging

A length is in characters; pairs whose answers are equally long count for neither side.
"""

from collections.abc import Sequence
from math import log
from statistics import fmean

from dpoflow import lengths
from dpoflow.contracts.pairs import PreferencePair
from dpoflow.contracts.results import LengthBias


def is_judged(pair: PreferencePair) -> bool:
    """Whether a judge chose, and no human wrote one of the answers."""
    return pair.provenance is not None and pair.provenance.chosen is not None


def _difference(pair: PreferencePair) -> int:
    return len(pair.chosen.content) - len(pair.rejected.content)


def length_bias(pairs: Sequence[PreferencePair]) -> LengthBias | None:
    """How often the chosen answer is the longer one, and by how much."""
    unequal = [pair for pair in pairs if _difference(pair)]
    if not unequal:
        return None
    longer = sum(_difference(pair) > 0 for pair in unequal)
    ratios = [log(len(p.chosen.content) / len(p.rejected.content)) for p in unequal]
    return lengths.length_bias(longer, len(unequal), fmean(ratios))


def balanced(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """As many judged pairs with a longer chosen answer as with a shorter one; the others stay.

    Those of the smallest margin leave the larger side first.
    """
    judged = [pair for pair in pairs if is_judged(pair)]
    longer = [pair for pair in judged if _difference(pair) > 0]
    shorter = [pair for pair in judged if _difference(pair) < 0]
    keep = min(len(longer), len(shorter))
    by_margin = [
        sorted(side, key=lambda pair: (-(pair.margin or 0.0), pair.pair_id))[:keep]
        for side in (longer, shorter)
    ]
    kept = {pair.pair_id for side in by_margin for pair in side}
    return [
        pair
        for pair in pairs
        if pair.pair_id in kept or not is_judged(pair) or _difference(pair) == 0
    ]
