"""The report: one HTML page for a reviewer, that asks the network for nothing.

Reads   a decision and its comparisons
Gives   `answers_page`; every text from data is escaped, and no script is in the page
Not     the numbers themselves (document.py), the drawings (drawings.py)
"""

from collections.abc import Iterator, Sequence
from html import escape

from dpoflow.contracts.results import Decision, Gate, Interval, Opponent, Test
from dpoflow.evaluate.drawings import forest, length_against_win
from dpoflow.evaluate.measure import Comparison
from dpoflow.pages import Html, document, table, text

_SHOWN = {"won": 7, "lost": 7, "a tie": 6}
"""Twenty comparisons with each opponent: the first by id that ended so."""
_UNJUDGED = sum(_SHOWN.values())
_COLOURS = {"promote": "good", "reject": "bad", "inconclusive": "unsure"}


def answers_page(decision: Decision, compared: Sequence[Comparison]) -> str:
    """The verdict first, then what it rests on, then answers side by side."""
    head = (
        f'<h1 class="{_COLOURS[decision.verdict]}">{escape(decision.verdict)}</h1>'
        f"<p>{escape(decision.sentence)}</p>{_vouched(decision)}"
        f"{table(('gate', 'asked', 'seen', ''), map(_gate, decision.gates))}"
    )
    told = "".join(
        f"<h2>{title}</h2>{shown}" for title, shown in _sections(decision, compared) if shown
    )
    return document(decision.verdict, head + told)


def _sections(decision: Decision, compared: Sequence[Comparison]) -> Iterator[tuple[str, str]]:
    yield "Shares with their intervals", forest(decision)
    yield "Against each opponent", _against(decision)
    yield "Length against win", length_against_win(compared)
    yield "Win rate by slice", _slices(decision)
    yield "Held-out pairs", _pairs(decision)
    yield "The judge", _judge(decision)
    yield "What changed since the champion", _changed(decision)
    for name in decision.against:
        of = [each for each in compared if each.against == name]
        yield f"Answers beside those of the {escape(name)}", _answers(name, of)
    yield "Every other figure", _measures(decision)


def _vouched(decision: Decision) -> str:
    if decision.signer is None:
        return '<p class="alarm">Unsigned: nobody vouches for this decision.</p>'
    return f"<p>Signed by {escape(decision.signer)}.</p>"


def _gate(gate: Gate) -> tuple[str | Html, ...]:
    word = {True: "held", False: "not held", None: "not measured"}[gate.passed]
    passed = Html(f'<td class="{"good" if gate.passed else "bad"}">{word}</td>')
    return gate.name, gate.asked, gate.seen, passed


def _against(decision: Decision) -> str:
    columns = ("", "win rate", "at equal length", "length ratio", "sign test", "could be shown")
    return table(
        columns,
        (
            _opponent(name, opponent, decision.tests.get(f"win_rate/{name}"))
            for name, opponent in decision.against.items()
        ),
    )


def _opponent(name: str, opponent: Opponent, test: Test | None) -> tuple[str, ...]:
    power = opponent.power
    shown = "" if power is None else f"{min(power.detectable, 1):.3f}"
    if power is not None and power.needed is not None:
        shown += f"; what was seen takes {power.needed:,} prompts"
    return (
        name,
        _text(opponent.win_rate),
        _number(opponent.at_equal_length),
        _number(opponent.length_ratio),
        "" if test is None else f"p {test.p:.3g}, {test.p_holm:.3g} with Holm, n {test.n}",
        shown,
    )


def _slices(decision: Decision) -> str:
    rows = [
        (name, each, _text(seen), str(seen.n))
        for name, opponent in decision.against.items()
        if len(opponent.slices) > 1
        for each, seen in opponent.slices.items()
    ]
    return table(("against", "slice", "win rate", "prompts"), rows) if rows else ""


def _pairs(decision: Decision) -> str:
    seen = decision.preference
    if seen is None:
        return ""
    rows = [
        ("told apart", f"{_text(seen.accuracy)} of the pairs of {seen.accuracy.n} prompts"),
        ("margin", f"{_text(seen.margin)} nats"),
        ("chosen, log-ratio to the base", f"{seen.chosen:+.2f} nats"),
        ("rejected, log-ratio to the base", f"{seen.rejected:+.2f} nats"),
        ("divergence on its own answers", "" if seen.kl is None else f"{seen.kl:.2f} nats"),
        ("Brier score", _number(seen.brier)),
        ("calibration error", _number(seen.calibration_error)),
    ]
    told = table(("", ""), [row for row in rows if row[1]])
    if len(seen.slices) < 2:
        return told
    slices = ((name, _text(of), str(of.n)) for name, of in seen.slices.items())
    return told + table(("slice", "told apart", "prompts"), slices)


def _judge(decision: Decision) -> str:
    report = decision.qualification
    if decision.judge is None:
        return ""
    told = "" if report is None else f"<p>{escape(report.sentence)}</p>"
    return f"<p>{escape(decision.judge)}</p>{told}"


def _changed(decision: Decision) -> str:
    rows = ((name, *values) for name, values in decision.changed.items())
    return table(("", "champion", "candidate"), rows) if decision.changed else ""


def _answers(name: str, compared: Sequence[Comparison]) -> str:
    shown = list(_chosen(compared))
    counts = ", ".join(
        f"{sum(_ended(each) == how for each in compared)} {how}" for how in (*_SHOWN, "not judged")
    )
    return (
        f"<p>{counts}. Shown are {len(shown)} of {len(compared)}: of each kind the first by id, "
        "which is a hash.</p>"
        + table(("prompt", name, "candidate", "the candidate"), map(_row, shown))
    )


def _is_judged(comparison: Comparison) -> bool:
    return comparison.outcome is not None


def _chosen(compared: Sequence[Comparison]) -> Iterator[Comparison]:
    left = dict(_SHOWN) | {"not judged": 0 if any(map(_is_judged, compared)) else _UNJUDGED}
    for each in compared:
        ended = _ended(each)
        if left.get(ended, 0):
            left[ended] -= 1
            yield each


def _ended(comparison: Comparison) -> str:
    return {1.0: "won", 0.0: "lost", None: "not judged"}.get(comparison.outcome, "a tie")


def _row(comparison: Comparison) -> tuple[str | Html, ...]:
    reasons = "".join(f"<br><small>{escape(reason)}</small>" for reason in comparison.reasons)
    asked = f"<td><b>{escape(comparison.slice)}</b><br>{escape(comparison.question)}</td>"
    ended = Html(f"<td>{_ended(comparison)}{reasons}</td>")
    return Html(asked), text(comparison.theirs), text(comparison.candidate), ended


def _measures(decision: Decision) -> str:
    rows = ((name, f"{value:.4g}") for name, value in sorted(decision.measures.items()))
    return table(("", ""), rows) if decision.measures else ""


def _text(seen: Interval | None) -> str:
    return "" if seen is None else f"{seen.value:.3f} [{seen.low:.3f}, {seen.high:.3f}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
