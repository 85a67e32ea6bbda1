"""JSON lines and JSON arrays, streamed, with damage named by line and column.

Reads   a .jsonl or .json file, compressed or not; a byte order mark is allowed
Gives   `read`: (line or index from 1, row); `Raw`
Not     rows' meaning: see formats/

Memory stays near one row: a row may not be larger than the limit, and no more of the file is held.
"""

import codecs
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from dpoflow.contracts.errors import DataRejected
from dpoflow.sources.reasons import Quarantine
from dpoflow.sources.streams import opened

Raw = dict[str, Any] | Quarantine
"""A row, or why a row of a sound file cannot be one."""

CHUNK = 1 << 16
MAX_DEPTH = 64
"""Lists and objects in each other. No layout needs more than ten; what goes on to look at a row
goes as deep as the row does, and Python goes no deeper than a thousand."""
_BLANKS = re.compile(r"[ \t\r\n]*")
_TAIL = 16
"""A JSON error this close to the end of what was read may only mean: read on."""


def read(path: Path, name: str, *, limit: int, most: int) -> Iterator[tuple[int, Raw]]:
    """Rows of `path`, numbered from 1. `name` says the layout and stands in messages."""
    with opened(path, name, most=most) as stream:
        if name.lower().removesuffix(".gz").removesuffix(".zst").endswith(".jsonl"):
            yield from _lines(stream, name, limit)
        else:
            yield from _Array(stream, name, limit).rows()


def _lines(stream: BinaryIO, name: str, limit: int) -> Iterator[tuple[int, Raw]]:
    decoder, number = _RowDecoder(), 0
    while line := stream.readline(limit + 1):
        number += 1
        if len(line) > limit and not line.endswith(b"\n"):
            _too_long(stream, name, number, len(line), limit)
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue  # a blank line holds no row
        yield number, _row(decoder, _text(line, name, number), name, number)


def _too_long(stream: BinaryIO, name: str, number: int, size: int, limit: int) -> NoReturn:
    """Count on without keeping, so that the message can say how long the line is."""
    more = b""
    while size < 64 * limit and (more := stream.readline(min(limit, CHUNK))):
        size += len(more)
        if more.endswith(b"\n"):
            break
    about = "at least " if more and not more.endswith(b"\n") else ""
    raise DataRejected(
        f"{name}, line {number} is {about}{size / 2**20:.4g} MiB long, more than "
        f"data.max_line_mb ({limit / 2**20:.4g}); if that is no damage, raise data.max_line_mb"
    )


def _text(line: bytes, name: str, number: int) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataRejected(
            f"{name}, line {number}, byte {error.start + 1} is not UTF-8; "
            "save the file as UTF-8 or fetch it again"
        ) from None


def _row(decoder: "_RowDecoder", text: str, name: str, number: int) -> Raw:
    try:
        value, end = decoder.decode_at(text, 0, whole=True)
        return decoder.row(value, text, 0, end)
    except json.JSONDecodeError as error:
        raise _broken(name, number, error.colno, error.msg) from None
    except _Refused as error:
        raise _broken(name, number, None, str(error)) from None


def _broken(name: str, line: int, column: int | None, why: str) -> DataRejected:
    where = f"line {line}" if column is None else f"line {line}, column {column}"
    return DataRejected(
        f"{name}, {where} is cut off or broken JSON ({why}); mend that row or fetch the file again"
    )


class _Refused(ValueError):
    """JSON that Python reads and nobody else does, or that no row can need."""


class _RowDecoder:
    """json.JSONDecoder, but strict: no NaN, no infinity, and repeated keys do not go unseen."""

    def __init__(self) -> None:
        self._repeated: str | None = None
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_constant=self._constant,
            parse_float=self._float,
        )

    def decode_at(self, text: str, start: int, *, whole: bool = False) -> tuple[Any, int]:
        """The value at `start` and where it ends; nothing else may follow if it is the `whole`."""
        self._repeated = None
        try:
            if whole:
                return self._decoder.decode(text), len(text)
            return self._decoder.raw_decode(text, start)
        except RecursionError:
            raise _Refused("nested too deep") from None
        except (json.JSONDecodeError, _Refused):
            raise
        except ValueError:  # Python refuses integers of more than 4,300 digits
            raise _Refused("a number has thousands of digits") from None

    def row(self, value: Any, text: str, start: int, end: int) -> Raw:
        """The value that was decoded from `text[start:end]` as a row."""
        if not isinstance(value, dict):
            return Quarantine("not_an_object", f"a JSON {type(value).__name__}")
        if self._repeated is not None:
            return Quarantine("repeated_key", self._repeated)
        num_opened = text.count("[", start, end) + text.count("{", start, end)  # at most so deep
        if num_opened > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
            return Quarantine("nested_too_deep")
        return value

    def _object(self, items: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(items)
        if len(made) != len(items):
            keys = [key for key, _ in items]
            self._repeated = next(key for key in keys if keys.count(key) > 1)
        return made

    @staticmethod
    def _constant(name: str) -> NoReturn:
        raise _Refused(f"{name} is not JSON")

    @staticmethod
    def _float(digits: str) -> float:
        value = float(digits)
        if math.isinf(value):
            raise _Refused(f"{digits[:20]} is larger than a float can be")
        return value


def _is_deeper(value: Any, most: int) -> bool:
    """Whether a list or object stands in more than `most - 1` others."""
    level = [value]
    for _ in range(most):
        held = (each.values() if isinstance(each, dict) else each for each in level)
        level = [inner for some in held for inner in some if isinstance(inner, dict | list)]
    return bool(level)


class _Array:
    """The elements of one JSON array, read through a window of a few chunks."""

    def __init__(self, stream: BinaryIO, name: str, limit: int) -> None:
        self._stream, self._name, self._limit = stream, name, limit
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._decoder = _RowDecoder()
        self._window, self._at, self._ended = "", 0, False
        self._line, self._column = 1, 1  # of the window's first character
        self._num_bytes = 0

    def rows(self) -> Iterator[tuple[int, Raw]]:
        """Each element, numbered from 1."""
        if self._peek() != "[":
            raise DataRejected(
                f"{self._name} is no JSON array of rows; a file of one object a line "
                "is named .jsonl"
            )
        self._at += 1
        number = 0
        while self._peek() != "]" or number:
            number += 1
            yield number, self._element(number)
            follows = self._peek()
            if follows == "]":
                break
            if follows != ",":
                self._fail(self._at, "Expecting ',' delimiter")
            self._at += 1
        self._at += 1
        if self._peek():
            self._fail(self._at, "Extra data")

    def _element(self, number: int) -> Raw:
        self._peek()
        while True:
            try:
                value, end = self._decoder.decode_at(self._window, self._at)
            except json.JSONDecodeError as error:
                cut_off = error.pos >= len(self._window) - _TAIL or "Unterminated" in error.msg
                if self._ended or not cut_off:
                    self._fail(error.pos, error.msg)
            except _Refused as error:
                self._fail(self._at, str(error))
            else:
                if end < len(self._window) or self._ended:
                    start, self._at = self._at, end
                    return self._decoder.row(value, self._window, start, end)
            size = len(self._window) - self._at
            if size > self._limit:
                raise DataRejected(
                    f"{self._name}, row {number} is longer than data.max_line_mb "
                    f"({self._limit / 2**20:.4g}; {size / 2**20:.4g} MiB read so far); "
                    "if that is no damage, raise data.max_line_mb"
                )
            self._fill(max(CHUNK, size))  # doubling: a row of n characters costs 2n, not n²

    def _peek(self) -> str:
        """The next character that is no blank, or "" at the end."""
        while True:
            self._at = _BLANKS.match(self._window, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._window) or self._ended:
                return self._window[self._at : self._at + 1]
            self._fill(CHUNK)

    def _position(self, at: int) -> tuple[int, int]:
        """Line and column of the window's character `at`."""
        newline = self._window.rfind("\n", 0, at)
        if newline < 0:
            return self._line, self._column + at
        return self._line + self._window.count("\n", 0, at), at - newline

    def _fill(self, size: int) -> None:
        self._line, self._column = self._position(self._at)
        self._window, self._at = self._window[self._at :], 0
        chunk = self._stream.read(size)
        self._ended = not chunk
        try:
            self._window += self._utf8.decode(chunk, final=self._ended)
        except UnicodeDecodeError as error:
            at = self._num_bytes + len(chunk) - len(error.object) + error.start + 1
            raise DataRejected(
                f"{self._name}, {self._line_of(error)}, byte {at} of the file is not UTF-8; "
                "save the file as UTF-8 or fetch it again"
            ) from None
        self._num_bytes += len(chunk)

    def _line_of(self, error: UnicodeDecodeError) -> str:
        before = self._window.count("\n") + error.object[: error.start].count(b"\n")
        return f"line {self._line + before}"

    def _fail(self, at: int, why: str) -> NoReturn:
        line, column = self._position(at)
        raise _broken(self._name, line, column, why)
