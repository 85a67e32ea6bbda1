"""Small files that are read whole, and refused whole where one row cannot be read.

Reads   a JSON list, JSON lines, or CSV; a byte order mark is allowed
Gives   `rows_of`, `read_each`
Not     data sets, whose bad rows are counted out one by one: files.py
"""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from dpoflow.contracts.errors import ConfigError, DataRejected

_LARGEST = 1 << 30
"""Bytes; what is read whole must fit into memory several times."""

T = TypeVar("T")
Row = tuple[int, Any]


def rows_of(path: Path) -> list[Row]:
    """(place from 1, row). Raises DataRejected for what is no such file, or holds nothing."""
    rows = _csv(path) if path.suffix.lower() == ".csv" else _json_rows(path)
    if not rows:
        raise DataRejected(f"{path} holds no row; there must be at least one")
    return rows


def read_each(rows: list[Row], read: Callable[[Any], T], path: Path, shown_by: str) -> list[T]:
    """`read` of each row. Raises DataRejected with the place of the first that it does not take.

    `shown_by`: the command whose help shows the layouts.
    """
    return [_read(read, row, path, at, shown_by) for at, row in rows]


def _read(read: Callable[[Any], T], row: Any, path: Path, at: int, shown_by: str) -> T:
    try:
        return read(row)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DataRejected(
            f"{path}, row {at}: {what[:300]}; {shown_by} --help shows the layouts"
        ) from None


def _csv(path: Path) -> list[Row]:
    """A column may be without a name: pandas writes its index so."""
    try:
        header, *rows = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    except ValueError:
        return []  # not even a header
    except csv.Error as error:
        raise DataRejected(f"{path} is no sound CSV ({error}); mend it") from None
    for at, row in enumerate(rows, start=1):
        if row and len(row) != len(header):
            raise DataRejected(
                f"{path}, row {at} has {len(row)} values under {len(header)} columns; mend that row"
            )
    return [(at, dict(zip(header, row, strict=True))) for at, row in enumerate(rows, 1) if row]


def _json_rows(path: Path) -> list[Row]:
    text = _text(path)
    if text.lstrip().startswith("["):
        return list(enumerate(_json(text, path, 1), start=1))
    lines = enumerate(text.split("\n"), start=1)  # splitlines would cut at U+2028, too
    return [(at, _json(line, path, at)) for at, line in lines if line.strip()]


def _text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(_LARGEST + 1)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); name a JSON, JSONL or CSV file"
        ) from None
    if len(content) > _LARGEST:
        raise DataRejected(f"{path} is larger than 1 GiB; it is read whole, so cut it up")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataRejected(f"{path} is not UTF-8 ({error}); save it as UTF-8") from None


def _json(text: str, path: Path, at: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataRejected(f"{path}, line {at} is not JSON ({error}); mend that line") from None
