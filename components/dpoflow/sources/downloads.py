"""Downloads that go on after a kill, whatever kind of store the file lies in.

Reads   a `RemoteFile`, through the `Store` that listed it
Gives   `download`, and the words that stores share: `RemoteFile`, `Listed`, `Store`, `Body`,
        `Seal`, `Away`, `Patience`, `checked`
Not     how a store is asked (s3.py, web.py), which one has a URI (remote.py)
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NoReturn, Protocol

from dpoflow.contracts.errors import DataRejected, ServiceUnavailable
from dpoflow.sources.files import SUFFIXES, suffix_of

CHUNK = 1 << 20

PATIENCE_S = 300.0
"""How long a download waits for its next MiB before it gives up; what came is kept."""

MAX_IN_VAIN = 5
"""How often a download may begin anew without coming further than ever."""

Progress = Callable[[int], None]
"""Hears how many bytes of a file are there."""


class Away(Exception):
    """The store did not answer this time."""

    def __init__(self, said: str, *, wait_s: float = 1.0) -> None:
        super().__init__(said)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Body:
    """Bytes on their way."""

    start: int
    """Where in the file they begin: 0 where the store cannot begin elsewhere."""
    chunks: Iterator[bytes]


@dataclass(frozen=True)
class Seal:
    """What a store says of a file when its last byte has come."""

    told: str
    """Its version, for people."""
    digests: dict[str, bytes] = field(default_factory=dict)
    """Of the whole file, by the names that hashlib knows; those the store tells of."""


class Store(Protocol):
    """Where files lie. What waiting will not mend is ConfigError or DataRejected."""

    def objects(self, uri: str) -> "Listed":
        """What `uri` names; ServiceUnavailable where nobody answers."""
        ...

    def open(self, wanted: "RemoteFile", start: int) -> AbstractContextManager[Body]:
        """The file from `start` on; Away, then or in the middle, where the store is."""
        ...

    def confirm(self, wanted: "RemoteFile") -> Seal:
        """Ask once more: DataRejected where the file is another one by now. Raises Away."""
        ...


@dataclass(frozen=True)
class RemoteFile:
    """One file as it was when it was listed."""

    uri: str
    """As people may see it."""
    name: str
    """Path inside the source."""
    num_bytes: int | None
    """None where the store does not say."""
    version: str
    """ETag or date; another one is another file."""
    store: Store = field(repr=False, compare=False)
    exact: bool = True
    """Whether one version has one sequence of bytes: only then a download can go on."""
    key: str = field(default="", repr=False)
    """What its store finds it by, where that is more than the URI."""
    most: int = field(default=64 << 30, compare=False)
    """More bytes than this are not fetched."""

    @property
    def draft(self) -> str:
        """A file name of its own: another version of the file never continues this one's."""
        told = "\0".join((self.key or self.uri, self.version, str(self.num_bytes)))
        return hashlib.sha256(told.encode()).hexdigest()


@dataclass(frozen=True)
class Listed:
    """What a URI names."""

    files: list[RemoteFile]
    """Sorted by name."""
    ignored: list[str]
    """What lies there and is no data file by its name."""
    told: list[str] = field(default_factory=list)
    """What else is to be said of it."""


class Patience:
    """How long to wait for something to come: a MiB, or the whole that ends before it."""

    def __init__(self, seconds: float = PATIENCE_S) -> None:
        self._seconds, self._heard = seconds, time.monotonic()
        self._mark = self._furthest = self._in_vain = 0

    @property
    def left_s(self) -> float:
        """Until it has run out."""
        return self._heard + self._seconds - time.monotonic()

    def begin(self, start: int) -> None:
        """Bytes come from `start` on; behind what was there before, where a store has no ranges."""
        self._mark = min(self._mark, start)
        self._in_vain += 1

    def hear(self, have: int) -> None:
        """So many bytes are there. One now and then is no progress: Away."""
        if have >= self._mark + CHUNK:
            self._heard, self._mark = time.monotonic(), have
        elif self.left_s < 0:
            raise Away(f"less than a MiB came in {self._seconds:.0f} s")
        if have > self._furthest:
            self._furthest, self._in_vain = have, 0

    def wait(self, away: Away, advice: str) -> None:
        """Until it is worth asking again; ServiceUnavailable where it is not."""
        if away.wait_s > self.left_s or self._in_vain > MAX_IN_VAIN:
            raise ServiceUnavailable(f"{away}; {advice}") from None
        time.sleep(away.wait_s)


def checked(file: RemoteFile) -> RemoteFile:
    """`file`, if by its name and size it can be data."""
    if not file.name.isprintable():
        raise DataRejected(f"{file.name!a} has a name that cannot be printed; rename it")
    if suffix_of(file.name) is None:
        raise DataRejected(
            f"{file.uri} has no suffix that we can read; we read {', '.join(SUFFIXES)}"
        )
    if file.num_bytes == 0:
        raise DataRejected(f"{file.uri} is empty (0 bytes); remove it or upload it again")
    return file


def download(
    wanted: RemoteFile, target: Path, progress: Progress, *, patience_s: float = PATIENCE_S
) -> str:
    """Bring `target` to the whole of `wanted`; what is there already is not fetched again.

    Gives the version, for people. Raises DataRejected where the file is no longer the one that was
    listed, is not what its checksum says, or has more bytes than it may; ServiceUnavailable where
    the store stayed away.
    """
    patience, whole, seal = Patience(patience_s), False, None
    while seal is None:
        try:
            if not whole:
                _fetch(wanted, target, patience, progress)
                whole = True
            seal = wanted.store.confirm(wanted)
        except Away as away:
            patience.wait(away, _what_to_do(wanted, target))
    for kind, digest in seal.digests.items():
        if _digest(target, kind) != digest:
            _refuse_bytes(wanted, target, f"other bytes than its {kind.upper()} says")
    return seal.told


def _fetch(wanted: RemoteFile, target: Path, patience: Patience, progress: Progress) -> None:
    """What is missing. Where no size is known, the store tells where the end is."""
    limit = wanted.most if wanted.num_bytes is None else wanted.num_bytes
    have = _size(target)
    if not wanted.exact or have > limit:
        have = 0
    while have != wanted.num_bytes:
        with wanted.store.open(wanted, have) as body, _from(target, body.start) as out:
            have = body.start
            patience.begin(have)
            for chunk in body.chunks:
                have += out.write(chunk)
                if have > limit:
                    break
                patience.hear(have)
                progress(have)
        if have > limit:
            _refuse_length(wanted, target)
        if wanted.num_bytes is None:
            return
        if have < wanted.num_bytes:
            raise Away(f"{wanted.uri} was cut off")


def _from(target: Path, start: int) -> BinaryIO:
    """To be written on from `start`: its end, or 0.

    What begins anew is another file: an earlier attempt may have handed on this one by a hard link.
    """
    if start == 0:
        target.unlink(missing_ok=True)
    return target.open("ab")


def _size(target: Path) -> int:
    return target.stat().st_size if target.exists() else 0


def _what_to_do(wanted: RemoteFile, target: Path) -> str:
    again = "give the same command again when the store is back"
    if not wanted.exact or not _size(target):
        return again
    total = "" if wanted.num_bytes is None else f" of {wanted.num_bytes:,}"
    return f"{_size(target):,}{total} bytes are kept: {again}"


def _digest(path: Path, kind: str) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(
            stream, lambda: hashlib.new(kind, usedforsecurity=False)
        ).digest()


def _refuse_length(wanted: RemoteFile, target: Path) -> NoReturn:
    if wanted.num_bytes is not None:
        _refuse_bytes(wanted, target, f"more than its {wanted.num_bytes:,} bytes")
    target.unlink()
    raise DataRejected(too_large(wanted))


def _refuse_bytes(wanted: RemoteFile, target: Path, what: str) -> NoReturn:
    target.unlink()
    raise DataRejected(
        f"{wanted.uri} came with {what}; run again, and upload it anew if that does not help"
    )


def too_large(file: RemoteFile) -> str:
    """The sentence for a file that is more than anybody expects."""
    return (
        f"{file.uri} is larger than data.max_download_gb ({file.most / 2**30:.4g}); raise that if "
        "it is meant to be"
    )
