"""The command `dpoflow`, forked from a process that has imported everything, its tasks too.

A test that runs the command spends more on imports than on what it is about. This gives a command
line to put in the place of `python -m dpoflow_pipelines`: a launcher, which hands its arguments,
folder, environment and standard streams to the process that forks, and ends as the fork does.

What is real: the command's own main in a process of its own, which can be signalled and killed
through the launcher, and its tasks, which are forked as a user's are. What is not: a fresh
interpreter. Tests that are about starting up use `python -m dpoflow_pipelines`.

Gives   `dpoflow_command`, a command line; `tasks_forked_at_once` for runs that this process starts
"""

import atexit
import contextlib
import functools
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_NUMBER = 8
"""Bytes of a number on the socket."""


@functools.cache
def dpoflow_command() -> tuple[str, ...]:
    """Start the process that forks, which ends with this one; give what stands for `dpoflow`."""
    return (sys.executable, "-I", "-S", str(Path(__file__).resolve()), "launch", _address())


@contextlib.contextmanager
def tasks_forked_at_once() -> Iterator[None]:
    """Have the runs that this process starts find all imports of their tasks done."""
    from dpoflow_pipelines.backends import forkserver

    usual = forkserver.start_process
    _fork_tasks_from(_address())
    try:
        yield
    finally:
        forkserver.start_process = usual


@functools.cache
def _address() -> str:
    """Start the process that forks, which ends with this one; give the path of its socket."""
    folder = tempfile.TemporaryDirectory(prefix="dpoflow-forked-")
    atexit.register(folder.cleanup)
    address = str(Path(folder.name) / "socket")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.forked", "serve", address],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,  # its end is ours
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    atexit.register(process.kill)
    return address


def _fork_tasks_from(address: str) -> None:
    """A user's run starts a process to fork tasks from, which imports for seconds; ours asks."""
    from dpoflow_pipelines.backends import forkserver

    def start_process(_log: object) -> tuple[None, socket.socket]:
        ours, theirs = socket.socketpair()
        with theirs, socket.socket(socket.AF_UNIX) as server:
            _connect(server, address)
            _ask(server, {}, [theirs.fileno()])
            _number(server)
        return None, ours

    forkserver.start_process = start_process  # type: ignore[assignment]


# ---------------------------------------------------------------- the launcher: imports no more


def _launch(address: str, arguments: list[str]) -> None:
    told = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}  # noqa: PTH109
    with socket.socket(socket.AF_UNIX) as server:
        _connect(server, address)
        _ask(server, told, [0, 1, 2])
        pid = _number(server)
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, lambda number, _: os.kill(pid, number))
        status = _number(server)
    if status < 0:  # as the fork ended
        os.kill(os.getpid(), -status) if -status == signal.SIGKILL else _end_by(-status)
    os._exit(status)


def _end_by(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _ask(server: socket.socket, told: dict[str, Any], descriptors: list[int]) -> None:
    text = json.dumps(told).encode()
    socket.send_fds(server, [len(text).to_bytes(_NUMBER)], descriptors)
    server.sendall(text)


def _number(server: socket.socket) -> int:
    return int.from_bytes(server.recv(_NUMBER, socket.MSG_WAITALL), signed=True)


def _connect(server: socket.socket, address: str) -> None:
    while True:  # it binds its address before it imports anything
        try:
            server.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            time.sleep(0.02)
        else:
            return


# ---------------------------------------------------------------- the process that forks


class _Fork:
    """A command at work, or what forks the tasks of a run; `launcher` is told of its end."""

    def __init__(self, pid: int, launcher: socket.socket) -> None:
        self.pid, self.launcher = pid, launcher
        self.pidfd = os.pidfd_open(pid)
        with contextlib.suppress(OSError):  # it was killed meanwhile: see `kill`
            launcher.sendall(pid.to_bytes(_NUMBER))

    def conclude(self) -> None:
        """Tell how it ended."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        with self.launcher, contextlib.suppress(OSError):
            self.launcher.sendall(status.to_bytes(_NUMBER, signed=True))
        os.close(self.pidfd)


def _serve(address: str) -> None:
    from dpoflow_pipelines.backends import forkserver

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        for stage in (
            ("dpoflow_pipelines.cli", "dpoflow_pipelines.run"),
            *forkserver.STAGES,
            *forkserver.TORCH_STAGES,
        ):
            forkserver.preload(stage)
        launcher, descriptors, told = _fork_for_each(listener)
    launcher.close()
    if told:
        forkserver.finish(lambda: _command(address, descriptors, told))
    forkserver.finish(lambda: _tasks(descriptors[0]))


def _fork_for_each(listener: socket.socket) -> tuple[socket.socket, list[int], dict[str, Any]]:
    """Until this process's standard input ends; return in each fork, with what it is to do."""
    from dpoflow_pipelines.backends.forkserver import fork

    forks: dict[int, _Fork] = {}
    launchers: dict[int, _Fork] = {}
    while True:
        for ready in select.select([0, listener.fileno(), *forks, *launchers], [], [])[0]:
            if ready == 0:
                os._exit(0)
            elif ready in launchers:  # it was killed, and so is the command
                with contextlib.suppress(ProcessLookupError):
                    os.kill(launchers.pop(ready).pid, signal.SIGKILL)
            elif ready in forks:
                ended = forks.pop(ready)
                launchers.pop(ended.launcher.fileno(), None)
                ended.conclude()
            elif ready == listener.fileno():
                launcher = listener.accept()[0]
                size, descriptors, _, _ = socket.recv_fds(launcher, _NUMBER, 3)
                told = json.loads(launcher.recv(int.from_bytes(size), socket.MSG_WAITALL))
                pid = fork()
                if pid == 0:
                    return launcher, descriptors, told
                for each in descriptors:
                    os.close(each)
                made = _Fork(pid, launcher)
                forks[made.pidfd] = made
                if told:
                    launchers[launcher.fileno()] = made


def _tasks(control: int) -> None:
    from dpoflow_pipelines.backends import forkserver

    forkserver.work(forkserver.serve(socket.socket(fileno=control), ()))


def _command(address: str, descriptors: list[int], told: dict[str, Any]) -> None:
    for place, descriptor in enumerate(descriptors):
        os.dup2(descriptor, place)
        os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", 1)
    os.chdir(told["folder"])
    os.environ.clear()
    os.environ.update(told["environment"])
    sys.argv = ["dpoflow", *told["arguments"]]
    _fork_tasks_from(address)
    runpy.run_module("dpoflow_pipelines", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if sys.argv[1] == "launch":
        _launch(sys.argv[2], sys.argv[3:])
    _serve(sys.argv[2])
