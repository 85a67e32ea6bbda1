"""Tables that MLflow's pages lay side by side, in the layout of `mlflow.log_table`.

Reads   columns of texts
Gives   `write_table`, `is_table`: what tracking looks for in a step's outputs
Not     telling MLflow: tracking/step_run.py
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from dpoflow.state.files import write_text

_ENDING = "_table.json"
_MAX_CHARS = 4000
"""Of a text: as much as anybody reads in a cell."""
_MAX_WHOLE = 1_500_000
"""Of all texts together: at four bytes a character, what tracking still uploads."""
_LEAST_CHARS = 100


def is_table(path: Path) -> bool:
    """Whether the file is one."""
    return path.name.endswith(_ENDING)


def write_table(path: Path, columns: Mapping[str, Sequence[str]]) -> None:
    """One row a place of the columns; texts that are too long are cut, and say so."""
    assert is_table(path), path
    rows = list(zip(*columns.values(), strict=True))
    limit = _limit(rows)
    told = {
        "columns": list(columns),
        "data": [[_cut(text, limit) for text in row] for row in rows],
    }
    write_text(path, json.dumps(told, ensure_ascii=False) + "\n")


def _limit(rows: Sequence[Sequence[str]]) -> int:
    """Characters that a text may have, so that all of them stay within what is uploaded."""
    limit = _MAX_CHARS
    while limit > _LEAST_CHARS and sum(len(t[:limit]) for row in rows for t in row) > _MAX_WHOLE:
        limit //= 2
    return max(limit, _LEAST_CHARS)


def _cut(text: str, limit: int) -> str:
    left = len(text) - limit
    return text if left <= 0 else f"{text[:limit]}… ({left:,} characters more)"
