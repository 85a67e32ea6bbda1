"""A decision is written once: on a real S3 server and in a folder, raced for, killed, damaged."""

import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.seaweed import BUCKET, KEY, SECRET, SeaweedFS

from dpoflow.contracts.errors import ConfigError, DataRejected, DpoflowError, ServiceUnavailable
from dpoflow.registry.ledger import check_ledger, record_once, recorded
from dpoflow.sources import s3

EVALUATION = "5f" * 32
WON, LOST = b'{"verdict": "won"}\n', b'{"verdict": "lost"}\n'
# printf '{"verdict": "won"}\n' | sha256sum
SHA256_WON = "b8d4c0317b57e61715b070f46a1beec3e472e34329b88cd793ea1f7462cb001a"
SHA256_LOST = "93d7619434b97464afd663e819cec0184bb701e5d9529efdbe180c0bdd50fdfe"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    server = SeaweedFS(tmp_path_factory.mktemp("weed")).start()
    yield server
    server.kill()


@pytest.fixture
def server(running: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> SeaweedFS:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return running


@pytest.fixture(params=["s3", "folder"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty one."""
    if request.param == "s3":
        request.getfixturevalue("server")
        return f"s3://{BUCKET}/ledgers/{uuid.uuid4().hex}"
    (tmp_path / "ledger").mkdir()
    return str(tmp_path / "ledger")


def decided(folder: Path, decision: bytes, signature: bytes | None = None) -> Path:
    """What an evaluation leaves."""
    folder.mkdir()
    (folder / "decision.json").write_bytes(decision)
    if signature is not None:
        (folder / "signature.json").write_bytes(signature)
    return folder


def files_of(ledger: str, server: SeaweedFS) -> dict[str, bytes]:
    """All that a ledger holds, seen past the code."""
    if not ledger.startswith("s3://"):
        found = [path for path in Path(ledger).rglob("*") if path.is_file()]
        return {path.relative_to(ledger).as_posix(): path.read_bytes() for path in found}
    client, prefix = server.client(), ledger.removeprefix(f"s3://{BUCKET}/") + "/"
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return {
        each["Key"].removeprefix(prefix): client.get_object(Bucket=BUCKET, Key=each["Key"])[
            "Body"
        ].read()
        for each in listed
    }


def test_a_decision_and_its_signature_stand_under_the_evaluations_key(
    ledger: str, server: SeaweedFS, tmp_path: Path
) -> None:
    assert recorded(ledger, EVALUATION) is None

    said = record_once(decided(tmp_path / "made", WON, b"signed"), ledger, EVALUATION)

    assert said == f"recorded in {ledger} as {EVALUATION}, with its signature"
    assert recorded(ledger, EVALUATION) == WON
    assert files_of(ledger, server) == {
        f"{EVALUATION}/decision.json": WON,
        f"{EVALUATION}/signature.json": b"signed",
    }


def test_the_same_bytes_may_come_again(ledger: str, server: SeaweedFS, tmp_path: Path) -> None:
    made = decided(tmp_path / "made", WON)
    assert record_once(made, ledger, EVALUATION) == f"recorded in {ledger} as {EVALUATION}"

    assert record_once(made, ledger, EVALUATION) == f"{ledger} had this decision as {EVALUATION}"

    assert files_of(ledger, server) == {f"{EVALUATION}/decision.json": WON}


def test_another_decision_is_refused_and_what_stands_is_left_alone(
    ledger: str, server: SeaweedFS, tmp_path: Path
) -> None:
    record_once(decided(tmp_path / "first", LOST), ledger, EVALUATION)

    with pytest.raises(DataRejected) as told:
        record_once(decided(tmp_path / "second", WON, b"signed"), ledger, EVALUATION)

    for part in (EVALUATION, f"{SHA256_LOST} stands", f"{SHA256_WON} came", "more prompts"):
        assert part in str(told.value)
    assert files_of(ledger, server) == {f"{EVALUATION}/decision.json": LOST}


def test_another_signature_is_refused(ledger: str, server: SeaweedFS, tmp_path: Path) -> None:
    record_once(decided(tmp_path / "first", WON, b"by one"), ledger, EVALUATION)

    with pytest.raises(DataRejected, match=r"another signature\.json"):
        record_once(decided(tmp_path / "second", WON, b"by two"), ledger, EVALUATION)

    assert files_of(ledger, server)[f"{EVALUATION}/signature.json"] == b"by one"


def test_another_evaluation_stands_on_its_own(ledger: str, tmp_path: Path) -> None:
    record_once(decided(tmp_path / "first", LOST), ledger, EVALUATION)

    record_once(decided(tmp_path / "second", WON), ledger, "ab" * 32)

    assert [recorded(ledger, key) for key in (EVALUATION, "ab" * 32)] == [LOST, WON]


def test_of_writers_who_race_one_wins_and_the_others_hear_of_it(
    ledger: str, tmp_path: Path
) -> None:
    count = 6
    bodies = [f'{{"verdict": {at}}}'.encode() * 1000 for at in range(count)]
    made = [decided(tmp_path / str(at), body) for at, body in enumerate(bodies)]
    for number in range(3):
        key, outcomes = f"{number:064x}", dict[int, str]()
        together = threading.Barrier(count)

        def write(at: int) -> None:
            together.wait()  # noqa: B023  # joined before the next round
            try:
                outcomes[at] = record_once(made[at], ledger, key)  # noqa: B023
            except DataRejected as error:
                outcomes[at] = f"refused: {error}"  # noqa: B023

        writers = [threading.Thread(target=write, args=(at,)) for at in range(count)]
        for each in writers:
            each.start()
        for each in writers:
            each.join()

        (winner,) = [at for at, said in outcomes.items() if said.startswith("recorded in")]
        assert sum(said.startswith("refused: ") for said in outcomes.values()) == count - 1
        assert recorded(ledger, key) == bodies[winner]


KILLED = """
import os, signal, sys
from pathlib import Path
from dpoflow.registry.ledger import record_once

def hear(event, about):
    if event == "open" and str(about[0]).endswith("made/signature.json"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hear)
record_once(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
"""


def test_a_kill_between_decision_and_signature_is_finished_by_the_next(
    ledger: str, server: SeaweedFS, tmp_path: Path
) -> None:
    made = decided(tmp_path / "made", WON, b"signed")

    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(made), ledger, EVALUATION], check=False
    )

    assert process.returncode == -signal.SIGKILL
    assert files_of(ledger, server) == {f"{EVALUATION}/decision.json": WON}
    said = record_once(made, ledger, EVALUATION)
    assert said == f"{ledger} had this decision as {EVALUATION}; its signature was added"
    assert files_of(ledger, server)[f"{EVALUATION}/signature.json"] == b"signed"


def test_a_draft_that_a_kill_left_behind_is_no_decision(tmp_path: Path) -> None:
    (tmp_path / "ledger" / EVALUATION).mkdir(parents=True)
    (tmp_path / "ledger" / EVALUATION / ".decision.json.0123456789ab.tmp").write_bytes(LOST[:5])
    ledger = str(tmp_path / "ledger")

    assert recorded(ledger, EVALUATION) is None
    record_once(decided(tmp_path / "made", WON), ledger, EVALUATION)
    assert recorded(ledger, EVALUATION) == WON


# ---------------------------------------------------------------- before anything is spent


def test_a_ledger_that_will_do_is_left_as_it_is(ledger: str, server: SeaweedFS) -> None:
    check_ledger(ledger)

    assert files_of(ledger, server) == {}


@pytest.mark.parametrize("where", ["s3://no-such-bucket/ledger", "s3://no-such-bucket"])
def test_a_bucket_that_is_not_there_is_told_and_not_made(
    server: SeaweedFS, tmp_path: Path, where: str
) -> None:
    made = decided(tmp_path / "made", WON)

    for attempt in (
        lambda: check_ledger(where),
        lambda: recorded(where, EVALUATION),
        lambda: record_once(made, where, EVALUATION),
    ):
        with pytest.raises(ConfigError, match=r"no such bucket; mend evaluate\.ledger"):
            attempt()
    assert "no-such-bucket" not in [b["Name"] for b in server.client().list_buckets()["Buckets"]]


def test_a_bucket_that_one_may_not_write_to_is_told_beforehand(server: SeaweedFS) -> None:
    client = server.client()
    client.create_bucket(Bucket="sealed")
    client.put_bucket_policy(
        Bucket="sealed",
        Policy='{"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Principal": "*", '
        '"Action": "s3:PutObject", "Resource": "arn:aws:s3:::sealed/*"}]}',
    )

    assert recorded("s3://sealed/ledger", EVALUATION) is None
    with pytest.raises(ConfigError, match=r"AccessDenied.*to list, to read and to write"):
        check_ledger("s3://sealed/ledger")


def test_no_credentials_are_told_beforehand(
    server: SeaweedFS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))

    with pytest.raises(ConfigError, match="no credentials"):
        check_ledger(f"s3://{BUCKET}/ledger")


@pytest.mark.parametrize(
    "where",
    [
        *("", "  ", "s3://", "s3:///ledger", "s3://../ledger", f"s3://{BUCKET}/a/../b"),
        *("https://user:secret-of-the-test@store/ledger", "gs://bucket/ledger", "led\nger"),
        f"s3://{KEY}:{SECRET}@{BUCKET}/ledger",
        f"s3://{BUCKET}/ledger?X-Amz-Signature={SECRET}",
    ],
)
def test_what_is_no_place_is_told_and_not_shown(server: SeaweedFS, where: str) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.ledger is n") as told:
        check_ledger(where)

    assert SECRET not in str(told.value)
    assert "secret" not in str(told.value)


def test_wrong_credentials_are_told_and_not_shown(
    server: SeaweedFS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-" + SECRET)
    made = decided(tmp_path / "made", WON)

    for attempt in (
        lambda: check_ledger(f"s3://{BUCKET}/ledger"),
        lambda: record_once(made, f"s3://{BUCKET}/ledger", EVALUATION),
    ):
        with pytest.raises(ConfigError, match="check the credentials") as told:
            attempt()
        assert SECRET not in str(told.value)
        assert KEY not in str(told.value)


def test_a_folder_that_is_not_there_is_a_mount_that_is_missing(tmp_path: Path) -> None:
    made, where = decided(tmp_path / "made", WON), str(tmp_path / "not-mounted")

    for attempt in (
        lambda: check_ledger(where),
        lambda: recorded(where, EVALUATION),
        lambda: record_once(made, where, EVALUATION),
    ):
        with pytest.raises(ConfigError, match="no folder on this machine; make it, or mount it"):
            attempt()
    assert not Path(where).exists()


@pytest.mark.parametrize(
    ("number", "kind", "told"),
    [
        (1, ConfigError, "has no hard links"),  # EPERM, as Linux says it of FAT
        (30, ConfigError, "cannot be read or written"),  # EROFS
        (28, ConfigError, "cannot be read or written"),  # ENOSPC
        (116, ServiceUnavailable, "does not answer"),  # ESTALE, as NFS says it
    ],
)
def test_what_a_file_system_says_is_told_beforehand_and_nothing_is_left(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[DpoflowError],
    told: str,
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number), str(source), None, str(target))

    monkeypatch.setattr(os, "link", refuse)

    with pytest.raises(kind, match=told):
        check_ledger(str(tmp_path))

    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- stores that are no ledger


def test_a_store_that_says_nothing_is_tried_later(
    server: SeaweedFS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(s3, "READ_S", 0.2)
    made = decided(tmp_path / "made", WON)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel says hello for it
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")

        for attempt in (
            lambda: check_ledger(f"s3://{BUCKET}/ledger"),
            lambda: record_once(made, f"s3://{BUCKET}/ledger", EVALUATION),
        ):
            with pytest.raises(ServiceUnavailable, match="does not answer"):
                attempt()


class Careless(BaseHTTPRequestHandler):
    """A store that has never heard of If-None-Match."""

    objects: dict[str, bytes] = {}

    def do_GET(self) -> None:  # http.server's name
        found = self.objects.get(self.path)
        error = b"<Error><Code>NoSuchKey</Code></Error>"
        self._reply(404 if found is None else 200, error if found is None else found)

    def do_PUT(self) -> None:
        self.objects[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._reply(200, b"")

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *said: object) -> None:
        """Nothing."""


def test_a_store_that_would_overwrite_is_no_ledger(
    server: SeaweedFS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    handler = type("Handler", (Careless,), {"objects": {}})
    made = decided(tmp_path / "made", WON)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as careless:
        threading.Thread(target=careless.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{careless.server_port}")

        for _ in range(2):
            with pytest.raises(ConfigError, match="overwrites what is there"):
                record_once(made, "s3://careless/ledger", EVALUATION)

        careless.shutdown()


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (501, "NotImplemented", ConfigError),
        (409, "ConditionalRequestConflict", ServiceUnavailable),
        (412, "PreconditionFailed", ServiceUnavailable),
    ],
)
def test_a_store_that_never_takes_it_is_told(
    server: SeaweedFS,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    status: int,
    code: str,
    kind: type[DpoflowError],
) -> None:
    class Refusing(Careless):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._reply(status, f"<Error><Code>{code}</Code></Error>".encode())

    made = decided(tmp_path / "made", WON)
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as refusing:
        threading.Thread(target=refusing.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{refusing.server_port}")

        with pytest.raises(kind):
            record_once(made, "s3://refusing/ledger", EVALUATION)

        refusing.shutdown()
