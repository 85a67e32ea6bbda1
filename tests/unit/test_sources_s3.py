"""Sources on S3: a real server, real sockets, kills on both sides."""

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from pydantic import ValidationError
from tests.seaweed import BUCKET, KEY, SECRET, Line, SeaweedFS
from tests.waiting import AT_MOST_S, Clock, until

from dpoflow.contracts.errors import ConfigError, DataRejected, ServiceUnavailable
from dpoflow.contracts.spec import SnapshotConfig, SourceConfig
from dpoflow.contracts.spec_file import sentence
from dpoflow.snapshot import data
from dpoflow.sources import downloads, s3
from dpoflow.sources.downloads import RemoteFile, download
from dpoflow.sources.pinned import read_pinned
from dpoflow.state.events import Events, read_events

MIB = 1 << 20


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


@pytest.fixture
def line(server: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    between = Line(server.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
    yield between
    between.close()


def rows(count: int, *, start: int = 0, padding: int = 10) -> bytes:
    made = (
        {"prompt": f"q{at}", "chosen": "yes " * padding, "rejected": "no"}
        for at in range(start, start + count)
    )
    return "".join(json.dumps(row) + "\n" for row in made).encode()


def pin(uri: str, folder: Path, **more: Any) -> str:
    """The digest under which the data of one source is pinned."""
    folder.mkdir(parents=True, exist_ok=True)
    config = SnapshotConfig(
        sources=(SourceConfig(uri=uri, name="feedback", **more),), model="unused"
    )
    events = Events(folder / "events.jsonl", "snapshot")
    located = data.find(config, folder, events)
    sealed = data.pin(located, folder / "data", events)
    data.write_origins(located, folder / "data", folder / "origins.json")
    return sealed.digest


def fetch(uri: str, target: Path) -> str:
    (wanted,) = s3.Store().objects(uri).files
    return download(wanted, target, lambda have: None)


def test_a_prefix_is_pinned_under_the_same_digest_as_a_folder_of_the_same_files(
    server: SeaweedFS, tmp_path: Path
) -> None:
    files = {"a.jsonl": rows(5), "deep/b.jsonl": rows(7, start=5), "notes.txt": b"not data"}
    for name, body in files.items():
        server.put(f"same/{name}", body)
        (tmp_path / "local" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "local" / name).write_bytes(body)

    far = pin(f"s3://{BUCKET}/same", tmp_path / "far")
    near = pin(str(tmp_path / "local"), tmp_path / "near")

    assert far == near == pin(f"s3://{BUCKET}/same/", tmp_path / "again")
    assert [entry.name for entry in read_pinned(tmp_path / "far" / "data")] == [
        "a.jsonl",
        "deep/b.jsonl",
    ]
    origin, _ = json.loads((tmp_path / "far" / "origins.json").read_text())
    assert origin["uri"] == f"s3://{BUCKET}/same/a.jsonl"
    assert origin["version"].strip('"') == hashlib.md5(rows(5), usedforsecurity=False).hexdigest()
    server.put("same/a.jsonl", rows(5).replace(b"q0", b"q9"))
    assert pin(f"s3://{BUCKET}/same", tmp_path / "changed") != far


def test_an_object_of_many_parts_is_the_same_file(server: SeaweedFS, tmp_path: Path) -> None:
    body = rows(120_000)
    (tmp_path / "big.jsonl").write_bytes(body)
    server.client().upload_file(str(tmp_path / "big.jsonl"), BUCKET, "parts/big.jsonl")

    fetch(f"s3://{BUCKET}/parts/big.jsonl", tmp_path / "came")

    assert len(body) > 8 * MIB, "boto3 uploads more than that in parts"
    assert (tmp_path / "came").read_bytes() == body


def test_a_version_is_named_where_the_bucket_keeps_versions(
    server: SeaweedFS, tmp_path: Path
) -> None:
    client = server.client()
    client.create_bucket(Bucket="versioned")
    client.put_bucket_versioning(Bucket="versioned", VersioningConfiguration={"Status": "Enabled"})
    version = client.put_object(Bucket="versioned", Key="a.jsonl", Body=rows(3))["VersionId"]

    assert f"version {version}" in fetch("s3://versioned/a.jsonl", tmp_path / "came")
    pin("s3://versioned/a.jsonl", tmp_path / "pinned")
    said = [event.message for event in read_events(tmp_path / "pinned" / "events.jsonl")[0]]
    assert any(f"s3://versioned/a.jsonl: {len(rows(3))} bytes" in text for text in said)
    assert any(f"version {version}" in text for text in said)


# ---------------------------------------------------------------- kills and cuts

PIN = """
import sys
from pathlib import Path
from tests.unit.test_sources_s3 import pin
print(pin(sys.argv[1], Path(sys.argv[2])))
"""


def bytes_under(folder: Path) -> int:
    """However many names a file has."""
    found = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum({each.st_ino: each.st_size for each in found}.values())


def large(server: SeaweedFS) -> str:
    body = rows(60_000, padding=100)
    server.put("large/a.jsonl", body)
    server.put("large/b.jsonl", body.replace(b"yes", b"yea"))
    assert len(body) > 20 * MIB
    return f"s3://{BUCKET}/large"


def test_a_killed_download_goes_on_where_it_was(
    server: SeaweedFS, line: Line, tmp_path: Path
) -> None:
    uri = large(server)
    whole = pin(uri, tmp_path / "whole")
    size, line.passed = line.passed, 0
    for share in (0.2, 0.5, 0.8):
        line.hold_at = share * size
        on_its_way = 2 * MIB - bytes_under(tmp_path / "killed")
        least = line.hold_at - line.passed - on_its_way
        process = subprocess.Popen([sys.executable, "-c", PIN, uri, str(tmp_path / "killed")])
        until(lambda: bytes_under(tmp_path / "killed") > least, "so much of it came")  # noqa: B023
        process.kill()
        assert process.wait() == -9, "it ended before it could be killed"
    line.hold_at = float("inf")

    again = pin(uri, tmp_path / "killed")

    assert again == whole
    assert line.passed < 1.25 * size, "hardly anything came twice"


def test_a_server_that_is_killed_and_started_again_is_waited_for(
    server: SeaweedFS, line: Line, tmp_path: Path
) -> None:
    uri = large(server)
    whole = pin(uri, tmp_path / "whole")
    line.passed, line.hold_at, told = 0, 10 * MIB, list[str]()
    worker = threading.Thread(target=lambda: told.append(pin(uri, tmp_path / "through")))
    worker.start()
    until(lambda: line.passed >= line.hold_at, "half of it came")

    server.kill()
    line.hold_at = float("inf")
    time.sleep(1)
    server.start()
    worker.join(AT_MOST_S)

    assert told == [whole]


def test_a_line_that_is_cut_is_taken_up_again(
    server: SeaweedFS, line: Line, tmp_path: Path
) -> None:
    uri = large(server)
    whole = pin(uri, tmp_path / "whole")
    line.cut_after = line.passed + 5 * MIB

    assert pin(uri, tmp_path / "cut") == whole
    assert line.cut_after is None


def test_an_object_that_changes_meanwhile_is_refused(server: SeaweedFS, tmp_path: Path) -> None:
    server.put("moving/a.jsonl", rows(5))
    (wanted,) = s3.Store().objects(f"s3://{BUCKET}/moving").files
    server.put("moving/a.jsonl", rows(6))

    with pytest.raises(DataRejected, match=r"a\.jsonl changed or went away"):
        download(wanted, tmp_path / "came", lambda have: None)

    server.client().delete_object(Bucket=BUCKET, Key="moving/a.jsonl")
    with pytest.raises(DataRejected, match=r"a\.jsonl changed or went away"):
        download(wanted, tmp_path / "came", lambda have: None)


def test_bytes_that_a_disk_damaged_meanwhile_are_not_taken(
    server: SeaweedFS, tmp_path: Path
) -> None:
    server.put("rot/a.jsonl", rows(50))
    (tmp_path / "came").write_bytes(b"#" * 100)

    with pytest.raises(DataRejected, match="came with other bytes than its MD5"):
        fetch(f"s3://{BUCKET}/rot/a.jsonl", tmp_path / "came")

    fetch(f"s3://{BUCKET}/rot/a.jsonl", tmp_path / "came")
    assert (tmp_path / "came").read_bytes() == rows(50)


def test_a_presigned_url_of_a_store_is_a_source_like_any_file_of_the_web(
    server: SeaweedFS, line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{large(server)}/a.jsonl"
    whole = pin(uri, tmp_path / "whole")
    style = Config(s3={"addressing_style": "path"}, signature_version="s3v4")
    client = boto3.client("s3", config=style)
    place = {"Bucket": BUCKET, "Key": "large/a.jsonl"}
    address, _, query = client.generate_presigned_url("get_object", Params=place).partition("?")
    monkeypatch.setenv("SIGNED", query)
    line.passed, line.cut_after = 0, 10 * MIB

    signed = pin(address, tmp_path / "signed", query_env="SIGNED")

    assert address.startswith(line.url)
    assert signed == whole
    assert line.cut_after is None
    assert line.passed < 30 * MIB, "it went on where it was"
    monkeypatch.setenv("SIGNED", query.replace("X-Amz-Signature=", "X-Amz-Signature=0"))
    with pytest.raises(ConfigError, match=r"HTTP 403.*query_env") as told:
        pin(address, tmp_path / "forged", query_env="SIGNED")
    assert "X-Amz" not in str(told.value)


# ---------------------------------------------------------------- what is wrong


def reply(status: str, code: str = "") -> bytes:
    body = f"<Error><Code>{code}</Code></Error>".encode() if code else b""
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


def test_a_store_that_is_busy_for_a_moment_is_asked_again(
    server: SeaweedFS, line: Line, tmp_path: Path
) -> None:
    server.put("busy/a.jsonl", rows(5))
    refusals = iter([reply("503 Slow Down", "SlowDown"), reply("500 Internal Server Error")])
    line.instead = lambda: next(refusals, None)

    fetch(f"s3://{BUCKET}/busy/a.jsonl", tmp_path / "came")

    assert (tmp_path / "came").read_bytes() == rows(5)
    assert next(refusals, None) is None


def test_a_store_that_stays_away_keeps_what_came(
    server: SeaweedFS, line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "time", Clock())
    wanted = s3.Store().objects(large(server)).files[0]
    line.pause_s = 0.002

    def hear(have: int) -> None:
        if have > 5 * MIB:
            line.instead = lambda: reply("503 Slow Down", "SlowDown")
            line.cut_after = 0

    with pytest.raises(ServiceUnavailable, match=r"bytes are kept: give the same command again"):
        download(wanted, tmp_path / "came", hear, patience_s=2)

    assert (tmp_path / "came").stat().st_size > 5 * MIB


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("s3://no-such-bucket/a.jsonl", "no such bucket"),
        (f"s3://{BUCKET}/nothing/here.jsonl", "names nothing"),
        (f"s3://{BUCKET}/nothing/", "names nothing"),
        ("s3:///a.jsonl", "is not s3://BUCKET/KEY"),
        ("s3://../etc/passwd", "is not s3://BUCKET/KEY"),
    ],
)
def test_a_uri_that_names_nothing_is_told(server: SeaweedFS, uri: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        s3.Store().objects(uri)


def test_objects_that_are_no_data_or_empty_are_told(server: SeaweedFS) -> None:
    server.put("odd/notes/read.txt", b"hello")
    server.put("odd/empty/a.jsonl", b"")

    with pytest.raises(ConfigError, match="holds none of its 1 objects in"):
        s3.Store().objects(f"s3://{BUCKET}/odd/notes")
    with pytest.raises(DataRejected, match="has no suffix that we can read"):
        s3.Store().objects(f"s3://{BUCKET}/odd/notes/read.txt")
    with pytest.raises(DataRejected, match=r"a\.jsonl is empty"):
        s3.Store().objects(f"s3://{BUCKET}/odd")


def test_keys_that_climb_out_of_their_folder_stay_names(server: SeaweedFS, tmp_path: Path) -> None:
    """Files are kept by their content, so a key is never a path of ours."""
    server.put("climb/a/b.jsonl", rows(2))
    (found,) = s3.Store().objects(f"s3://{BUCKET}/climb").files
    climbing = replace(found, name="../../../b.jsonl")
    located = [data.Located(SourceConfig(uri="s3://x/y"), "feedback", climbing, role="new")]

    data.pin(located, tmp_path / "data", Events(tmp_path / "events.jsonl", "snapshot"))

    (held,) = (tmp_path / "data" / "files").iterdir()
    assert held.name == hashlib.sha256(rows(2)).hexdigest()
    assert not (tmp_path.parent / "b.jsonl").exists()


def test_wrong_credentials_are_told_and_not_shown(
    server: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-" + SECRET)

    with pytest.raises(ConfigError, match="check the credentials") as error:
        s3.Store().objects(f"s3://{BUCKET}/a/")

    assert SECRET not in str(error.value)
    assert KEY not in str(error.value)


def test_no_credentials_are_told(
    server: SeaweedFS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))

    with pytest.raises(ConfigError, match="set AWS_ACCESS_KEY_ID and"):
        s3.Store().objects(f"s3://{BUCKET}/a/")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    with pytest.raises(ConfigError, match="go together, and one of them is missing"):
        s3.Store().objects(f"s3://{BUCKET}/a/")


def test_a_login_that_ran_out_is_no_outage(
    server: SeaweedFS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text(
        "[profile old]\nsso_start_url = https://127.0.0.1:9\nsso_region = us-east-1\n"
        "sso_account_id = 1\nsso_role_name = r\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "old")
    monkeypatch.setenv("HOME", str(tmp_path))

    with pytest.raises(ConfigError, match="log in again"):
        s3.Store().objects(f"s3://{BUCKET}/a/")


def test_what_somebody_wrote_into_a_url_is_not_shown(
    server: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValidationError) as refused:
        SourceConfig(uri=f"s3://{KEY}:{SECRET}@{BUCKET}/a.jsonl")
    assert SECRET not in sentence(refused.value.errors()[0])
    with pytest.raises(ConfigError, match="credentials stand in the environment") as told:
        s3.Store().objects(f"s3://{KEY}:{SECRET}@{BUCKET}/a.jsonl")
    assert SECRET not in str(told.value)

    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{SECRET}@bad host:9")
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL") as told:
        s3.Store()
    assert SECRET not in str(told.value)


def test_what_datasets_saved_is_the_same_on_a_store(server: SeaweedFS) -> None:
    for name in ("data-00000-of-00001.arrow", "cache-1.arrow", "state.json", "dataset_info.json"):
        server.put(f"saved/{name}", b"x")

    found = s3.Store().objects(f"s3://{BUCKET}/saved")

    assert [each.name for each in found.files] == ["data-00000-of-00001.arrow"]


def test_ten_thousand_objects_are_sorted_out_in_a_moment(
    server: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = s3.Store()
    many = [RemoteFile(f"s3://b/p/{n}.jsonl", f"{n}.jsonl", 1, "e", store) for n in range(10_000)]
    monkeypatch.setattr(store, "_below", lambda bucket, prefix: iter(many))

    assert len(store.objects(f"s3://{BUCKET}/p/").files) == 10_000


def test_a_store_that_nobody_serves_is_tried_later(
    server: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")

    with pytest.raises(ServiceUnavailable, match="does not answer"):
        s3.Store().objects(f"s3://{BUCKET}/a/")
