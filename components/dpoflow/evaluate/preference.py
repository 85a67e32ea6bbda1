"""The preference suite: held-out pairs under the candidate and the base.

Reads   log-probabilities of pairs (heard.py), what the policy was trained with
Gives   `preference_of`
Not     answers to prompts (measure.py)
Shapes  P pairs
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpoflow.contracts.pairs import PreferencePair
from dpoflow.contracts.results import Interval, Preference
from dpoflow.contracts.spec import EvaluateConfig
from dpoflow.evaluate.heard import Heard, scored_by_both
from dpoflow.evaluate.names import BASE, CANDIDATE
from dpoflow.evaluate.statistics import bootstrap_mean

_BINS = 10


def preference_of(
    config: EvaluateConfig,
    pairs: Sequence[PreferencePair],
    heard: Mapping[str, Heard],
    trained: Mapping[str, Any],
) -> Preference | None:
    """None without a pair, and where a log-probability is no number.

    `trained`: the policy's config of training.
    """
    scored = scored_by_both(heard)
    told = [pair for pair in pairs if pair.pair_id in scored]
    log_ratios = [
        (ours.chosen - theirs.chosen, ours.rejected - theirs.rejected)
        for ours, theirs in (scored[pair.pair_id] for pair in told)
    ]
    margins = [chosen - rejected for chosen, rejected in log_ratios]
    prompts = [pair.prompt_id for pair in told]
    correct = [float(margin > 0) for margin in margins]
    margin = _interval(config, margins, prompts)
    accuracy = _interval(config, correct, prompts)
    if margin is None or accuracy is None:
        return None
    beta = trained.get("beta")
    chances = _chances(margins, float(beta)) if beta is not None else None
    return Preference(
        accuracy=accuracy,
        margin=margin,
        chosen=fmean(chosen for chosen, _ in log_ratios),
        rejected=fmean(rejected for _, rejected in log_ratios),
        kl=_divergence(heard),
        beta=beta,
        brier=None if chances is None else float(np.mean((1 - chances) ** 2)),
        calibration_error=None if chances is None else calibration_error(chances),
        slices=_slices(config, told, correct),
    )


def _divergence(heard: Mapping[str, Heard]) -> float | None:
    own, theirs = heard[CANDIDATE].own, heard[BASE].others
    told = [theirs[at][0] - own[at][0] for at in own if at in theirs]
    return fmean(told) if told and isfinite(fmean(told)) else None


def _interval(
    config: EvaluateConfig, values: Sequence[float], prompts: Sequence[str]
) -> Interval | None:
    return bootstrap_mean(
        values,
        confidence=config.confidence,
        resamples=config.resamples,
        seed=config.seed,
        prompts=prompts,
    )


def _chances(margins: Sequence[float], beta: float) -> NDArray[np.float64]:
    """How likely the chosen answer is the better one, as the policy has it (eq. 1 of DPO)."""
    from scipy.special import expit

    chances_P: NDArray[np.float64] = expit(beta * np.asarray(margins))
    return chances_P


def calibration_error(chances_P: NDArray[np.float64]) -> float:
    """Mean gap between what is claimed of the likelier answer and how often it was chosen.

    Over ten bins from a half to 1, weighted by their pairs (Guo et al. 2017, eq. 3).
    """
    claimed_P, held_P = np.maximum(chances_P, 1 - chances_P), chances_P > 0.5
    bins_P = np.minimum(((claimed_P - 0.5) * 2 * _BINS).astype(int), _BINS - 1)
    gaps = (
        abs(claimed_P[bins_P == each].sum() - held_P[bins_P == each].sum()) for each in range(_BINS)
    )
    return float(sum(gaps) / len(chances_P))


def _slices(
    config: EvaluateConfig, pairs: Sequence[PreferencePair], correct: Sequence[float]
) -> dict[str, Interval]:
    found: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for pair, right in zip(pairs, correct, strict=True):
        found[pair.slice].append((right, pair.prompt_id))
    intervals = {
        name: _interval(config, [right for right, _ in of], [prompt for _, prompt in of])
        for name, of in sorted(found.items())
    }
    return {name: seen for name, seen in intervals.items() if seen is not None}
