"""Whether the longer answer wins, and how surely.

Reads   counts
Gives   `length_bias`
Not     counting: validate and synthesize do, each in its own way
"""

from math import exp

from dpoflow.contracts.results import LengthBias


def length_bias(longer: int, unequal: int, mean_log_ratio: float) -> LengthBias:
    """Of `unequal` pairs with answers of unlike length, `longer` chose the longer one.

    The interval is exact (Clopper and Pearson 1934), of 95%.
    """
    from scipy.stats import binomtest  # slow to import

    between = binomtest(longer, unequal).proportion_ci(0.95)
    return LengthBias(
        chosen_longer=longer / unequal,
        low=float(between.low),
        high=float(between.high),
        n=unequal,
        length_ratio=exp(mean_log_ratio),
    )
