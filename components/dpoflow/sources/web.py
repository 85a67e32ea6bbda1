"""Single files of web servers, also behind presigned URLs.

Reads   https://HOST/PATH or http://HOST/PATH. Proxies and certificates come from where Python
        looks for them (HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE)
Gives   `Store`, `is_web`, `name_of`, `shown`
Not     what files hold (files.py), going on after a kill (downloads.py)

A query may be a signature, so no message, event or file has one: a URL is shown without it. The
standard library asks, because it logs no URLs, and because redirects are ours to judge.
"""

import base64
import binascii
import contextlib
import hashlib
import ipaddress
import re
import ssl
import string
from collections.abc import Iterator
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse, InvalidURL
from pathlib import PurePosixPath
from typing import NoReturn
from urllib.error import URLError
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit
from urllib.request import HTTPHandler, HTTPSHandler, OpenerDirector, ProxyHandler, Request

from dpoflow import __version__
from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.sources.downloads import (
    CHUNK,
    Away,
    Body,
    Listed,
    Patience,
    RemoteFile,
    Seal,
    checked,
)

LOOK_PATIENCE_S = 30.0
"""How long to wait for a server that is away before anything was downloaded from it."""

MAX_REDIRECTS = 10

_REDIRECTS = (301, 302, 303, 307, 308)
_GONE = (404, 410)
_BUSY = (408, 425, 429)
_PACKED = {"gzip": ".gz", "x-gzip": ".gz", "zstd": ".zst"}
_DIGESTS = {"md5": "md5", "sha": "sha1", "sha-256": "sha256", "sha-512": "sha512"}
_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
_DIGEST = re.compile(r"([A-Za-z0-9-]+)=:?([A-Za-z0-9+/]+={0,2}):?")


def is_web(uri: str) -> bool:
    """Whether `uri` names a file of a web server."""
    return uri[:8].lower().startswith(("https://", "http://"))


def name_of(uri: str) -> str:
    """The last part of the path: what the file is called."""
    return PurePosixPath(unquote(_split(uri)[2])).name


def shown(uri: str) -> str:
    """`uri` without its query, for files and eyes."""
    scheme, netloc, path, _ = _split(uri)
    return _printable(f"{scheme}://{netloc}{path}")


class Store:
    """Web servers, asked for one file at a time."""

    def __init__(
        self, *, query: str = "", patience_s: float = LOOK_PATIENCE_S, timeout_s: float = 30
    ) -> None:
        """`query` is put to every URL that is asked for, and to nothing else."""
        self._query, self._patience_s, self._timeout_s = query, patience_s, timeout_s
        trust = ssl.create_default_context()
        self._opener = OpenerDirector()  # with nothing that follows redirects or opens file://
        for each in (ProxyHandler(), HTTPHandler(), HTTPSHandler(context=trust)):
            self._opener.add_handler(each)
        self._opener.addheaders = [("User-Agent", f"dpoflow/{__version__}"), ("Accept", "*/*")]

    def objects(self, uri: str) -> Listed:
        """The one file that `uri` names."""
        patience = Patience(self._patience_s)
        while True:
            try:
                with self._look(uri) as reply:
                    return Listed([checked(self._file(uri, reply))], [])
            except Away as away:
                patience.wait(away, f"it was asked for {shown(uri)}: try again later")

    @contextlib.contextmanager
    def open(self, wanted: RemoteFile, start: int) -> Iterator[Body]:
        """The file from `start` on, or from its beginning where the server knows no ranges."""
        asked = {"Range": f"bytes={start}-", "If-Range": wanted.version} if start else {}
        with contextlib.closing(self._ask(wanted.key, asked)) as reply:
            begin, total = _range(reply)
            if reply.status == 416 and wanted.num_bytes is None and total == start:
                yield Body(start, iter(()))  # where its end is was not known, and is now
                return
            if reply.status in _GONE or reply.status == 416:
                raise _changed(wanted)
            self._must_be_there(reply, wanted.uri)
            if _is_another(wanted, reply, total):
                raise _changed(wanted)
            if begin not in (0, start):
                raise DataRejected(
                    f"{wanted.uri}: the server gives other bytes than it was asked for; download "
                    "it, and name the file"
                )
            yield Body(begin, self._chunks(reply, wanted))

    def confirm(self, wanted: RemoteFile) -> Seal:
        """Its version, and the digests that the server tells of."""
        with contextlib.closing(self._ask(wanted.key, {})) as reply:
            if reply.status in _GONE:
                raise _changed(wanted)
            self._must_be_there(reply, wanted.uri)
            if _is_another(wanted, reply, _range(reply)[1]):
                raise _changed(wanted)
            told = _printable(wanted.version[:100]) or "neither ETag nor date"
            return Seal(told + how_it_came(wanted.uri), _digests(reply.headers))

    @contextlib.contextmanager
    def _look(self, uri: str) -> Iterator[HTTPResponse]:
        """A reply with the file's headers; its body is not read. Presigned URLs allow no HEAD."""
        with contextlib.closing(self._ask(uri, {})) as reply:
            if reply.status in _GONE:
                raise ConfigError(
                    f"data.sources[].uri {shown(uri)}: {_host(uri)} has no such file "
                    f"(HTTP {reply.status}); mend the URL"
                )
            self._must_be_there(reply, shown(uri))
            yield reply

    def _file(self, uri: str, reply: HTTPResponse) -> RemoteFile:
        version, exact = _version(reply.headers)
        total, encoding = _range(reply)[1], _encoding(reply.headers)
        if total is None and not reply.chunked:
            raise DataRejected(
                f"{shown(uri)}: the server tells neither its length nor where it ends, so half of "
                "it would pass for the whole; download it, and name the file"
            )
        if encoding and encoding not in _PACKED:
            raise DataRejected(
                f"{shown(uri)} comes {encoding}-encoded, which was not asked for; download it, and "
                "name the file"
            )
        name = name_of(uri)
        if (packed := _PACKED.get(encoding, "")) and not name.lower().endswith(packed):
            name += packed
        return RemoteFile(shown(uri), name, total, version, self, exact, key=uri)

    def _ask(self, uri: str, headers: dict[str, str]) -> HTTPResponse:
        """The reply at the end of the redirects, whatever its status."""
        at = _address(uri, self._query)
        for _ in range(MAX_REDIRECTS + 1):
            with self._explained(at):
                reply: HTTPResponse = self._opener.open(
                    Request(at, headers=headers),  # noqa: S310  # the opener knows http and https
                    timeout=self._timeout_s,
                )
            if reply.status not in _REDIRECTS:
                return reply
            reply.close()
            at = _redirected(uri, at, reply.headers.get("Location", ""))
        raise ConfigError(
            f"data.sources[].uri {shown(uri)} is redirected more than {MAX_REDIRECTS} times, at "
            f"last to {shown(at)}; name the address where the file is"
        )

    def _chunks(self, reply: HTTPResponse, wanted: RemoteFile) -> Iterator[bytes]:
        left = reply.length  # as the header says it; Python's own count stands still in read1
        while left != 0:
            with self._explained(wanted.key):
                chunk = reply.read1(CHUNK if left is None else min(CHUNK, left))
            if not chunk:
                break
            left = None if left is None else left - len(chunk)
            yield chunk
        if left or (left is None and not reply.chunked and wanted.num_bytes is None):
            raise Away(f"{wanted.uri} was cut off")

    @contextlib.contextmanager
    def _explained(self, uri: str) -> Iterator[None]:
        """What sockets raise, in our words."""
        host = _host(uri)
        try:
            yield
        except InvalidURL:
            _refuse_url()
        except (OSError, HTTPException) as error:
            reason = error.reason if isinstance(error, URLError) else error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise ConfigError(
                    f"{host} cannot be trusted ({reason.verify_message}); where its certificate is "
                    "your own authority's, name that in SSL_CERT_FILE"
                ) from None
            what = type(reason).__name__ if isinstance(reason, Exception) else str(reason)[:80]
            raise Away(f"{host} does not answer ({what})") from None

    def _must_be_there(self, reply: HTTPResponse, uri: str) -> None:
        status, host = reply.status, _host(uri)
        if status in (200, 206):
            return
        if status in _BUSY or status >= 500:
            raise Away(
                f"{host} is busy or broken (HTTP {status})", wait_s=_retry_after(reply.headers)
            )
        if status in (401, 403):
            raise ConfigError(
                f"{uri}: {host} refuses (HTTP {status}); name a variable with the query of a URL "
                "that is signed, and still valid, in data.sources[].query_env, or download the file"
            )
        raise ConfigError(
            f"{uri}: {host} answers HTTP {status} where a file was asked for; mend the URL, or "
            "download the file and name that"
        )


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def _split(uri: str) -> tuple[str, str, str, str]:
    """Scheme, host and port, path and query. No message repeats what cannot be split."""
    try:
        parts = urlsplit(uri)
        if parts.hostname is None or "@" in parts.netloc or parts.port == 0:
            _refuse_url()
    except ValueError:
        _refuse_url()
    return parts.scheme.lower(), parts.netloc, parts.path, parts.query


def _refuse_url() -> NoReturn:
    raise ConfigError(
        "data.sources[].uri is not https://HOST/PATH without user and password; a variable with "
        "the query of a presigned URL is named in data.sources[].query_env"
    ) from None


def _address(uri: str, query: str = "") -> str:
    """What goes over the line: ASCII only, blanks escaped."""
    scheme, netloc, path, own = _split(uri)
    try:
        host = netloc.encode("idna").decode()
    except UnicodeError:
        _refuse_url()
    asked = "&".join(each for each in (own, query.strip().lstrip("?")) if each)
    known = string.punctuation
    return urlunsplit((scheme, host, quote(path, safe=known) or "/", quote(asked, safe=known), ""))


def _host(uri: str) -> str:
    return _split(uri)[1]


def _redirected(uri: str, at: str, location: str) -> str:
    """Where `at` leads; nowhere but to web servers, and never from https down to http."""
    target = urljoin(at, quote(location, safe=string.punctuation, encoding="latin-1"))
    what = ""
    if not location:
        what = "to nowhere"
    elif not is_web(target):
        what = f"to a {target.partition(':')[0][:20]}: address"
    elif at.startswith("https:") and not target.lower().startswith("https:"):
        what = f"from https down to {shown(target)}"
    if what:
        raise ConfigError(
            f"data.sources[].uri {shown(uri)} is redirected {what}, which is not followed; name "
            "the address where the file is, or download it"
        )
    return _address(target)


def _version(headers: Message) -> tuple[str, bool]:
    """What tells one version from another, and whether it tells each byte (RFC 9110, 8.8)."""
    etag, modified = headers.get("ETag", ""), headers.get("Last-Modified", "")
    if etag:
        return etag, etag.startswith('"')
    with contextlib.suppress(ValueError, TypeError):
        changed, now = (parsedate_to_datetime(each) for each in (modified, headers.get("Date", "")))
        # A clock of seconds cannot tell two versions within one of them apart.
        return modified, (now - changed).total_seconds() >= 1
    return modified, False


def _is_another(wanted: RemoteFile, reply: HTTPResponse, total: int | None) -> bool:
    """Whether a reply says that it is of another file. Servers need not say all of it."""
    tag = "Last-Modified" if wanted.version.endswith("GMT") else "ETag"
    if wanted.version and reply.headers.get(tag, wanted.version) != wanted.version:
        return True
    return None not in (total, wanted.num_bytes) and total != wanted.num_bytes


def _changed(wanted: RemoteFile) -> DataRejected:
    return DataRejected(
        f"{wanted.uri} changed or went away while it was being read; run again when nobody writes "
        "to it"
    )


def _range(reply: HTTPResponse) -> tuple[int, int | None]:
    """Where the reply's bytes begin, and how many the whole file has, if it says so."""
    if reply.status == 200:
        return 0, reply.length
    found = _RANGE.fullmatch(reply.headers.get("Content-Range", "").strip())
    if found is None:
        return -1, None
    return int(found[1] or -1), None if found[2] == "*" else int(found[2])


def _encoding(headers: Message) -> str:
    given = headers.get("Content-Encoding", "").strip().lower()
    return "" if given == "identity" else given


def _digests(headers: Message) -> dict[str, bytes]:
    """Of the whole file, as hashlib names them: RFC 9530, RFC 3230 and RFC 1864."""
    told = {"md5": headers.get("Content-MD5", "").strip()}
    for name in ("Digest", "Content-Digest", "Repr-Digest"):
        told |= {kind.lower(): text for kind, text in _DIGEST.findall(headers.get(name, ""))}
    found = {}
    for kind, text in told.items():
        with contextlib.suppress(binascii.Error):
            digest = base64.b64decode(text, validate=True)
            if kind in _DIGESTS and len(digest) == hashlib.new(_DIGESTS[kind]).digest_size:
                found[_DIGESTS[kind]] = digest
    return found


def _retry_after(headers: Message) -> float:
    """Seconds that a server asks for, at least one."""
    given = headers.get("Retry-After", "").strip()
    if given.isdecimal():
        return max(1.0, float(given[:9]))
    with contextlib.suppress(ValueError, TypeError):
        return max(1.0, (parsedate_to_datetime(given) - datetime.now(UTC)).total_seconds())
    return 1.0


def how_it_came(uri: str) -> str:
    """What is to be said of the way the bytes took, if anything."""
    scheme, netloc, *_ = _split(uri)
    near = is_near(urlsplit(f"//{netloc}").hostname or "")
    return "" if near or scheme == "https" else ", over plain http: nobody vouches for its bytes"


def is_near(host: str) -> bool:
    """Whether a URL's host is the very machine, or pod, that asks."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:  # another name
        return False
    return address.is_loopback or address.is_unspecified
