"""What people would rather look at than read: intervals as a forest plot, length against win.

Reads   a decision, comparisons
Gives   `forest`, `length_against_win`: SVG, the same bytes for the same numbers
Not     the page around them (page.py)
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpoflow.contracts.results import Decision, Interval
from dpoflow.evaluate.heard import BASE
from dpoflow.evaluate.measure import Comparison
from dpoflow.pages import Html, drawing

_OURS, _FADED = "#2f6fab", "#8fa9c2"
_MAX_ROWS = 40
_NAME_CHARS = 48
_MAX_BINS = 8
_LEAST_IN_A_BIN = 5


def forest(decision: Decision) -> Html:
    """Every share with its interval, one a row, beside the line of no difference; empty of none."""
    rows = _rows(decision)[:_MAX_ROWS]
    if not rows:
        return Html("")
    height = 0.6 + 0.3 * len(rows)
    figure = Figure(figsize=(9, height))
    figure.subplots_adjust(0.36, 0.45 / height, 0.98, 1 - 0.1 / height)
    axis = figure.add_subplot()
    for place, (_, seen, is_slice) in enumerate(rows):
        colour = _FADED if is_slice else _OURS
        axis.plot((seen.low, seen.high), (place, place), color=colour, linewidth=2.2)
        axis.plot(seen.value, place, "o", color=colour, markersize=3 if is_slice else 5)
    axis.axvline(0.5, color="#444", linewidth=1, linestyle="--")
    names = [_short(f"{name} (n {seen.n})") for name, seen, _ in rows]
    axis.set_yticks(range(len(rows)), names, parse_math=False)  # a name is no formula
    axis.set(ylim=(len(rows) - 0.4, -0.6), xlim=(-0.02, 1.02))
    _plain(axis)
    return drawing(figure)


def _rows(decision: Decision) -> list[tuple[str, Interval, bool]]:
    """(name, share, whether it is of a slice)."""
    rows: list[tuple[str, Interval, bool]] = []
    for name, opponent in decision.against.items():
        if opponent.win_rate is not None:
            rows.append((f"win rate against the {name}", opponent.win_rate, False))
        if len(opponent.slices) > 1:
            rows += [(f"{each}, {name}", seen, True) for each, seen in opponent.slices.items()]
    if decision.preference is not None:
        rows.append(("held-out pairs told apart", decision.preference.accuracy, False))
        if len(decision.preference.slices) > 1:
            rows += [
                (f"{each}, pairs", of, True) for each, of in decision.preference.slices.items()
            ]
    return rows


def length_against_win(compared: Sequence[Comparison]) -> Html:
    """Win rate by how much longer the candidate's answer is; empty where too few were judged."""
    of_base = [each for each in compared if each.against == BASE and each.outcome is not None]
    if len(of_base) < 2 * _LEAST_IN_A_BIN:
        return Html("")
    longer_N = np.array([len(each.candidate) - len(each.theirs) for each in of_base])
    won_N = np.array([each.outcome for each in of_base], dtype=np.float64)
    order_N = np.argsort(longer_N, kind="stable")
    bins = np.array_split(order_N, min(_MAX_BINS, len(of_base) // _LEAST_IN_A_BIN))
    figure = Figure(figsize=(9, 2.8))
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


def _plain(axis: Axes) -> None:
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
