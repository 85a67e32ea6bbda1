"""The audit log: every way to change it is found, and two that write at once make one chain."""

import hashlib
import hmac
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from tests.gate import postgresql

from dpoflow.contracts.errors import ConfigError, DataRejected, ServiceUnavailable
from dpoflow.registry.gate import audit

KEY = b"k" * 32


def log_in(folder: Path, key: bytes = KEY) -> audit.Log:
    log = audit.Log(audit.engine_of(f"sqlite:///{folder}/log.db"), key)
    try:
        log.prepare()
    except BaseException:
        log.engine.dispose()
        raise
    return log


@pytest.fixture
def log(tmp_path: Path) -> Iterator[audit.Log]:
    """Of five rows."""
    made = log_in(tmp_path)
    for number in range(5):
        made.append("rita", "approval", f"m/{number}", "allowed", {"reason": f"größe {number}"})
    yield made
    made.engine.dispose()


def tampered(folder: Path, *statements: str) -> None:
    """As somebody who owns the file, and so takes the triggers off first."""
    with closing(sqlite3.connect(folder / "log.db")) as database, database:
        for name in ("no_update", "no_delete", "head_no_delete"):
            database.execute(f"DROP TRIGGER dpoflow_audit_{name}")
        for statement in statements:
            database.execute(statement)


def fault(log: audit.Log) -> str:
    with pytest.raises(DataRejected) as raised:
        audit.verify(log.engine, KEY)
    return str(raised.value)


def test_a_log_that_nobody_touched_is_whole(log: audit.Log) -> None:
    assert audit.verify(log.engine, KEY).rows == 5


def test_the_chain_is_the_hmac_that_the_page_promises(log: audit.Log) -> None:
    """By hand, with hashlib and json alone."""
    previous = "0" * 64
    for entry in log.page(1, 10):
        body = {
            key: getattr(entry, key)
            for key in ("seq", "at", "actor", "action", "subject", "outcome", "detail")
        }
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        previous = hmac.new(KEY, (previous + text).encode(), hashlib.sha256).hexdigest()
        assert entry.hash == previous


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("actor = 'eve'", "row 3"),
        ("action = 'rejection'", "row 3"),
        ("subject = 'm/9'", "row 3"),
        ("outcome = 'denied'", "row 3"),
        ('detail = \'{"reason":"other"}\'', "row 3"),
        ("detail = 'no json'", "row 3"),
        ("at = '2020-01-01T00:00:00.000+00:00'", "row 3"),
        ("hash = '" + "a" * 64 + "'", "row 3"),
        ("previous = '" + "a" * 64 + "'", "row 3"),
    ],
)
def test_an_edited_row_is_named(log: audit.Log, tmp_path: Path, change: str, named: str) -> None:
    tampered(tmp_path, f"UPDATE dpoflow_audit SET {change} WHERE seq = 3")  # noqa: S608

    assert named in fault(log)


def test_a_removed_row_is_named(log: audit.Log, tmp_path: Path) -> None:
    tampered(tmp_path, "DELETE FROM dpoflow_audit WHERE seq = 3")

    assert "row 3 of the audit log was removed" in fault(log)


def test_a_removed_row_is_named_though_the_others_move_up(log: audit.Log, tmp_path: Path) -> None:
    tampered(
        tmp_path,
        "DELETE FROM dpoflow_audit WHERE seq = 3",
        "UPDATE dpoflow_audit SET seq = seq - 1 WHERE seq > 3",
    )

    assert "row 3 of the audit log was changed" in fault(log)


def test_two_rows_that_changed_places_are_found(log: audit.Log, tmp_path: Path) -> None:
    tampered(
        tmp_path,
        "UPDATE dpoflow_audit SET seq = 99 WHERE seq = 2",
        "UPDATE dpoflow_audit SET seq = 2 WHERE seq = 3",
        "UPDATE dpoflow_audit SET seq = 3 WHERE seq = 99",
    )

    assert "row 2" in fault(log)


def test_rows_that_were_cut_off_the_end_are_missed(log: audit.Log, tmp_path: Path) -> None:
    tampered(tmp_path, "DELETE FROM dpoflow_audit WHERE seq > 3")

    assert "rows 4 to 5 were removed" in fault(log)


def test_a_head_that_was_moved_back_is_found_for_want_of_the_key(
    log: audit.Log, tmp_path: Path
) -> None:
    third = log.page(3, 1)[0]
    tampered(
        tmp_path,
        "DELETE FROM dpoflow_audit WHERE seq > 3",
        f"UPDATE dpoflow_audit_head SET seq = 3, hash = '{third.hash}'",  # noqa: S608
    )

    assert "the head of the audit log" in fault(log)


def test_a_row_that_was_slipped_in_is_found(log: audit.Log, tmp_path: Path) -> None:
    tampered(
        tmp_path,
        "INSERT INTO dpoflow_audit SELECT 6, at, actor, action, subject, outcome, detail, hash, "
        "hash FROM dpoflow_audit WHERE seq = 5",
    )

    assert "row 6" in fault(log)


def test_an_emptied_log_is_found(log: audit.Log, tmp_path: Path) -> None:
    tampered(tmp_path, "DELETE FROM dpoflow_audit")

    assert "rows 1 to 5 were removed" in fault(log)


def test_another_key_verifies_nothing_and_starts_nothing(log: audit.Log, tmp_path: Path) -> None:
    with pytest.raises(DataRejected, match="row 1"):
        audit.verify(log.engine, b"z" * 32)
    with pytest.raises(DataRejected, match="the key is another"):
        log_in(tmp_path, b"z" * 32)


def test_what_was_changed_decides_nothing(log: audit.Log, tmp_path: Path) -> None:
    """Whoever asks for rows gets none that are not true."""
    tampered(tmp_path, "UPDATE dpoflow_audit SET actor = 'eve' WHERE seq = 3")

    with pytest.raises(DataRejected, match="row 3 of the audit log was changed"):
        log.rows(["approval"])


def test_nothing_is_added_to_a_log_whose_end_was_cut_off(log: audit.Log, tmp_path: Path) -> None:
    tampered(tmp_path, "UPDATE dpoflow_audit_head SET seq = 2")

    with pytest.raises(DataRejected, match="not what its key signed"):
        log.append("rita", "approval", "m/9", "allowed", {})


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE dpoflow_audit SET actor = 'eve'",
        "DELETE FROM dpoflow_audit WHERE seq = 5",
        "DELETE FROM dpoflow_audit_head",
    ],
)
def test_triggers_refuse_what_is_no_append(log: audit.Log, tmp_path: Path, statement: str) -> None:
    with (
        closing(sqlite3.connect(tmp_path / "log.db")) as database,
        pytest.raises(sqlite3.IntegrityError, match="append-only"),
    ):
        database.execute(statement)


APPEND = """
import sys
from dpoflow.registry.gate import audit
from tests.gate import postgresql
log = audit.Log(audit.engine_of(sys.argv[1]), b"k" * 32)
log.prepare()
for number in range(60):
    log.append(sys.argv[2], "approval", f"m/{number}", "allowed", {"number": number})
"""


def append_from_two_processes(uri: str) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", APPEND, uri, each]) for each in ("a", "b")]
    assert [writer.wait() for writer in writers] == [0, 0]


def test_two_processes_that_append_at_once_make_one_whole_chain(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/log.db"

    append_from_two_processes(uri)

    engine = audit.engine_of(uri)
    rows = audit.Log(engine, KEY).page(1, 1000)
    assert audit.verify(engine, KEY).rows == 120
    for actor in ("a", "b"):
        numbers = [entry.detail["number"] for entry in rows if entry.actor == actor]
        assert numbers == list(range(60))
    engine.dispose()


def test_postgresql_keeps_the_log_as_sqlite_does() -> None:
    """Two processes that append, triggers that refuse, and an owner who takes them off."""
    with postgresql() as uri:
        append_from_two_processes(uri)
        engine = audit.engine_of(uri)
        assert audit.verify(engine, KEY).rows == 120
        for statement in (
            "UPDATE dpoflow_audit SET actor = 'eve'",
            "DELETE FROM dpoflow_audit WHERE seq = 5",
            "TRUNCATE dpoflow_audit",
            "TRUNCATE dpoflow_audit_head",
        ):
            with engine.begin() as connection, pytest.raises(DBAPIError, match="append-only"):
                connection.execute(text(statement))
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE dpoflow_audit DISABLE TRIGGER ALL"))
            connection.execute(text("DELETE FROM dpoflow_audit WHERE seq = 5"))
        with pytest.raises(DataRejected, match="row 5 of the audit log was removed"):
            audit.verify(engine, KEY)
        engine.dispose()


def test_what_fails_in_a_turn_leaves_no_row(log: audit.Log) -> None:
    def fail() -> None:
        with log.exclusively() as turn:
            turn.append("rita", "approval", "m/9", "allowed", {})
            raise ConfigError("something else went wrong")

    with pytest.raises(ConfigError):
        fail()

    assert audit.verify(log.engine, KEY).rows == 5


def test_time_in_the_log_never_runs_back(log: audit.Log, tmp_path: Path) -> None:
    """A row of the future, as a clock that was set back leaves it."""
    later = "2999-01-01T00:00:00.000+00:00"
    last = log.page(5, 1)[0]
    body = {**last.told(), "seq": 6, "at": later}
    seal = log.seal_of(last.hash, body)
    with closing(sqlite3.connect(tmp_path / "log.db")) as database, database:
        database.execute(
            "INSERT INTO dpoflow_audit VALUES "
            "(6, ?, 'rita', 'approval', 'm/4', 'allowed', ?, ?, ?)",
            (
                later,
                json.dumps(body["detail"], ensure_ascii=False, separators=(",", ":")),
                last.hash,
                seal,
            ),
        )
        database.execute(
            "UPDATE dpoflow_audit_head SET seq = 6, hash = ?, mac = ?", (seal, log.mac_of(6, seal))
        )

    entry = log.append("rita", "approval", "m/5", "allowed", {})

    assert entry.at == later
    assert audit.verify(log.engine, KEY).rows == 7


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "has 0 bytes and needs 32"),
        ({audit.KEY: "short"}, "has 5 bytes and needs 32"),
        ({audit.KEY_FILE: "/nowhere/key"}, "/nowhere/key cannot be read"),
    ],
)
def test_without_a_key_there_is_no_log(environment: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        audit.key_of(environment)


def test_a_database_that_keeps_no_log_is_named() -> None:
    with pytest.raises(ConfigError, match="the backend store is mysql"):
        audit.engine_of("mysql+pymysql://u:p@h/d")


def test_a_database_that_is_away_is_told_without_its_password() -> None:
    log = audit.Log(audit.engine_of("postgresql://u:geheim@127.0.0.1:1/d"), KEY)

    with pytest.raises(ServiceUnavailable, match="does not answer") as raised:
        log.prepare()

    assert "geheim" not in str(raised.value)
