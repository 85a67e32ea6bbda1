"""What is shown of an evaluation elsewhere: the name of its page, and its numbers as metrics.

Reads   decision.json
Gives   `PAGE`, `read_decision`, `figures_of`
Not     the document (document.py), the page (page.py)

Nothing heavy is imported here: a task whose evaluation was done before shows it all the same.
"""

from collections.abc import Iterator
from pathlib import Path

from dpoflow.contracts.results import Decision, Interval, Opponent
from dpoflow.evaluate.names import BASE
from dpoflow.registry.signature import DECISION

PAGE = "report.html"


def read_decision(folder: Path) -> Decision:
    """The document in the folder that evaluate wrote."""
    return Decision.model_validate_json((folder / DECISION).read_text("utf-8"))


def figures_of(document: Decision) -> dict[str, float]:
    """Every number of it, as MLflow shows them beside those of other runs: `eval/…`."""
    figures = {f"eval/{name}": value for name, value in document.measures.items()}
    for name, seen in _intervals(document):
        figures |= {
            f"eval/{name}": seen.value,
            f"eval/{name}_low": seen.low,
            f"eval/{name}_high": seen.high,
        }
    figures |= {f"eval/{name}": value for name, value in _numbers(document)}
    return figures | {f"eval/p/{name}": test.p for name, test in document.tests.items()}


def _numbers(document: Decision) -> Iterator[tuple[str, float]]:
    """What has no interval."""
    for name, opponent in document.against.items():
        yield from _of_opponent(opponent, "" if name == BASE else f"/{name}", "")
    for suite, scores in document.suites.items():
        for name, opponent in scores.against.items():
            yield from _of_opponent(opponent, f"/{name}", f"{suite}/")
        for model, of in scores.by_category.items():
            yield from ((f"{suite}/category/{each}/{model}", value) for each, value in of.items())
    if document.preference is not None:
        for what in ("chosen", "rejected", "kl", "brier", "calibration_error"):
            if (value := getattr(document.preference, what)) is not None:
                yield f"heldout_{what}", value


def _of_opponent(opponent: Opponent, ending: str, root: str) -> Iterator[tuple[str, float]]:
    for what in ("at_equal_length", "at_equal_style", "length_ratio"):
        if (value := getattr(opponent, what)) is not None:
            yield f"{root}{what}{ending}", value


def _intervals(document: Decision) -> Iterator[tuple[str, Interval]]:
    for name, opponent in document.against.items():
        yield from _win_rates("win_rate" if name == BASE else f"{name}_win_rate", opponent)
    for suite, scores in document.suites.items():
        for name, opponent in scores.against.items():
            yield from _win_rates(f"{suite}/win_rate/{name}", opponent)
        for model, of in scores.models.items():
            yield from ((f"{suite}/{each}/{model}", seen) for each, seen in of.items())
        for opponent_name, of in scores.differences.items():
            root = f"minus_{opponent_name}"
            yield from ((f"{suite}/{each}/{root}", seen) for each, seen in of.items())
        for model, sides in scores.labels.items():
            for side, of in sides.items():
                yield from ((f"{suite}/{side}/{each}/{model}", seen) for each, seen in of.items())
        for model, of in scores.by_string_match.items():
            root = "begins_like_a_refusal"
            yield from ((f"{suite}/{side}/{root}/{model}", seen) for side, seen in of.items())
    if (pairs := document.preference) is not None:
        yield "heldout_accuracy", pairs.accuracy
        yield "heldout_margin", pairs.margin
        yield from ((f"heldout_accuracy/{each}", seen) for each, seen in pairs.slices.items())


def _win_rates(root: str, opponent: Opponent) -> Iterator[tuple[str, Interval]]:
    if opponent.win_rate is not None:
        yield root, opponent.win_rate
    yield from ((f"{root}/{each}", seen) for each, seen in opponent.slices.items())
