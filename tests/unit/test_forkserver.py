"""Tasks forked from a process that has imported: what they keep of being processes of their own.

What is expected is what kfp.local's own subprocess gives for the same command.
"""

import json
import os
import signal
import textwrap
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from tests.waiting import AT_MOST_S, until

from dpoflow_pipelines.backends.forkserver import ForkServer


def command(folder: Path, body: str) -> list[str]:
    """As kfp compiles a lightweight component without inputs, whose function does `body`."""
    source = "def task():\n" + textwrap.indent(textwrap.dedent(body), "    ")
    told = {"inputs": {}, "outputs": {"outputFile": str(folder / "executor_output.json")}}
    return [
        *("sh", "-c", "not what is run here", source),
        *("--executor_input", json.dumps(told), "--function_to_execute", "task"),
    ]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ForkServer]:
    with (tmp_path / "log.txt").open("w") as log, ForkServer(log) as made:
        yield made


def run(
    server: ForkServer, folder: Path, body: str, environment: Mapping[str, str] = os.environ
) -> int:
    return server.run(command(folder, body), environment)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("pass", 0),
        ("raise SystemExit(3)", 3),
        ("raise ValueError", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import os; os._exit(7)", 7),
    ],
)
def test_a_task_ends_with_the_status_of_its_process(
    server: ForkServer, tmp_path: Path, body: str, status: int
) -> None:
    assert run(server, tmp_path, body) == status


def test_what_a_task_and_its_children_print_is_heard(
    server: ForkServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = """
    import subprocess, sys
    print("to the output")
    print("to the errors", file=sys.stderr)
    subprocess.run(["echo", "from a child"])
    raise ValueError("at the end")
    """

    run(server, tmp_path, body)

    heard = capsys.readouterr().out
    for words in ("to the output", "to the errors", "from a child", "ValueError: at the end"):
        assert words in heard


def test_a_task_has_the_environment_it_is_given_and_no_other(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "environment.json"
    body = f"import json, os; open({str(out)!r}, 'w').write(json.dumps(dict(os.environ)))"
    given = {"PATH": os.environ["PATH"], "ONLY": "this"}
    monkeypatch.setenv("AFTERWARDS", "unknown to it")

    assert run(server, tmp_path, body, given) == 0

    told = json.loads(out.read_text())
    assert {**given, "_KFP_RUNTIME": "true"}.items() <= told.items()
    assert "AFTERWARDS" not in told
    assert "HOME" not in told


def test_ctrl_c_is_for_a_task_what_it_is_for_any_python(server: ForkServer, tmp_path: Path) -> None:
    body = "import os, signal; os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(60)"

    assert run(server, tmp_path, body) in {1, 130, -signal.SIGINT}


def test_two_tasks_at_once_wait_for_each_other(server: ForkServer, tmp_path: Path) -> None:
    meet = """
    import pathlib, time
    pathlib.Path({mine!r}).touch()
    while not pathlib.Path({other!r}).exists():
        time.sleep(0.01)
    """
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    statuses = list[int]()

    def start(mine: str, theirs: str) -> threading.Thread:
        body = meet.format(mine=mine, other=theirs)
        thread = threading.Thread(target=lambda: statuses.append(run(server, tmp_path, body)))
        thread.start()
        return thread

    for thread in (start(one, other), start(other, one)):
        thread.join(AT_MOST_S)

    assert statuses == [0, 0]


ALL_IMPORTED = "import sys; sys.exit(0 if 'dpoflow.evaluate.step' in sys.modules else 9)"


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """With everything imported, which is waited for."""
    folder = tmp_path_factory.mktemp("server")
    with (folder / "log.txt").open("w") as log, ForkServer(log) as made:
        until(lambda: run(made, folder, ALL_IMPORTED) == 0, "it never came to the last stage")
        yield made


def test_a_fork_computes_with_the_libraries_that_have_threads(
    imported: ForkServer, tmp_path: Path
) -> None:
    """OpenMP's, OpenBLAS's and Arrow's. What is expected are sums of ones."""
    body = """
    import numpy, pyarrow, pyarrow.compute, torch
    ones = torch.ones(512, 512)
    assert float((ones @ ones).sum()) == 512.0 ** 3
    ones.requires_grad_()
    (ones @ ones).sum().backward()
    assert float(ones.grad[0, 0]) == 1024.0
    ones = numpy.ones((512, 512))
    assert float((ones @ ones).sum()) == 512.0 ** 3
    assert pyarrow.compute.sum(pyarrow.array(range(1000))).as_py() == 499500
    """

    assert run(imported, tmp_path, body) == 0


def test_what_is_forked_has_computed_nothing_and_started_no_thread_of_ours(
    imported: ForkServer, tmp_path: Path
) -> None:
    body = """
    import sys, threading, torch
    assert "great_expectations" in sys.modules and "mlflow.tracking" in sys.modules
    assert threading.active_count() == 1
    assert not torch.cuda.is_initialized()
    assert not torch.cuda._is_in_bad_fork()
    """

    assert run(imported, tmp_path, body) == 0


def the_process(folder: Path) -> psutil.Process:
    """The one that `folder`'s log is open in, of this process's children."""
    log = str(folder / "log.txt")
    for child in psutil.Process().children():
        if any(each.path == log for each in child.open_files()):
            return child
    raise AssertionError("it is not there")


def test_where_the_process_is_killed_between_tasks_the_next_one_has_another(
    server: ForkServer, tmp_path: Path
) -> None:
    assert run(server, tmp_path, "pass") == 0

    killed = the_process(tmp_path)
    killed.kill()
    until(lambda: not is_alive(killed.pid), "it lives on")

    assert run(server, tmp_path, "pass") == 0


def test_a_task_does_not_outlive_the_process_that_it_was_forked_from(
    server: ForkServer, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    body = f"""
    import os, time
    with open({str(pid)!r} + "-", "w") as file:
        file.write(str(os.getpid()))
    os.rename({str(pid)!r} + "-", {str(pid)!r})
    time.sleep({AT_MOST_S})
    """
    statuses = list[int]()
    thread = threading.Thread(target=lambda: statuses.append(run(server, tmp_path, body)))
    thread.start()
    until(pid.exists, "the task never began")

    the_process(tmp_path).kill()

    thread.join(AT_MOST_S)
    assert statuses == [-signal.SIGKILL]
    until(lambda: not is_alive(int(pid.read_text())), "the task lives on")


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_nothing_is_left_when_the_runner_is_done(tmp_path: Path) -> None:
    with (tmp_path / "log.txt").open("w") as log, ForkServer(log) as server:
        assert run(server, tmp_path, "pass") == 0
        first = the_process(tmp_path)
        every = [first, *first.children(recursive=True)]

    until(lambda: not any(is_alive(each.pid) for each in every), "some of them live on")
