"""Style as Arena-Hard controls for it: how long answers are, their headers, lists and bold words.

Reads   answers, or counts of them; who won
Gives   `counts_of`, `difference`, `standardised`, `at_equal_style`
Not     the regression (bradley_terry.py), files of the published benchmark (arena_hard.py)
Shapes  B battles, F style features
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dpoflow.evaluate.bradley_terry import Battles, Floats, fit, win_rate

_CODE = re.compile(r"```[^`]*```")
_COUNTED = (
    re.compile(r"^#{1,6}\s", re.MULTILINE),
    re.compile(r"^\s*(?:\d+\.|[-*+])\s", re.MULTILINE),
    re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
)
"""Headers, items of lists, bold words, in Markdown (Arena-Hard's add_markdown_info.py)."""
_NO_SPREAD = 1e-12


class Style(NamedTuple):
    """By how much the first of each battle has more of it."""

    standardised_BF: Floats
    mean_F: Floats
    """In standard deviations."""


def counts_of(answer: str) -> tuple[float, ...]:
    """Characters, headers, items of lists, bold words; code shows no style."""
    prose = _CODE.sub("", answer)
    return len(answer), *(len(pattern.findall(prose)) for pattern in _COUNTED)


def difference(ours_BF: Floats, theirs_BF: Floats, one: Floats | int = 1) -> Floats:
    """Differences over sums; `one` is added to these, since most answers have no header."""
    sum_BF = ours_BF + theirs_BF + one
    # Two answers without a token are equally long.
    return (ours_BF - theirs_BF) / np.where(sum_BF > 0, sum_BF, 1)


def standardised(more_BF: Floats, weight_B: Floats, *, taken: int = 0) -> Style:
    """Differences in standard deviations; `taken` is what their degrees of freedom lack."""
    mean_F = np.average(more_BF, axis=0, weights=weight_B)
    freedom = weight_B.sum() - taken
    spread_F = np.sqrt(weight_B @ (more_BF - mean_F) ** 2 / max(freedom, 1))
    spread_F[spread_F < _NO_SPREAD] = np.inf  # what never differs explains nothing
    return Style((more_BF - mean_F) / spread_F, mean_F / spread_F)


def at_equal_style(outcomes: Sequence[float], ours: Sequence[str], theirs: Sequence[str]) -> float:
    """What the win rate would be if both wrote alike, by the regression of Arena-Hard."""
    counts = (
        np.array([counts_of(text) for text in side], dtype=np.float64) for side in (ours, theirs)
    )
    style = standardised(difference(*counts), np.ones(len(outcomes)))
    battles = Battles(
        first_B=np.zeros(len(outcomes), dtype=np.intp),
        second_B=np.ones(len(outcomes), dtype=np.intp),
        outcome_B=np.array(outcomes, dtype=np.float64),
        style_BF=style.standardised_BF,
    )
    fitted = fit(battles, num_models=2, anchor=1)
    return float(win_rate(fitted.strength_M[0] - fitted.style_F @ style.mean_F))
