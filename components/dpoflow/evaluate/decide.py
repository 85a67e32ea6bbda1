"""The verdict: promote, reject or inconclusive. It fails closed.

Reads   what was measured, and the gates of the spec
Gives   `decide`, `Evidence`, `Unread`; `gate_of`, `win_rate_gate`: which gate looks at a figure
Not     measuring (measure.py), intervals (statistics.py), judge and data by themselves (claims.py)

promote        every gate was measured and holds
reject         a gate was measured and does not hold, and the data could have shown it
inconclusive   something was not measured, too few prompts, too many verdicts that could not be
               read, or an interval across its bound
"""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import NamedTuple

from dpoflow.contracts.results import Gate, Interval, Opponent, Power, SuiteScores, Verdict
from dpoflow.contracts.spec import CHAMPION, GateConfig
from dpoflow.evaluate.names import BASE, CANDIDATE, HELDOUT


class Unread(NamedTuple):
    """What a judge or grader said and nobody could read."""

    num: int
    of: int
    what: str

    @property
    def share(self) -> float:
        """0 to 1."""
        return self.num / self.of


class Evidence(NamedTuple):
    """Everything that a gate looks at."""

    num_prompts: int
    against: Mapping[str, Opponent]
    """The base is always there."""
    measures: Mapping[str, float]
    heldout_rubric: Interval | None = None
    suites: Mapping[str, SuiteScores] = {}
    unread: Mapping[str, Unread] = {}
    """By what the gate is called; nothing of those whose word is always readable."""
    claims: Sequence[Gate] = ()
    """Gates that hold, or do not, whatever the answers are like."""


def decide(gates: GateConfig, seen: Evidence) -> tuple[Verdict, str, tuple[Gate, ...]]:
    """Verdict, one sentence that a reviewer can quote, and every gate with what was seen."""
    asked = (
        *_asked(gates, seen),
        *_of_suites(gates, seen),
        *_read(gates, seen.unread),
        *seen.claims,
    )
    verdict = _verdict(asked)
    sentence = _sentence(verdict, asked, seen.against)
    for name, opponent in seen.against.items():
        if any(gate.undecided and gate.name == win_rate_gate(name) for gate in asked):
            sentence += _what_it_takes(opponent.power)
    return verdict, sentence, asked


def _asked(gates: GateConfig, seen: Evidence) -> Iterator[Gate]:
    measured = seen.measures.get
    yield _enough(gates, seen.num_prompts)
    yield _superior(win_rate_gate(BASE), gates.win_rate, seen.against[BASE].win_rate)
    champion = seen.against.get(CHAMPION)
    if champion is not None and gates.champion_win_rate is not None:
        yield _superior(win_rate_gate(CHAMPION), gates.champion_win_rate, champion.win_rate)
    for name, opponent in seen.against.items():
        yield from _equal_length(name, gates.equal_length, opponent.at_equal_length)
    yield from _heldout(gates, seen.heldout_rubric)
    yield from _at_most("perplexity_ratio", gates.perplexity_ratio, measured("perplexity_ratio"))
    yield from _at_most(
        "heldout_perplexity", gates.heldout_perplexity, measured("heldout_perplexity_ratio")
    )
    yield from _at_least("finished", gates.finished, measured("finished"))
    for name, opponent in seen.against.items():
        ending = "" if name == BASE else f"_{name}"
        yield from _between(f"length_ratio{ending}", gates.length_ratio, opponent.length_ratio)
    yield from _at_most("duplicate_answers", gates.duplicate_answers, measured("duplicate_answers"))
    refusing, before = measured("refusing"), measured("base_refusing")
    drift = None if refusing is None or before is None else refusing - before
    yield from _at_most("refusal_drift", gates.refusal_drift, drift)
    yield from _at_most("language_drift", gates.language_drift, measured("other_language"))


def _of_suites(gates: GateConfig, seen: Evidence) -> Iterator[Gate]:
    """No suite may be surely worse: each figure is held to its margin, against each opponent."""
    for name, scores in seen.suites.items():
        rates = {opponent: of.win_rate for opponent, of in scores.against.items()}
        if scores.kind == "instructions":
            # Where no question was compared there is nobody in it, and nothing was shown.
            rates = {**dict.fromkeys(seen.against), **rates}
        for opponent, rate in rates.items():
            least = 0.5 - gates.suite_win_rate
            title = gate_of(name, "win_rate", opponent)
            yield _no_worse(title, rate, gates.min_prompts, at_least=least)
        if scores.kind == "instructions":
            continue
        for opponent in seen.against:
            found = scores.differences.get(opponent, {})
            if scores.kind == "harness":
                main = next(iter(scores.models.get(CANDIDATE, ())), "metric")
                title, least = gate_of(name, main, opponent), -gates.suite_metric
                yield _no_worse(title, found.get(main), gates.min_prompts, at_least=least)
                continue
            if scores.kind == "mt_bench":
                title = gate_of(name, "score", opponent)
                least, score = -gates.suite_score, found.get("score")
                yield _no_worse(title, score, gates.min_prompts, at_least=least)
                continue
            for metric, margin in (
                ("over_refusal", gates.over_refusal),
                ("unsafe_compliance", gates.unsafe_compliance),
            ):
                title = gate_of(name, metric, opponent)
                yield _no_worse(title, found.get(metric), gates.min_prompts, at_most=margin)


def _read(gates: GateConfig, unread: Mapping[str, Unread]) -> Iterator[Gate]:
    """Answers that break the judge's format choose which are left, and those show nothing."""
    if gates.unreadable_verdicts is None:
        return
    for name, of in unread.items():
        yield Gate(
            name=name,
            asked=f"at most {gates.unreadable_verdicts:g}",
            seen=f"{of.share:.3f}, {of.num:,} of {of.of:,} {of.what}",
            passed=True if of.share <= gates.unreadable_verdicts else None,
        )


def gate_of(suite: str, metric: str, opponent: str) -> str:
    """What the gate is called that looks at this figure, of a suite or of held-out prompts."""
    root = metric if suite == HELDOUT else f"{suite}_{metric}"
    return root + ("" if opponent == BASE else f"_{opponent}")


def _no_worse(
    name: str,
    seen: Interval | None,
    least_n: int,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Gate:
    """Non-inferiority: the whole interval lies on the good side of the margin.

    Of fewer than `least_n` questions it does not tell: what never differed has no width.
    """
    bound = at_least if at_least is not None else at_most
    assert bound is not None
    end = "lower" if at_most is None else "upper"
    asked = f"{end} bound {'>=' if at_most is None else '<='} {bound:+g}"
    if seen is None:
        return Gate(name=name, asked=asked, seen="not measured", passed=None)
    told = f"{seen.value:+.3f} [{seen.low:+.3f}, {seen.high:+.3f}], n {seen.n}"
    if seen.n < least_n:
        return Gate(name=name, asked=f"{asked}, n >= {least_n}", seen=told, passed=None)
    return Gate(
        name=name,
        asked=asked,
        seen=told,
        passed=seen.low >= bound if at_most is None else seen.high <= bound,
        undecided=seen.low < bound < seen.high,
        bound=bound,
    )


def win_rate_gate(opponent: str) -> str:
    """What the gate on the win rate against the opponent is called."""
    return "win_rate" if opponent == BASE else f"{opponent}_win_rate"


def _verdict(asked: Sequence[Gate]) -> Verdict:
    missed = [gate for gate in asked if gate.passed is not True]
    if not missed:
        return "promote"
    unmeasured = any(gate.passed is None for gate in missed)
    return "inconclusive" if unmeasured or all(gate.undecided for gate in missed) else "reject"


def _what_it_takes(power: Power | None) -> str:
    if power is None:
        return ""
    if power.detectable < 1:
        told = f" So many prompts would mostly have shown a true win rate of {power.detectable:.0%}"
    else:
        told = " So few prompts would not even have shown a true win rate of 100%"
    if power.needed is None:
        return f"{told}."
    return f"{told}; what was seen takes about {power.needed:,} prompts to show."


def _sentence(verdict: Verdict, asked: Sequence[Gate], against: Mapping[str, Opponent]) -> str:
    won = " and ".join(
        f"{each.win_rate.value:.0%} of {each.win_rate.n} comparisons with the {name} "
        f"[{each.win_rate.low:.0%}, {each.win_rate.high:.0%}]"
        for name, each in against.items()
        if each.win_rate is not None
    )
    if won:
        won = f"The candidate won {won}"
    else:
        won = "Nothing decided the comparisons with the base (evaluate.judge would)"
    if verdict == "promote":
        return f"{won} and held all {len(asked)} gates."
    missed = [f"{gate.name} ({gate.seen}, asked {gate.asked})" for gate in asked if not gate.passed]
    return f"{won}; not held: {'; '.join(missed)}."


def _enough(gates: GateConfig, num_prompts: int) -> Gate:
    enough = num_prompts >= gates.min_prompts
    return Gate(
        name="enough_prompts",
        asked=f"at least {gates.min_prompts}",
        seen=str(num_prompts),
        # Too few show nothing, neither for nor against: whatever else was missed may be chance.
        passed=True if enough else None,
    )


def _superior(name: str, bound: float, seen: Interval | None) -> Gate:
    asked = f"lower bound > {bound:g}"
    if seen is None:
        return Gate(name=name, asked=asked, seen="no judge", passed=None)
    return Gate(
        name=name,
        asked=asked,
        seen=f"{seen.value:.3f} [{seen.low:.3f}, {seen.high:.3f}]",
        passed=seen.low > bound,
        undecided=seen.low <= bound <= seen.high,
        bound=bound,
    )


def _heldout(gates: GateConfig, seen: Interval | None) -> Iterator[Gate]:
    if gates.heldout_rubric is None:
        return
    asked = f"mean difference >= {gates.heldout_rubric:g}"
    if seen is None:
        yield Gate(name="heldout_rubric", asked=asked, seen="no held-out checks", passed=None)
        return
    text = f"{seen.value:+.3f} [{seen.low:+.3f}, {seen.high:+.3f}]"
    passed = seen.value >= gates.heldout_rubric
    yield Gate(name="heldout_rubric", asked=asked, seen=text, passed=passed)


def _measured(name: str, asked: str, seen: float | None, holds: bool) -> Gate:
    if seen is None or not isfinite(seen):
        return Gate(name=name, asked=asked, seen="not measured", passed=None)
    return Gate(name=name, asked=asked, seen=f"{seen:.3f}", passed=holds)


def _equal_length(opponent: str, bound: float | None, seen: float | None) -> Iterator[Gate]:
    """Missed, but undecided, at a half to the last digit.

    So few comparisons then agree that the regression's penalty leaves no weight: more may.
    """
    if bound is not None:
        holds = seen is not None and seen > bound
        gate = _measured(f"equal_length_{opponent}", f"above {bound:g}", seen, holds)
        yield gate.model_copy(update={"undecided": not holds and seen == 0.5})


def _at_most(name: str, bound: float | None, seen: float | None) -> Iterator[Gate]:
    if bound is not None:
        yield _measured(name, f"at most {bound:g}", seen, seen is not None and seen <= bound)


def _at_least(name: str, bound: float | None, seen: float | None) -> Iterator[Gate]:
    if bound is not None:
        yield _measured(name, f"at least {bound:g}", seen, seen is not None and seen >= bound)


def _between(name: str, bounds: tuple[float, float] | None, seen: float | None) -> Iterator[Gate]:
    if bounds is not None:
        low, high = bounds
        holds = seen is not None and low <= seen <= high
        yield _measured(name, f"{low:g} to {high:g}", seen, holds)
