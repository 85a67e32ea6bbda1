"""A fork server: a process that has imported what tasks import, and forks one for each of them.

torch, transformers, MLflow and Great Expectations take longer to import than a small task works,
and a run has eight tasks. Forked from here, a task begins with all of them. It is a process of its
own as before: it ends by itself, can be killed, and gives its memory back.

Reads   commands of lightweight components, as kfp.local would start them
Gives   `ForkServer`, for a runner; the process itself is `python -m` this module
Not     what tasks do, nor the one handler of kfp.local that this replaces: see laptop.py

Nobody waits for an import: the process has a successor, forked from it, which imports the next
stage, says so, and is handed all requests from then on, while it has a successor of its own.

None of them has a second thread of ours, and none computes anything, for what a fork copies may be
locks that no thread will open, an OpenMP pool without its threads, or a CUDA context. Hence none
imports torch where there is a GPU.

The runner speaks to the first over a socket: one byte, with the write end of a pipe for what the
task prints and a socket of its own, which carries the request there and the exit status back.
"""

import atexit
import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, Self

from dpoflow.state.imports import unswept
from dpoflow.state.machine import has_gpu, set_thread_defaults

_INPUT = "--executor_input"
"""A lightweight component's command ends in its source, this, the inputs, and its function."""
_EXECUTOR = "kfp.dsl.executor_main"
STAGES = (
    (
        _EXECUTOR,
        "dpoflow.state.step",
        "mlflow.tracking",
        "mlflow.store.tracking.sqlalchemy_store",
        "mlflow.store.model_registry.sqlalchemy_store",
        "dpoflow.snapshot.step",
    ),
    (
        "dpoflow.decide.step",
        "dpoflow.validate.step",
        "dpoflow.validate.expectations",
        "matplotlib.backends.backend_svg",
    ),
)
TORCH_STAGES = (
    ("dpoflow.policy.library", "dpoflow.synthesize.step", "dpoflow.policy.generate"),
    (
        "dpoflow.train.step",
        "dpoflow.train.work",
        "dpoflow.evaluate.step",
        "scipy.stats",
        "sklearn.linear_model",
        "dpoflow.register.step",
    ),
)
"""What tasks import, in the order in which a run comes to it."""
_READY = b"\1"
_CHUNK = 1 << 16
_PR_SET_PDEATHSIG = 1
"""Of Linux's prctl."""


class ForkServer:
    """The runner's end: there while the context lasts, and started again if it is killed."""

    def __init__(self, log: IO[str]) -> None:
        """`log` takes what imports print."""
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._starting = threading.Lock()

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()  # what it forked goes with it
            self._process.wait()

    def _start(self) -> socket.socket:
        self._process, self._control = start_process(self._log)
        return self._control

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Run a lightweight component's command; what it prints goes to our standard output.

        Gives its exit status, negative for a signal, as `subprocess` does. Several threads may ask.
        """
        at = command.index(_INPUT)
        request = {
            "source": command[at - 1],
            "arguments": list(command[at:]),
            "environment": dict(environment),
        }
        reply, theirs = socket.socketpair()
        read, write = os.pipe()
        with reply, os.fdopen(read, encoding="utf-8", errors="replace") as printed:
            try:
                self._hand_over([write, theirs.fileno()])
            finally:
                os.close(write)
                theirs.close()
            with contextlib.suppress(BrokenPipeError):  # it died at once: see its status
                reply.sendall(json.dumps(request).encode())
            reply.shutdown(socket.SHUT_WR)
            for line in printed:
                print(line, end="")  # noqa: T201  # the run's log
            status = _read_all(reply)
        return int(status) if status else -signal.SIGKILL  # the process itself is gone

    def _hand_over(self, descriptors: list[int]) -> None:
        with self._starting:
            assert self._control is not None, "not started"
            try:
                socket.send_fds(self._control, [b"\0"], descriptors)
            except OSError:  # somebody killed it since the last task
                self.__exit__()
                socket.send_fds(self._start(), [b"\0"], descriptors)


def start_process(log: IO[str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start the process, which prints to `log`; also give the socket by which it is asked."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(  # noqa: S603  # this very program
            [sys.executable, "-m", __spec__.name, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    return process, ours


def _read_all(source: socket.socket) -> bytes:
    with contextlib.suppress(ConnectionResetError):
        return b"".join(iter(lambda: source.recv(_CHUNK), b""))
    return b""


# ---------------------------------------------------------------- the process


@dataclass(frozen=True)
class Request:
    """A task to start: where it prints, and where its request comes from and its status goes."""

    output: int
    reply: socket.socket


@dataclass(frozen=True)
class _Task:
    """A fork at work, as its parent knows it."""

    pid: int
    pidfd: int
    """Readable once the process has ended."""
    reply: socket.socket

    def conclude(self) -> None:
        """Tell how it ended."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        with self.reply, contextlib.suppress(OSError):  # nobody may be there to hear it
            self.reply.sendall(str(status).encode())
        os.close(self.pidfd)


def serve(control: socket.socket, stages: Sequence[Sequence[str]]) -> Request:
    """Start what is asked for until killed; return in each fork, with what it is to do."""
    for stage in stages:
        ours, theirs = socket.socketpair()
        if fork():
            theirs.close()
            return _start_tasks(control, ours)
        control.close()
        ours.close()
        control = theirs
        preload(stage)
        control.sendall(_READY)
    return _start_tasks(control, None)


def _start_tasks(control: socket.socket, coming: socket.socket | None) -> Request:
    """Fork for each request, or pass it on once the successor that is coming is ready."""
    successor: socket.socket | None = None
    tasks: dict[int, _Task] = {}
    while True:
        watched: list[socket.socket | int] = [control, *tasks]
        if coming is not None:
            watched.append(coming)
        for ready in select.select(watched, [], [])[0]:
            if isinstance(ready, int):
                tasks.pop(ready).conclude()
            elif ready is not control:  # ready, or killed: then this process goes on alone
                successor = ready if ready.recv(1) else None
                coming = None
            else:
                request = _receive(control)
                if successor is not None and _pass_on(request, successor):
                    continue
                pid = fork()
                if pid == 0:
                    return request
                os.close(request.output)
                task = _Task(pid, os.pidfd_open(pid), request.reply)
                tasks[task.pidfd] = task


def _receive(control: socket.socket) -> Request:
    message, descriptors, _, _ = socket.recv_fds(control, 1, 2)
    if not message:
        sys.exit()  # who asked is gone
    return Request(descriptors[0], socket.socket(fileno=descriptors[1]))


def _pass_on(request: Request, successor: socket.socket) -> bool:
    """Whether the successor took it; it may have been killed."""
    try:
        socket.send_fds(successor, [b"\0"], [request.output, request.reply.fileno()])
    except OSError:
        return False
    os.close(request.output)
    request.reply.close()
    return True


def fork() -> int:
    """As `os.fork`; the child does not outlive this process."""
    parent = os.getpid()
    with warnings.catch_warnings():
        # Python 3.12 counts the threads of OpenBLAS and jemalloc, which see to a fork themselves.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was killed before we asked
            os.kill(os.getpid(), signal.SIGKILL)
    return pid


def preload(names: Sequence[str]) -> None:
    """Import modules, for good."""
    with unswept():
        for name in names:
            with contextlib.suppress(Exception):  # the task that needs it will say what is wrong
                importlib.import_module(name)


def work(asked: Request) -> None:
    """Do what the command of a lightweight component does, from the request on."""
    os.dup2(asked.output, 1)
    os.dup2(asked.output, 2)
    os.close(asked.output)
    with asked.reply:
        request: dict[str, Any] = json.loads(_read_all(asked.reply))
    os.environ.clear()
    os.environ.update({**request["environment"], "_KFP_RUNTIME": "true"})
    from kfp.dsl.executor_main import executor_main

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "ephemeral_component.py"
        source.write_text(request["source"], encoding="utf-8")
        sys.argv = [_EXECUTOR, "--component_module_path", str(source), *request["arguments"]]
        executor_main()


def finish(main: Callable[[], None]) -> NoReturn:
    """Run `main` and end the process as Python would, without taking all modules apart: 0.6 s."""
    status = 0
    try:
        main()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            sys.stderr.write(f"{stop.code}\n")
    except BaseException as error:  # noqa: BLE001  # as at the end of any program
        traceback.print_exc()
        status = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001  # as multiprocessing ends its forks
        atexit._run_exitfuncs()  # noqa: SLF001
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def main() -> None:
    """Serve the runner at the other end of the socket that the command line names."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C reaches the runner, too, which ends this
    set_thread_defaults()
    stages = STAGES if has_gpu() else (*STAGES, *TORCH_STAGES)
    request = serve(socket.socket(fileno=int(sys.argv[1])), stages)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    finish(lambda: work(request))


if __name__ == "__main__":
    main()
