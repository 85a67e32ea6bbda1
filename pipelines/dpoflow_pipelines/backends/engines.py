"""Whoever runs containers on this machine, by docker's API.

Reads   DOCKER_HOST, else podman (with no daemon of its own), else docker's socket
Gives   `engine`; `lost` for errors of one that went away
Not     what is run (containers.py)
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import docker
from docker import errors

from dpoflow.contracts.errors import ConfigError, ServiceUnavailable

API_VERSION = "1.41"
"""The oldest that has all that is asked for; podman 4 and docker 20 speak it."""
lost = (errors.APIError, OSError)
"""What a call raises whose engine is gone: requests' errors are OSErrors."""


@contextlib.contextmanager
def engine() -> Iterator[docker.DockerClient]:
    """The one that `make images` builds with, unless DOCKER_HOST names another.

    Raises ConfigError where there is none, ServiceUnavailable where the named one is silent.
    """
    given = os.environ.get("DOCKER_HOST")
    if given:
        if not given.startswith("unix://"):
            raise ConfigError(
                f"DOCKER_HOST is {given}: tasks need this machine's folders, so their engine must "
                "be here; name unix:///path/to.sock, or unset it"
            )
        client = _answering(given)
        if client is None:
            raise ServiceUnavailable(
                f"no container engine answers at DOCKER_HOST {given}; start it, or unset that"
            )
        with contextlib.closing(client):
            yield client
    elif shutil.which("podman"):
        with _podman() as client:
            yield client
    elif client := _answering("unix:///var/run/docker.sock"):
        with contextlib.closing(client):
            yield client
    else:
        raise ConfigError(
            "neither podman nor docker answers on this machine; install podman (Debian: apt-get "
            "install podman), start docker, name another socket in DOCKER_HOST, or run without "
            "--on containers"
        )


@contextlib.contextmanager
def _podman() -> Iterator[docker.DockerClient]:
    """Podman needs no daemon, and speaks docker's API while somebody asks it to."""
    with tempfile.TemporaryDirectory(prefix="dpoflow-podman-") as folder:
        socket, log = Path(folder) / "podman.sock", Path(folder) / "log"
        # The time ends it by itself where this process is killed: containers end, and nobody asks.
        command = ["podman", "system", "service", "--time=60", f"unix://{socket}"]
        with log.open("wb") as out:
            service = subprocess.Popen(  # noqa: S603  # nothing in it is anybody's input
                command, stdout=out, stderr=out, cwd=folder, start_new_session=True
            )
        try:
            deadline = time.monotonic() + 30
            while (client := _answering(f"unix://{socket}")) is None:
                if service.poll() is not None or time.monotonic() > deadline:
                    said = log.read_text("utf-8", "replace").strip()[-400:]
                    raise ConfigError(f"podman does not start its service: {said or 'no answer'}")
                time.sleep(0.1)
            with contextlib.closing(client):
                yield client
        finally:
            service.terminate()
            service.wait()


def _answering(url: str) -> docker.DockerClient | None:
    if not Path(url.removeprefix("unix://")).is_socket():
        return None  # asked all the same, docker-py would leave a socket of its own open
    client = docker.DockerClient(base_url=url, version=API_VERSION)
    try:
        client.ping()
    except lost:
        client.close()
        return None
    return client
