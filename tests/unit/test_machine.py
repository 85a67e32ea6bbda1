"""What a process is told of its machine: in a fresh Python, since libgomp reads it once."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dpoflow.state import machine

MINE = ("OMP_NUM_THREADS", "DPOFLOW_OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def told(program: str, **environment: str) -> dict[str, str | None]:
    """The variables of OpenMP as `program` leaves them."""
    end = f"import json, os; print(json.dumps({{each: os.environ.get(each) for each in {MINE}}}))"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{end}"],
        env={key: value for key, value in os.environ.items() if key not in MINE} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return loaded


SET = "from dpoflow.state.machine import set_thread_defaults; set_thread_defaults()"


@pytest.mark.skipif(machine.has_gpu(), reason="where a GPU does the work nothing is set")
@pytest.mark.parametrize(
    ("said", "spins"),
    [
        ({}, machine.SPIN_COUNT),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_threads_spin_for_a_short_while_unless_the_user_said_otherwise(
    said: dict[str, str], spins: str | None
) -> None:
    assert told(SET, **said)["GOMP_SPINCOUNT"] == spins


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_a_containers_share_of_processors_is_its_cgroups(
    tmp_path: Path, files: dict[str, str], quota: float | None
) -> None:
    """The files are those of the kernel's documentation, of cgroup v2 and v1."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    everywhere = machine.processors(tmp_path / "none")

    share = everywhere if quota is None else math.ceil(quota)
    assert machine.processors(tmp_path) == min(everywhere, share)


def test_torch_takes_the_threads_of_a_pods_share_and_the_users_before_that() -> None:
    program = (
        "from dpoflow.state import machine; machine.processors = lambda: 1\n"
        "machine.os.cpu_count = lambda: 64\n"
        "machine.set_thread_defaults()\n"
        "import torch; print(torch.get_num_threads(), machine.threads_each(1))"
    )

    def threads(**environment: str) -> list[str]:
        kept = {key: value for key, value in os.environ.items() if key not in MINE}
        command = [sys.executable, "-c", program]
        done = subprocess.run(
            command, env=kept | environment, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    assert threads() == ["1", "1"]
    assert threads(OMP_NUM_THREADS="2") == ["2", "2"]


def test_several_processes_share_the_processors_unless_the_user_said_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "processors", lambda: 8)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    for name in MINE:
        monkeypatch.delenv(name, raising=False)

    machine.set_thread_defaults()

    assert os.environ["OMP_NUM_THREADS"] == "8"
    assert machine.threads_each(4) == "2"
    assert machine.threads_each(16) == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert machine.threads_each(4) == "3,1"


@pytest.mark.skipif(machine.has_gpu(), reason="where a GPU does the work nothing is set")
@pytest.mark.parametrize(
    "begins",
    [
        (
            "import sys; sys.argv = ['dpoflow', '--help']\n"
            "from dpoflow_pipelines.cli import main\n"
            "import contextlib\n"
            "with contextlib.suppress(SystemExit): main()"
        ),
        "from dpoflow.state.step import begin; begin('train')",
        (
            "import pathlib, sys\n"
            "from dpoflow.train.__main__ import main\n"
            "try: main(pathlib.Path('nowhere'))\n"
            "except FileNotFoundError: pass"
        ),
        (
            "import sys, socket\n"
            "ours, theirs = socket.socketpair(); ours.close()\n"
            "sys.argv = ['forkserver', str(theirs.detach())]\n"
            "from dpoflow_pipelines.backends import forkserver\n"
            "forkserver.STAGES = forkserver.TORCH_STAGES = ()\n"
            "try: forkserver.main()\n"
            "except SystemExit: pass"
        ),
    ],
    ids=["command", "component", "one of several", "fork server"],
)
def test_every_process_begins_by_saying_so_before_torch_is_there(begins: str) -> None:
    without_torch = f"{begins}\nimport sys; assert 'torch' not in sys.modules"

    assert told(without_torch)["GOMP_SPINCOUNT"] == machine.SPIN_COUNT
