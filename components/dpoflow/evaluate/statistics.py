"""Intervals for paired comparisons.

Gives   `bootstrap_mean`: a mean with a percentile interval over resampled prompts (Efron 1979)
Not     what is compared, or what follows from it (decide.py)
"""

import numpy as np

from dpoflow.contracts.results import Interval


def bootstrap_mean(
    values: list[float], *, confidence: float, resamples: int, seed: int
) -> Interval | None:
    """Mean of one value a prompt, with its bootstrap interval; None of no values.

    Prompts are the independent units, so both models' answers to one prompt must be one value.
    """
    if not values:
        return None
    units, rng = np.asarray(values, dtype=np.float64), np.random.default_rng(seed)
    # In slices, so that memory stays small however many prompts and resamples there are.
    means = np.concatenate(
        [
            units[rng.integers(0, len(units), (min(500, resamples - start), len(units)))].mean(
                axis=1
            )
            for start in range(0, resamples, 500)
        ]
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(value=float(units.mean()), low=float(low), high=float(high), n=len(values))
