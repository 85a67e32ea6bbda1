"""`make setup`: .venv with everything this project runs on, and no CUDA where there is no GPU.

Reads   pyproject.toml, infra/locks/py311.txt
Gives   .venv and, written last, its stamp: the same files and the same place mean nothing to do
Not     finding a Python (setup.sh), nor system packages

Without a stamp, .venv is somebody else's and is left alone. With one that says unfinished, an
earlier set-up was cut short and may have left half a package behind, so .venv is made anew.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "infra" / "locks" / "py311.txt"
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"
STAMP = ENVIRONMENT / "dpoflow-setup.json"
DISCARDED = ROOT / ".venv.discarded"

CPU_INDEX = os.environ.get("DPOFLOW_TORCH_INDEX", "https://download.pytorch.org/whl/cpu")
"""PyTorch's own index of builds without CUDA, or a mirror of it."""
EXTRAS = ("cpu", "gpu", "pipelines", "test", "dev")
NO_DEPENDENCIES = ("demo", "harness", "kubectl")
"""Extras of which only the distribution itself is wanted."""
ENVIRONMENT_GB = 4
DOWNLOADS_GB = 1
UNFINISHED = "unfinished"


def main() -> None:
    """Do what is missing, under a lock that pip inherits: an orphan of a killed set-up holds it."""
    with lock() as held:
        state = stamp()
        if state == wanted() and PYTHON.exists():
            print("make setup: .venv is up to date")
            return
        started = time.monotonic()
        prepare(state)
        install(Pip(PYTHON, lock=held))
        write_stamp(wanted())
        print(f"make setup: done in {time.monotonic() - started:.0f} s")


# ---------------------------------------------------------------- what is there, what is wanted


def wanted() -> dict[str, str]:
    """What the stamp of a finished set-up says: where, with which Python, from which files."""
    digest = hashlib.sha256()
    for path in (ROOT / "pyproject.toml", LOCK, Path(__file__)):
        digest.update(path.read_bytes() + b"\0")
    return {"place": place(), "files": digest.hexdigest()}


def place() -> str:
    """What an environment cannot be moved across: a folder, and a Python's minor version."""
    return f"{ROOT} {sys.version_info[0]}.{sys.version_info[1]}"


def stamp() -> dict[str, str]:
    """What the last set-up left: its stamp, or nothing where it never began."""
    try:
        found: dict[str, str] = json.loads(STAMP.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:  # killed while writing it
        return {"files": UNFINISHED}
    return found


def write_stamp(content: dict[str, str]) -> None:
    """Half of it, should we be killed here, reads as unfinished."""
    STAMP.write_text(json.dumps(content), encoding="utf-8")


def prepare(state: dict[str, str]) -> None:
    """Leave a .venv stamped unfinished that packages can be put into, or stop and say why not."""
    shutil.rmtree(DISCARDED, ignore_errors=True)
    reason = reason_to_start_over(state)
    if reason:
        print(f"make setup: {reason}, so .venv is made anew")
        ENVIRONMENT.rename(DISCARDED)
        shutil.rmtree(DISCARDED)
    enough_room(ROOT, ENVIRONMENT_GB, "for .venv")
    enough_room(Path(tempfile.gettempdir()), DOWNLOADS_GB, "for downloads (TMPDIR names another)")
    say(1, f"environment .venv with Python {sys.version.split()[0]}")
    fresh = not STAMP.exists()
    ENVIRONMENT.mkdir(exist_ok=True)
    write_stamp({"place": place(), "files": UNFINISHED})
    if fresh:
        create()


def reason_to_start_over(state: dict[str, str]) -> str:
    """Why this .venv cannot be added to; empty where it can, or where there is none."""
    if not ENVIRONMENT.exists() or not any(ENVIRONMENT.iterdir()):
        return ""
    if not state:
        stop(".venv was not made by make setup; move it away first")
    if state.get("files") == UNFINISHED:
        return "the last set-up was cut short"
    if state.get("place") != place():
        return "this folder or its Python is another than it was made for"
    return "" if PYTHON.exists() else "the Python it was made with is gone"


def enough_room(folder: Path, gigabytes: int, purpose: str) -> None:
    """Stop where `folder` has less than that free."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        stop(f"{folder} has {free:.1f} GB free, {gigabytes} GB are needed {purpose}")


def create() -> None:
    """An empty environment with the pip that this Python brings."""
    try:
        import ensurepip  # noqa: F401  # Debian ships it apart, and venv's own error is long
    except ImportError:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        stop(f"this Python has no pip to give; Debian: apt-get install python{version}-venv")
    venv.EnvBuilder(with_pip=True, symlinks=True).create(ENVIRONMENT)


# ---------------------------------------------------------------- what goes in


def install(pip: "Pip") -> None:
    """Everything, torch first: once it is settled, nothing that needs it brings another."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    needed = [*project["dependencies"], *(each for name in EXTRAS for each in extras[name])]
    bare = [each for name in NO_DEPENDENCIES for each in extras[name]]

    say(2, f"pip {pinned('pip')}")
    pip.install("--upgrade", f"pip=={pinned('pip')}")
    if not pip.has("torch", pinned("torch")):
        say(3, f"torch {pinned('torch')}")
        pip.install(*choose_torch(pip, f"torch=={pinned('torch')}", gpu=has_gpu()))
    say(4, "what the steps, pipelines and tests need, as infra/locks pins it: some minutes")
    pip.install(*sorted(set(needed)))
    say(5, f"dpoflow itself, and {' and '.join(bare)} by themselves")
    # Without isolation: the build backend is installed by now, at the version the lock names.
    pip.install("--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    pip.install("--no-deps", *bare)


def pinned(name: str) -> str:
    """The version that the lock gives to `name`."""
    found = re.search(
        rf"^{re.escape(name)}==(\S+)$", LOCK.read_text(encoding="utf-8"), re.MULTILINE
    )
    return found[1] if found else stop(f"{LOCK.name} does not pin {name}")


class Pip:
    """The pip of one environment, under the lock file's constraints and quiet but for errors."""

    def __init__(self, python: Path, *, lock: int | None = None) -> None:
        self._python = [str(python), "-I"]
        self._install = [*self._python, "-m", "pip", "--disable-pip-version-check", "install"]
        # Errors only: pip warns once a package for each index that does not hold it.
        self._install += ["--quiet", "--quiet", "--no-input", "--constraint", str(LOCK)]
        self._inherited = [] if lock is None else [lock]

    def install(self, *arguments: str) -> None:
        """Install, or stop: pip's own words stand above ours."""
        command = [*self._install, *arguments]
        if subprocess.run(command, pass_fds=self._inherited, check=False).returncode:
            stop("pip could not install that, see above; the next make setup starts over")

    def plan(self, *arguments: str) -> tuple[dict[str, str], str]:
        """Name to version of all pip would fetch, from metadata alone; else its first error."""
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.json"
            command = [*self._install, "--dry-run", "--ignore-installed", "--report", str(report)]
            command += arguments
            done = subprocess.run(
                command, pass_fds=self._inherited, check=False, capture_output=True, text=True
            )
            if done.returncode:
                errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
                return {}, (errors or ["ERROR: pip gave no reason"])[0].removeprefix("ERROR: ")
            return versions(json.loads(report.read_text(encoding="utf-8"))), ""

    def has(self, name: str, version: str) -> bool:
        """Whether `name` is installed at that public version."""
        code = f"from importlib.metadata import version; print(version({name!r}))"
        done = subprocess.run(
            [*self._python, "-c", code], check=False, capture_output=True, text=True
        )
        return done.stdout.strip().partition("+")[0] == version


def versions(report: dict[str, Any]) -> dict[str, str]:
    """Name to version of what a pip installation report would install."""
    found = (each["metadata"] for each in report["install"])
    return {each["name"].lower(): each["version"] for each in found}


def choose_torch(pip: Pip, torch: str, *, gpu: bool, cpu_index: str = CPU_INDEX) -> list[str]:
    """What to tell pip so that a torch comes which this machine can use.

    Without an NVIDIA GPU that is a build without CUDA: from PyTorch's own index if it answers at
    once, else from wherever pip is configured to look. Where only a CUDA build is to be had, stop
    before any of its gigabytes is fetched.
    """
    if sys.platform != "linux" or gpu:
        return [torch]
    quickly = ["--no-deps", "--index-url", cpu_index, "--timeout", "5", "--retries", "0"]
    from_pytorch, _ = pip.plan(*quickly, torch)
    if from_pytorch.get("torch", "").endswith("+cpu"):
        return [*quickly, f"torch=={from_pytorch['torch']}"]
    configured, problem = pip.plan(torch)
    if not configured:
        stop(f"{torch} is neither on {cpu_index} nor where pip is configured to look: {problem}")
    cuda = sorted(name for name in configured if re.match(r"nvidia-|cuda-|triton$", name))
    if cuda:
        stop(
            f"{torch} would bring {len(cuda)} CUDA packages ({cuda[0]}, …), and there is no NVIDIA"
            f" GPU here; nothing was downloaded. Let pip reach {cpu_index}, or put a CPU wheel of"
            " torch in a folder: PIP_FIND_LINKS=/that/folder make setup"
        )
    return [f"torch=={configured['torch']}"]


def has_gpu() -> bool:
    """Whether an NVIDIA GPU shows itself."""
    return Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None


# ---------------------------------------------------------------- saying so


def say(step: int, what: str) -> None:
    """One line a step."""
    print(f"[{step}/5] {what}", flush=True)


def stop(why: str) -> NoReturn:
    """One line on standard error, and exit 1."""
    sys.exit(f"make setup: {why}")


@contextlib.contextmanager
def lock() -> Iterator[int]:
    """Held while .venv changes; gives the descriptor. A second set-up waits for the first."""
    with (ROOT / ".venv.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("make setup: another set-up is at work here, waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("make setup: stopped; the next one starts over")
