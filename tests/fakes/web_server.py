"""A fake web server, over real sockets, whose pages misbehave as they are told.

    with WebServer() as server: server.pages["/a.jsonl"] = Page(body) … server.url …

Written from RFC 9110: ranges, If-Range, ETags, dates, redirects, chunks. `instead` answers in place
of a page for as long as it gives a reply; a page can be slow, cut, endless or told wrong.

What a real server has and this has not: files, caches, compression, keep-alive, more than one host.
"""

import contextlib
import re
import ssl
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SO_SNDBUF, SOL_SOCKET
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable

PIECE = 1 << 14


@dataclass
class Page:
    """What lies at a path."""

    body: bytes
    etag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True
    checks_if_range: bool = True
    """Off, ranges are given whatever If-Range says, as careless servers do."""
    length: int | None = None
    """What Content-Length says instead of the truth."""
    framing: str = "length"
    """`length`, `chunked`, or `close`: the connection's end is the body's."""
    headers: dict[str, str] = field(default_factory=dict)
    pause_s: float = 0.0
    """After each 16 KiB."""
    cut_after: int | None = None
    """Bytes of a reply, then the connection closes; once."""
    always_cut: bool = False
    endless: bool = False
    """The body again and again, in chunks."""


@dataclass
class Reply:
    """A reply without a body."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)


class WebServer:
    """`passed` counts the bytes of bodies that went out, `seen` keeps path and headers."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.pages: dict[str, Page] = {}
        self.instead: Callable[[str], Reply | None] = lambda path: None
        self.passed = 0
        self.hold_at: float = float("inf")
        """So many bytes in all, and nobody gets more while it stays."""
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"web": self})
        )
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self._scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self._scheme = "https"

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def asked(self, path: str, header: str) -> list[str | None]:
        """What each request for `path` said in `header`."""
        return [headers.get(header) for at, headers in self.seen if at.partition("?")[0] == path]

    def __enter__(self) -> Self:
        serve = {"poll_interval": 0.05}
        threading.Thread(target=self._server.serve_forever, kwargs=serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    web: WebServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        # A small buffer: what nobody reads is not counted as passed.
        self.connection.setsockopt(SOL_SOCKET, SO_SNDBUF, 1 << 16)
        self.close_connection = True
        self.web.seen.append((self.path, dict(self.headers.items())))
        page = self.web.pages.get(self.path.partition("?")[0])
        if (reply := self.web.instead(self.path)) is not None:
            self._head(reply.status, {"Content-Length": "0", **reply.headers})
        elif page is None:
            self._head(404, {"Content-Length": "0"})
        else:
            with contextlib.suppress(OSError):
                self._give(page)

    def _give(self, page: Page) -> None:
        headers, status, body = dict(page.headers), 200, page.body
        headers |= {"ETag": page.etag} if page.etag else {}
        headers |= {"Last-Modified": page.modified} if page.modified else {}
        start, total = self._start(page), len(page.body)
        if start is not None and start >= total:
            self._head(416, {"Content-Range": f"bytes */{total}", "Content-Length": "0"})
            return
        if start is not None:
            status, body = 206, body[start:]
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{page.length or total}"
        if page.framing == "chunked":
            headers["Transfer-Encoding"] = "chunked"
        elif page.framing == "length":
            whole = page.length is None or start is not None
            headers["Content-Length"] = str(len(body) if whole else page.length)
        self._head(status, headers)
        self._send(page, body)

    def _start(self, page: Page) -> int | None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked is None or not page.ranges:
            return None
        condition = self.headers.get("If-Range")
        same = condition in (None, page.etag, page.modified) or not page.checks_if_range
        return int(asked[1]) if same else None

    def _send(self, page: Page, body: bytes) -> None:
        sent, most = 0, page.cut_after
        while body and not self.web.closing.is_set():
            piece = body[sent % len(body) :][:PIECE]
            if most is not None and sent >= most:
                page.cut_after = most if page.always_cut else None
                return
            framed = page.framing == "chunked"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if framed else piece)
            sent += len(piece)
            self.web.passed += len(piece)
            time.sleep(page.pause_s)
            while self.web.passed >= self.web.hold_at and not self.web.closing.is_set():
                time.sleep(0.01)
            if sent >= len(body) and not page.endless:
                break
        if page.framing == "chunked":
            self.wfile.write(b"0\r\n\r\n")

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
