"""The report: one HTML page for a reviewer, that asks the network for nothing.

Reads   a decision, its comparisons, single answers to suites
Gives   `report_page`; every text from data is escaped, and no script is in the page
Not     the numbers themselves (document.py), suites (suite_page.py), the drawings (drawings.py)
"""

from collections.abc import Iterator, Sequence
from html import escape

from dpoflow.contracts.results import Decision, Gate, Opponent, Test
from dpoflow.evaluate.drawings import differences, forest, length_against_win
from dpoflow.evaluate.grading import Graded
from dpoflow.evaluate.measure import Comparison
from dpoflow.evaluate.names import HELDOUT
from dpoflow.evaluate.suite_page import ended, figure, number, said, suite_sections, tested
from dpoflow.pages import Html, document, table

_SHOWN = {"won": 7, "lost": 7, "a tie": 6}
"""Twenty comparisons with each opponent: the first by id that ended so."""
_UNJUDGED = sum(_SHOWN.values())
_COLOURS = {"promote": "good", "reject": "bad", "inconclusive": "unsure"}
_STYLE = """
h1 { font-size: 1.8rem; margin-bottom: .3rem } h2 { border-top: 1px solid #ddd; padding-top: 1rem }
nav { color: #555; font-size: .9rem } nav a { color: inherit; margin-right: 1rem }
td.long { width: 34% } th { background: #f6f6f6 } small { color: #555 }
summary { color: #146c2e; cursor: pointer }
.said { max-height: 14rem; overflow: auto; white-space: pre-wrap }
.said + .said { border-top: 1px dashed #ccc; margin-top: .4rem; padding-top: .4rem }
@media print { .said { max-height: none } }
"""


def report_page(
    decision: Decision, compared: Sequence[Comparison], graded: Sequence[Graded] = ()
) -> str:
    """The verdict first, then what it rests on, then answers side by side."""
    head = (
        f'<h1 class="{_COLOURS[decision.verdict]}">{escape(decision.verdict)}</h1>'
        f"<p>{escape(decision.sentence)}</p>{_vouched(decision)}"
        f"{_gates(decision.gates)}"
    )
    sections = [each for each in _sections(decision, compared, graded) if each[1]]
    ways = "".join(f'<a href="#s{at}">{title}</a>' for at, (title, _) in enumerate(sections))
    told = "".join(
        f'<h2 id="s{at}">{title}</h2>{shown}' for at, (title, shown) in enumerate(sections)
    )
    return document(decision.verdict, f"{head}<nav>{ways}</nav>{told}", _STYLE)


def _sections(
    decision: Decision, compared: Sequence[Comparison], graded: Sequence[Graded]
) -> Iterator[tuple[str, str]]:
    heldout = [each for each in compared if each.suite == HELDOUT]
    yield "Shares with their intervals", _forest(decision)
    yield "Differences on suites, and their margins", _differences(decision)
    yield "Against each opponent", _against(decision)
    yield "Win rate by slice", _slices(decision)
    yield "Held-out pairs", _pairs(decision)
    yield from suite_sections(decision, compared, graded)
    yield "Length against win", length_against_win(heldout)
    yield "The judge", _judge(decision)
    yield "What changed since the champion", _changed(decision)
    for name in decision.against:
        of = [each for each in heldout if each.against == name]
        yield f"Answers beside those of the {escape(name)}", _answers(name, of) if of else ""
    yield "Tests together", _tests(decision)
    yield "Every other figure", _measures(decision)
    yield "What it is of", _digests(decision)


def _gates(gates: Sequence[Gate]) -> str:
    """What was missed first; what was held can be folded away, unless that is all there is."""
    columns = ("gate", "asked", "seen", "")
    missed = [gate for gate in gates if not gate.passed]
    held = [gate for gate in gates if gate.passed]
    missed.sort(key=lambda gate: (gate.passed is None, gate.undecided))
    told = table(columns, map(_gate, missed)) if missed else ""
    if held:
        fold = "<details>" if missed else "<details open>"
        title = f"<summary>{len(held)} of {len(gates)} gates held</summary>"
        told += f"{fold}{title}{table(columns, map(_gate, held))}</details>"
    return told


def _forest(decision: Decision) -> str:
    drawn = forest(decision)
    told = (
        "Dashed: a half. A red tick is what a gate asks of the interval: green holds it, red "
        "misses it, amber lies across it. Pale: a part. In suites blue is the candidate, grey the "
        "base, ochre the champion."
    )
    return f"<p>{told}</p>{drawn}" if drawn else ""


def _differences(decision: Decision) -> str:
    drawn = differences(decision)
    told = (
        "The candidate's figure minus the opponent's, question by question. Dashed: no difference. "
        "Red tick: the margin that the whole interval must keep to."
    )
    return f"<p>{told}</p>{drawn}" if drawn else ""


def _vouched(decision: Decision) -> str:
    if decision.signer is None:
        return '<p class="alarm">Unsigned: nobody vouches for this decision.</p>'
    return f"<p>Signed by {escape(decision.signer)}.</p>"


def _gate(gate: Gate) -> tuple[str | Html, ...]:
    kind, word = {
        True: ("good", "held"),
        False: ("unsure", "undecided") if gate.undecided else ("bad", "not held"),
        None: ("unsure", "not measured"),
    }[gate.passed]
    return gate.name, gate.asked, gate.seen, Html(f'<td class="{kind}">{word}</td>')


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
        figure(opponent.win_rate, counted=True),
        number(opponent.at_equal_length),
        number(opponent.length_ratio),
        tested(test),
        shown,
    )


def _slices(decision: Decision) -> str:
    rows = [
        (name, each, figure(seen), str(seen.n))
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
        ("told apart", f"{figure(seen.accuracy)} of the pairs of {seen.accuracy.n} prompts"),
        ("margin", f"{figure(seen.margin)} nats"),
        ("chosen, log-ratio to the base", f"{seen.chosen:+.2f} nats"),
        ("rejected, log-ratio to the base", f"{seen.rejected:+.2f} nats"),
        ("divergence on its own answers", "" if seen.kl is None else f"{seen.kl:.2f} nats"),
        ("Brier score", number(seen.brier)),
        ("calibration error", number(seen.calibration_error)),
    ]
    told = table(("", ""), [row for row in rows if row[1]])
    if len(seen.slices) < 2:
        return told
    slices = ((name, figure(of), str(of.n)) for name, of in seen.slices.items())
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
        f"{sum(ended(each) == how for each in compared)} {how}" for how in (*_SHOWN, "not judged")
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
        how = ended(each)
        if left.get(how, 0):
            left[how] -= 1
            yield each


def _row(comparison: Comparison) -> tuple[str | Html, ...]:
    reasons = "".join(f"<br><small>{escape(reason)}</small>" for reason in comparison.reasons)
    return (
        said((comparison.question,), head=comparison.slice),
        said((comparison.theirs,)),
        said((comparison.candidate,)),
        Html(f"<td>{ended(comparison)}{reasons}</td>"),
    )


def _tests(decision: Decision) -> str:
    rows = ((name, tested(test)) for name, test in decision.tests.items())
    return table(("", "two-sided, exact"), rows) if decision.tests else ""


def _measures(decision: Decision) -> str:
    rows = ((name, f"{value:.4g}") for name, value in sorted(decision.measures.items()))
    return table(("", ""), rows) if decision.measures else ""


def _digests(decision: Decision) -> str:
    rows = sorted(decision.digests.items())
    return table(("", "sha256"), rows) if rows else ""
