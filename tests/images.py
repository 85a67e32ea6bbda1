"""Our container images, really built here, and an engine to run them.

Gives   `built_image`, `podman`, `engine_environment`, `why_not`; `python -m tests.images` builds
        all that the tests ask for, ahead of them
Not     a registry, where root and debootstrap can make the base: it may be out of reach
"""

import ast
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BASE = "localhost/dpoflow-test-base:bookworm"
CACHE = ROOT / "build" / "images"
MIRROR = "http://deb.debian.org/debian"

# For root in a virtual machine, where crun's newer calls and high limits may be refused.
_CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
"""


def why_not() -> str:
    """Why images cannot be built here; empty where they can."""
    missing = shutil.which("podman") is None
    return "podman is not installed (Debian: apt-get install podman)" if missing else ""


@functools.cache
def engine_environment() -> dict[str, str]:
    """With what podman is called, and what calls it."""
    if os.geteuid() != 0 or shutil.which("runc") is None:
        return dict(os.environ)
    config = CACHE / "containers.conf"
    CACHE.mkdir(parents=True, exist_ok=True)
    config.write_text(_CONTAINERS_CONF, encoding="utf-8")
    return {**os.environ, "CONTAINERS_CONF": str(config)}


def podman(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """The command, to its end; what it says is kept."""
    return subprocess.run(
        ["podman", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=engine_environment(),
    )


@functools.cache
def built_image(target: str) -> str:
    """`make images` for one image, once for each state of the sources; gives its name."""
    CACHE.mkdir(parents=True, exist_ok=True)
    name, mark = f"localhost/dpoflow-python-{target}:0.1.0", CACHE / f"{target}.sha256"
    sources = _digest_of_sources()
    with (CACHE / "lock").open("w") as lock:  # the tests' other process waits, and finds it made
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = mark.read_text("utf-8") if mark.exists() else ""
        if known != sources or podman("image", "exists", name).returncode != 0:
            _build(target)
            mark.write_text(sources, encoding="utf-8")
    return name


def _build(target: str) -> None:
    # A layer for each line is what takes the time, and only the last state is wanted.
    told = ["--", "--network=host", "--layers=false", *_pip_settings()]
    made = subprocess.run(
        [sys.executable, "infra/images/build.py", target, "--engine", "podman", *_base(), *told],
        cwd=ROOT,
        env=engine_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    (CACHE / f"{target}.log").write_text(made.stdout + made.stderr, encoding="utf-8")
    assert made.returncode == 0, (made.stdout + made.stderr)[-4000:]


def _digest_of_sources() -> str:
    digest = hashlib.sha256()
    single = (ROOT / name for name in ("pyproject.toml", "README.md", "infra/local/set_up.py"))
    folders = ("components", "pipelines", "infra/locks", "infra/images")
    many = (path for name in folders for path in sorted((ROOT / name).rglob("*")))
    for path in (*single, *many):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _base() -> list[str]:
    """Debian's own Python where it can be made here, else what the Dockerfile names."""
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        return []
    if podman("image", "exists", BASE).returncode != 0:
        root, packed = CACHE / "base", CACHE / "base.tar"
        shutil.rmtree(root, ignore_errors=True)
        packages = "python3,python3-venv,ca-certificates"
        bootstrap = ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm"]
        subprocess.run([*bootstrap, str(root), MIRROR], check=True, capture_output=True)
        subprocess.run(["tar", "-C", str(root), "-cf", str(packed), "."], check=True)
        imported = podman("import", str(packed), BASE)
        assert imported.returncode == 0, imported.stderr
        shutil.rmtree(root)
        packed.unlink()
    return ["--base", BASE]


def _pip_settings() -> list[str]:
    """Options of a build in which pip finds packages where it finds them here.

    Whatever pip is told here (indexes, wheels in folders, certificates) is mounted while the image
    is built, and no layer keeps it.
    """
    told = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    settings: dict[str, str] = {}
    # Of two settings of one name the environment's wins, as for pip.
    for line in sorted(told.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = ast.literal_eval(value)
    config = CACHE / "pip.conf"
    lines = [f"{name} = {' '.join(value.split())}" for name, value in settings.items()]
    config.write_text("\n".join(["[global]", *lines, ""]), encoding="utf-8")
    config.chmod(0o600)  # an index may be named with its password
    volumes = {f"{config}:/etc/pip.conf:ro"}
    for value in settings.values():
        for word in value.split():
            path = Path(word.removeprefix("file://"))
            if path.is_absolute() and path.exists():
                # A mounted folder of an index is named with what stands beside it: its files.
                near = path.parent if word.startswith("file://") else path
                volumes.add(f"{near}:{near}:ro")
    return [word for volume in sorted(volumes) for word in ("--volume", volume)]


if __name__ == "__main__" and not why_not():
    for each in ("cpu", "mlflow"):
        built_image(each)
