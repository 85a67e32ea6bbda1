"""CSV files: a header, then rows of text.

Reads   a .csv file as RFC 4180 has it, compressed or not; a byte order mark is allowed
Gives   `read`: (row number from 1, row)
Not     rows' meaning: see formats/

Every value is text: CSV knows no other type, and to guess one is to change some.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from dpoflow.contracts.errors import DataRejected
from dpoflow.sources.json_rows import Raw
from dpoflow.sources.reasons import Quarantine
from dpoflow.sources.streams import opened

_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def read(path: Path, name: str, *, limit: int, most: int) -> Iterator[tuple[int, Raw]]:
    """Rows of `path`, numbered from 1; the header has no number."""
    csv.field_size_limit(limit)
    with opened(path, name, most=most) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        rows, number = csv.reader(_lines(text, name, limit), strict=True), 0
        try:
            header = _header(next(rows, []), name)
            for number, values in enumerate(rows, start=1):
                if not values:
                    continue  # a blank line holds no row
                if len(values) != len(header):
                    told = f"{len(values)} values under {len(header)} columns"
                    yield number, Quarantine("ragged", told)
                else:
                    yield number, dict(zip(header, values, strict=True))
        except csv.Error as error:
            raise DataRejected(
                f"{name}, line {rows.line_num} is no sound CSV ({error}), after row {number}; "
                "mend it, or raise data.max_line_mb where a field is that long"
            ) from None
        except UnicodeDecodeError as error:
            raise DataRejected(
                f"{name} is not UTF-8 after row {number} ({error.reason}); save it as UTF-8"
            ) from None


def _lines(text: io.TextIOWrapper, name: str, limit: int) -> Iterator[str]:
    """Lines, none of them longer than a row may be: the reader would hold it whole."""
    number = 0
    while line := text.readline(limit + 1):
        number += 1
        if len(line) > limit:
            raise DataRejected(
                f"{name}, line {number} is longer than data.max_line_mb ({limit / 2**20:.4g}); if "
                "that is no damage, raise data.max_line_mb"
            )
        yield line


def _header(names: list[str], name: str) -> list[str]:
    twice = sorted({each[:40] for each in names if names.count(each) > 1})
    if twice or not all(names):
        what = f"two columns called {twice[0]!r}" if twice else "a column without a name, or none"
        raise DataRejected(f"{name} has {what} in its first line; name each column once")
    other = next((each for each in _OTHER_SEPARATORS if each in names[0]), None)
    if len(names) == 1 and other is not None:
        raise DataRejected(
            f"{name} separates its columns by {_OTHER_SEPARATORS[other]}, and CSV does by commas; "
            "save it with commas, texts in quotes"
        )
    return names
