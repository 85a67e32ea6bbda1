"""Both models' answers side by side, as one HTML page that asks the network for nothing.

Reads   a decision and its comparisons
Gives   `answers_page`; every text from data is escaped, and no script is in the page
Not     the numbers themselves (decide.py)
"""

from html import escape

from dpoflow.contracts.results import Decision, Gate, Power
from dpoflow.evaluate.measure import Comparison
from dpoflow.pages import Html, document, table, text

_MAX_SHOWN = 40
_STYLE = """
.bar { background: #e6e6e6; height: 14px; position: relative; width: 100%; min-width: 12rem }
.bar i { background: #4a7fb5; display: block; height: 14px; position: absolute }
.bar b { border-left: 2px solid #000; height: 14px; left: 50%; position: absolute }
"""


def answers_page(decision: Decision, compared: list[Comparison]) -> str:
    """The verdict, the gates, and the first forty comparisons by id: not a selection."""
    colour = {"promote": "good", "reject": "bad", "inconclusive": "unsure"}[decision.verdict]
    return document(
        decision.verdict,
        f'<h1 class="{colour}">{escape(decision.verdict)}</h1>'
        f"<p>{escape(decision.sentence)}</p>{_interval(decision)}"
        f"{table(('gate', 'asked', 'seen', ''), map(_gate, decision.gates))}{_slices(decision)}"
        f"<p>{len(compared)} held-out prompts; at most {_MAX_SHOWN} are shown, by id.</p>"
        f"{table(('prompt', 'base', 'candidate', 'won'), map(_row, compared[:_MAX_SHOWN]))}",
        _STYLE,
    )


def _gate(gate: Gate) -> tuple[str | Html, ...]:
    word = {True: "held", False: "not held", None: "not measured"}[gate.passed]
    passed = Html(f'<td class="{"good" if gate.passed else "bad"}">{word}</td>')
    return gate.name, gate.asked, gate.seen, passed


def _interval(decision: Decision) -> str:
    rate = decision.win_rate
    if rate is None:
        return ""
    return (
        f'<div class="bar" title="win rate"><i style="left:{100 * rate.low:.1f}%;'
        f'width:{100 * (rate.high - rate.low):.1f}%"></i><b></b></div>'
        f"<p>win rate {rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}]; the line is 0.5</p>"
        f"{_power(decision.power)}"
    )


def _slices(decision: Decision) -> str:
    equal = decision.measures.get("win_rate_at_equal_length")
    told = "" if equal is None else f"<p>At equal length the win rate would be {equal:.3f}.</p>"
    if len(decision.slices) < 2:
        return told
    rows = (
        (name, f"{seen.value:.3f}", f"[{seen.low:.3f}, {seen.high:.3f}]", str(seen.n))
        for name, seen in decision.slices.items()
    )
    return told + table(("slice", "win rate", "interval", "prompts"), rows)


def _power(power: Power | None) -> str:
    if power is None:
        return ""
    takes = "" if power.needed is None else f"; what was seen takes about {power.needed:,}"
    return (
        f"<p>So many prompts would show a true win rate of {power.detectable:.3f} 80 times in 100"
        f"{takes}.</p>"
    )


def _row(comparison: Comparison) -> tuple[str | Html, ...]:
    won = {1.0: "candidate", 0.0: "base", None: "not judged"}.get(comparison.outcome, "tie")
    asked = f"<td><b>{escape(comparison.slice)}</b><br>{escape(comparison.question)}</td>"
    return Html(asked), text(comparison.base), text(comparison.candidate), won
