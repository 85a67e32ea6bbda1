"""Both models' answers side by side, as one HTML page that asks the network for nothing.

Reads   a decision and its comparisons
Gives   `answers_page`; every text from data is escaped, and no script is in the page
Not     the numbers themselves (decide.py)
"""

from html import escape

from dpoflow.contracts.results import Decision, Gate
from dpoflow.evaluate.measure import Comparison

_MAX_SHOWN = 40
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem }
h1 { font-size: 1.3rem } table { border-collapse: collapse; width: 100%; margin: 1rem 0 }
td, th { border: 1px solid #ccc; padding: .4rem .6rem; text-align: left; vertical-align: top }
td.answer { width: 42%; white-space: pre-wrap; overflow-wrap: anywhere }
.promote, .held { color: #146c2e } .reject, .missed { color: #b3261e }
.inconclusive { color: #8a5a00 }
.bar { background: #e6e6e6; height: 14px; position: relative; width: 100%; min-width: 12rem }
.bar i { background: #4a7fb5; display: block; height: 14px; position: absolute }
.bar b { border-left: 2px solid #000; height: 14px; left: 50%; position: absolute }
"""


def answers_page(decision: Decision, compared: list[Comparison]) -> str:
    """The verdict, the gates, and the first forty comparisons by id: not a selection."""
    gates = "".join(_gate(gate) for gate in decision.gates)
    rows = "".join(_row(comparison) for comparison in compared[:_MAX_SHOWN])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(decision.verdict)}</title><style>{_STYLE}</style></head><body>"
        f'<h1 class="{decision.verdict}">{escape(decision.verdict)}</h1>'
        f"<p>{escape(decision.sentence)}</p>{_interval(decision)}"
        f"<table><tr><th>gate</th><th>asked</th><th>seen</th><th></th></tr>{gates}</table>"
        f"<p>{len(compared)} held-out prompts; at most {_MAX_SHOWN} are shown, by id.</p>"
        "<table><tr><th>prompt</th><th>base</th><th>candidate</th><th>won</th></tr>"
        f"{rows}</table></body></html>\n"
    )


def _gate(gate: Gate) -> str:
    word = {True: "held", False: "not held", None: "not measured"}[gate.passed]
    cells = "".join(f"<td>{escape(text)}</td>" for text in (gate.name, gate.asked, gate.seen))
    return f'<tr>{cells}<td class="{"held" if gate.passed else "missed"}">{word}</td></tr>'


def _interval(decision: Decision) -> str:
    rate = decision.win_rate
    if rate is None:
        return ""
    return (
        f'<div class="bar" title="win rate"><i style="left:{100 * rate.low:.1f}%;'
        f'width:{100 * (rate.high - rate.low):.1f}%"></i><b></b></div>'
        f"<p>win rate {rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}]; the line is 0.5</p>"
    )


def _row(comparison: Comparison) -> str:
    won = {1.0: "candidate", 0.0: "base", None: "not judged"}.get(comparison.outcome, "tie")
    return (
        f"<tr><td><b>{escape(comparison.slice)}</b><br>{escape(comparison.question)}</td>"
        f'<td class="answer">{escape(comparison.base)}</td>'
        f'<td class="answer">{escape(comparison.candidate)}</td><td>{won}</td></tr>'
    )
