"""Files as streams of plain bytes, whatever they are compressed with.

Reads   a file; its name says how it is compressed
Gives   `opened`, `PACKED`
Not     what the bytes mean: json_rows.py, csv_rows.py
"""

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from dpoflow.contracts.errors import DataRejected

PACKED = (".gz", ".zst")

_BUFFER = 1 << 18


@contextlib.contextmanager
def opened(path: Path, name: str, *, most: int) -> Iterator[BinaryIO]:
    """The bytes of `path`, unpacked; DataRejected where they are damaged or more than `most`."""
    suffix = next((each for each in PACKED if name.lower().endswith(each)), None)
    try:
        with contextlib.closing(_stream(path, suffix)) as stream:
            limited = io.BufferedReader(_Limited(stream, name, most), _BUFFER)
            yield stream if suffix is None else limited
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataRejected(
            f"{name} is a damaged gzip file ({error}); fetch it again or compress it anew"
        ) from None
    except OSError as error:
        if suffix == ".zst" and error.strerror is None:  # as Arrow tells of its codecs
            raise DataRejected(
                f"{name} is a damaged zstd file ({error}); fetch it again or compress it anew"
            ) from None
        why = error.strerror or error
        raise DataRejected(f"{name} cannot be read ({why}); fetch it again") from None


def _stream(path: Path, suffix: str | None) -> BinaryIO:
    if suffix == ".gz":
        return cast("BinaryIO", gzip.open(path, "rb"))
    if suffix == ".zst":
        import pyarrow as pa  # brings zstd along; 0.3 s, and plain files need none of it

        return cast("BinaryIO", pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


class _Limited(io.RawIOBase):
    """A stream that refuses to go on for ever: a kilobyte can unpack to a terabyte."""

    def __init__(self, stream: BinaryIO, name: str, most: int) -> None:
        self._stream, self._name, self._left, self._most = stream, name, most, most

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        chunk = self._stream.read(len(into))
        self._left -= len(chunk)
        if self._left < 0:
            raise DataRejected(
                f"{self._name} unpacks to more than data.max_unpacked_gb "
                f"({self._most / 2**30:.4g}); if that is no damage, raise data.max_unpacked_gb"
            )
        into[: len(chunk)] = chunk
        return len(chunk)
