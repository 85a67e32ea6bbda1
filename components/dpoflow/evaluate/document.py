"""The decision document: what was compared and measured, with intervals, and what follows.

Reads   comparisons, measures, figures of held-out pairs, claims, digests of what they are of
Gives   `document_of`
Not     the verdict's rules (decide.py), its numbers as metrics (figures.py), how pages show it
        (page.py)
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import nan
from statistics import fmean
from typing import NamedTuple, TypeVar

import numpy as np

from dpoflow.contracts.base import sha256_json
from dpoflow.contracts.judges import RubricJudgeConfig
from dpoflow.contracts.results import (
    Decision,
    Gate,
    Interval,
    Opponent,
    Preference,
    SuiteScores,
    Test,
)
from dpoflow.contracts.spec import EvaluateConfig, GateConfig
from dpoflow.evaluate.decide import Evidence, Unread, decide, gate_of
from dpoflow.evaluate.length_control import MIN_COMPARISONS, length_controlled
from dpoflow.evaluate.measure import Comparison
from dpoflow.evaluate.names import BASE, HELDOUT
from dpoflow.evaluate.statistics import bootstrap_mean, holm, power_of, sign_test
from dpoflow.evaluate.style import at_equal_style
from dpoflow.judge.build import judge_id
from dpoflow.state.step import code_digest

Key = TypeVar("Key")


class Measured(NamedTuple):
    """What is known beside the comparisons."""

    measures: Mapping[str, float] = {}
    length_ratios: Mapping[str, float] = {}
    """By opponent."""
    preference: Preference | None = None
    suites: Mapping[str, SuiteScores] = {}
    """Without opponents: these are made of comparisons."""
    tests: Mapping[str, Test] = {}
    """Of single answers; of comparisons they are made here."""
    unread: Mapping[str, Unread] = {}
    """Of graders, by gate; of judges it is counted here."""
    claims: Sequence[Gate] = ()
    changed: Mapping[str, tuple[str, str]] = {}


def document_of(
    config: EvaluateConfig,
    compared: Sequence[Comparison],
    measured: Measured,
    digests: Mapping[str, str],
) -> Decision:
    """`digests` of what was compared, by role, bind the document to it."""
    by_suite = {HELDOUT: [], **_grouped(compared, lambda each: each.suite)}
    by_opponent = _grouped(by_suite.pop(HELDOUT), lambda each: each.against) or {BASE: []}
    suites = {
        name: _with_opponents(config, scores, by_suite.get(name, ()))
        for name, scores in measured.suites.items()
    }
    against = {
        name: _opponent(config, name, of, measured.length_ratios.get(name))
        for name, of in by_opponent.items()
    }
    with_base = by_opponent[BASE]
    judged = [each for each in with_base if each.outcome is not None]
    unread = {**dict(_unread(config, compared)), **measured.unread}
    measures = {**measured.measures, **{name: of.share for name, of in unread.items()}}
    differences = [each.heldout_difference for each in with_base]
    verdict, sentence, gates = decide(
        config.gates,
        Evidence(
            # What a judge could not say counts for nobody, and not as a prompt that was answered.
            num_prompts=len(with_base) if config.judge is None else len(judged),
            against=against,
            measures=measures,
            heldout_rubric=_interval(config, differences),
            suites=suites,
            unread=unread,
            claims=measured.claims,
        ),
    )
    model_judge = None if isinstance(config.judge, RubricJudgeConfig) else config.judge
    return Decision(
        verdict=verdict,
        sentence=sentence,
        gates=gates,
        against=against,
        preference=measured.preference,
        suites=suites,
        tests=holm(dict(_tests(compared)) | dict(measured.tests)),
        measures=measures,
        judge=judge_id(config.judge, "all") if config.judge else None,
        qualification=model_judge.qualification if model_judge else None,
        changed=dict(measured.changed),
        own_gates=dict(_own_gates(config.gates)),
        digests={**digests, "config": sha256_json(config), "code": code_digest()},
        signer=config.signer,
    )


def _own_gates(gates: GateConfig) -> Iterator[tuple[str, tuple[str, str]]]:
    """Where the spec asks for something else than is usual: a reviewer should know."""
    usual = GateConfig()
    for name in GateConfig.model_fields:
        told = [getattr(each, name) for each in (usual, gates)]
        if told[0] != told[1]:
            yield (
                name,
                (
                    "off" if told[0] is None else str(told[0]),
                    "off" if told[1] is None else str(told[1]),
                ),
            )


def _unread(config: EvaluateConfig, compared: Sequence[Comparison]) -> Iterator[tuple[str, Unread]]:
    """Of each suite and opponent by itself: many that were read elsewhere make up for nothing."""
    if config.judge is None or isinstance(config.judge, RubricJudgeConfig):
        return  # a rubric counts, and nothing that it says needs reading
    for (suite, name), of in _grouped(compared, lambda each: (each.suite, each.against)).items():
        lost = sum(each.outcome is None for each in of)
        yield gate_of(suite, "unreadable_verdicts", name), Unread(lost, len(of), "verdicts")


def _opponent(
    config: EvaluateConfig, name: str, compared: Sequence[Comparison], length_ratio: float | None
) -> Opponent:
    gates = config.gates
    bound = gates.win_rate if name == BASE else gates.champion_win_rate
    judged = _outcomes(compared)
    slices = {
        name: _interval(config, _outcomes(of))
        for name, of in sorted(_grouped(compared, lambda each: each.slice).items())
    }
    return Opponent(
        win_rate=_interval(config, judged),
        power=power_of(judged, bound=0.5 if bound is None else bound, confidence=config.confidence),
        slices={name: seen for name, seen in slices.items() if seen is not None},
        at_equal_length=_at_equal_length(compared) if len(judged) >= MIN_COMPARISONS else None,
        length_ratio=length_ratio,
    )


def _outcomes(compared: Sequence[Comparison]) -> list[float]:
    """Of each prompt, in which the turns that were judged count alike."""
    prompts = _grouped(compared, lambda each: each.prompt_id)
    turns = ([each.outcome for each in of if each.outcome is not None] for of in prompts.values())
    return [fmean(of) for of in turns if of]


def _with_opponents(
    config: EvaluateConfig, scores: SuiteScores, compared: Sequence[Comparison]
) -> SuiteScores:
    """Of a suite whose answers are compared; beside what single answers are."""
    against = {
        name: _opponent(config, name, of, None).model_copy(
            update={"at_equal_style": _at_equal_style(of)}
        )
        for name, of in _grouped(compared, lambda each: each.against).items()
    }
    unreadable = scores.unreadable + sum(each.outcome is None for each in compared)
    return scores.model_copy(update={"against": against, "unreadable": unreadable})


def _interval(config: EvaluateConfig, values: Sequence[float | None]) -> Interval | None:
    told = [value for value in values if value is not None]
    return bootstrap_mean(
        told, confidence=config.confidence, resamples=config.resamples, seed=config.seed
    )


def _at_equal_style(compared: Sequence[Comparison]) -> float | None:
    judged = [each for each in compared if each.outcome is not None]
    if len(judged) < MIN_COMPARISONS:
        return None
    return at_equal_style(
        [each.outcome for each in judged if each.outcome is not None],
        [each.candidate for each in judged],
        [each.theirs for each in judged],
    )


def _at_equal_length(compared: Sequence[Comparison]) -> float:
    judged = {each.outcome for each in compared if each.outcome is not None}
    if len(judged) == 1:
        return judged.pop()  # whatever its length, it ended so
    preferred = [nan if each.outcome is None else each.outcome for each in compared]
    shorter = [float(len(each.theirs) - len(each.candidate)) for each in compared]
    return float(length_controlled(np.array(preferred), np.array(shorter)).mean())


def _tests(compared: Sequence[Comparison]) -> Iterator[tuple[str, Test]]:
    for (suite, name), of in _grouped(compared, lambda each: (each.suite, each.against)).items():
        test = sign_test(_outcomes(of))
        if test is not None:
            yield ("" if suite == HELDOUT else f"{suite}/") + f"win_rate/{name}", test


def _grouped(
    compared: Sequence[Comparison], key: Callable[[Comparison], Key]
) -> dict[Key, list[Comparison]]:
    found: dict[Key, list[Comparison]] = defaultdict(list)
    for each in compared:
        found[key(each)].append(each)
    return dict(found)
