"""The verdict: promote, reject or inconclusive. It fails closed.

Reads   what was measured, and the gates of the spec
Gives   `decide`
Not     measuring (measure.py), intervals (statistics.py)

promote        every gate was measured and holds
reject         a gate was measured and does not hold, and the data could have shown it
inconclusive   something was not measured, too few prompts, or an interval across its bound
"""

from math import isfinite

from dpoflow.contracts.results import Gate, Interval, Power, Verdict
from dpoflow.contracts.spec import GateConfig


def decide(
    gates: GateConfig,
    *,
    num_prompts: int,
    win_rate: Interval | None,
    power: Power | None = None,
    heldout_rubric: Interval | None,
    perplexity_ratio: float | None,
    finished: float | None,
    length_ratio: float | None,
) -> tuple[Verdict, str, tuple[Gate, ...]]:
    """Verdict, one sentence that a reviewer can quote, and every gate with what was seen."""
    told = [
        _enough(gates, num_prompts),
        _win_rate(gates, win_rate),
        _heldout(gates, heldout_rubric),
        _at_most("perplexity_ratio", gates.perplexity_ratio, perplexity_ratio),
        _at_least("finished", gates.finished, finished),
        _between("length_ratio", gates.length_ratio, length_ratio),
    ]
    asked = tuple(gate for gate in told if gate is not None)
    verdict = _verdict(gates, asked, win_rate)
    sentence = _sentence(verdict, asked, win_rate)
    if _is_undecided(gates, win_rate):
        sentence += _what_it_takes(power)
    return verdict, sentence, asked


def _verdict(gates: GateConfig, asked: tuple[Gate, ...], win_rate: Interval | None) -> Verdict:
    if all(gate.passed is True for gate in asked):
        return "promote"
    if any(gate.passed is None for gate in asked) or asked[0].passed is False:
        return "inconclusive"
    failed = [gate.name for gate in asked if gate.passed is False]
    undecided = failed == ["win_rate"] and _is_undecided(gates, win_rate)
    return "inconclusive" if undecided else "reject"


def _is_undecided(gates: GateConfig, win_rate: Interval | None) -> bool:
    return win_rate is not None and win_rate.low <= gates.win_rate <= win_rate.high


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


def _sentence(verdict: Verdict, asked: tuple[Gate, ...], win_rate: Interval | None) -> str:
    if win_rate is None:
        won = "Nothing decided the comparisons with the base (evaluate.judge would)"
    else:
        won = (
            f"The candidate won {win_rate.value:.0%} of {win_rate.n} comparisons with the base "
            f"[{win_rate.low:.0%}, {win_rate.high:.0%}]"
        )
    if verdict == "promote":
        return f"{won} and held all {len(asked)} gates."
    missed = [f"{gate.name} ({gate.seen}, asked {gate.asked})" for gate in asked if not gate.passed]
    return f"{won}; not held: {'; '.join(missed)}."


def _enough(gates: GateConfig, num_prompts: int) -> Gate:
    return Gate(
        name="enough_prompts",
        asked=f"at least {gates.min_prompts}",
        seen=str(num_prompts),
        passed=num_prompts >= gates.min_prompts,
    )


def _win_rate(gates: GateConfig, seen: Interval | None) -> Gate:
    asked = f"lower bound > {gates.win_rate:g}"
    if seen is None:
        return Gate(name="win_rate", asked=asked, seen="no judge", passed=None)
    text = f"{seen.value:.3f} [{seen.low:.3f}, {seen.high:.3f}]"
    return Gate(name="win_rate", asked=asked, seen=text, passed=seen.low > gates.win_rate)


def _heldout(gates: GateConfig, seen: Interval | None) -> Gate | None:
    if gates.heldout_rubric is None:
        return None
    asked = f"mean difference >= {gates.heldout_rubric:g}"
    if seen is None:
        return Gate(name="heldout_rubric", asked=asked, seen="no held-out checks", passed=None)
    text = f"{seen.value:+.3f} [{seen.low:+.3f}, {seen.high:+.3f}]"
    return Gate(
        name="heldout_rubric", asked=asked, seen=text, passed=seen.value >= gates.heldout_rubric
    )


def _measured(name: str, asked: str, seen: float | None, holds: bool) -> Gate:
    if seen is None or not isfinite(seen):
        return Gate(name=name, asked=asked, seen="not measured", passed=None)
    return Gate(name=name, asked=asked, seen=f"{seen:.3f}", passed=holds)


def _at_most(name: str, bound: float | None, seen: float | None) -> Gate | None:
    if bound is None:
        return None
    return _measured(name, f"at most {bound:g}", seen, seen is not None and seen <= bound)


def _at_least(name: str, bound: float | None, seen: float | None) -> Gate | None:
    if bound is None:
        return None
    return _measured(name, f"at least {bound:g}", seen, seen is not None and seen >= bound)


def _between(name: str, bounds: tuple[float, float] | None, seen: float | None) -> Gate | None:
    if bounds is None:
        return None
    low, high = bounds
    holds = seen is not None and low <= seen <= high
    return _measured(name, f"{low:g} to {high:g}", seen, holds)
