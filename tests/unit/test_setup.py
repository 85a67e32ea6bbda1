"""`make setup` against package indexes of its own: real pip, real HTTP, wheels of a few bytes."""

import ensurepip
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PIP = "99.0"
CUDA = ("nvidia-cublas==13.1", "nvidia-nccl-cu13==2.28", "triton==3.6")


class Index:
    """A package index that remembers what was asked of it, and can hold back a download."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        self.withheld = ""
        self.released = threading.Event()
        self._folder = folder
        handler = type("Handler", (_Handler,), {"index": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/simple"

    def offer(self, name: str, version: str, *requires: str, modules: int = 1) -> None:
        """Put up a wheel, with its metadata beside it as real indexes have it."""
        module, stem = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        metadata += "".join(f"Requires-Dist: {each}\n" for each in requires)
        content = {
            f"{module}{each}.py": f"version = {version!r}\n"
            for each in ("", *(f"_{number}" for number in range(1, modules)))
        }
        content[f"{stem}.dist-info/METADATA"] = metadata
        content[f"{stem}.dist-info/WHEEL"] = "Wheel-Version: 1.0\nTag: py3-none-any\n"
        record = [f"{path},,{len(text)}" for path, text in content.items()]
        record.append(f"{stem}.dist-info/RECORD,,")
        content[f"{stem}.dist-info/RECORD"] = "\n".join(record)
        project = self._folder / name
        project.mkdir(parents=True, exist_ok=True)
        wheel = project / f"{stem}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, text in content.items():
                archive.writestr(path, text)
        Path(f"{wheel}.metadata").write_text(metadata)

    def offer_pip(self, version: str) -> None:
        """Put up the pip that this Python brings, with that for its version."""
        (bundled,) = (Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl")
        old = f"pip-{ensurepip.version()}.dist-info"
        new = f"pip-{version}.dist-info"
        self.offer("pip", version)
        wheel = self._folder / "pip" / f"pip-{version}-py3-none-any.whl"
        with zipfile.ZipFile(bundled) as given:
            content = {name.replace(old, new): given.read(name) for name in given.namelist()}
        content[f"{new}/METADATA"] = Path(f"{wheel}.metadata").read_bytes()
        record = [f"{path},,{len(data)}" for path, data in content.items() if "RECORD" not in path]
        content[f"{new}/RECORD"] = "\n".join([*record, f"{new}/RECORD,,"]).encode()
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, data in content.items():
                archive.writestr(path, data)

    def downloads(self) -> list[str]:
        return [path for path in self.asked if path.endswith(".whl")]

    def answer(self, path: str) -> bytes | None:
        self.asked.append(path)
        if self.withheld and path.endswith(".whl") and self.withheld in path:
            self.released.wait(60)
        found = self._folder / path.removeprefix("/simple/").replace("%2B", "+")
        if found.is_file():
            return found.read_bytes()
        return _page(found) if found.is_dir() else None

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    index: Index

    def do_GET(self) -> None:
        body = self.index.answer(self.path)
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "text/plain")
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *args: object) -> None:
        """Quiet."""


def _page(project: Path) -> bytes:
    links = []
    for wheel in sorted(project.glob("*.whl")):
        digest = hashlib.sha256(Path(f"{wheel}.metadata").read_bytes()).hexdigest()
        name = wheel.name
        links.append(f'<a href="{name}" data-dist-info-metadata="sha256={digest}">{name}</a>')
    return f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode()


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """The index that pip is configured with, and no other."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    index = Index(tmp_path / "configured")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    yield index
    index.close()


@pytest.fixture
def pytorch(tmp_path: Path) -> Iterator[Index]:
    """What stands for PyTorch's own index of CPU builds."""
    index = Index(tmp_path / "pytorch")
    yield index
    index.close()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with this project's set-up, and a project so small that it installs in a second."""
    folder = tmp_path / "project"
    (folder / "infra" / "locks").mkdir(parents=True)
    shutil.copytree(ROOT / "infra" / "local", folder / "infra" / "local")
    pins = {"pip": PIP, "torch": "2.13.0", "needed": "1.0", "weights": "1.0"}
    lock = "".join(f"{name}=={version}\n" for name, version in pins.items())
    (folder / "infra" / "locks" / "constraints.txt").write_text(lock)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "backend.py").write_text(BACKEND)
    return folder


PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "dpoflow"
version = "0.1.0"
dependencies = ["needed"]
[project.optional-dependencies]
cpu = ["torch"]
gpu = []
pipelines = []
test = []
dev = []
demo = ["weights==1.0"]
harness = []
kubectl = []
"""
BACKEND = """
import zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "dpoflow-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        info = "dpoflow-0.1.0.dist-info"
        about = ["Metadata-Version: 2.1", "Name: dpoflow", "Version: 0.1.0", ""]
        wheel.writestr(f"{info}/METADATA", "\\n".join(about))
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""


@pytest.fixture
def set_up(project: Path) -> ModuleType:
    """The set-up of that folder, as a module."""
    return module_of(project / "infra" / "local" / "set_up.py")


@pytest.fixture
def leftovers() -> ModuleType:
    return module_of(ROOT / "infra" / "local" / "leftovers.py")


def module_of(place: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{place.stem}_under_test", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks its annotations up
    spec.loader.exec_module(module)
    return module


def choose(set_up: ModuleType, *, gpu: bool = False, cpu_index: str) -> Any:
    pip = set_up.Pip(Path(sys.executable))
    return set_up.choose_torch(pip, "torch==2.13.0", gpu=gpu, cpu_index=cpu_index)


def test_where_only_a_cuda_build_is_to_be_had_it_comes_and_its_price_is_said_before(
    set_up: ModuleType, configured: Index, pytorch: Index
) -> None:
    configured.offer("torch", "2.13.0", *CUDA, "sympy")
    configured.offer("sympy", "1.14")
    for each in CUDA:
        configured.offer(*each.split("=="))

    chosen = choose(set_up, cpu_index=pytorch.url)

    assert (chosen.arguments, chosen.size) == (["torch==2.13.0"], set_up.CUDA)
    assert "comes with 3 CUDA packages here (nvidia-cublas, …)" in chosen.note
    assert "3 GB of downloads at once instead of 1, and 8 GB on disk instead of 4" in chosen.note
    for way in (f"let pip reach {pytorch.url},", "DPOFLOW_TORCH_INDEX=", "PIP_FIND_LINKS="):
        assert way in chosen.note
    assert configured.downloads() == []


@pytest.mark.parametrize("package", ["nvidia-cudnn-cu13", "cuda-bindings", "triton"])
def test_one_cuda_package_is_enough_to_be_told(
    set_up: ModuleType, configured: Index, pytorch: Index, package: str
) -> None:
    configured.offer("torch", "2.13.0", package)
    configured.offer(package, "1.0")

    assert f"1 CUDA packages here ({package}, …)" in choose(set_up, cpu_index=pytorch.url).note


def test_pytorchs_own_cpu_build_comes_first(
    set_up: ModuleType, configured: Index, pytorch: Index
) -> None:
    configured.offer("torch", "2.13.0", *CUDA)
    pytorch.offer("torch", "2.13.0+cpu", "sympy")

    chosen = choose(set_up, cpu_index=pytorch.url)

    assert chosen.arguments[-1] == "torch==2.13.0+cpu"
    assert pytorch.url in chosen.arguments
    assert (chosen.size, chosen.note) == (set_up.CPU, "")
    assert configured.asked == pytorch.downloads() == []


def test_an_index_that_is_down_gives_way_to_the_configured_one(
    set_up: ModuleType, configured: Index, pytorch: Index
) -> None:
    configured.offer("torch", "2.13.0+cpu", "sympy")
    configured.offer("sympy", "1.14")
    pytorch.close()

    chosen = choose(set_up, cpu_index=pytorch.url)

    assert chosen == set_up.Torch(["torch==2.13.0+cpu"], set_up.CPU)


def test_with_a_gpu_the_configured_index_decides(
    set_up: ModuleType, configured: Index, pytorch: Index
) -> None:
    chosen = choose(set_up, gpu=True, cpu_index=pytorch.url)

    assert chosen == set_up.Torch(["torch==2.13.0"], set_up.CUDA)
    assert configured.asked == pytorch.asked == []


def test_no_torch_anywhere_is_one_line_with_pips_reason(
    set_up: ModuleType, configured: Index, pytorch: Index
) -> None:
    with pytest.raises(
        SystemExit, match=r"neither on http.*: Cannot install torch==2\.13\.0"
    ) as stop:
        choose(set_up, cpu_index=pytorch.url)

    assert configured.asked == ["/simple/torch/"]
    assert "\n" not in str(stop.value)


# ---------------------------------------------------------------- room on the disk


def test_too_little_room_is_said_before_anything_is_made(set_up: ModuleType, project: Path) -> None:
    size = set_up.Size(environment=99_999_999, downloads=1)

    with pytest.raises(SystemExit, match=r"GB free .* \d+\.0 GB are needed for \.venv") as stop:
        set_up.room(size, "CUDA takes most of it")

    assert str(stop.value).endswith("; CUDA takes most of it")
    assert not (project / ".venv").exists()


def test_what_goes_to_one_disk_adds_up(
    set_up: ModuleType, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(project))
    free = shutil.disk_usage(project).free / 1e9

    set_up.room(set_up.Size(environment=free / 2, downloads=free / 4))
    with pytest.raises(SystemExit, match="for downloads \\(TMPDIR names another folder"):
        set_up.room(set_up.Size(environment=free / 2, downloads=free * 0.75))


def test_downloads_lie_in_venv_where_tmp_is_another_disk_and_small(
    set_up: ModuleType, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux' own small disk in memory is such a /tmp."""
    memory = Path("/dev/shm")  # noqa: S108
    monkeypatch.setattr(tempfile, "tempdir", str(memory))
    monkeypatch.setattr(set_up, "free_gb", {memory: 2.0, project: 12.0}.__getitem__)

    assert set_up.room(set_up.Size(environment=8, downloads=1)) == (memory, 4)
    assert set_up.room(set_up.Size(environment=8, downloads=3)) == (project, 1)
    with pytest.raises(SystemExit, match=r"has 12\.0 GB free and /dev/shm 2\.0 GB"):
        set_up.room(set_up.Size(environment=10, downloads=3))


def test_what_is_in_place_needs_no_room_again(set_up: ModuleType, project: Path) -> None:
    (project / ".venv" / "lib").mkdir(parents=True)
    (project / ".venv" / "lib" / "big").write_bytes(os.urandom(3_000_000))

    told = subprocess.run(["du", "-sB1", ".venv/lib"], cwd=project, stdout=-1, check=True)

    assert set_up.held_gb() == pytest.approx(int(told.stdout.split()[0]) / 1e9, rel=0.01)


# ---------------------------------------------------------------- when to start over


def reason(set_up: ModuleType, project: Path, stamp: str | None) -> str:
    environment = project / ".venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").symlink_to(sys.executable)
    if stamp is not None:
        set_up.STAMP.write_text(stamp)
    found: str = set_up.reason_to_start_over(set_up.stamp())
    return found


@pytest.mark.parametrize("python_is_there", [True, False])
def test_a_set_up_that_was_cut_short_goes_on(
    set_up: ModuleType, project: Path, *, python_is_there: bool
) -> None:
    stamp = json.dumps({**set_up.wanted(), "files": "unfinished"})
    assert reason(set_up, project, stamp) == ""

    if not python_is_there:  # it was killed before it came to that
        (project / ".venv" / "bin" / "python").unlink()

    assert set_up.reason_to_start_over(set_up.stamp()) == ""


@pytest.mark.parametrize("stamp", ["", '{"pla'])
def test_a_stamp_that_nobody_can_read_means_starting_over(
    set_up: ModuleType, project: Path, stamp: str
) -> None:
    assert "cannot be read" in reason(set_up, project, stamp)


def test_an_environment_made_elsewhere_is_made_anew(set_up: ModuleType, project: Path) -> None:
    moved = json.dumps({"place": "elsewhere 3.11", "files": "0"})

    assert "another" in reason(set_up, project, moved)


def test_new_requirements_are_added_to_what_is_there(set_up: ModuleType, project: Path) -> None:
    older = json.dumps({**set_up.wanted(), "files": "0"})

    assert reason(set_up, project, older) == ""


def test_somebody_elses_venv_is_left_alone(set_up: ModuleType, project: Path) -> None:
    with pytest.raises(SystemExit, match="was not made by make setup; move it away first"):
        reason(set_up, project, None)

    assert (project / ".venv" / "bin" / "python").exists()


@pytest.mark.parametrize("python", ["does-not-exist", "false"])
def test_no_fitting_python_is_one_line_with_a_way_out(project: Path, python: str) -> None:
    done = run_setup(project, DPOFLOW_PYTHON=python)

    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "name another" in done.stderr


def run_setup(project: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", "infra/local/setup.sh"],
        cwd=project,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


# ---------------------------------------------------------------- which Python


class Machine:
    """One with the commands that setup.sh needs, and the Pythons that a test puts there."""

    def __init__(self, project: Path, folder: Path) -> None:
        self._project, self.home = project, folder / "home"
        self._bin = folder / "bin"
        self._bin.mkdir()
        for name in ("bash", "dirname", "sed"):
            found = shutil.which(name)
            assert found
            (self._bin / name).symlink_to(found)
        told = "import os\nprint(os.environ['WHICH'])\n"
        (project / "infra" / "local" / "set_up.py").write_text(told)

    def has(self, name: str, *, without: str = "never") -> None:
        """A Python of that name, or path from home, that fails where that word is in its code."""
        place = self.home / name if "/" in name else self._bin / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(
            f'#!{self._bin}/bash\nif [[ "$*" == *"{without}"* ]]; then exit 127; fi\n'
            f'WHICH="{name}" exec "{sys.executable}" "$@"\n'
        )
        place.chmod(0o755)

    def picks(self, **environment: str) -> str:
        """The Python that set_up.py runs with; else what is said on standard error."""
        done = subprocess.run(
            [self._bin / "bash", "infra/local/setup.sh"],
            cwd=self._project,
            env={"PATH": str(self._bin), "HOME": str(self.home), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip() or done.stderr.strip()


@pytest.fixture
def machine(project: Path, tmp_path: Path) -> Machine:
    return Machine(project, tmp_path)


def test_python_3_11_comes_first_then_newer_ones_then_whatever_is_python3(machine: Machine) -> None:
    picked = []
    for name in ("python", "python3", "python3.14", "python3.13", "python3.12", "python3.11"):
        machine.has(name)
        picked.append(machine.picks())

    assert picked == ["python", "python3", "python3.14", "python3.13", "python3.12", "python3.11"]


def test_a_shim_that_starts_nothing_gives_way(machine: Machine) -> None:
    machine.has("python3.11", without="")
    machine.has("python3")

    assert machine.picks() == "python3"


def test_a_python_without_pip_gives_way_to_one_with(machine: Machine) -> None:
    machine.has("python3.11", without="import venv")
    assert machine.picks() == "python3.11"  # alone: set_up.py says what is missing

    machine.has("python3.13")
    assert machine.picks() == "python3.13"


@pytest.mark.parametrize(
    "place", [".pyenv/versions/3.13.0", ".local/share/uv/python/cpython-3.12.9-linux-x86_64-gnu"]
)
def test_what_version_managers_keep_beside_path_is_found(machine: Machine, place: str) -> None:
    machine.has("python3.12", without="")
    machine.has(f"{place}/bin/python3")

    assert machine.picks() == f"{place}/bin/python3"


def test_the_python_that_made_venv_stays_though_another_came(
    machine: Machine, project: Path
) -> None:
    machine.has("python3.11")
    machine.has("own/python3.13")
    (project / ".venv").mkdir()
    made = f"home = /x\nversion = 3.13.0\nexecutable = {machine.home}/own/python3.13\n"
    (project / ".venv" / "pyvenv.cfg").write_text(made)

    assert machine.picks() == "own/python3.13"
    assert machine.picks(DPOFLOW_PYTHON="python3.11") == "python3.11"


def test_no_python_at_all_is_one_line_with_a_way_out(machine: Machine) -> None:
    machine.has("python3", without="")

    said = machine.picks()

    assert said.startswith("make setup: no Python 3.11 to 3.14 here; install one")
    assert "\n" not in said


# ---------------------------------------------------------------- what a killed pip leaves


@pytest.fixture(scope="module")
def two_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip made of them, as site-packages."""
    folder = tmp_path_factory.mktemp("packages")
    index = Index(folder / "index")
    index.offer("kept", "1.0")
    index.offer("cut", "1.0")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "kept", "cut"]
    command += ["--isolated", "--index-url", index.url, "--target", str(folder / "site-packages")]
    subprocess.run(command, check=True)
    index.close()
    return folder / "site-packages"


@pytest.fixture
def site(tmp_path: Path, two_packages: Path) -> Path:
    return shutil.copytree(two_packages, tmp_path / "site-packages")


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def as_in_the_wheel(site: Path) -> None:
    """RECORD before pip has written its own, which names INSTALLER."""
    record = site / "cut-1.0.dist-info" / "RECORD"
    lines = record.read_text().splitlines(keepends=True)
    record.write_text("".join(line for line in lines if "INSTALLER" not in line))


CUTS: dict[str, Callable[[Path], object]] = {
    "before the metadata": lambda site: shutil.rmtree(site / "cut-1.0.dist-info"),
    "before RECORD": lambda site: (site / "cut-1.0.dist-info" / "RECORD").unlink(),
    "before pip's own RECORD": as_in_the_wheel,
    "in the middle of RECORD": lambda site: os.truncate(site / "cut-1.0.dist-info/RECORD", 20),
    "in the middle of a file": lambda site: os.truncate(site / "cut.py", 3),
    "after a file was removed": lambda site: (site / "cut.py").unlink(),
    "in the middle of an upgrade": lambda site: [
        (site / name).rename(site / f"~{name[1:]}") for name in ("cut.py", "cut-1.0.dist-info")
    ],
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_what_was_installed_whole_stays_and_nothing_else(
    leftovers: ModuleType, site: Path, cut: Callable[[Path], object]
) -> None:
    before = files(site)

    cut(site)
    whole, broken = leftovers.clear(site)

    assert files(site) == {name for name in before if not name.startswith("cut")}
    assert whole == 1
    assert broken in ([], ["cut-1.0"])


def test_an_environment_that_is_whole_loses_nothing(leftovers: ModuleType, site: Path) -> None:
    before = files(site)

    assert leftovers.clear(site) == (2, [])
    assert files(site) == before


def test_each_distribution_that_runs_this_test_is_whole(leftovers: ModuleType) -> None:
    """What pip really writes, for some two hundred of them."""
    whole, broken = leftovers.examine(Path(sysconfig.get_path("purelib")))

    assert broken == []
    assert {name.partition("-")[0] for name in whole} >= {"numpy", "pytest", "torch"}


# ---------------------------------------------------------------- the whole of it


@pytest.mark.full
def test_the_next_set_up_waits_for_the_pip_of_a_killed_one_and_goes_on(
    project: Path, configured: Index
) -> None:
    environment = offer_all(configured)
    configured.withheld = "needed"
    command = [sys.executable, "infra/local/set_up.py"]
    with subprocess.Popen(command, cwd=project, env={**os.environ, **environment}) as first:
        try:
            wait_for(lambda: any("needed" in path for path in configured.downloads()))
        finally:
            first.kill()
    before = configured.downloads()
    configured.withheld = ""
    configured.released.set()
    again = run_setup(project, **environment)

    assert again.returncode == 0, again.stderr
    assert "another set-up is at work here" in again.stdout
    assert re.search(r"the last one was cut short; \d packages are there\n", again.stdout)
    assert configured.downloads()[len(before) :] == ["/simple/weights/weights-1.0-py3-none-any.whl"]
    assert installed(project) == {"torch": "2.13.0+cpu", "needed": "1.0", "weights": "1.0"}


INSTANTS = (
    ".venv",
    ".venv/bin/python",
    ".venv/lib/*/site-packages/pip/__init__.py",
    ".venv/lib/*/site-packages/~ip",  # pip upgrades itself
    ".venv/lib/*/site-packages/torch.py",
    ".venv/lib/*/site-packages/needed_250.py",
    ".venv/lib/*/site-packages/needed-1.0.dist-info",
    ".venv/lib/*/site-packages/weights.py",
)


@pytest.mark.full
def test_killed_again_and_again_it_goes_on_to_what_one_undisturbed_set_up_makes(
    project: Path, tmp_path: Path, configured: Index
) -> None:
    """SIGKILL for set-up and pip once a file is there: of venv, of pip's upgrade, of packages."""
    environment = {**offer_all(configured), "TMPDIR": str(tmp_path)}
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(project, undisturbed)
    whole = run_setup(undisturbed, **environment)
    assert whole.returncode == 0, whole.stderr

    killed = [kill_when(project, instant, **environment) for instant in INSTANTS]
    last = run_setup(project, **environment)
    idle = run_setup(project, **environment)

    assert any(killed)
    assert last.returncode == 0, last.stderr
    assert idle.stdout == "make setup: .venv is up to date\n"
    assert sizes(project) == sizes(undisturbed)
    assert not list(tmp_path.glob("dpoflow-setup-*"))


def offer_all(index: Index) -> dict[str, str]:
    """What the small project needs; gives the settings of a set-up that finds it."""
    index.offer_pip(PIP)
    index.offer("torch", "2.13.0+cpu", modules=50)
    index.offer("needed", "1.0", modules=500)
    index.offer("weights", "1.0", "a-dependency-nobody-has", modules=50)
    return {"DPOFLOW_PYTHON": sys.executable, "DPOFLOW_TORCH_INDEX": index.url}


def kill_when(project: Path, there: str, **environment: str) -> bool:
    """Whether a set-up was killed once that was there; not where it was done before."""
    command = [sys.executable, "infra/local/set_up.py"]
    with subprocess.Popen(
        command, cwd=project, env={**os.environ, **environment}, start_new_session=True
    ) as process:
        pause = threading.Event()
        while process.poll() is None:
            if any(project.glob(there)):
                os.killpg(process.pid, signal.SIGKILL)
                return True
            pause.wait(0.005)
    return False


def sizes(project: Path) -> dict[str, int]:
    """What site-packages holds, but for what names the project's own place."""
    (site,) = (project / ".venv").glob("lib/*/site-packages")
    own = ("RECORD", "direct_url.json")
    return {
        str(path.relative_to(site)): path.stat().st_size
        for path in site.rglob("*")
        if path.is_file() and path.suffix != ".pyc" and path.name not in own
    }


def wait_for(condition: Any) -> None:
    pause = threading.Event()
    for _ in range(600):
        if condition():
            return
        pause.wait(0.1)
    pytest.fail("waited a minute in vain")


def installed(project: Path) -> dict[str, str]:
    """Name to version of what the project asked for, in its environment."""
    names = ("torch", "needed", "weights")
    code = f"from importlib.metadata import version as v; print(*(v(n) for n in {names}))"
    python = project / ".venv" / "bin" / "python"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return dict(zip(names, done.stdout.split(), strict=True))
