"""The audit log: append-only, each row bound to the one before it by a key outside the database.

    hash of a row = HMAC-SHA256(key, previous hash ‖ canonical JSON of the row)

Reads   DPOFLOW_AUDIT_KEY_FILE (a file), or DPOFLOW_AUDIT_KEY (the key itself)
Gives   `Log`: `append`, `exclusively`, `rows`; `verify`, which needs an engine and the key alone
Not     what rows mean (book.py), who may write which (rules.py)

Appends happen one at a time, in all processes together. Triggers refuse UPDATE and DELETE to
whoever comes as the server does; `dpoflow_audit_head` says where the log ends, so that rows that
were cut off its end are missed. Whoever owns the database can put back an older log with the head
of that time, whole: hold the hash of `verify` somewhere else to find that.
"""

import hashlib
import hmac
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dpoflow.contracts.base import canonical_json
from dpoflow.contracts.errors import ConfigError, DataRejected, ServiceUnavailable

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Row, TextClause

KEY = "DPOFLOW_AUDIT_KEY"
KEY_FILE = "DPOFLOW_AUDIT_KEY_FILE"
MIN_KEY_BYTES = 32
FIRST = "0" * 64
"""What the first row calls the one before it."""
_LOCK = 0x64706F666C6F77
"""Of PostgreSQL's advisory locks: "dpoflow" in ASCII."""

Outcome = Literal["allowed", "denied"]

_TABLES = (
    """CREATE TABLE IF NOT EXISTS dpoflow_audit (
        seq BIGINT NOT NULL PRIMARY KEY, at VARCHAR(32) NOT NULL, actor VARCHAR(256) NOT NULL,
        action VARCHAR(64) NOT NULL, subject TEXT NOT NULL, outcome VARCHAR(8) NOT NULL,
        detail TEXT NOT NULL, previous CHAR(64) NOT NULL, hash CHAR(64) NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS dpoflow_audit_subject ON dpoflow_audit (action, subject)",
    """CREATE TABLE IF NOT EXISTS dpoflow_audit_head (
        one INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
        seq BIGINT NOT NULL, hash CHAR(64) NOT NULL, mac CHAR(64) NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS dpoflow_sealed (
        kind VARCHAR(16) NOT NULL, name VARCHAR(1024) NOT NULL, sealed_by VARCHAR(256) NOT NULL,
        run VARCHAR(64) NOT NULL, PRIMARY KEY (kind, name))""",
)
_REFUSALS = {
    "sqlite": (
        """CREATE TRIGGER IF NOT EXISTS dpoflow_audit_no_update BEFORE UPDATE ON dpoflow_audit
        BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END""",
        """CREATE TRIGGER IF NOT EXISTS dpoflow_audit_no_delete BEFORE DELETE ON dpoflow_audit
        BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END""",
        """CREATE TRIGGER IF NOT EXISTS dpoflow_audit_head_no_delete
        BEFORE DELETE ON dpoflow_audit_head
        BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END""",
    ),
    "postgresql": (
        """CREATE OR REPLACE FUNCTION dpoflow_append_only() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$""",
        """CREATE OR REPLACE TRIGGER dpoflow_audit_no_change
        BEFORE UPDATE OR DELETE OR TRUNCATE ON dpoflow_audit
        FOR EACH STATEMENT EXECUTE FUNCTION dpoflow_append_only()""",
        """CREATE OR REPLACE TRIGGER dpoflow_audit_head_no_delete
        BEFORE DELETE OR TRUNCATE ON dpoflow_audit_head
        FOR EACH STATEMENT EXECUTE FUNCTION dpoflow_append_only()""",
    ),
}
_COLUMNS = "seq, at, actor, action, subject, outcome, detail, previous, hash"


def key_of(environment: Mapping[str, str]) -> bytes:
    """The key that `environment` names. ConfigError where there is none, or it is short."""
    if path := environment.get(KEY_FILE):
        try:
            key = Path(path).read_bytes().strip()
        except OSError as error:
            raise ConfigError(
                f"{KEY_FILE} {path} cannot be read ({error.strerror}); name a file with the key "
                "of the audit log, such as one that openssl rand -hex 32 made"
            ) from None
    else:
        key = environment.get(KEY, "").strip().encode()
    if len(key) < MIN_KEY_BYTES:
        raise ConfigError(
            f"the key of the audit log has {len(key)} bytes and needs {MIN_KEY_BYTES}; let "
            f"{KEY_FILE} name a file that openssl rand -hex 32 made, or set {KEY} to such a key"
        )
    return key


def own_key() -> bytes:
    """The key that this process was given."""
    return key_of(os.environ)


@dataclass(frozen=True)
class Entry:
    """One row."""

    seq: int
    at: str
    """ISO 8601, UTC, milliseconds; never earlier than the row before, whatever the clock says."""
    actor: str
    """Who the identity provider says it was; empty where it did not know."""
    action: str
    subject: str
    outcome: Outcome
    detail: dict[str, Any]
    previous: str
    hash: str

    def told(self) -> dict[str, Any]:
        """What the hash is over, the row before aside."""
        return {
            "seq": self.seq,
            "at": self.at,
            "actor": self.actor,
            "action": self.action,
            "subject": self.subject,
            "outcome": self.outcome,
            "detail": self.detail,
        }

    @property
    def time(self) -> datetime:
        """When."""
        return datetime.fromisoformat(self.at)


@dataclass(frozen=True)
class Verified:
    """A log that is whole: how long it is, and the hash to hold somewhere else."""

    rows: int
    head: str


def engine_of(uri: str) -> "Engine":
    """Connections to the database `uri`, kept open between requests."""
    from sqlalchemy import create_engine, event
    from sqlalchemy.engine import make_url

    backend = make_url(uri).get_backend_name()
    if backend not in _REFUSALS:
        raise ConfigError(
            f"the gate keeps its log in sqlite or PostgreSQL, and the backend store is {backend}; "
            "name a postgresql:// store"
        )
    if backend == "postgresql":
        try:
            return create_engine(uri, pool_pre_ping=True, pool_size=8, max_overflow=8)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"PostgreSQL needs the package {error.name}; pip install 'psycopg[binary]'"
            ) from None
    engine = create_engine(uri, connect_args={"timeout": 60}, pool_size=8, max_overflow=40)

    @event.listens_for(engine, "connect")
    def _plain(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves

    return engine


def lookups_of(engine: "Engine") -> "Engine":
    """For a SELECT that most writes wait for: one round trip, where a transaction takes four.

    Nobody asks beforehand whether a connection still stands, so the caller asks once more.
    """
    from sqlalchemy import create_engine

    if engine.dialect.name == "sqlite":
        return engine  # it is in the process, and begins nothing by itself
    return create_engine(engine.url, isolation_level="AUTOCOMMIT", pool_size=8, max_overflow=8)


class Turn:
    """A transaction that nobody else's appends fall into."""

    def __init__(self, log: "Log", connection: "Connection") -> None:
        self._log, self.connection = log, connection

    def append(
        self, actor: str, action: str, subject: str, outcome: Outcome, detail: Mapping[str, Any]
    ) -> Entry:
        """Add a row. Raises DataRejected where the end of the log is not what the key signed."""
        seq, last = self._log.head(self.connection)
        earlier = self.connection.execute(
            _sql("SELECT at FROM dpoflow_audit WHERE seq = :seq"), {"seq": seq}
        ).scalar()
        at = max(now(), earlier or "")
        body = {
            "seq": seq + 1,
            "at": at,
            "actor": actor,
            "action": action,
            "subject": subject,
            "outcome": outcome,
            "detail": json.loads(canonical_json(dict(detail))),
        }
        entry = Entry(**body, previous=last, hash=self._log.seal_of(last, body))
        self.connection.execute(
            _sql(
                f"INSERT INTO dpoflow_audit ({_COLUMNS}) VALUES (:seq, :at, :actor, :action, "  # noqa: S608  # a constant
                ":subject, :outcome, :detail, :previous, :hash)"
            ),
            body | {"detail": canonical_json(entry.detail), "previous": last, "hash": entry.hash},
        )
        self.connection.execute(
            _sql("UPDATE dpoflow_audit_head SET seq = :seq, hash = :hash, mac = :mac"),
            {
                "seq": entry.seq,
                "hash": entry.hash,
                "mac": self._log.mac_of(entry.seq, entry.hash),
            },
        )
        return entry

    def rows(
        self, actions: Sequence[str], subject: str | None = None, *, after: int = 0
    ) -> list[Entry]:
        """As `Log.rows`, as this transaction sees them; those with a number above `after`."""
        return self._log.read(self.connection, actions, subject, after)


class Log:
    """The log in one database."""

    def __init__(self, engine: "Engine", key: bytes) -> None:
        self.engine, self.key = engine, key

    def prepare(self) -> None:
        """Make the tables and their triggers where they are missing, and look at the log's end.

        ConfigError where the key is another one, DataRejected where the end is not the log's,
        ServiceUnavailable where the database is away.
        """
        from sqlalchemy.exc import OperationalError

        try:
            with self._locked() as connection:
                for statement in (*_TABLES, *_REFUSALS[self.engine.dialect.name]):
                    connection.exec_driver_sql(statement)
                self._begin_head(connection)
                self._check_end(connection)
        except OperationalError as error:
            raise ServiceUnavailable(
                f"the database of the backend store does not answer ({type(error.orig).__name__}); "
                "check that it runs and that its URI is right"
            ) from None

    def append(
        self, actor: str, action: str, subject: str, outcome: Outcome, detail: Mapping[str, Any]
    ) -> Entry:
        """Add a row."""
        with self.exclusively() as turn:
            return turn.append(actor, action, subject, outcome, detail)

    @contextmanager
    def exclusively(self) -> Iterator[Turn]:
        """Look at the log and add to it while nobody else can."""
        with self._locked() as connection:
            yield Turn(self, connection)

    def rows(self, actions: Sequence[str], subject: str | None = None) -> list[Entry]:
        """Allowed rows of these actions, oldest first. DataRejected at one that was changed."""
        with self.engine.connect() as connection:
            return self.read(connection, actions, subject)

    def page(self, first: int, limit: int) -> list[Entry]:
        """Rows from `first` on, of every kind and outcome."""
        with self.engine.connect() as connection:
            found = connection.execute(
                _sql(
                    f"SELECT {_COLUMNS} FROM dpoflow_audit WHERE seq >= :first "  # noqa: S608
                    "ORDER BY seq LIMIT :limit"
                ),
                {"first": first, "limit": limit},
            )
            return [_entry(row) for row in found]

    def read(
        self, connection: "Connection", actions: Sequence[str], subject: str | None, after: int = 0
    ) -> list[Entry]:
        """What `rows` gives, over a connection that is open."""
        names: dict[str, Any] = {f"action_{place}": name for place, name in enumerate(actions)}
        where = f"outcome = 'allowed' AND action IN ({', '.join(f':{name}' for name in names)})"
        if subject is not None:
            where, names = f"{where} AND subject = :subject", names | {"subject": subject}
        if after:
            where, names = f"{where} AND seq > :after", names | {"after": after}
        found = connection.execute(
            _sql(f"SELECT {_COLUMNS} FROM dpoflow_audit WHERE {where} ORDER BY seq"),  # noqa: S608
            names,
        )
        return [self._true(_entry(row)) for row in found]

    def head(self, connection: "Connection") -> tuple[int, str]:
        """Number and hash of the last row, which the key has signed."""
        row = connection.execute(_sql("SELECT seq, hash, mac FROM dpoflow_audit_head")).first()
        if row is None or not hmac.compare_digest(row.mac, self.mac_of(row.seq, row.hash)):
            raise DataRejected(
                "the end of the audit log is not what its key signed: the log was changed, or the "
                f"key is another; run dpoflow review verify-log, and check {KEY_FILE}"
            )
        return int(row.seq), str(row.hash)

    def seal_of(self, previous: str, body: Mapping[str, Any]) -> str:
        """The hash of a row."""
        return _hmac(self.key, f"{previous}{canonical_json(dict(body))}")

    def mac_of(self, seq: int, last: str) -> str:
        """What says that the log ends here."""
        return _hmac(self.key, f"head {seq} {last}")

    def _true(self, entry: Entry) -> Entry:
        if not hmac.compare_digest(entry.hash, self.seal_of(entry.previous, entry.told())):
            raise DataRejected(
                f"row {entry.seq} of the audit log was changed after it was written; "
                "nothing is decided on it: restore the log from a backup"
            )
        return entry

    def _begin_head(self, connection: "Connection") -> None:
        ends = connection.execute(_sql("SELECT COUNT(*) FROM dpoflow_audit_head")).scalar()
        rows = connection.execute(_sql("SELECT COUNT(*) FROM dpoflow_audit")).scalar()
        if not ends and not rows:
            connection.execute(
                _sql("INSERT INTO dpoflow_audit_head VALUES (1, 0, :hash, :mac)"),
                {"hash": FIRST, "mac": self.mac_of(0, FIRST)},
            )

    def _check_end(self, connection: "Connection") -> None:
        seq, last = self.head(connection)
        found = connection.execute(
            _sql("SELECT seq, hash FROM dpoflow_audit ORDER BY seq DESC LIMIT 1")
        ).first()
        there = (0, FIRST) if found is None else (int(found.seq), found.hash)
        if there != (seq, last):
            raise DataRejected(
                f"the audit log ends at row {there[0]}, and its head says {seq}; "
                "restore it from a backup"
            )

    @contextmanager
    def _locked(self) -> Iterator["Connection"]:
        with self.engine.connect() as connection:
            if self.engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.execute(_sql("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.commit()


def verify(engine: "Engine", key: bytes) -> Verified:
    """Hash the whole log again. DataRejected names the first row that is not what was written."""
    log = Log(engine, key)
    seq, previous = 0, FIRST
    with engine.connect() as connection:
        streamed = connection.execution_options(yield_per=1000)
        with streamed.execute(
            _sql(f"SELECT {_COLUMNS} FROM dpoflow_audit ORDER BY seq")  # noqa: S608  # a constant
        ) as found:
            for row in found:
                _follows(log, row, seq, previous)
                seq, previous = int(row.seq), str(row.hash)
        end = connection.execute(_sql("SELECT seq, hash, mac FROM dpoflow_audit_head")).first()
    if end is None or not hmac.compare_digest(end.mac, log.mac_of(end.seq, end.hash)):
        raise DataRejected(
            "the head of the audit log is missing or was changed, or the key is another's; "
            "restore the log from a backup"
        )
    if (int(end.seq), end.hash) != (seq, previous):
        raise DataRejected(
            f"the audit log ends at row {seq}, and {end.seq} were written: rows "
            f"{seq + 1} to {end.seq} were removed; restore them from a backup"
            if end.seq > seq
            else f"row {seq} of the audit log came past its head; restore it from a backup"
        )
    return Verified(rows=seq, head=previous)


def _follows(log: Log, row: "Row[Any]", seq: int, previous: str) -> None:
    """DataRejected unless `row` is the one that was written after `seq`."""
    number = int(row.seq)
    if number != seq + 1:
        raise DataRejected(
            f"row {seq + 1} of the audit log was removed: {number} comes after {seq}; "
            "restore it from a backup"
        )
    try:
        entry = _entry(row)
        same = hmac.compare_digest(entry.hash, log.seal_of(entry.previous, entry.told()))
    except ValueError:
        same = False
    if not same:
        raise DataRejected(
            f"row {number} of the audit log was changed after it was written, or another key "
            "wrote it; restore it from a backup"
        )
    if row.previous != previous:
        raise DataRejected(
            f"row {number} of the audit log was not written after row {seq}; "
            "restore the log from a backup"
        )


def now() -> str:
    """The time, as rows tell it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _entry(row: "Row[Any]") -> Entry:
    return Entry(
        seq=int(row.seq),
        at=row.at,
        actor=row.actor,
        action=row.action,
        subject=row.subject,
        outcome=row.outcome,
        detail=json.loads(row.detail),
        previous=row.previous,
        hash=row.hash,
    )


def _hmac(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def _sql(text: str) -> "TextClause":
    from sqlalchemy import text as statement

    return statement(text)
