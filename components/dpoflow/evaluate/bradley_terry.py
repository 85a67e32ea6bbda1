"""Strengths of models from battles between them (Bradley and Terry 1952), by maximum likelihood.

    log-odds that the first wins = strength of the first - strength of the second
                                   + style coefficients * (style of the first - of the second)

That is a logistic regression without intercept; a tie is half a win and half a loss. Only
differences of strengths mean something, so one model, the anchor, has 0.

Reads   battles
Gives   `fit`, `bootstrap`, `percentile_interval`, `win_rate`
Not     whose battles these are, and what style is: arena_hard.py
Shapes  B battles, C distinct ones, G pairs of models that met, M models, A all but the anchor,
        F style features, K coefficients: A and F; P prompts, R resamples
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

RIDGE = 1e-9
"""Penalty of half a squared coefficient, beside one for each battle's log-likelihood.

A model that wins every battle has no largest likelihood: its strength would grow for ever. This
ends it at about 20, which is a win rate of 100%; what has a largest likelihood it moves by less
than 1e-7.
"""

_MOST_STEPS = 100
_SMALLEST_STEP = 1e-7
"""The one after it would be about its square."""


class Battles(NamedTuple):
    """Who met whom, and how it went."""

    first_B: Ints
    second_B: Ints
    outcome_B: Floats
    """Of the first: 1 it won, 0 it lost, 0.5 a tie."""
    weight_B: Floats | None = None
    """How many battles each is worth; 1 without."""
    style_BF: Floats | None = None
    """The first's minus the second's, standardised."""


class Strengths(NamedTuple):
    """What the battles say."""

    strength_M: Floats
    """Log-odds of beating the anchor; NaN of a model that no chain of battles leads to."""
    style_F: Floats


class Resampled(NamedTuple):
    """`Strengths` of each resample."""

    strength_RM: Floats
    style_RF: Floats


def fit(battles: Battles, *, num_models: int, anchor: int) -> Strengths:
    """The likeliest strengths, with that of the model `anchor` at 0."""
    rows = _rows(battles, num_models, anchor)
    won_C, lost_C = _tallies(battles, rows, _weights(battles))
    return _named(_likeliest(rows, won_C, lost_C, np.zeros(rows.num)), rows, won_C + lost_C)


def bootstrap(
    battles: Battles,
    prompts_B: NDArray[Any],
    *,
    num_models: int,
    anchor: int,
    resamples: int,
    seed: int,
) -> Resampled:
    """Strengths from prompts drawn with replacement, each with all of its battles (Efron 1979).

    Battles of one prompt are not independent of each other: the same two answers in both orders.
    """
    rows, weight_B = _rows(battles, num_models, anchor), _weights(battles)
    _, prompt_B = np.unique(prompts_B, return_inverse=True)
    num, rng = int(prompt_B.max()) + 1, np.random.default_rng(seed)
    # From the whole sample's coefficients it is two or three steps to a resample's.
    whole_K = _likeliest(rows, *_tallies(battles, rows, weight_B), np.zeros(rows.num))
    drawn = []
    for _ in range(resamples):
        times_P = np.bincount(rng.integers(num, size=num), minlength=num)
        won_C, lost_C = _tallies(battles, rows, weight_B * times_P[prompt_B])
        coefficient_K = _likeliest(rows, won_C, lost_C, whole_K)
        drawn.append(_named(coefficient_K, rows, won_C + lost_C))
    return Resampled(*(np.array(each) for each in zip(*drawn, strict=True)))


def percentile_interval(values_R: Floats, confidence: float) -> tuple[float, float]:
    """What holds that share of the resamples; one that says nothing of a model is NaN, left out."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(values_R[~np.isnan(values_R)], [tail, 1 - tail])
    return float(low), float(high)


def win_rate(strength: Floats) -> Floats:
    """How likely a model of that strength beats the anchor."""
    from scipy.special import expit  # slow to import

    rate: Floats = expit(strength)
    return rate


class _Rows(NamedTuple):
    """The regression's rows: battles that are alike in all but their outcome are one.

    Those of a pair of models lie together, so that no row needs a column for each model.
    """

    row_B: Ints
    pair_C: Ints
    start_G: Ints
    """Each pair's first row."""
    sides_GM: Floats
    """1 for the first, -1 for the second."""
    sides_GA: Floats
    style_CF: Floats
    anchor: int

    @property
    def num(self) -> int:
        """Of coefficients."""
        return int(self.sides_GA.shape[1] + self.style_CF.shape[1])


def _rows(battles: Battles, num_models: int, anchor: int) -> _Rows:
    many = len(battles.outcome_B)
    assert many, "no battle"
    assert ((battles.outcome_B >= 0) & (battles.outcome_B <= 1)).all(), "outcomes are 0 to 1"
    style_BF = np.empty((many, 0)) if battles.style_BF is None else battles.style_BF
    assert np.isfinite(style_BF).all(), "styles are finite"
    told = np.column_stack([battles.first_B, battles.second_B, style_BF])
    rows, row_B = np.unique(told, axis=0, return_inverse=True)  # sorted, by pair first
    pairs, start_G, pair_C = np.unique(rows[:, :2], axis=0, return_index=True, return_inverse=True)
    each, (first_G, second_G) = np.eye(num_models), pairs.astype(np.intp).T
    sides_GM = each[first_G] - each[second_G]
    sides_GA = np.delete(sides_GM, anchor, axis=1)
    return _Rows(row_B, pair_C, start_G, sides_GM, sides_GA, rows[:, 2:], anchor)


def _weights(battles: Battles) -> Floats:
    if battles.weight_B is None:
        return np.ones(len(battles.outcome_B))
    return battles.weight_B.astype(np.float64)


def _tallies(battles: Battles, rows: _Rows, weight_B: Floats) -> tuple[Floats, Floats]:
    """What the first of each row won, and what it lost."""
    won_C = np.bincount(rows.row_B, weight_B * battles.outcome_B)
    lost_C = np.bincount(rows.row_B, weight_B * (1 - battles.outcome_B))
    return won_C.astype(np.float64), lost_C.astype(np.float64)


def _likeliest(rows: _Rows, won_C: Floats, lost_C: Floats, at_K: Floats) -> Floats:
    """Newton's method, from `at_K`; it ends, for what it goes down is convex."""
    for _ in range(_MOST_STEPS):
        step_K = _step(rows, won_C, lost_C, at_K)
        while _uphill(rows, won_C, lost_C, at_K, step_K):
            step_K /= 2
        at_K = at_K - step_K
        if np.abs(step_K).max(initial=0) < _SMALLEST_STEP:
            break
    return at_K


def _uphill(rows: _Rows, won_C: Floats, lost_C: Floats, at_K: Floats, step_K: Floats) -> bool:
    # Newton's step never is where it moves no log-odds by more than 1 (Bach 2010, proposition 1).
    if np.abs(_logits(rows, step_K)).max() <= 1:
        return False
    there = _height(rows, won_C, lost_C, at_K - step_K)
    return there > _height(rows, won_C, lost_C, at_K)


def _height(rows: _Rows, won_C: Floats, lost_C: Floats, at_K: Floats) -> float:
    """What is least at the likeliest coefficients."""
    logit_C = _logits(rows, at_K)
    missed = won_C @ np.logaddexp(0, -logit_C) + lost_C @ np.logaddexp(0, logit_C)
    return float(missed + RIDGE / 2 * at_K @ at_K)


def _step(rows: _Rows, won_C: Floats, lost_C: Floats, at_K: Floats) -> Floats:
    from scipy.special import expit  # slow to import

    logit_C = _logits(rows, at_K)
    win_C, loss_C = expit(logit_C), expit(-logit_C)
    # Not outcome minus chance: where one side always wins, that would be all rounding.
    gradient_K = _gradient(rows, lost_C * win_C - won_C * loss_C) + RIDGE * at_K
    hessian_KK = _hessian(rows, (won_C + lost_C) * win_C * loss_C) + RIDGE * np.eye(rows.num)
    return np.linalg.solve(hessian_KK, gradient_K).astype(np.float64)


def _logits(rows: _Rows, coefficient_K: Floats) -> Floats:
    models = rows.sides_GA.shape[1]
    logit_G = rows.sides_GA @ coefficient_K[:models]
    logit_C: Floats = logit_G[rows.pair_C] + rows.style_CF @ coefficient_K[models:]
    return logit_C


def _gradient(rows: _Rows, slope_C: Floats) -> Floats:
    slope_G = np.add.reduceat(slope_C, rows.start_G)
    return np.concatenate([rows.sides_GA.T @ slope_G, rows.style_CF.T @ slope_C])


def _hessian(rows: _Rows, curve_C: Floats) -> Floats:
    models, curved_CF = rows.sides_GA.shape[1], curve_C[:, None] * rows.style_CF
    curve_G = np.add.reduceat(curve_C, rows.start_G)
    mixed_AF = rows.sides_GA.T @ np.add.reduceat(curved_CF, rows.start_G)
    hessian_KK = np.empty((rows.num, rows.num))
    hessian_KK[:models, :models] = rows.sides_GA.T @ (curve_G[:, None] * rows.sides_GA)
    hessian_KK[:models, models:], hessian_KK[models:, :models] = mixed_AF, mixed_AF.T
    hessian_KK[models:, models:] = rows.style_CF.T @ curved_CF
    return hessian_KK


def _named(coefficient_K: Floats, rows: _Rows, weight_C: Floats) -> Strengths:
    models = rows.sides_GA.shape[1]
    strength_M = np.insert(coefficient_K[:models], rows.anchor, 0.0)
    strength_M[~_reached(rows, weight_C)] = np.nan
    return Strengths(strength_M, coefficient_K[models:])


def _reached(rows: _Rows, weight_C: Floats) -> NDArray[np.bool_]:
    """Whether a chain of battles leads from each model to the anchor."""
    fought_G = np.add.reduceat(weight_C, rows.start_G) > 0
    met_GM: NDArray[np.bool_] = rows.sides_GM[fought_G] != 0
    reached_M: NDArray[np.bool_] = np.arange(rows.sides_GM.shape[1]) == rows.anchor
    while (further_M := reached_M | (met_GM @ reached_M) @ met_GM).sum() > reached_M.sum():
        reached_M = further_M
    return reached_M
