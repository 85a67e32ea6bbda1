"""A proxy between a program and a server that kills the program at a step of its own choosing.

Gives   `KillingProxy`: forwards requests; at a write that it has not struck at yet it kills the
        program, before the write reaches the server or after the server did it, and answers nothing
"""

import http.client
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Literal

from tests.waiting import AT_MOST_S

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

When = Literal["before", "after"]
_NOT_PASSED = {"connection", "transfer-encoding", "content-length", "keep-alive", "host"}


class KillingProxy:
    """Armed with `before` or `after`, it strikes once at each write that it sees."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.when: When | None = None
        self.victim: BaseProcess | None = None
        self.struck: list[tuple[When, str]] = []
        self._lock = threading.Lock()

    def strikes(self, label: str, when: When) -> bool:
        """Whether this is the moment; then the program is killed."""
        with self._lock:
            victim = self.victim
            if self.when != when or (when, label) in self.struck or victim is None:
                return False
            assert victim.pid is not None
            self.struck.append((when, label))
            self.when = None
            os.kill(victim.pid, signal.SIGKILL)
            return True

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Its URL."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"by": self}))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    by: KillingProxy

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        label = f"{self.command} {self.path}"
        if b'"alias"' in body:
            label += " previous_champion" if b"previous_champion" in body else " champion"
        writes = self.command not in ("GET", "HEAD")
        if writes and self.by.strikes(label, "before"):
            self.close_connection = True
            return
        status, headers, answer = self._ask(body)
        if writes and self.by.strikes(label, "after"):
            self.close_connection = True
            return
        self.send_response(status)
        for key, value in headers:
            if key.lower() not in _NOT_PASSED:
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        host = f"127.0.0.1:{self.by.upstream}"
        connection = http.client.HTTPConnection(host, timeout=AT_MOST_S)
        headers = {key: value for key, value in self.headers.items() if key.lower() != "host"}
        headers["Host"] = host
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        try:
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass

    def log_message(self, *arguments: Any) -> None:
        """Silent."""
