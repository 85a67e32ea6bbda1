"""AlpacaEval's figures from annotations that were made elsewhere.

    annotations    annotations.json of alpaca-eval: instruction, output_1 (baseline), output_2
                   (model), preference: 1 the baseline, 2 the model, anything between; 0 or 1.5 a
                   draw, null or NaN unknown
    difficulty     CSV: the instruction's index, instruction_difficulty
    gamed          df_gamed.csv: preference (0 to 1), index, std_delta_len, instruction_difficulty,
                   not_gamed_baseline

Reads   these files
Gives   `score_alpaca`
Not     the regression (length_control.py), asking a judge
"""

from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpoflow.contracts.base import Contract
from dpoflow.contracts.errors import DataRejected
from dpoflow.evaluate.length_control import MIN_COMPARISONS, Floats, Gamed, length_controlled
from dpoflow.sources.whole import read_each, rows_of

_SHOWN_BY = "dpoflow eval alpaca"
_DRAW = 0.5
_CONSTANT = dict.fromkeys(("false", "0", "0.0"), 0.0) | dict.fromkeys(("true", "1", "1.0"), 1.0)


class AlpacaScores(Contract):
    """Rates and errors in percent, as the leaderboard has them."""

    win_rate: float
    """Mean preference for the model over the baseline."""
    standard_error: float
    discrete_win_rate: float
    """Each preference rounded to a win or a loss; draws half."""
    length_controlled_winrate: float
    lc_standard_error: float
    n: int
    """Annotations with a preference."""
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_unknown: int
    """Annotations without one: in no rate but the length-controlled, which predicts them."""


class _Annotation(NamedTuple):
    instruction: int | None
    """Its number; the row's place where none is given."""
    preference: float
    """1 to 2; NaN where it is unknown."""
    shorter: int
    models: tuple[str | None, str | None]


def score_alpaca(
    annotations: Path, difficulty: Path | None = None, gamed: Path | None = None
) -> AlpacaScores:
    """The figures of one model's annotations. Raises DataRejected."""
    told = read_each(rows_of(annotations), _annotation, annotations, _SHOWN_BY)
    _check_one_model(told, annotations)
    preferred = np.array([each.preference for each in told]) - 1
    known = preferred[~np.isnan(preferred)]
    if len(known) < MIN_COMPARISONS:
        raise DataRejected(
            f"{annotations} has {len(known)} preferences; controlling for length takes at least "
            f"{MIN_COMPARISONS}"
        )
    controlled = _controlled(told, preferred, difficulty, gamed)
    return AlpacaScores(
        win_rate=100 * float(known.mean()),
        standard_error=_standard_error(known),
        # numpy rounds halves to even: a draw would be a loss.
        discrete_win_rate=100 * float(np.where(known == _DRAW, _DRAW, np.round(known)).mean()),
        length_controlled_winrate=100 * float(controlled.mean()),
        lc_standard_error=_standard_error(controlled),
        n=len(known),
        n_wins=int((known > _DRAW).sum()),
        n_wins_base=int((known < _DRAW).sum()),
        n_draws=int((known == _DRAW).sum()),
        n_unknown=len(told) - len(known),
    )


def _standard_error(values_N: Floats) -> float:
    return 100 * float(values_N.std(ddof=1) / np.sqrt(len(values_N)))


def _annotation(row: Any) -> _Annotation:
    first, second = row["output_1"], row["output_2"]
    if not isinstance(first, str) or not isinstance(second, str):
        raise TypeError("output_1 and output_2 must be texts")
    given = row["preference"]
    preference = float("nan") if given in (None, "") else float(given)
    if preference == 0:
        preference = 1 + _DRAW
    if not isnan(preference) and not 1 <= preference <= 2:
        raise ValueError(f"preference {given} is neither 0 nor between 1 and 2")
    models = (row.get("generator_1"), row.get("generator_2"))
    index = row.get("index")
    return _Annotation(
        None if index is None else int(index), preference, len(first) - len(second), models
    )


def _check_one_model(told: Sequence[_Annotation], path: Path) -> None:
    for at, what in enumerate(("generator_1", "generator_2")):
        names = sorted({str(each.models[at]) for each in told})
        if len(names) > 1:
            raise DataRejected(
                f"{path} has {len(names)} models in {what} ({', '.join(names[:5])}); give one "
                "model against one baseline"
            )


def _controlled(
    told: Sequence[_Annotation], preferred: Floats, difficulty: Path | None, gamed: Path | None
) -> Floats:
    ours, theirs = told[0].models
    if ours is not None and ours == theirs:
        return np.full(len(told), _DRAW)  # the baseline against itself
    shorter = np.array([each.shorter for each in told], dtype=np.float64)
    known = _gamed(gamed) if gamed else None
    if difficulty is not None:
        by_index = dict(read_each(rows_of(difficulty), _difficulty, difficulty, _SHOWN_BY))
    elif known is not None:
        by_index = dict(zip(known.indices, known.data.difficulty_N.tolist(), strict=True))
    else:
        return length_controlled(preferred, shorter)
    source = difficulty or gamed
    indices = [at if each.instruction is None else each.instruction for at, each in enumerate(told)]
    if missing := [index for index in indices if index not in by_index]:
        more = f" and {len(missing) - 1} others" * (len(missing) > 1)
        raise DataRejected(
            f"{source} knows no difficulty of instruction {missing[0]}{more}; for instructions of "
            "your own leave --difficulty and --gamed out"
        )
    hard = np.array([by_index[index] for index in indices])
    return length_controlled(preferred, shorter, hard, known.data if known else None)


def _difficulty(row: Any) -> tuple[int, float]:
    at = next((row[name] for name in ("index", "Unnamed: 0", "") if name in row), None)
    if at is None:
        raise KeyError("index")
    return int(at), _finite(row, "instruction_difficulty")


class _GamedRows(NamedTuple):
    indices: list[int]
    data: Gamed


def _gamed(path: Path) -> _GamedRows:
    rows = read_each(rows_of(path), _gamed_row, path, _SHOWN_BY)
    index, *columns = zip(*rows, strict=True)
    return _GamedRows([int(each) for each in index], Gamed(*(np.array(each) for each in columns)))


def _gamed_row(row: Any) -> tuple[int, float, float, float, float]:
    real = _CONSTANT.get(str(row["not_gamed_baseline"]).strip().lower())
    if real is None:
        raise ValueError(f"not_gamed_baseline {row['not_gamed_baseline']!r} is no True or False")
    preference = float(row["preference"] or "nan")
    if not isnan(preference) and not 0 <= preference <= 1:
        raise ValueError(f"preference {preference:g} is not between 0 and 1")
    return (
        int(row["index"]),
        preference,
        _finite(row, "std_delta_len"),
        _finite(row, "instruction_difficulty"),
        real,
    )


def _finite(row: Any, name: str) -> float:
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {row[name]!r}, which is no number") from None
    if not np.isfinite(value):
        raise ValueError(f"{name} is {row[name]}")
    return value
