"""Sources on web servers: real sockets, and a fake server that does what servers do to us."""

import base64
import gzip
import hashlib
import ipaddress
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError
from tests.fakes.web_server import Page, Reply, WebServer
from tests.waiting import AT_MOST_S, Clock, until

from dpoflow.contracts.errors import ConfigError, DataRejected, ServiceUnavailable
from dpoflow.contracts.spec import SnapshotConfig, SourceConfig, Spec
from dpoflow.contracts.spec_file import sentence
from dpoflow.snapshot import data
from dpoflow.sources import downloads, remote, web
from dpoflow.sources.downloads import RemoteFile, download
from dpoflow.sources.pinned import read_pinned
from dpoflow.state.events import Events, read_events
from dpoflow_pipelines.rows import rows_of
from dpoflow_pipelines.run import check_sources

MIB = 1 << 20
SIGNATURE = "X-Amz-Signature=5ec2e7"


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer() as running:
        yield running


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Of whoever waits for a server: what that does and how long it takes does not count."""
    clock = Clock()
    monkeypatch.setattr(downloads, "time", clock)
    return clock


def rows(count: int, *, padding: int = 10) -> bytes:
    made = ({"prompt": f"q{n}", "chosen": "yes " * padding, "rejected": "no"} for n in range(count))
    return "".join(json.dumps(row) + "\n" for row in made).encode()


BIG = rows(20_000, padding=100)


def pin(folder: Path, uri: str, **more: Any) -> str:
    """The digest under which the data of one source is pinned."""
    folder.mkdir(parents=True, exist_ok=True)
    knobs = {"max_download_gb": more.pop("max_download_gb", 64)}
    source = SourceConfig(uri=uri, name="feedback", **more)
    config = SnapshotConfig(sources=(source,), model="unused", **knobs)
    events = Events(folder / "events.jsonl", "snapshot")
    located = data.find(config, folder, events)
    sealed = data.pin(located, folder / "data", events)
    data.write_origins(located, folder / "data", folder / "origins.json")
    return sealed.digest


def look(uri: str, **knobs: Any) -> RemoteFile:
    (found,) = web.Store(**{"patience_s": AT_MOST_S, **knobs}).objects(uri).files
    return found


def fetch(wanted: RemoteFile, target: Path, patience_s: float = AT_MOST_S) -> str:
    return download(wanted, target, lambda have: None, patience_s=patience_s)


def local(folder: Path, name: str, body: bytes) -> str:
    folder.mkdir()
    (folder / name).write_bytes(body)
    return pin(folder.with_name(f"{folder.name}-pinned"), str(folder / name))


# ---------------------------------------------------------------- what comes


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_is_pinned_under_the_same_digest_wherever_it_lies(
    server: WebServer, tmp_path: Path, framing: str, *, ranges: bool
) -> None:
    for name, body in (("a.jsonl", rows(50)), ("b.jsonl.gz", gzip.compress(rows(50)))):
        server.pages[f"/deep/{name}"] = Page(body, framing=framing, ranges=ranges)

        far = pin(tmp_path / f"far-{name}", f"{server.url}/deep/{name}")

        assert far == local(tmp_path / name, name, body)
        (entry,) = read_pinned(tmp_path / f"far-{name}" / "data")
        assert (entry.name, entry.num_bytes) == (name, len(body))


@pytest.mark.parametrize(
    ("path", "encoding", "name"),
    [
        ("/a.jsonl", "gzip", "a.jsonl.gz"),  # as objects are stored with Content-Encoding
        ("/a.jsonl.gz", "x-gzip", "a.jsonl.gz"),  # as Apache tells of .gz files
        ("/a.jsonl", "identity", "a.jsonl"),
    ],
)
def test_bytes_stay_as_they_came_and_the_name_says_how_they_are_packed(
    server: WebServer, tmp_path: Path, path: str, encoding: str, name: str
) -> None:
    body = gzip.compress(rows(5)) if "gzip" in encoding else rows(5)
    server.pages[path] = Page(body, headers={"Content-Encoding": encoding})

    found = look(server.url + path)
    fetch(found, tmp_path / "came")

    assert (found.name, (tmp_path / "came").read_bytes()) == (name, body)
    assert set(server.asked(path, "Accept-Encoding")) == {"identity"}


def test_blanks_and_letters_of_any_alphabet_may_stand_in_a_path(
    server: WebServer, tmp_path: Path
) -> None:
    server.pages["/m%C3%BC%20x/a%20b.jsonl"] = Page(rows(2))

    found = look(f"{server.url}/mü x/a b.jsonl")

    assert found.name == "a b.jsonl"
    assert fetch(found, tmp_path / "came") == '"one"'


@pytest.mark.parametrize(
    ("path", "error", "told"),
    [
        ("/%2e%2e%2f%2e%2e", DataRejected, "no suffix"),
        ("/", DataRejected, "no suffix"),
        ("/a.xlsx", DataRejected, "no suffix"),
        ("/empty.jsonl", DataRejected, "is empty"),
        ("/%1b[2J.jsonl", DataRejected, "cannot be printed"),
    ],
)
def test_a_name_that_is_none_is_told(
    server: WebServer, path: str, error: type[Exception], told: str
) -> None:
    server.pages[path] = Page(b"" if "empty" in path else b"x")

    with pytest.raises(error, match=told) as caught:
        look(server.url + path)

    assert str(caught.value).isprintable()


def test_a_name_that_climbs_is_only_its_last_part(server: WebServer, tmp_path: Path) -> None:
    server.pages["/a/..%2f..%2fetc%2fpasswd.jsonl"] = Page(rows(2))

    pin(tmp_path / "p", f"{server.url}/a/..%2f..%2fetc%2fpasswd.jsonl")

    (entry,) = read_pinned(tmp_path / "p" / "data")
    assert entry.name == "passwd.jsonl"


# ---------------------------------------------------------------- kills and cuts

PIN = """
import sys
from pathlib import Path
from tests.unit.test_sources_web import pin
print(pin(Path(sys.argv[2]), sys.argv[1]))
"""


def bytes_under(folder: Path) -> int:
    """However many names a file has."""
    found = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum({each.st_ino: each.st_size for each in found}.values())


def old() -> str:
    return (datetime.now(UTC) - timedelta(days=1)).strftime("%a, %d %b %Y %H:%M:%S GMT")


@pytest.mark.parametrize("by", ["etag", "date"])
def test_a_killed_download_goes_on_where_it_was(server: WebServer, tmp_path: Path, by: str) -> None:
    told = {"etag": '"one"'} if by == "etag" else {"etag": None, "modified": old()}
    server.pages["/big.jsonl"] = Page(BIG, **told)
    whole = local(tmp_path / "near", "big.jsonl", BIG)
    for share in (0.3, 0.6):
        server.hold_at = share * len(BIG)
        on_its_way = MIB - bytes_under(tmp_path / "killed")
        least = server.hold_at - server.passed - on_its_way
        command = [sys.executable, "-c", PIN, f"{server.url}/big.jsonl", str(tmp_path / "killed")]
        process = subprocess.Popen(command)
        until(lambda: bytes_under(tmp_path / "killed") > least, "so much of it came")  # noqa: B023
        process.kill()
        assert process.wait() == -9, "it ended before it could be killed"
    server.hold_at = float("inf")

    assert pin(tmp_path / "killed", f"{server.url}/big.jsonl") == whole
    assert len(BIG) > 8 * MIB
    assert server.passed < 1.25 * len(BIG), "hardly anything came twice"


@pytest.mark.parametrize(
    ("page", "goes_on"),
    [
        (Page(BIG), True),
        (Page(BIG, framing="chunked"), True),
        (Page(BIG, ranges=False), False),
        (Page(BIG, etag='W/"one"'), False),
        (Page(BIG, etag=None), False),
        (Page(BIG, etag=None, modified="now"), False),
    ],
    ids=["ranges", "no length", "no ranges", "weak tag", "nothing to hold on to", "just written"],
)
def test_a_connection_that_is_cut_is_taken_up_again(
    server: WebServer, tmp_path: Path, page: Page, *, goes_on: bool
) -> None:
    now = datetime.now(UTC) + timedelta(hours=1)  # by the clock of a server that is ahead
    modified = now.strftime("%a, %d %b %Y %H:%M:%S GMT") if page.modified else None
    server.pages["/a.jsonl"] = replace(page, modified=modified)
    wanted = look(f"{server.url}/a.jsonl")
    server.pages["/a.jsonl"].cut_after = 5 * MIB
    before = server.passed

    fetch(wanted, tmp_path / "came")

    assert (tmp_path / "came").read_bytes() == BIG
    assert (server.passed - before < 1.2 * len(BIG)) is goes_on


def test_where_the_end_is_unknown_a_whole_draft_is_known_to_be_whole(
    server: WebServer, tmp_path: Path
) -> None:
    server.pages["/a.jsonl"] = Page(BIG, framing="chunked")
    wanted = look(f"{server.url}/a.jsonl")
    (tmp_path / "came").write_bytes(BIG)
    before = server.passed

    fetch(wanted, tmp_path / "came")

    assert (tmp_path / "came").read_bytes() == BIG
    assert server.passed - before < MIB


def test_beginning_anew_leaves_alone_what_was_handed_on_by_a_hard_link(
    server: WebServer, tmp_path: Path
) -> None:
    """Killed after its content was kept, a step downloads again what has no sure version."""
    server.pages["/a.jsonl"] = Page(rows(5), etag="", modified="")
    fetch(look(f"{server.url}/a.jsonl"), tmp_path / "came")
    (tmp_path / "kept").hardlink_to(tmp_path / "came")
    server.pages["/a.jsonl"] = Page(rows(6), etag="", modified="")

    fetch(look(f"{server.url}/a.jsonl"), tmp_path / "came")

    assert (tmp_path / "came").read_bytes() == rows(6)
    assert (tmp_path / "kept").read_bytes() == rows(5)


@pytest.mark.full
def test_coming_as_far_as_before_may_take_longer_than_patience(
    server: WebServer, tmp_path: Path
) -> None:
    # 8 MiB take 10 s at least, one of them 1.3 s: a busy machine has six seconds for that one.
    server.pages["/a.jsonl"] = Page(BIG, ranges=False, cut_after=8 * MIB, pause_s=0.02)
    wanted = look(f"{server.url}/a.jsonl")
    began = time.monotonic()

    fetch(wanted, tmp_path / "came", patience_s=8)

    assert (tmp_path / "came").read_bytes() == BIG
    assert time.monotonic() - began > 2 * 8


@pytest.mark.full
def test_a_server_that_always_cuts_is_not_asked_for_ever(
    server: WebServer, clock: Clock, tmp_path: Path
) -> None:
    page = Page(BIG, ranges=False, cut_after=2 * MIB, always_cut=True)
    server.pages["/a.jsonl"] = page
    wanted = look(f"{server.url}/a.jsonl")

    with pytest.raises(ServiceUnavailable, match="was cut off"):
        fetch(wanted, tmp_path / "came")

    assert server.passed < 10 * 2 * MIB


def test_a_trickle_is_not_waited_for_for_ever(server: WebServer, tmp_path: Path) -> None:
    server.pages["/a.jsonl"] = Page(BIG, pause_s=0.3)
    wanted = look(f"{server.url}/a.jsonl")
    before = server.passed

    with pytest.raises(ServiceUnavailable, match="less than a MiB came in 2 s"):
        fetch(wanted, tmp_path / "came", patience_s=2)

    assert server.passed - before < MIB


def test_a_server_that_says_nothing_is_waited_for_and_no_longer(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]

        with pytest.raises(ServiceUnavailable, match=r"127\.0\.0\.1:\d+ does not answer"):
            look(f"http://127.0.0.1:{port}/a.jsonl", patience_s=1, timeout_s=0.3)


def test_a_server_that_nobody_serves_is_tried_later() -> None:
    with pytest.raises(ServiceUnavailable, match=r"127\.0\.0\.1:9 does not answer"):
        look("http://127.0.0.1:9/a.jsonl?key=5ec2e7", patience_s=1)


# ---------------------------------------------------------------- what changed


@pytest.mark.parametrize("checks", [True, False], ids=["careful", "careless"])
def test_a_file_that_changes_in_the_middle_is_refused(
    server: WebServer, tmp_path: Path, *, checks: bool
) -> None:
    server.pages["/a.jsonl"] = Page(BIG, cut_after=3 * MIB)
    wanted = look(f"{server.url}/a.jsonl")
    changed = Page(BIG.replace(b"yes", b"yea"), etag='"two"', checks_if_range=checks)

    def hear(have: int) -> None:
        server.pages["/a.jsonl"] = changed

    with pytest.raises(DataRejected, match=r"a\.jsonl changed or went away while"):
        download(wanted, tmp_path / "came", hear)


@pytest.mark.parametrize(
    "after",
    [Page(BIG, etag='"two"'), Page(BIG + b"x", etag=None), None],
    ids=["another tag", "another length", "gone"],
)
def test_a_file_that_changes_at_the_last_byte_is_refused(
    server: WebServer, tmp_path: Path, after: Page | None
) -> None:
    server.pages["/a.jsonl"] = Page(BIG)
    wanted = look(f"{server.url}/a.jsonl")

    def hear(have: int) -> None:
        if have == len(BIG):
            server.pages.pop("/a.jsonl", None)
            server.pages |= {"/a.jsonl": after} if after else {}

    with pytest.raises(DataRejected, match=r"a\.jsonl changed or went away while"):
        download(wanted, tmp_path / "came", hear)


def told(kind: str, body: bytes) -> str:
    return base64.b64encode(hashlib.new(kind, body).digest()).decode()


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize(
    ("header", "value", "kind"),
    [
        ("Content-MD5", "{}", "md5"),
        ("Digest", "unixsum=1,SHA-256={}", "sha256"),
        ("Repr-Digest", "sha-512=:{}:, new-kind=:AAAA:", "sha512"),
    ],
)
def test_what_a_server_says_of_the_bytes_is_held_against_them(
    server: WebServer, tmp_path: Path, header: str, value: str, kind: str, *, right: bool
) -> None:
    says = value.format(told(kind, BIG if right else b"other"))
    server.pages["/a.jsonl"] = Page(BIG, headers={header: says})
    wanted = look(f"{server.url}/a.jsonl")

    if right:
        fetch(wanted, tmp_path / "came")
    else:
        with pytest.raises(DataRejected, match=f"other bytes than its {kind.upper()} says"):
            fetch(wanted, tmp_path / "came")

    assert (tmp_path / "came").exists() is right


@pytest.mark.full
def test_a_length_that_is_too_great_is_never_reached(
    server: WebServer, clock: Clock, tmp_path: Path
) -> None:
    server.pages["/a.jsonl"] = Page(BIG, length=len(BIG) + 10, ranges=False)
    wanted = look(f"{server.url}/a.jsonl")

    with pytest.raises(ServiceUnavailable, match="was cut off"):
        fetch(wanted, tmp_path / "came")


def test_a_length_that_is_too_great_is_seen_where_ranges_are_known(
    server: WebServer, tmp_path: Path
) -> None:
    server.pages["/a.jsonl"] = Page(BIG, length=len(BIG) + 10)
    wanted = look(f"{server.url}/a.jsonl")

    with pytest.raises(DataRejected, match="changed or went away"):
        fetch(wanted, tmp_path / "came")


def test_more_bytes_than_were_told_of_are_refused(server: WebServer, tmp_path: Path) -> None:
    server.pages["/a.jsonl"] = Page(BIG)
    wanted = look(f"{server.url}/a.jsonl")
    server.pages["/a.jsonl"] = Page(BIG + BIG, framing="chunked")

    with pytest.raises(DataRejected, match=f"more than its {len(BIG):,} bytes"):
        fetch(wanted, tmp_path / "came")


def test_a_file_without_an_end_is_refused_at_the_limit(server: WebServer, tmp_path: Path) -> None:
    server.pages["/a.jsonl"] = Page(BIG, framing="chunked", endless=True)

    with pytest.raises(DataRejected, match=r"larger than data\.max_download_gb \(0\.02\)"):
        pin(tmp_path / "p", f"{server.url}/a.jsonl", max_download_gb=0.02)

    assert server.passed < 30 * MIB


def test_a_file_that_is_too_large_is_refused_before_it_is_fetched(
    server: WebServer, tmp_path: Path
) -> None:
    server.pages["/a.jsonl"] = Page(BIG)

    with pytest.raises(DataRejected, match=r"larger than data\.max_download_gb"):
        pin(tmp_path / "p", f"{server.url}/a.jsonl", max_download_gb=0.001)

    assert server.passed < MIB


def test_half_of_a_file_whose_end_nobody_tells_would_pass_for_the_whole(
    server: WebServer,
) -> None:
    server.pages["/a.jsonl"] = Page(BIG, framing="close")

    with pytest.raises(DataRejected, match="neither its length nor where it ends"):
        look(f"{server.url}/a.jsonl")


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(("status", "headers"), [(503, {"Retry-After": "1"}), (500, {}), (429, {})])
def test_a_server_that_is_busy_for_a_moment_is_asked_again(
    server: WebServer, clock: Clock, tmp_path: Path, status: int, headers: dict[str, str]
) -> None:
    server.pages["/a.jsonl"] = Page(rows(5))
    refusals = iter([Reply(status, headers), Reply(status, headers)])
    server.instead = lambda path: next(refusals, None)

    fetch(look(f"{server.url}/a.jsonl"), tmp_path / "came")

    assert (tmp_path / "came").read_bytes() == rows(5)
    assert next(refusals, None) is None


def test_a_server_says_how_long_to_wait(server: WebServer, clock: Clock) -> None:
    server.pages["/a.jsonl"] = Page(rows(5))
    refusals = iter([Reply(503, {"Retry-After": "3"})])
    server.instead = lambda path: next(refusals, None)

    look(f"{server.url}/a.jsonl", patience_s=AT_MOST_S)

    assert clock.slept == [3]


def test_a_server_that_wants_to_be_left_alone_for_an_hour_is(
    server: WebServer, clock: Clock
) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    for hour in ("3600", later.strftime("%a, %d %b %Y %H:%M:%S GMT")):
        server.instead = lambda path, hour=hour: Reply(503, {"Retry-After": hour})  # type: ignore[misc]

        with pytest.raises(ServiceUnavailable, match=r"busy or broken \(HTTP 503\)"):
            look(f"{server.url}/a.jsonl", patience_s=AT_MOST_S)

    assert clock.slept == []
    assert len(server.seen) == 2


def test_a_server_that_stays_away_keeps_what_came(
    server: WebServer, clock: Clock, tmp_path: Path
) -> None:
    server.pages["/a.jsonl"] = Page(BIG, cut_after=3 * MIB)
    wanted = look(f"{server.url}/a.jsonl")

    def hear(have: int) -> None:
        server.instead = lambda path: Reply(503)

    with pytest.raises(ServiceUnavailable, match=r"bytes are kept: give the same command again"):
        download(wanted, tmp_path / "came", hear, patience_s=2)

    assert (tmp_path / "came").stat().st_size >= 2 * MIB


@pytest.mark.parametrize(
    ("status", "way_out"),
    [
        (401, "data.sources[].query_env"),
        (403, "data.sources[].query_env"),
        (404, "mend the URL"),
        (410, "mend the URL"),
        (204, "mend the URL"),
        (400, "mend the URL"),
    ],
)
def test_a_refusal_names_the_uri_and_the_way_out(
    server: WebServer, monkeypatch: pytest.MonkeyPatch, status: int, way_out: str
) -> None:
    server.instead = lambda path: Reply(status)
    monkeypatch.setenv("SIGNED", SIGNATURE)
    source = SourceConfig(uri=f"{server.url}/a.jsonl?v=1", query_env="SIGNED")

    with pytest.raises(ConfigError) as caught:
        remote.listed(source, most=1 << 30)

    assert f"{server.url}/a.jsonl" in str(caught.value)
    assert way_out in str(caught.value)
    assert "v=1" not in str(caught.value)
    assert "5ec2e7" not in str(caught.value)


# ---------------------------------------------------------------- redirects


def test_redirects_are_followed_and_the_file_keeps_its_first_name(
    server: WebServer, tmp_path: Path
) -> None:
    server.pages["/objects/4711"] = Page(BIG, cut_after=3 * MIB)
    ways = {
        "/latest.jsonl": Reply(302, {"Location": "/one?sig=5ec2e7"}),
        "/one": Reply(307, {"Location": f"{server.url}/objects/4711?sig=5ec2e7"}),
    }
    server.instead = lambda path: ways.get(path.partition("?")[0])

    pin(tmp_path / "p", f"{server.url}/latest.jsonl")

    (entry,) = read_pinned(tmp_path / "p" / "data")
    assert (entry.name, entry.num_bytes) == ("latest.jsonl", len(BIG))
    assert "5ec2e7" not in (tmp_path / "p" / "events.jsonl").read_text()


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("/loop.jsonl", "more than 10 times"),
        ("file:///etc/passwd", "to a file: address"),
        ("ftp://127.0.0.1/x.jsonl", "to a ftp: address"),
        ("//user:5ec2e7@127.0.0.1/x.jsonl", "without user and password"),
        ("", "to nowhere"),
    ],
)
def test_some_redirects_are_not_followed(server: WebServer, location: str, told: str) -> None:
    server.instead = lambda path: Reply(302, {"Location": location})

    with pytest.raises(ConfigError, match=told) as caught:
        look(f"{server.url}/a.jsonl")

    assert "5ec2e7" not in str(caught.value)
    assert len(server.seen) <= 11


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of 127.0.0.1, signed by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now, here = datetime.now(UTC), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([here]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = tmp_path / "certificate.pem"
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


def test_https_is_held_to_its_certificate_and_never_left_for_http(
    server: WebServer, certificate: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.pages["/a.jsonl"] = Page(rows(5))
    with WebServer(certificate) as safe:
        safe.pages["/a.jsonl"] = Page(rows(5))

        with pytest.raises(ConfigError, match=r"cannot be trusted .*SSL_CERT_FILE"):
            look(f"{safe.url}/a.jsonl")

        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert fetch(look(f"{safe.url}/a.jsonl"), tmp_path / "came") == '"one"'
        safe.instead = lambda path: Reply(302, {"Location": f"{server.url}/a.jsonl?sig=5ec2e7"})
        with pytest.raises(ConfigError, match="from https down to http://127") as caught:
            look(f"{safe.url}/a.jsonl")
        assert "5ec2e7" not in str(caught.value)
        assert server.seen == []

        server.instead = lambda path: Reply(302, {"Location": f"{safe.url}/b.jsonl"})
        safe.pages["/b.jsonl"], safe.instead = Page(rows(5)), lambda path: None
        fetch(look(f"{server.url}/a.jsonl"), tmp_path / "up")
        assert (tmp_path / "up").read_bytes() == rows(5)


# ---------------------------------------------------------------- secrets


def test_a_signature_is_sent_and_stands_nowhere(
    server: WebServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.pages["/a.jsonl"] = Page(rows(5))
    monkeypatch.setenv("SIGNED", f"?{SIGNATURE}&x=1\n")

    pin(tmp_path / "p", f"{server.url}/a.jsonl?version=3", query_env="SIGNED")

    assert {path for path, _ in server.seen} == {f"/a.jsonl?version=3&{SIGNATURE}&x=1"}
    said = [event.message for event in read_events(tmp_path / "p" / "events.jsonl")[0]]
    assert any(f"{server.url}/a.jsonl: {len(rows(5))} bytes" in text for text in said)
    for kept in tmp_path.rglob("*"):
        assert "5ec2e7" not in kept.name
        assert not kept.is_file() or b"5ec2e7" not in kept.read_bytes()


def test_a_url_that_is_signed_anew_goes_on_with_the_same_draft(
    server: WebServer, tmp_path: Path
) -> None:
    server.pages["/a.jsonl"] = Page(BIG, cut_after=3 * MIB)
    uri = f"{server.url}/a.jsonl"

    assert look(uri, query="sig=1").draft == look(uri, query="sig=2").draft
    assert look(f"{uri}?v=1").draft != look(f"{uri}?v=2").draft


@pytest.mark.parametrize(
    "uri",
    [
        f"https://host/a.jsonl?{SIGNATURE}",
        "https://host/a.jsonl?sv=2024&sig=5ec2e7",
        "https://host/a.jsonl?access_token=5ec2e7",
        "HTTPS://host/a.jsonl?X-Goog-Signature=5ec2e7",
        "https://user:5ec2e7@host/a.jsonl",
        "http://5ec2e7@host/a.jsonl",
    ],
)
def test_a_spec_holds_no_secret_and_its_error_repeats_none(uri: str) -> None:
    with pytest.raises(ValidationError) as refused:
        SourceConfig(uri=uri)

    told = sentence(refused.value.errors()[0])
    assert "5ec2e7" not in told
    assert "query_env" in told or "neither user nor password" in told


@pytest.mark.parametrize("uri", ["https://host/a.jsonl?download=true", "https://host/a.jsonl?v=3"])
def test_a_query_that_opens_no_door_may_stand_in_a_spec(uri: str) -> None:
    assert SourceConfig(uri=uri).uri == uri


def test_a_variable_that_is_not_set_or_not_used_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIGNED", raising=False)
    with pytest.raises(ConfigError, match=r"SIGNED is not set, and .*https://host/a\.jsonl takes"):
        remote.listed(SourceConfig(uri="https://host/a.jsonl", query_env="SIGNED"), most=1)
    with pytest.raises(ValidationError, match="is used by https:// alone"):
        SourceConfig(uri="a.jsonl", query_env="SIGNED")
    with pytest.raises(ValidationError, match="must name an environment variable"):
        SourceConfig(uri="https://host/a.jsonl", query_env="sig=5ec2e7")


@pytest.mark.parametrize(
    "uri", ["https://", "https:///a.jsonl", "https://[::1/a.jsonl", "https://h:x/a.jsonl"]
)
def test_a_url_that_is_none_is_told(uri: str) -> None:
    with pytest.raises(ConfigError, match="is not https://HOST/PATH"):
        web.Store().objects(uri)


def test_plain_http_is_taken_and_said_to_be_unprotected() -> None:
    assert "nobody vouches" in web.how_it_came("http://mirror.corp/a.jsonl")
    for safe in ("https://mirror.corp/a", "http://127.0.0.1:80/a", "http://localhost/a"):
        assert web.how_it_came(safe) == ""


# ---------------------------------------------------------------- before there is a run


def spec_of(uri: str) -> Spec:
    given = {"name": "far", "model": "package://x/y.gguf", "data": {"sources": [{"uri": uri}]}}
    return Spec.model_validate(given)


def test_a_source_that_is_not_there_is_told_before_there_is_a_run(server: WebServer) -> None:
    server.pages["/a.jsonl"] = Page(rows(5))

    check_sources(spec_of(f"{server.url}/a.jsonl"))
    with pytest.raises(ConfigError, match="has no such file"):
        check_sources(spec_of(f"{server.url}/b.jsonl"))
    with pytest.raises(ConfigError, match="an estimate reads the data") as caught:
        list(rows_of(spec_of(f"{server.url}/a.jsonl?v=1")))
    assert "v=1" not in str(caught.value)
