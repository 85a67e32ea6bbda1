"""Intervals for paired comparisons, and what so many of them can show.

Gives   `bootstrap_mean`: a mean with a percentile interval over resampled prompts (Efron 1979)
        `power_of`: the difference that would be found, and how many prompts it takes
Not     what is compared, or what follows from it (decide.py)
"""

from collections.abc import Sequence
from math import ceil
from statistics import NormalDist, fmean, stdev

import numpy as np

from dpoflow.contracts.results import Interval, Power

_FOUND = 0.8
"""How often a difference that is there should be found: the usual power."""


def bootstrap_mean(
    values: list[float], *, confidence: float, resamples: int, seed: int
) -> Interval | None:
    """Mean of one value a prompt, with its bootstrap interval; None of no values.

    Prompts are the independent units, so both models' answers to one prompt must be one value.
    """
    if not values:
        return None
    # Drawing prompts is drawing how often each distinct value comes: wins, ties and losses are
    # three, however many prompts there are.
    units, rng, num = np.asarray(values, dtype=np.float64), np.random.default_rng(seed), len(values)
    distinct, times = np.unique(units, return_counts=True)
    # In slices, so that memory stays small however many values and resamples there are.
    means = np.concatenate(
        [
            rng.multinomial(num, times / num, size=min(500, resamples - start)) @ distinct / num
            for start in range(0, resamples, 500)
        ]
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(value=float(units.mean()), low=float(low), high=float(high), n=num)


def power_of(values: Sequence[float], *, bound: float, confidence: float) -> Power | None:
    """What comparisons that differ as much as `values` can show of a mean above `bound`.

    By the normal approximation: a mean that lies (z of the interval + z of the power) standard
    errors above the bound is found. None where all values are one: they tell of no spread.
    """
    if len(values) < 2 or (spread := stdev(values)) == 0:  # a spread takes two
        return None
    normal = NormalDist()
    away = normal.inv_cdf((1 + confidence) / 2) + normal.inv_cdf(_FOUND)
    lead = fmean(values) - bound
    return Power(
        detectable=bound + away * spread / len(values) ** 0.5,
        needed=ceil((away * spread / lead) ** 2) if lead > 0 else None,
    )
