"""`make setup`: .venv with everything this project runs on; without CUDA where that can be had.

Reads   pyproject.toml, infra/locks/constraints.txt
Gives   .venv and, written last, its stamp: the same files and the same place mean nothing to do
Not     finding a Python (setup.sh), what a killed pip leaves (leftovers.py), nor system packages

Without a stamp, .venv is somebody else's and is left alone. With one that says unfinished, an
earlier set-up was cut short: what it installed whole is kept, the rest goes, and this one goes on.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "infra" / "locks" / "constraints.txt"
ENVIRONMENT = ROOT / os.environ.get("DPOFLOW_ENVIRONMENT", ".venv")
"""`.venv`; another for each Python that pythons.sh tries."""
PYTHON = ENVIRONMENT / "bin" / "python"
STAMP = ENVIRONMENT / "dpoflow-setup.json"
HALF_A_STAMP = ENVIRONMENT / "dpoflow-setup.json.new"
SITE_PACKAGES = (
    ENVIRONMENT / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
)
DISCARDED = ENVIRONMENT.with_name(f"{ENVIRONMENT.name}.discarded")
HAS_ENSUREPIP = importlib.util.find_spec("ensurepip") is not None

CPU_INDEX = os.environ.get("DPOFLOW_TORCH_INDEX", "https://download.pytorch.org/whl/cpu")
"""PyTorch's own index of builds without CUDA, or a mirror of it."""
EXTRAS = ("cpu", "gpu", "pipelines", "test", "dev")
NO_DEPENDENCIES = ("demo", "harness", "kubectl")
"""Extras of which only the distribution itself is wanted."""
UNFINISHED = "unfinished"
TEMPORARY = "dpoflow-setup-"
"""How the folder for downloads begins; its path stands in the stamp while a set-up is at work."""


@dataclass(frozen=True)
class Size:
    """What a set-up takes, in GB: .venv at its end, and downloads at their most."""

    environment: int
    downloads: int


CPU, CUDA = Size(environment=4, downloads=1), Size(environment=8, downloads=3)
"""By the torch that comes. Measured with 2.13.0: `du -sh .venv` 3.3 and 7.3 GB; the downloads of
torch and what it brings 0.2 and 2.7 GB. pip's report has no sizes to compute this from."""


def main() -> None:
    """Do what is missing, under a lock that pip inherits: an orphan of a killed set-up holds it."""
    with lock() as held:
        state, want = stamp(), wanted()  # now: files may change while this runs
        if state == want and PYTHON.exists():
            print("make setup: .venv is up to date")
            return
        started = time.monotonic()
        prepare(state)
        install(Pip(PYTHON, lock=held))
        write_stamp(want)
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
    """At once or not at all, wherever we are killed."""
    HALF_A_STAMP.write_text(json.dumps(content), encoding="utf-8")
    HALF_A_STAMP.replace(STAMP)


def prepare(state: dict[str, str]) -> None:
    """Leave a .venv stamped unfinished that packages can be put into, or stop and say why not."""
    shutil.rmtree(DISCARDED, ignore_errors=True)
    discard_downloads(state)
    reason = reason_to_start_over(state)
    if reason:
        print(f"make setup: {reason}, so .venv is made anew", flush=True)
        ENVIRONMENT.rename(DISCARDED)
        shutil.rmtree(DISCARDED)
    elif state.get("files") == UNFINISHED:
        keep_what_is_whole()
    room(CPU)
    say(1, f"environment {ENVIRONMENT.name} with Python {sys.version.split()[0]}")
    ENVIRONMENT.mkdir(exist_ok=True)
    write_stamp({"place": place(), "files": UNFINISHED})
    if not usable():
        create()


def reason_to_start_over(state: dict[str, str]) -> str:
    """Why this .venv cannot be added to; empty where it can, or where there is none."""
    if not ENVIRONMENT.exists() or not set(ENVIRONMENT.iterdir()) - {HALF_A_STAMP}:
        return ""
    if not state:
        stop(".venv was not made by make setup; move it away first")
    if "place" not in state:
        return "the stamp of the last set-up cannot be read"
    if state["place"] != place():
        return "this folder or its Python is another than it was made for"
    unfinished = state.get("files") == UNFINISHED
    return "" if unfinished or PYTHON.exists() else "the Python it was made with is gone"


def keep_what_is_whole() -> None:
    """After a set-up that was cut short: away with half-installed packages, and say which."""
    from leftovers import clear  # beside this file; images have no use for it

    whole, broken = clear(SITE_PACKAGES)
    again = f"; not whole, so again: {', '.join(broken)}" if broken else ""
    print(f"make setup: the last one was cut short; {whole} packages are there{again}", flush=True)


def usable() -> bool:
    """Whether .venv has a Python that starts, is its own, and has a pip."""
    code = "import os, pip, sys; print(os.path.realpath(sys.prefix))"
    if not PYTHON.exists():
        return False
    done = subprocess.run([PYTHON, "-I", "-c", code], check=False, capture_output=True, text=True)
    return done.stdout.strip() == os.path.realpath(ENVIRONMENT)


def create() -> None:
    """An empty environment with the pip that this Python has to give."""
    venv.EnvBuilder(with_pip=HAS_ENSUREPIP, symlinks=True).create(ENVIRONMENT)
    if HAS_ENSUREPIP:
        return
    # Debian ships ensurepip apart; its pip can put another one into an environment.
    if importlib.util.find_spec("pip") is None:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        stop(f"{sys.executable} has no pip to give; Debian: apt-get install python{version}-venv")
    own = [sys.executable, "-I", "-m", "pip", "--python", str(PYTHON)]
    own += ["--disable-pip-version-check", "install", "--quiet", f"pip=={pinned('pip')}"]
    if subprocess.run(own, check=False).returncode:
        stop("pip could not give .venv a pip, see above")


# ---------------------------------------------------------------- where it all goes


@contextlib.contextmanager
def downloads(pip: "Pip", size: Size, note: str = "") -> Iterator[None]:
    """A folder for what `pip` downloads; the stamp names it, for the next set-up to take away."""
    parent, spare_gb = room(size, note)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=parent) as folder:
        write_stamp({"place": place(), "files": UNFINISHED, "downloads": folder})
        pip.temporary, pip.caches = folder, spare_gb > size.downloads
        yield
    write_stamp({"place": place(), "files": UNFINISHED})


def discard_downloads(state: dict[str, str]) -> None:
    """The folder that a killed set-up left: up to 3 GB."""
    folder = Path(state.get("downloads", ""))
    if folder.name.startswith(TEMPORARY):
        shutil.rmtree(folder, ignore_errors=True)


def room(size: Size, note: str = "") -> tuple[Path, float]:
    """Where downloads have room beside what .venv still takes, and what its disk has to spare then.

    /tmp is often small, and in memory: then they lie in .venv for a while. Stops where neither
    has the room.
    """
    there = ENVIRONMENT if ENVIRONMENT.exists() else ROOT
    temporary = Path(tempfile.gettempdir())
    missing_gb = max(0.0, size.environment - held_gb())
    for folder in (temporary, there):
        together = folder.stat().st_dev == there.stat().st_dev
        spare_gb = free_gb(there) - missing_gb - (size.downloads if together else 0)
        if spare_gb >= 0 and (together or free_gb(folder) >= size.downloads):
            return folder, spare_gb
    return stop(
        f"{there} has {free_gb(there):.1f} GB free and {temporary} {free_gb(temporary):.1f} GB;"
        f" {missing_gb:.1f} GB are needed for .venv and {size.downloads} GB for downloads (TMPDIR"
        f" names another folder){note and f'; {note}'}"
    )


def free_gb(folder: Path) -> float:
    """What its disk has left."""
    return shutil.disk_usage(folder).free / 1e9


def held_gb() -> float:
    """What .venv takes already."""
    entries = (path.lstat() for path in ENVIRONMENT.rglob("*"))
    return sum(512 * entry.st_blocks for entry in entries) / 1e9


# ---------------------------------------------------------------- what goes in


def install(pip: "Pip") -> None:
    """Everything, torch first: once it is settled, nothing that needs it brings another."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    needed = [*project["dependencies"], *(each for name in EXTRAS for each in extras[name])]
    bare = [each for name in NO_DEPENDENCIES for each in extras[name]]

    say(2, f"pip {pinned('pip')}")
    with downloads(pip, CPU):
        pip.install("--upgrade", f"pip=={pinned('pip')}")
    if not pip.has("torch", pinned("torch")):
        install_torch(pip)
    say(4, "what the steps, pipelines and tests need, as infra/locks pins it: some minutes")
    with downloads(pip, CPU):
        pip.install(*sorted(set(needed)))
        say(5, f"dpoflow itself, and {' and '.join(bare)} by themselves")
        # Without isolation: the build backend is installed by now, at the version the lock names.
        pip.install("--no-deps", "--no-build-isolation", "--editable", str(ROOT))
        pip.install("--no-deps", *bare)


def install_torch(pip: "Pip") -> None:
    """The build that suits this machine."""
    say(3, f"torch {pinned('torch')}")
    with downloads(pip, CPU):  # where an index has no metadata, pip reads it in the wheel
        chosen = choose_torch(pip, f"torch=={pinned('torch')}", gpu=has_gpu())
    with downloads(pip, chosen.size, chosen.note):
        if chosen.note:
            print(f"make setup: {chosen.note}. Going on with them", flush=True)
        pip.install(*chosen.arguments)


def pinned(name: str) -> str:
    """The version that the lock gives to `name`."""
    found = re.search(
        rf"^{re.escape(name)}==(\S+)$", LOCK.read_text(encoding="utf-8"), re.MULTILINE
    )
    return found[1] if found else stop(f"{LOCK.name} does not pin {name}")


class Pip:
    """The pip of one environment, under the lock file's constraints and quiet but for errors."""

    temporary: str | None = None
    """Where it puts downloads; TMPDIR as it is where that is not said."""
    caches = True
    """Whether it keeps a second copy of them for later set-ups."""

    def __init__(self, python: Path, *, lock: int | None = None) -> None:
        self._python = [str(python), "-I"]
        self._install = [*self._python, "-m", "pip", "--disable-pip-version-check", "install"]
        # Errors only: pip warns once a package for each index that does not hold it.
        self._install += ["--quiet", "--quiet", "--no-input", "--constraint", str(LOCK)]
        self._inherited = [] if lock is None else [lock]

    def install(self, *arguments: str) -> None:
        """Install, or stop: pip's own words stand above ours."""
        if self._run([*self._install, *arguments]).returncode:
            stop("pip could not install that, see above; the next make setup goes on from here")

    def plan(self, *arguments: str) -> tuple[dict[str, str], str]:
        """Name to version of all pip would fetch, from metadata alone; else its first error."""
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.json"
            command = [*self._install, "--dry-run", "--ignore-installed", "--report", str(report)]
            done = self._run([*command, *arguments], capture_output=True)
            if done.returncode:
                errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
                return {}, (errors or ["ERROR: pip gave no reason"])[0].removeprefix("ERROR: ")
            return versions(json.loads(report.read_text(encoding="utf-8"))), ""

    def has(self, name: str, version: str) -> bool:
        """Whether `name` is installed at that public version."""
        code = f"from importlib.metadata import version; print(version({name!r}))"
        done = self._run([*self._python, "-c", code], capture_output=True)
        return done.stdout.strip().partition("+")[0] == version

    def _run(
        self, command: list[str], *, capture_output: bool = False
    ) -> "subprocess.CompletedProcess[str]":
        environment = dict(os.environ)
        if self.temporary:
            environment["TMPDIR"] = self.temporary
        if not self.caches:
            environment["PIP_NO_CACHE_DIR"] = "1"
        return subprocess.run(
            command,
            env=environment,
            pass_fds=self._inherited,
            capture_output=capture_output,
            text=True,
            check=False,
        )


def versions(report: dict[str, Any]) -> dict[str, str]:
    """Name to version of what a pip installation report would install."""
    found = (each["metadata"] for each in report["install"])
    return {each["name"].lower(): each["version"] for each in found}


@dataclass(frozen=True)
class Torch:
    """A build of torch that is to be had."""

    arguments: list[str]
    """What pip is told."""
    size: Size
    note: str = ""
    """What is worse about it than about a build that is not to be had here."""


def choose_torch(pip: Pip, torch: str, *, gpu: bool, cpu_index: str = CPU_INDEX) -> Torch:
    """Find the build of torch that suits this machine best, of those that are to be had.

    Without an NVIDIA GPU that is one without CUDA: from PyTorch's own index if it answers at
    once, else from wherever pip is configured to look. Where only a CUDA build is to be had, that
    one comes, with a note on its price. Nothing is downloaded to find out.
    """
    if gpu or sys.platform != "linux":
        return Torch([torch], CUDA if gpu else CPU)
    quickly = ["--no-deps", "--index-url", cpu_index, "--timeout", "5", "--retries", "0"]
    from_pytorch, _ = pip.plan(*quickly, torch)
    if from_pytorch.get("torch", "").endswith("+cpu"):
        return Torch([*quickly, f"torch=={from_pytorch['torch']}"], CPU)
    configured, problem = pip.plan(torch)
    if not configured:
        stop(f"{torch} is neither on {cpu_index} nor where pip is configured to look: {problem}")
    cuda = sorted(name for name in configured if re.match(r"nvidia-|cuda-|triton$", name))
    found = [f"torch=={configured['torch']}"]
    return Torch(found, CUDA, only_cuda(torch, cuda, cpu_index)) if cuda else Torch(found, CPU)


def only_cuda(torch: str, packages: list[str], cpu_index: str) -> str:
    """What a CUDA build costs where there is no GPU for it, and how to do without."""
    return (
        f"{torch} comes with {len(packages)} CUDA packages here ({packages[0]}, …), of no use"
        f" without an NVIDIA GPU: {CUDA.downloads} GB of downloads at once instead of"
        f" {CPU.downloads}, and {CUDA.environment} GB on disk instead of {CPU.environment}. To do"
        f" without, let pip reach {cpu_index}, or name a mirror of it (DPOFLOW_TORCH_INDEX=URL) or"
        " a folder with a CPU wheel of torch (PIP_FIND_LINKS=/that/folder)"
    )


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
    ENVIRONMENT.parent.mkdir(parents=True, exist_ok=True)
    with ENVIRONMENT.with_name(f"{ENVIRONMENT.name}.lock").open("w") as file:
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
        sys.exit("make setup: stopped; the next one goes on from here")
