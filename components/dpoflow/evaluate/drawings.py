"""What people would rather look at than read: intervals as a forest plot, marks by category.

Reads   a decision, figures of suites, comparisons
Gives   `forest`, `differences`, `categories`, `length_against_win`: SVG, the same bytes for the
        same numbers
Not     the page around them (page.py, suite_page.py)
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dpoflow.contracts.results import Decision, Gate, Interval, Opponent, SuiteScores
from dpoflow.contracts.spec import CHAMPION
from dpoflow.evaluate.decide import gate_of, win_rate_gate
from dpoflow.evaluate.measure import Comparison
from dpoflow.evaluate.names import BASE, CANDIDATE
from dpoflow.pages import Html, blank, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS, _FADED = "#2f6fab", "#9db4ca"
_MODELS = {CANDIDATE: _OURS, BASE: "#777777", CHAMPION: "#c27c0e"}
_OTHERS = ("#7b4fa3", "#3a8f7b")
_HELD, _MISSED, _UNSURE = "#146c2e", "#b3261e", "#b07800"
_MAX_ROWS = 60
_NAME_CHARS = 44
_MAX_BINS = 8
_LEAST_IN_A_BIN = 5
_MARKED = "mt_bench"
"""Whose figures are marks of 1 to 10 and no shares."""


class _Row(NamedTuple):
    name: str
    seen: Interval | None
    """None: a heading."""
    colour: str = _OURS
    is_part: bool = False
    """Of a slice or a category: smaller."""
    bound: float | None = None


def forest(decision: Decision) -> Html:
    """Every share with its interval, one a row, beside the line of no difference; empty of none.

    A red tick is what a gate asks of the interval.
    """
    gates = {gate.name: gate for gate in decision.gates}
    rows = [*_heldout_rows(decision, gates)]
    for name, scores in decision.suites.items():
        of_suite = [*_suite_rows(name, scores, gates)]
        rows += [_Row(name, None), *of_suite] if of_suite else []
    return _drawn(rows, line=0.5, limits=(-0.02, 1.02), form=".2f")


def differences(decision: Decision) -> Html:
    """The candidate's figures of suites minus each opponent's, with the margins that gates allow.

    Shares and marks on axes of their own; empty of none.
    """
    gates = {gate.name: gate for gate in decision.gates}
    return Html(
        "".join(
            _drawn(rows, line=0, limits=_around(rows), form="+.2f")
            for rows in (
                [*_difference_rows(decision, gates, of_marks=False)],
                [*_difference_rows(decision, gates, of_marks=True)],
            )
        )
    )


def _heldout_rows(decision: Decision, gates: dict[str, Gate]) -> Iterator[_Row]:
    for name, opponent in decision.against.items():
        gate = gates.get(win_rate_gate(name))
        yield from _win_rates(f"won against the {name}", opponent, gate)
    if (pairs := decision.preference) is not None:
        yield _Row("held-out pairs told apart", pairs.accuracy)
        if len(pairs.slices) > 1:
            for each, of in pairs.slices.items():
                yield _Row(f"{each}: told apart", of, _FADED, is_part=True)


def _win_rates(name: str, opponent: Opponent, gate: Gate | None) -> Iterator[_Row]:
    if opponent.win_rate is not None:
        yield _Row(name, opponent.win_rate, _colour(gate), bound=gate.bound if gate else None)
    if len(opponent.slices) > 1:
        for each, seen in opponent.slices.items():
            yield _Row(f"{each}: {name}", seen, _FADED, is_part=True)


def _suite_rows(suite: str, scores: SuiteScores, gates: dict[str, Gate]) -> Iterator[_Row]:
    for name, opponent in scores.against.items():
        gate = gates.get(gate_of(suite, "win_rate", name))
        yield from _win_rates(f"won against the {name}", opponent, gate)
    if scores.kind == _MARKED:
        return
    for metric in metrics_of(scores):
        for model in models_of(scores.models):
            seen = scores.models[model].get(metric)
            if seen is not None and seen.low >= 0 and seen.high <= 1:
                yield _Row(f"{spoken(metric)}, {model}", seen, model_colour(scores, model))


def _difference_rows(
    decision: Decision, gates: dict[str, Gate], *, of_marks: bool
) -> Iterator[_Row]:
    for suite, scores in decision.suites.items():
        if (scores.kind == _MARKED) is not of_marks or not any(scores.differences.values()):
            continue
        yield _Row(suite, None)
        for opponent in models_of(scores.differences):
            for metric, seen in scores.differences[opponent].items():
                gate = gates.get(gate_of(suite, metric, opponent))
                yield _Row(
                    f"{spoken(metric)}, minus the {opponent}'s",
                    seen,
                    _colour(gate),
                    bound=gate.bound if gate else None,
                )


def _colour(gate: Gate | None) -> str:
    """By what a gate made of it."""
    if gate is None or gate.passed is None:
        return _OURS
    if gate.passed:
        return _HELD
    return _UNSURE if gate.undecided else _MISSED


def _around(rows: Sequence[_Row]) -> tuple[float, float]:
    """Limits with the line of no difference in the middle."""
    ends = [0.01]
    for row in rows:
        if row.seen is not None:
            ends += [abs(row.seen.low), abs(row.seen.high), abs(row.bound or 0)]
    return -1.1 * max(ends), 1.1 * max(ends)


def _drawn(rows: Sequence[_Row], *, line: float, limits: tuple[float, float], form: str) -> Html:
    """Rows as a forest plot with their numbers beside it."""
    left_out = 0
    if len(rows) > _MAX_ROWS:
        whole = [row for row in rows if not row.is_part][:_MAX_ROWS]
        left_out = len(rows) - len(whole)
        rows = whole
    if not rows:
        return Html("")
    height = 0.6 + 0.27 * len(rows)
    figure = blank(12.4, height)
    figure.subplots_adjust(0.27, 0.45 / height, 0.83, 1 - 0.1 / height)
    axis = figure.add_subplot()
    axis.axvline(line, color="#444", linewidth=1, linestyle="--")
    for place, row in enumerate(rows):
        if row.seen is not None:
            _interval(axis, place, row, form)
    axis.set_yticks(range(len(rows)), [_named(row) for row in rows], parse_math=False)
    for label, row in zip(axis.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row.seen is None else "normal")
    axis.tick_params(axis="y", length=0)
    axis.set(ylim=(len(rows) - 0.4, -0.6), xlim=limits)
    _plain(axis)
    told = f"<p>{left_out} more are in the tables below.</p>" if left_out else ""
    return Html(drawing(figure) + told)


def _interval(axis: "Axes", place: int, row: _Row, form: str) -> None:
    seen, colour = row.seen, row.colour
    assert seen is not None
    width, size = (1.4, 3) if row.is_part else (2.4, 5.5)
    axis.plot((seen.low, seen.high), (place, place), color=colour, linewidth=width)
    axis.plot(seen.value, place, "o", color=colour, markersize=size)
    if row.bound is not None:
        bound = (row.bound, row.bound)
        axis.plot(bound, (place - 0.38, place + 0.38), color=_MISSED, linewidth=1.6)
    numbers = f"{seen.value:{form}} [{seen.low:{form}}, {seen.high:{form}}]"
    axis.annotate(
        f"{numbers}  n {seen.n}",
        (1.015, place),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=9,
        color="#555" if row.is_part else "#111",
        annotation_clip=False,
    )


def _named(row: _Row) -> str:
    return _short(row.name)  # a name is somebody's word, and no formula


def categories(scores: SuiteScores) -> Html:
    """Each category's figure, the models side by side; marks with those of either turn above."""
    names = sorted({name for of in scores.by_category.values() for name in of})
    if len(names) < 2:
        return Html("")
    above = metrics_of(scores) if scores.kind == _MARKED else []
    rows = [*above, *names]
    height = 1.1 + 0.3 * len(rows)
    figure = blank(12.4, height)
    figure.subplots_adjust(0.27, 0.6 / height, 0.83, 1 - 0.42 / height)
    axis = figure.add_subplot()
    models = models_of(scores.by_category)
    for at, model in enumerate(models):
        colour, away = model_colour(scores, model), 0.2 * (at - (len(models) - 1) / 2)
        wholes = [scores.models.get(model, {}).get(metric) for metric in above]
        for place, seen in enumerate(wholes):
            if seen is not None:
                axis.plot((seen.low, seen.high), (place + away,) * 2, color=colour, linewidth=1.6)
        values = [seen.value if seen else np.nan for seen in wholes]
        values += [scores.by_category[model].get(name, np.nan) for name in names]
        places = np.arange(len(rows)) + away
        axis.plot(values, places, "o", color=colour, markersize=5.5, label=model)
    if above:
        axis.axhline(len(above) - 0.5, color="#bbb", linewidth=1)
    shown = [_short(spoken(name)) for name in above] + [_short(name) for name in names]
    axis.set_yticks(range(len(rows)), shown, parse_math=False)
    axis.set(ylim=(len(rows) - 0.4, -0.6), xlabel=measured_in(scores))
    axis.set_xlim((0.9, 10.1) if scores.kind == _MARKED else None)
    axis.tick_params(axis="y", length=0)
    legend = axis.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=len(models), frameon=False, handletextpad=0.2
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    _plain(axis)
    return drawing(figure)


def metrics_of(scores: SuiteScores) -> list[str]:
    """Every figure that some model has, in the order they are first named."""
    every = [*scores.models.values(), *scores.differences.values()]
    return list(dict.fromkeys(metric for of in every for metric in of))


def models_of(named: Iterable[str]) -> list[str]:
    """The candidate, the base, the champion, then others by name."""
    order = list(_MODELS)
    return sorted(named, key=lambda name: (order.index(name) if name in order else 9, name))


def measured_in(scores: SuiteScores) -> str:
    """What the figure of a category is."""
    return {_MARKED: "mean mark", "xstest": "share of full refusals"}.get(scores.kind, "figure")


def model_colour(scores: SuiteScores, model: str) -> str:
    """The same for a model in every drawing."""
    strangers = [name for name in scores.models if name not in _MODELS]
    known = _MODELS.get(model)
    return known or _OTHERS[strangers.index(model) % len(_OTHERS) if model in strangers else 0]


def spoken(name: str) -> str:
    """As people say it."""
    return name.replace("_", " ")


def length_against_win(compared: Sequence[Comparison]) -> Html:
    """Win rate by how much longer the candidate's answer is; empty where too few were judged."""
    of_base = [each for each in compared if each.against == BASE and each.outcome is not None]
    if len(of_base) < 2 * _LEAST_IN_A_BIN:
        return Html("")
    longer_N = np.array([len(each.candidate) - len(each.theirs) for each in of_base])
    won_N = np.array([each.outcome for each in of_base], dtype=np.float64)
    order_N = np.argsort(longer_N, kind="stable")
    bins = np.array_split(order_N, min(_MAX_BINS, len(of_base) // _LEAST_IN_A_BIN))
    figure = blank(12.4, 2.8)
    figure.subplots_adjust(0.07, 0.2, 0.98, 0.96)
    axis = figure.add_subplot()
    spread_N = np.random.default_rng(0).uniform(-0.03, 0.03, len(of_base))  # so that dots part
    axis.plot(longer_N, won_N + spread_N, ".", color=_FADED, markersize=3)
    axis.plot(
        [longer_N[each].mean() for each in bins],
        [won_N[each].mean() for each in bins],
        color=_OURS,
        marker="o",
        markersize=5,
        linewidth=1.3,
    )
    axis.axhline(0.5, color="#444", linewidth=1, linestyle="--")
    axis.axvline(0, color="#444", linewidth=1, linestyle="--")
    axis.set(xlabel="characters by which the candidate's answer is longer", ylabel="won")
    axis.set_ylim(-0.08, 1.08)
    _plain(axis)
    return drawing(figure)


def _short(name: str) -> str:
    return name if len(name) <= _NAME_CHARS else f"{name[: _NAME_CHARS - 1]}…"


def _plain(axis: "Axes") -> None:
    axis.grid(alpha=0.3)
    axis.spines[["top", "right", "left"]].set_visible(False)
