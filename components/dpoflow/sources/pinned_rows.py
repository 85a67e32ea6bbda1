"""Rows of a pinned file, and the format they are in.

Reads   a folder of pinned data (pinned.py), or prompts in an artifact of ours
Gives   `rows_of`, `format_of`, `prompts_of`
Not     what a row means (formats/)
"""

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from dpoflow.contracts.pairs import Message
from dpoflow.sources.files import read_rows
from dpoflow.sources.formats import registry
from dpoflow.sources.formats.messages import Format
from dpoflow.sources.json_rows import Raw
from dpoflow.sources.pinned import FILES, Pinned


def rows_of(
    folder: Path, pinned: Pinned, *, max_line_mb: float, max_unpacked_gb: float
) -> Iterator[tuple[str, Raw]]:
    """Each row with its id."""
    return read_rows(
        folder / FILES / pinned.sha256,
        pinned.name,
        max_line_mb=max_line_mb,
        max_unpacked_gb=max_unpacked_gb,
    )


def format_of(
    pinned: Pinned, rows: Iterator[tuple[str, Raw]]
) -> tuple[Format, Iterator[tuple[str, Raw]]]:
    """The format that the spec names, or that the first rows are in; and all rows again."""
    if pinned.format != "auto":
        return registry.FORMATS[pinned.format], rows
    first = list(islice(rows, registry.LOOK_AT))
    return registry.recognise([row for _, row in first], pinned.name), chain(first, rows)


def prompts_of(folder: Path, pinned: Pinned) -> Iterator[tuple[Message, ...]]:
    """The prompt of each row of a Parquet file of pairs, ratings or prompts of ours."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(folder / FILES / pinned.sha256)
    for batch in file.iter_batches(batch_size=4096, columns=["prompt"]):
        for row in batch.to_pylist():
            yield tuple(Message.model_validate(turn) for turn in row["prompt"])
