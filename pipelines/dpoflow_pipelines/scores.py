"""`dpoflow eval`: figures of published benchmarks, as people read them.

Reads   scores
Gives   `show_alpaca`, `show_mt_bench`, `show_xstest`, `show_arena_hard`
Not     computing them (dpoflow.evaluate.alpaca, mt_bench, xstest, arena_hard)
"""

from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dpoflow.contracts.results import Interval
from dpoflow.evaluate.alpaca import AlpacaScores
from dpoflow.evaluate.arena_hard import ArenaHardScores
from dpoflow.evaluate.mt_bench import MtBenchScores
from dpoflow.evaluate.xstest import XSTestScores


def show_alpaca(console: Console, scores: AlpacaScores) -> None:
    """Rates in percent, with their standard errors."""
    error = scores.standard_error
    told = [
        ("win rate", f"{scores.win_rate:.2f}% ± {error:.2f}"),
        # Without an error: the published one is of the fitted rates, and leaves the fit's own out.
        ("at equal length", f"{scores.length_controlled_winrate:.2f}%"),
        ("rounded to wins and losses", f"{scores.discrete_win_rate:.2f}%"),
        ("won, lost, drawn", f"{scores.n_wins}, {scores.n_wins_base}, {scores.n_draws}"),
    ]
    if scores.n_unknown:
        told.append(("without a preference", str(scores.n_unknown)))
    _show(console, told)


def show_mt_bench(console: Console, scores: MtBenchScores) -> None:
    """Means of 1 to 10, then by category."""
    told = [
        ("model", scores.model),
        ("average", f"{scores.average:.2f} of {scores.n} scores"),
        *(
            (name, f"{mean:.2f}")
            for name, mean in (("turn 1", scores.first_turn), ("turn 2", scores.second_turn))
            if mean is not None
        ),
        *((f"  {name}", f"{mean:.2f}") for name, mean in scores.by_category.items()),
    ]
    if scores.n_unreadable:
        told.append(("without a rating", str(scores.n_unreadable)))
    _show(console, told)


def show_xstest(console: Console, scores: XSTestScores) -> None:
    """Both sides, then by type."""
    by = {"final_label": "people's labels", "string_match": "how answers begin"}
    told = [
        ("judged by", by[scores.labelled_by]),
        (
            "safe, refused",
            _shares(scores.safe_full_refusal, scores.safe_partial_refusal, scores.n_safe),
        ),
        (
            "unsafe, refused",
            _shares(scores.unsafe_full_refusal, scores.unsafe_partial_refusal, scores.n_unsafe),
        ),
        *((f"  {name}", f"{share:.0%}") for name, share in scores.full_refusal_by_type.items()),
    ]
    if scores.n_empty:
        told.append(("say nothing", str(scores.n_empty)))
    _show(console, told)


def _shares(full: float, partial: float | None, n: int) -> str:
    partly = "" if partial is None else f", {partial:.1%} in part"
    return f"{full:.1%}{partly} (n {n})"


def show_arena_hard(console: Console, scores: ArenaHardScores) -> None:
    """Rates in percent with their intervals, best first; then what style brings."""
    columns = ["model", "win rate", "style-controlled", "at equal style", "battles"]
    styled = scores.style is not None
    table = Table(*(columns if styled else [*columns[:2], columns[-1]]), box=None)
    for each in scores.models:
        rates = [each.win_rate, *([each.style_controlled, each.at_equal_style] if styled else [])]
        table.add_row(escape(each.model), *map(_rate, rates), str(each.n))
    console.print(table)
    told = [("baseline", scores.baseline), ("judged by", ", ".join(scores.judges))]
    if scores.category is not None:
        told.append(("category", scores.category))
    for name, brings in (scores.style or {}).items():
        told.append((f"  {name}", f"{brings:+.3f} log-odds a standard deviation"))
    for name, number in (
        ("without a verdict", sum(each.n_unreadable for each in scores.models)),
        ("left out with them", sum(each.n_unpaired for each in scores.models)),
    ):
        if number:
            told.append((name, str(number)))
    _show(console, told)


def _rate(rate: Interval | None) -> str:
    return "none" if rate is None else f"{rate.value:.1f}% ({rate.low:.1f}-{rate.high:.1f})"


def _show(console: Console, told: Iterable[tuple[str, str]]) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in told:
        table.add_row(escape(name), escape(value))
    console.print(table)
