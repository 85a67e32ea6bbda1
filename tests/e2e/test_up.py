"""`make up` and `make down`: PostgreSQL, SeaweedFS, the server and the promoter, as processes."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
from tests.gate import API, GATE, ROOT, own_path
from tests.seaweed import free_port
from tests.waiting import AT_MOST_S

pytestmark = pytest.mark.full


class Up:
    """The program, with a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "up"
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MLFLOW_", "DPOFLOW_", "AWS_"))
        } | {"PYTHONPATH": own_path(folder / "installed")}

    def command(self, *arguments: str) -> list[str]:
        program = str(ROOT / "infra" / "local" / "up.py")
        return [sys.executable, program, *arguments, "--folder", str(self.folder)]

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.command(*arguments),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def processes(self) -> set[int]:
        """Of everything that names the folder in its environment or command, but this test's."""
        found = set()
        for process in psutil.process_iter():
            try:
                of_it = str(self.folder) in " ".join(
                    [*process.cmdline(), *process.environ().values()]
                )
            except psutil.Error:
                continue
            if of_it and process.pid != os.getpid():
                found.add(process.pid)
        return found

    def as_user(self, role: str) -> requests.Session:
        """With what the user's file says, as a shell would have it."""
        shell = f'source {self.folder}/{role}.env; printf "%s\\n" "$MLFLOW_TRACKING_PASSWORD"'
        told = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
        session = requests.Session()
        session.trust_env, session.auth = False, (role, told.stdout.strip())
        return session


@pytest.fixture
def place() -> Iterator[Up]:
    # As root PostgreSQL runs as a user of its own, whom pytest keeps out of its folders.
    with tempfile.TemporaryDirectory() as folder:
        up = Up(Path(folder))
        try:
            yield up
        finally:
            up.run("down")


def test_a_place_that_was_killed_half_way_comes_up_and_keeps_what_it_holds(place: Up) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        place.command("up", "--port", str(port)),
        env=place.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as half:
        assert half.stdout is not None
        for line in half.stdout:
            if line.startswith("[3/5]"):  # databases run, and the server is about to
                break
        time.sleep(1)
        half.kill()

    done = place.run("up")

    assert done.returncode == 0, done.stdout
    assert url in done.stdout
    keys = (place.folder / "keys.json").read_text()
    assert not [word for word in json.loads(keys)["passwords"].values() if word in done.stdout]
    secret = ["keys.json", "audit.key", "signing.pem", "engineer.env", "reviewer.env"]
    assert {(place.folder / name).stat().st_mode & 0o777 for name in secret} == {0o600}
    engineer, reviewer = place.as_user("engineer"), place.as_user("reviewer")
    told = reviewer.get(f"{url}{GATE}/gate", timeout=AT_MOST_S).json()
    assert (told["user"], told["roles"]) == ("reviewer", ["reviewer"])
    made = engineer.post(
        f"{url}{API}/registered-models/create", json={"name": "m"}, timeout=AT_MOST_S
    )
    assert made.ok, made.text
    experiment = engineer.post(
        f"{url}{API}/experiments/create", json={"name": "e"}, timeout=AT_MOST_S
    )
    below = experiment.json()["experiment_id"]
    file = f"{url}/api/2.0/mlflow-artifacts/artifacts/{below}/kept.txt"
    assert engineer.put(file, data=b"kept", timeout=AT_MOST_S).ok

    before = place.processes()
    again = place.run("up")
    assert (again.returncode, place.processes()) == (0, before), again.stdout

    stopped = place.run("down")
    assert "promoter, server, weed, PostgreSQL stopped" in stopped.stdout
    assert place.processes() == set()
    assert "nothing was running" in place.run("down").stdout

    assert place.run("up").returncode == 0
    assert (place.folder / "keys.json").read_text() == keys
    assert engineer.get(f"{url}{API}/registered-models/get?name=m", timeout=AT_MOST_S).ok
    assert engineer.get(file, timeout=AT_MOST_S).content == b"kept"


def test_a_port_that_somebody_else_listens_at_is_told_and_nothing_is_lost(place: Up) -> None:
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        port = somebody.getsockname()[1]

        done = place.run("up", "--port", str(port))

    assert done.returncode == 1
    assert f"something else listens at 127.0.0.1:{port}; name another" in done.stdout
    assert place.processes() == set()
