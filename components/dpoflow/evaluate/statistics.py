"""Intervals and tests for paired comparisons, and what so many of them can show.

Gives   `bootstrap_mean`: a mean with a percentile interval over resampled prompts (Efron 1979)
        `share_of`: a share with Wilson's interval; `difference_of` two on the same prompts
        `power_of`: the difference that would be found, and how many prompts it takes
        `sign_test`, `mcnemar`: exact, two-sided; `holm`: p-values of several tests together
Not     what is compared, or what follows from it (decide.py)
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import ceil
from statistics import NormalDist, fmean, stdev

import numpy as np

from dpoflow.contracts.results import Interval, Power, Test

_FOUND = 0.8
"""How often a difference that is there should be found: the usual power."""


def bootstrap_mean(
    values: Sequence[float],
    *,
    confidence: float,
    resamples: int,
    seed: int,
    prompts: Sequence[str] | None = None,
) -> Interval | None:
    """Mean of the values, with its bootstrap interval over prompts.

    None of no values, and where one of them is not finite: that is no measurement.
    Prompts are the independent units: both models' answers to one prompt must be one value, and
    where a prompt has several, `prompts` says which are of the same. `n` counts prompts.
    """
    if not values or not np.isfinite(values).all():
        return None
    units = _by_prompt(values, prompts or [str(at) for at in range(len(values))])
    # Drawing prompts is drawing how often each distinct unit comes: wins, ties and losses are
    # three, however many prompts there are.
    distinct_U2, times_U = np.unique(units, axis=0, return_counts=True)
    rng, num = np.random.default_rng(seed), len(units)
    # In slices, so that memory stays small however many units and resamples there are.
    means = np.concatenate(
        [
            np.divide(*(rng.multinomial(num, times_U / num, size=some) @ distinct_U2).T)
            for some in (min(500, resamples - start) for start in range(0, resamples, 500))
        ]
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(value=fmean(values), low=float(low), high=float(high), n=num)


def _by_prompt(values: Sequence[float], prompts: Sequence[str]) -> list[tuple[float, int]]:
    """(sum, number) of each prompt's values."""
    sums: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for value, prompt in zip(values, prompts, strict=True):
        total, number = sums[prompt]
        sums[prompt] = (total + value, number + 1)
    return list(sums.values())


def share_of(does: Sequence[bool], *, confidence: float) -> Interval | None:
    """How many do a thing, with Wilson's interval (1927).

    It has a width at none and at all, too, where every bootstrap resample is the same.
    """
    if not does:
        return None
    from scipy.stats import binomtest  # slow to import

    found, num = sum(does), len(does)
    ends = binomtest(found, num).proportion_ci(confidence, method="wilson")
    return Interval(value=found / num, low=float(ends.low), high=float(ends.high), n=num)


def difference_of(
    ours: Sequence[bool], theirs: Sequence[bool], *, confidence: float
) -> Interval | None:
    """By how much more often we do a thing on the same prompts (Bonett and Price 2012).

    One prompt is added to each way of differing, so that it has a width where none differs, too:
    that no prompt of twenty tells two models apart does not show that they are equal.
    """
    if not ours:
        return None
    told = [int(mine) - int(other) for mine, other in zip(ours, theirs, strict=True)]
    num = len(told)
    more, less = ((told.count(way) + 1) / (num + 2) for way in (1, -1))
    middle, spread = more - less, ((more + less - (more - less) ** 2) / (num + 2)) ** 0.5
    away = NormalDist().inv_cdf((1 + confidence) / 2) * spread
    return Interval(
        value=fmean(told), low=max(middle - away, -1.0), high=min(middle + away, 1.0), n=num
    )


def sign_test(outcomes: Sequence[float]) -> Test | None:
    """Whether as many were won as lost (Conover 1999, section 3.4); ties say nothing to it."""
    won = sum(each > 0.5 for each in outcomes)
    return _binomial(won, won + sum(each < 0.5 for each in outcomes))


def mcnemar(ours: Sequence[bool], theirs: Sequence[bool]) -> Test | None:
    """Whether two models do a thing equally often on the same prompts (McNemar 1947), exactly."""
    told = [mine for mine, other in zip(ours, theirs, strict=True) if mine is not other]
    return _binomial(sum(told), len(told))


def _binomial(first: int, of: int) -> Test | None:
    if not of:
        return None  # nothing tells them apart
    from scipy.stats import binomtest  # slow to import

    return Test(p=float(binomtest(first, of).pvalue), n=of)


def holm(tests: Mapping[str, Test]) -> dict[str, Test]:
    """The same tests with p-values that hold for all of them together (Holm 1979)."""
    least, adjusted = 0.0, dict[str, Test]()
    ordered = sorted(tests.items(), key=lambda each: each[1].p)
    for place, (name, test) in enumerate(ordered):
        least = max(least, min(1.0, (len(ordered) - place) * test.p))
        adjusted[name] = test.model_copy(update={"p_holm": least})
    return {name: adjusted[name] for name in tests}


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
