"""Answers that were paid for, kept for good: one SQLite file that survives kills and power cuts.

Reads   requests and replies
Gives   `Request`, `Reply`, `Cache` (look up, keep, what a payer has spent)
Not     asking servers (client.py)

An answer is on disk before anybody uses it. Several answers that arrive together share one commit.
"""

import asyncio
import functools
import json
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from dpoflow.contracts.base import Contract, canonical_json, sha256_text
from dpoflow.contracts.errors import ConfigError, DpoflowError, ServiceUnavailable

VERSION = 1
_TABLE = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY,
    request TEXT NOT NULL,
    reply TEXT NOT NULL,
    payer TEXT NOT NULL,
    model TEXT NOT NULL,
    tokens_read INTEGER NOT NULL,
    tokens_written INTEGER NOT NULL,
    money REAL NOT NULL,
    kept_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS replies_by_payer ON replies (payer, model);
"""
Result = TypeVar("Result")


class Request(Contract):
    """Everything that an answer depends on."""

    base_url: str
    model: str
    messages: tuple[dict[str, str], ...]
    parameters: dict[str, Any]
    template: str
    """Name and digest of the template that the messages were made from."""
    repeat: int = 0
    """Tells apart requests that are the same on purpose."""

    @functools.cached_property
    def body(self) -> bytes:
        """What is sent."""
        told = {"model": self.model, "messages": self.messages, **self.parameters}
        return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()

    @functools.cached_property
    def text(self) -> str:
        """All of it as canonical JSON."""
        return canonical_json(self)

    @functools.cached_property
    def key(self) -> str:
        """sha256 over all of it."""
        return sha256_text(self.text)


class Reply(Contract):
    """What a server said."""

    text: str
    finish_reason: str
    tokens_read: int
    tokens_written: int
    first_token: dict[str, float] | None = None
    """Log-probabilities of the likeliest first tokens, where they were asked for and given."""


class Spent(NamedTuple):
    """What was paid, all in all."""

    requests: int = 0
    tokens: int = 0
    """Read and written."""
    money: float = 0.0


class Cache:
    """The file at `path`; `payer` is whose budget new answers are counted against."""

    def __init__(self, path: Path, payer: str) -> None:
        self.path, self._payer = path, payer
        self.closed_by: DpoflowError | None = None
        """Why nobody is asked any more: what would be paid could be lost."""
        self._database: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, "requests")  # SQLite connections belong to a thread
        self._committing: asyncio.Future[None] | None = None
        self._waiting: list[tuple[tuple[Any, ...], asyncio.Future[bool]]] = []

    def __enter__(self) -> Self:
        try:
            self._thread.submit(self._told, self._open).result()
        except BaseException:  # nobody else would end the thread
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._database is not None:
            self._thread.submit(self._database.close).result()
        self._thread.shutdown()

    @property
    def _open_database(self) -> sqlite3.Connection:
        assert self._database is not None, "used outside its context"
        return self._database

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{self.path.parent} cannot be made ({error.strerror}); name another home"
            ) from None
        self._database = sqlite3.connect(self.path, isolation_level=None)
        self._database.execute("PRAGMA busy_timeout = 60000")
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version not in (0, VERSION):
            raise ConfigError(
                f"{self.path} was written by another version of dpoflow (layout {version}, this "
                f"one reads {VERSION}); nothing in it was touched: use that version, or move the "
                "file away and pay for its answers again"
            )
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.executescript(_TABLE)
        self._database.execute(f"PRAGMA user_version = {VERSION}")

    def _told(self, work: Callable[..., Result], *given: Any) -> Result:
        """`work`, with SQLite's errors in words that say who acts."""
        try:
            return work(*given)
        except sqlite3.OperationalError as error:
            raise ServiceUnavailable(
                f"the answers paid for cannot be kept in {self.path} ({error}); make room or mend "
                "the disk and give the same command again: what is in the file is not paid twice"
            ) from error
        except sqlite3.DatabaseError as error:
            raise ConfigError(
                f"{self.path} is damaged ({error}); move it away to begin a new one, or restore "
                "it from a copy to keep what was paid for"
            ) from error

    async def _call(self, work: Callable[..., Result], *given: Any) -> Result:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._told, work, *given)

    async def find(self, request: Request) -> Reply | None:
        """The answer to this very request, if it was ever paid for."""
        return await self._call(self._find, request.key)

    def _find(self, key: str) -> Reply | None:
        row = self._open_database.execute(
            "SELECT reply FROM replies WHERE key = ?", (key,)
        ).fetchone()
        return Reply.model_validate_json(row[0]) if row else None

    async def keep(self, request: Request, reply: Reply, money: float) -> Reply:
        """The answer that is on disk once this returns: another run's, if that was quicker."""
        kept = asyncio.get_running_loop().create_future()
        row = (
            request.key,
            request.text,
            reply.model_dump_json(),
            self._payer,
            request.model,
            reply.tokens_read,
            reply.tokens_written,
            money,
            time.time(),
        )
        self._waiting.append((row, kept))
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit_all())
        return reply if await kept else (await self.find(request) or reply)

    async def _commit_all(self) -> None:
        """Whatever arrives while one commit is on its way to the disk goes into the next one."""
        while self._waiting:
            batch, self._waiting = self._waiting, []
            failed: BaseException | None = None
            all_new = False
            try:
                all_new = await self._call(self._commit, [row for row, _ in batch])
            except BaseException as error:  # noqa: BLE001  # whoever waits is told
                failed = error
            for _, kept in batch:
                if failed is not None and not kept.done():
                    kept.set_exception(failed)
                elif not kept.done():
                    kept.set_result(all_new)
                # One at a time: replies that come meanwhile do not wait until all have gone on.
                await asyncio.sleep(0)
        self._committing = None

    def _commit(self, rows: list[tuple[Any, ...]]) -> bool:
        """Whether none of them was there."""
        self._open_database.execute("BEGIN IMMEDIATE")
        try:
            # Another run may have paid for the same meanwhile: the first answer stays the answer.
            num_new = self._open_database.executemany(
                "INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows
            ).rowcount
            self._open_database.execute("COMMIT")
        except BaseException:
            if self._open_database.in_transaction:
                self._open_database.execute("ROLLBACK")
            raise
        return num_new == len(rows)

    def spent(self) -> dict[str, Spent]:
        """By model, what this payer has spent, earlier attempts included."""
        rows = self._thread.submit(self._told, self._spent).result()
        return {model: Spent(requests, tokens, money) for model, requests, tokens, money in rows}

    def _spent(self) -> list[tuple[str, int, int, float]]:
        return self._open_database.execute(
            "SELECT model, COUNT(*), SUM(tokens_read + tokens_written), SUM(money) FROM replies "
            "WHERE payer = ? GROUP BY model ORDER BY model",
            (self._payer,),
        ).fetchall()
