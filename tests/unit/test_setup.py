"""`make setup` against package indexes of its own: real pip, real HTTP, wheels of a few bytes."""

import ensurepip
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
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

    def offer(self, name: str, version: str, *requires: str) -> None:
        """Put up a wheel, with its metadata beside it as real indexes have it."""
        stem = f"{name.replace('-', '_')}-{version}"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        metadata += "".join(f"Requires-Dist: {each}\n" for each in requires)
        project = self._folder / name
        project.mkdir(parents=True, exist_ok=True)
        wheel = project / f"{stem}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"{name.replace('-', '_')}.py", f"version = {version!r}\n")
            archive.writestr(f"{stem}.dist-info/METADATA", metadata)
            archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            archive.writestr(f"{stem}.dist-info/RECORD", "")
        Path(f"{wheel}.metadata").write_text(metadata)

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
    pins = {"pip": ensurepip.version(), "torch": "2.13.0", "needed": "1.0", "weights": "1.0"}
    lock = "".join(f"{name}=={version}\n" for name, version in pins.items())
    (folder / "infra" / "locks" / "py311.txt").write_text(lock)
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
    place = project / "infra" / "local" / "set_up.py"
    spec = importlib.util.spec_from_file_location("set_up_under_test", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def choose(set_up: ModuleType, *, gpu: bool = False, cpu_index: str) -> list[str]:
    pip = set_up.Pip(Path(sys.executable))
    chosen: list[str] = set_up.choose_torch(pip, "torch==2.13.0", gpu=gpu, cpu_index=cpu_index)
    return chosen


def test_a_cuda_build_is_refused_before_anything_is_downloaded(
    set_up: ModuleType, configured: Index, pytorch: Index
) -> None:
    configured.offer("torch", "2.13.0", *CUDA, "sympy")
    configured.offer("sympy", "1.14")
    for each in CUDA:
        configured.offer(*each.split("=="))

    with pytest.raises(
        SystemExit, match=r"would bring 3 CUDA packages \(nvidia-cublas, …\)"
    ) as stop:
        choose(set_up, cpu_index=pytorch.url)

    assert "\n" not in str(stop.value)
    assert "PIP_FIND_LINKS=" in str(stop.value)
    assert configured.downloads() == []


@pytest.mark.parametrize("package", ["nvidia-cudnn-cu13", "cuda-bindings", "triton"])
def test_one_cuda_package_is_enough_to_refuse(
    set_up: ModuleType, configured: Index, pytorch: Index, package: str
) -> None:
    configured.offer("torch", "2.13.0", package)
    configured.offer(package, "1.0")

    with pytest.raises(SystemExit, match=rf"would bring 1 CUDA packages \({package}, …\)"):
        choose(set_up, cpu_index=pytorch.url)


def test_pytorchs_own_cpu_build_comes_first(
    set_up: ModuleType, configured: Index, pytorch: Index
) -> None:
    configured.offer("torch", "2.13.0", *CUDA)
    pytorch.offer("torch", "2.13.0+cpu", "sympy")

    chosen = choose(set_up, cpu_index=pytorch.url)

    assert chosen[-1] == "torch==2.13.0+cpu"
    assert pytorch.url in chosen
    assert configured.asked == pytorch.downloads() == []


def test_an_index_that_is_down_gives_way_to_the_configured_one(
    set_up: ModuleType, configured: Index, pytorch: Index
) -> None:
    configured.offer("torch", "2.13.0+cpu", "sympy")
    configured.offer("sympy", "1.14")
    pytorch.close()

    assert choose(set_up, cpu_index=pytorch.url) == ["torch==2.13.0+cpu"]


def test_with_a_gpu_the_configured_index_decides(
    set_up: ModuleType, configured: Index, pytorch: Index
) -> None:
    assert choose(set_up, gpu=True, cpu_index=pytorch.url) == ["torch==2.13.0"]
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


# ---------------------------------------------------------------- when to start over


def reason(set_up: ModuleType, project: Path, stamp: str | None) -> str:
    environment = project / ".venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").symlink_to(sys.executable)
    if stamp is not None:
        set_up.STAMP.write_text(stamp)
    found: str = set_up.reason_to_start_over(set_up.stamp())
    return found


@pytest.mark.parametrize("stamp", ["", '{"pla', '{"files": "unfinished"}'])
def test_a_set_up_that_was_cut_short_starts_over(
    set_up: ModuleType, project: Path, stamp: str
) -> None:
    assert reason(set_up, project, stamp) == "the last set-up was cut short"


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


def test_too_little_room_is_said_before_anything_is_made(
    set_up: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"GB free, 99999999 GB are needed for .venv"):
        set_up.enough_room(tmp_path, 99_999_999, "for .venv")


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


# ---------------------------------------------------------------- the whole of it


@pytest.mark.full
def test_killed_midway_the_next_set_up_starts_over_and_the_one_after_does_nothing(
    project: Path, configured: Index
) -> None:
    configured.offer("torch", "2.13.0+cpu")
    configured.offer("needed", "1.0")
    configured.offer("weights", "1.0", "a-dependency-nobody-has")
    environment: dict[str, Any] = {
        "DPOFLOW_PYTHON": sys.executable,
        "DPOFLOW_TORCH_INDEX": configured.url,
    }

    configured.withheld = "needed"
    command = [sys.executable, "infra/local/set_up.py"]
    with subprocess.Popen(command, cwd=project, env={**os.environ, **environment}) as first:
        try:
            wait_for(lambda: any("needed" in path for path in configured.downloads()))
        finally:
            first.kill()
    configured.withheld = ""
    configured.released.set()
    again = run_setup(project, **environment)
    idle = run_setup(project, **environment)

    assert again.returncode == 0, again.stderr
    assert "cut short, so .venv is made anew" in again.stdout
    assert idle.stdout == "make setup: .venv is up to date\n"
    assert installed(project) == {"torch": "2.13.0+cpu", "needed": "1.0", "weights": "1.0"}


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
