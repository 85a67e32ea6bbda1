"""The decision document: what was compared and measured, with intervals, and what follows.

Reads   comparisons, measures, margins of held-out pairs, digests of what they are of
Gives   `document_of`; `figures_of`: its numbers as metrics
Not     the verdict's rules (decide.py), how pages show it (page.py)
"""

from collections import defaultdict
from collections.abc import Sequence
from math import isfinite, nan

import numpy as np

from dpoflow.contracts.base import sha256_json
from dpoflow.contracts.results import Decision, Interval
from dpoflow.contracts.spec import EvaluateConfig
from dpoflow.evaluate.decide import decide
from dpoflow.evaluate.length_control import MIN_COMPARISONS, length_controlled
from dpoflow.evaluate.measure import Comparison
from dpoflow.evaluate.statistics import bootstrap_mean, power_of
from dpoflow.state.step import code_digest


def document_of(
    config: EvaluateConfig,
    compared: Sequence[Comparison],
    measures: dict[str, float],
    pair_margins: Sequence[float],
    digests: dict[str, str],
) -> Decision:
    """`digests` of what was compared, by role, bind the document to it."""

    def interval(values: Sequence[float | None]) -> Interval | None:
        told = [value for value in values if value is not None]
        return bootstrap_mean(
            told, confidence=config.confidence, resamples=config.resamples, seed=config.seed
        )

    outcomes = [comparison.outcome for comparison in compared]
    judged = [outcome for outcome in outcomes if outcome is not None]
    win_rate = interval(outcomes)
    power = power_of(judged, bound=config.gates.win_rate, confidence=config.confidence)
    measures = measures | _of_verdicts(config, compared, len(judged))
    verdict, sentence, gates = decide(
        config.gates,
        # What a judge could not say counts for nobody, and not as a prompt that was answered.
        num_prompts=len(compared) if config.judge is None else len(judged),
        win_rate=win_rate,
        power=power,
        heldout_rubric=interval([comparison.heldout_difference for comparison in compared]),
        perplexity_ratio=measures.get("perplexity_ratio"),
        finished=measures.get("finished"),
        length_ratio=measures.get("length_ratio"),
    )
    slices = {name: interval(of) for name, of in _by_slice(compared).items()}
    return Decision(
        verdict=verdict,
        sentence=sentence,
        gates=gates,
        win_rate=win_rate,
        power=power,
        slices={name: seen for name, seen in slices.items() if seen is not None},
        heldout_accuracy=interval([float(margin > 0) for margin in pair_margins]),
        heldout_margin=sum(pair_margins) / len(pair_margins) if pair_margins else None,
        # A contract takes no NaN; what is missing here is a gate that was not measured.
        measures={name: value for name, value in measures.items() if isfinite(value)},
        digests=digests | {"config": sha256_json(config), "code": code_digest()},
        signer=config.signer,
    )


def figures_of(document: Decision) -> dict[str, float]:
    """Every number of it, as MLflow shows them beside those of other runs: `eval/…`."""
    named = {"win_rate": document.win_rate, "heldout_accuracy": document.heldout_accuracy}
    named |= {f"win_rate/{name}": seen for name, seen in document.slices.items()}
    figures = {f"eval/{name}": value for name, value in document.measures.items()}
    for name, seen in named.items():
        if seen is not None:
            figures |= {
                f"eval/{name}": seen.value,
                f"eval/{name}_low": seen.low,
                f"eval/{name}_high": seen.high,
            }
    if document.heldout_margin is not None:
        figures["eval/heldout_margin"] = document.heldout_margin
    return figures


def _of_verdicts(
    config: EvaluateConfig, compared: Sequence[Comparison], num_judged: int
) -> dict[str, float]:
    measures = {}
    if config.judge is not None and compared:
        measures["unreadable_verdicts"] = 1 - num_judged / len(compared)
    if num_judged >= MIN_COMPARISONS:
        preferred = [nan if each.outcome is None else each.outcome for each in compared]
        shorter = [float(len(each.base) - len(each.candidate)) for each in compared]
        equal = length_controlled(np.array(preferred), np.array(shorter))
        measures["win_rate_at_equal_length"] = float(equal.mean())
    return measures


def _by_slice(compared: Sequence[Comparison]) -> dict[str, list[float | None]]:
    found: dict[str, list[float | None]] = defaultdict(list)
    for each in compared:
        found[each.slice].append(each.outcome)
    return dict(sorted(found.items()))
