"""`--grid train.beta=0.05,0.1,0.3`: one DAG that trains and evaluates at every point.

Reads   a spec file, overrides, and the values of one or several knobs of training
Gives   `Point`, `points_of`, `show_points`
Not     the DAG itself (align.py)

Data and candidates are made once, and the reference is asked once: what it thinks is kept by
content. No version is registered: the best of many by chance is not the best, so a person picks.
"""

import itertools
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dpoflow.contracts.errors import ConfigError
from dpoflow.contracts.results import RunSummary
from dpoflow.contracts.spec import Spec
from dpoflow.contracts.spec_file import load_spec

MAX_POINTS = 64


@dataclass(frozen=True)
class Point:
    """One combination of values, and the spec that has them."""

    suffix: str
    """What its tasks' names end in: nothing, -2, -3 and so on."""
    sets: tuple[str, ...]
    """As `--set` takes them."""
    spec: Spec


def points_of(path: Path, sets: Sequence[str], grid: Sequence[str]) -> list[Point]:
    """Every combination, each a valid spec. ConfigError names the first that is not."""
    axes = [_axis(text) for text in grid]
    many = 1
    for axis in axes:
        many *= len(axis)
    if many > MAX_POINTS:
        raise ConfigError(f"--grid has {many} points, and at most {MAX_POINTS} are one sweep")
    found = []
    for number, combination in enumerate(itertools.product(*axes), start=1):
        suffix = "" if number == 1 else f"-{number}"
        spec = load_spec(path, [*sets, *combination])
        found.append(Point(suffix, combination, spec))
    return found


def _values(text: str) -> list[str]:
    """What stands between commas; a list in brackets is one value."""
    return [value.strip() for value in re.split(r",(?![^\[\]]*\])", text)]


def _axis(text: str) -> list[str]:
    key, equals, values = text.partition("=")
    key = key.strip()
    each = _values(values)
    if not equals or not each or not all(each):
        raise ConfigError(
            f"--grid takes key=a,b,c, got '{text}'; such as --grid train.beta=0.1,0.3"
        )
    if not key.startswith("train.") or key in ("train.init", "train.reference"):
        raise ConfigError(
            f"--grid {key}: only knobs of training are swept, such as train.beta; for another, "
            "run once with each --set"
        )
    if len(set(each)) < len(each):
        raise ConfigError(f"--grid {text}: a value stands there twice")
    return [f"{key}={value}" for value in each]


def grid_of(points: Sequence[Point]) -> dict[str, list[str]]:
    """What tells one sweep from another: each point's task suffix and values."""
    return {point.suffix or "-1": list(point.sets) for point in points}


def configs_of(points: Sequence[Point]) -> list[str]:
    """The train section of every point, as the DAG takes it."""
    return [point.spec.arguments()["train_config"] for point in points]


def show_points(
    console: Console, summary: RunSummary, spec: Path, home: Path, sets: Sequence[str]
) -> None:
    """A row a point: what was changed, how it went, and how to go on with one."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("point", "verdict", "win rate", "95%", "loss", "accuracy", "alarms"):
        table.add_column(column)
    for point in summary.points:
        told, train = point.evaluation, point.train
        low_high = told.get("ci")
        table.add_row(
            " ".join(point.sets),
            str(told.get("verdict", "")),
            _figure(told.get("win_rate")),
            f"{low_high[0]:.3f} to {low_high[1]:.3f}" if isinstance(low_high, list | tuple) else "",
            _figure(train.last_loss if train else None),
            _figure(train.accuracy if train else None),
            str(len(train.alarms)) if train else "",
        )
    console.print()
    console.print(table)
    first = summary.points[0]
    again = " ".join(f"--set {shlex.quote(text)}" for text in [*sets, *first.sets])
    console.print(
        f"\nnothing was registered. To go on with a point, such as the first:\n"
        f"  dpoflow run {shlex.quote(str(spec))} --home {shlex.quote(str(home))} {again}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _figure(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else ""
