"""The win rate without length's part in it (Dubois et al. 2024, as AlpacaEval 2 computes it).

A logistic regression says how likely an answer is preferred, by how much shorter it is than the
baseline's, how hard its instruction is, and a constant. What it says where both are equally long is
the length-controlled preference.

Reads   preferences, lengths, difficulties
Gives   `length_controlled`, `Gamed`
Not     whose answers these are, and reading files: alpaca.py
Shapes  N comparisons, F features (F folds and S strengths where losses are compared)
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MIN_COMPARISONS = 5
"""One for each fold that the strength of regularisation is chosen on."""

_STRENGTHS = np.logspace(-4, 4, 10)
"""Inverse strengths of the L1 penalty that are tried."""

_WEIGHT_OF_GAMED = 0.2


class Gamed(NamedTuple):
    """Comparisons of a baseline with itself, told to be brief or wordy: whether length wins."""

    preferred_N: Floats
    shorter_N: Floats
    """In standard deviations."""
    difficulty_N: Floats
    constant_N: Floats
    """0; 1 where a comparison is of an answer that nobody told to be brief or wordy."""


def length_controlled(
    preferred_N: Floats,
    shorter_N: Floats,
    difficulty_N: Floats | None = None,
    gamed: Gamed | None = None,
) -> Floats:
    """How likely each answer would be preferred if it were as long as the baseline's.

    `preferred_N` is 1 for a win, 0 for a loss, NaN where nobody said: predicted, not learnt from.
    `shorter_N`: characters by which the answer is shorter than the baseline's. Without
    `difficulty_N` the term is left out, as its authors advise for instructions of one's own.
    `gamed` holds the length term to what length is worth where nothing else differs.
    """
    assert gamed is None or difficulty_N is not None, "gamed comparisons bring their difficulty"
    many = len(preferred_N)
    features_NF = _features(_standardised(shorter_N), difficulty_N, np.ones(many))
    learnt_NF, labels_N, weights_N = features_NF, preferred_N, np.ones(many)
    if gamed is not None:
        theirs_NF = _features(gamed.shorter_N, gamed.difficulty_N, gamed.constant_N)
        learnt_NF = np.vstack([theirs_NF, learnt_NF])
        labels_N = np.concatenate([gamed.preferred_N, labels_N])
        # Two gamed models answer each instruction, so each counts half.
        theirs_N = np.where(gamed.constant_N == 1, 1.0, _WEIGHT_OF_GAMED / 2)
        weights_N = np.concatenate([theirs_N, weights_N])
    told_N = ~np.isnan(labels_N)
    weight_F = _fit(learnt_NF[told_N], labels_N[told_N], weights_N[told_N])
    equally_long_NF = features_NF.copy()
    equally_long_NF[:, 0] = 0.0
    return _sigmoid(equally_long_NF @ weight_F)


def _standardised(shorter_N: Floats) -> Floats:
    spread = shorter_N.std(ddof=1)
    return shorter_N / spread if spread > 0 else np.zeros_like(shorter_N)


def _features(shorter_N: Floats, difficulty_N: Floats | None, constant_N: Floats) -> Floats:
    known = [] if difficulty_N is None else [difficulty_N]
    return np.column_stack([np.tanh(shorter_N), *known, constant_N])


def _sigmoid(logits_N: Floats) -> Floats:
    chance: Floats = np.exp(-np.logaddexp(0, -logits_N))
    return chance


def _fit(features_NF: Floats, labels_N: Floats, weights_N: Floats) -> Floats:
    """The weights, with the penalty that predicts best what was left out of five folds."""
    from sklearn.model_selection import GroupKFold

    whole = np.arange(len(labels_N))
    # Each comparison is there twice, as won and as lost, and both belong into one fold.
    folds = [
        (train[train < len(whole)], test[test < len(whole)])
        for train, test in GroupKFold(5).split(np.tile(whole, 2), groups=np.tile(whole, 2))
    ]
    loss_FS = np.array(
        [
            [
                _loss(weight_F, features_NF[test], labels_N[test], weights_N[test])
                for weight_F in _path(features_NF[train], labels_N[train], weights_N[train])
            ]
            for train, test in folds
        ]
    )
    best = float(_STRENGTHS[int(loss_FS.sum(axis=0).argmin())])
    return _regression(features_NF, labels_N, weights_N, best, _generator())


def _generator() -> np.random.RandomState:
    """The order in which liblinear goes through coordinates, as in the published rates.

    Where losses hardly differ, it decides between strengths. scikit-learn takes no other kind.
    """
    return np.random.RandomState(123)


def _path(features_NF: Floats, labels_N: Floats, weights_N: Floats) -> Iterator[Floats]:
    """The weights at each strength."""
    generator = _generator()
    for strength in _STRENGTHS:
        yield _regression(features_NF, labels_N, weights_N, float(strength), generator)


def _regression(
    features_NF: Floats,
    labels_N: Floats,
    weights_N: Floats,
    strength: float,
    generator: np.random.RandomState,
) -> Floats:
    """A preference of 0.7 is 0.7 of a win and 0.3 of a loss."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        C=strength,
        l1_ratio=1.0,
        solver="liblinear",
        fit_intercept=False,
        random_state=generator,
    )
    model.fit(
        np.vstack([features_NF, features_NF]),
        np.repeat([1, 0], len(labels_N)),
        sample_weight=np.concatenate([labels_N, 1 - labels_N]) * np.tile(weights_N, 2),
    )
    weight_F: Floats = model.coef_[0]
    return weight_F


def _loss(weight_F: Floats, features_NF: Floats, labels_N: Floats, weights_N: Floats) -> float:
    chance = np.clip(_sigmoid(features_NF @ weight_F), 1e-15, 1 - 1e-15)
    gain = labels_N * np.log(chance) + (1 - labels_N) * np.log(1 - chance)
    return float(-(gain * weights_N).mean())
