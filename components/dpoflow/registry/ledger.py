"""Decisions that stand: each is written once, where it outlives the machine that made it.

    WHERE/KEY/decision.json     who won
    WHERE/KEY/signature.json    who vouches for it, if anybody does; put after the decision

Reads   s3://BUCKET/PREFIX (sources/s3.py says where its credentials are looked for), or a folder
Gives   `check_ledger` before anything is spent, `record_once`, `recorded`
Not     what KEY is a digest of, nor what follows from a decision
"""

import contextlib
import errno
import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from dpoflow.contracts.errors import ConfigError, DataRejected, ServiceUnavailable
from dpoflow.registry.signature import DECISION, SIGNATURE
from dpoflow.sources import s3

KNOB = "evaluate.ledger"

_AWAY = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class Place(Protocol):
    """Where decisions stand. A name is KEY/FILE."""

    def check(self) -> None:
        """ConfigError where nothing could be put; nothing is left there."""
        ...

    def get(self, name: str) -> bytes | None:
        """What stands there, if anything."""
        ...

    def put_once(self, name: str, body: bytes) -> bytes | None:
        """Put `body` there whole if nothing is there; else give what is."""
        ...


def check_ledger(where: str) -> None:
    """ConfigError where `where` could keep no decision, ServiceUnavailable where it is away."""
    _place(where).check()


def recorded(where: str, key: str) -> bytes | None:
    """The decision that stands in `where` for the evaluation `key`; None where none does."""
    return _place(where).get(_name(key, DECISION))


def record_once(folder: Path, where: str, key: str) -> str:
    """Let the decision in `folder` stand in `where` for the evaluation `key`; a sentence on that.

    Raises DataRejected where another one stands there. Given the same again, it finishes what was
    cut off.
    """
    place = _place(where)
    # In this order: the decision says who was first, so nobody signs what lost.
    is_new = _put(place, where, key, folder / DECISION)
    is_signed = (folder / SIGNATURE).exists() and _put(place, where, key, folder / SIGNATURE)
    if is_new:
        with_it = ", with its signature" if is_signed else ""
        return f"recorded in {where} as {key}{with_it}"
    added = "; its signature was added" if is_signed else ""
    return f"{where} had this decision as {key}{added}"


def _put(place: Place, where: str, key: str, path: Path) -> bool:
    """Whether `path` is new there; the same bytes may be there already."""
    body = path.read_bytes()
    there = place.put_once(_name(key, path.name), body)
    if there is None or there == body:
        return there is None
    raise DataRejected(
        f"{KNOB} {where} has another {path.name} of evaluation {key}: sha256 {_sha256(there)} "
        f"stands there, and {_sha256(body)} came now. What is recorded stands; to evaluate again, "
        "change what is evaluated (more prompts, another seed), and that is recorded on its own"
    )


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _name(key: str, file: str) -> str:
    assert re.fullmatch(r"[0-9a-f]{16,128}", key), f"{key!a} is no hex digest"
    return f"{key}/{file}"


def _place(where: str) -> Place:
    """No message repeats what is no place: people write credentials into URLs."""
    if where.startswith(s3.SCHEME):
        return _Bucket(where)
    if not where.strip() or not where.isprintable() or "://" in where:
        raise ConfigError(f"{KNOB} is neither s3://BUCKET/PREFIX nor a folder; set it to one")
    return _Folder(Path(where))


class _Bucket:
    """Objects below a prefix."""

    def __init__(self, where: str) -> None:
        _, _, prefix = where.removeprefix(s3.SCHEME).partition("/")
        if not re.fullmatch(r"[\w!.*'()=/-]*", prefix) or {".", ".."} & set(prefix.split("/")):
            raise ConfigError(
                f"{KNOB} is not s3://BUCKET/PREFIX with a PREFIX of letters, digits and -_.!*'()=/"
            )
        self._root = where.rstrip("/")
        self._store = s3.Store(KNOB, "to list, to read and to write")

    def check(self) -> None:
        self._store.check_writable(self._at(".writable"))

    def get(self, name: str) -> bytes | None:
        return self._store.get(self._at(name))

    def put_once(self, name: str, body: bytes) -> bytes | None:
        return self._store.put_once(self._at(name), body)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"


class _Folder:
    """Files below a folder, which must be there: a mount that is missing is no empty ledger."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def check(self) -> None:
        name = f".writable-{uuid.uuid4().hex[:12]}"
        try:
            self.put_once(name, b"")
        finally:
            with self._explained():
                (self._root / name).unlink(missing_ok=True)

    def get(self, name: str) -> bytes | None:
        with self._explained():
            if not self._root.is_dir():
                raise ConfigError(
                    f"{KNOB} {self._root} is no folder on this machine; make it, or mount it"
                )
            try:
                return (self._root / name).read_bytes()
            except FileNotFoundError:
                return None

    def put_once(self, name: str, body: bytes) -> bytes | None:
        if (there := self.get(name)) is not None:
            return there
        path = self._root / name
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
        with self._explained():
            path.parent.mkdir(exist_ok=True)
            try:
                with draft.open("xb") as written:
                    written.write(body)
                    written.flush()
                    os.fsync(written.fileno())
                self._link(draft, path)
            except FileExistsError:  # somebody was faster
                return path.read_bytes()
            finally:
                draft.unlink(missing_ok=True)
        _flush(path.parent)
        _flush(self._root)
        return None

    def _link(self, draft: Path, path: Path) -> None:
        """Unlike a rename, a link never takes the place of what is there."""
        try:
            os.link(draft, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise ConfigError(
                f"{KNOB} {self._root} has no hard links ({error.strerror}), so nothing can be "
                "written there once; name a folder of another file system, or s3://BUCKET/PREFIX"
            ) from None

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _AWAY:
                raise ServiceUnavailable(
                    f"{KNOB} {self._root} does not answer ({error.strerror})"
                ) from None
            raise ConfigError(
                f"{KNOB} {self._root} cannot be read or written ({error.strerror}); mend that, or "
                "name another folder"
            ) from None


def _flush(folder: Path) -> None:
    """So that the names in it outlive a power cut."""
    with contextlib.suppress(OSError):  # file systems that cannot write as they go
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
