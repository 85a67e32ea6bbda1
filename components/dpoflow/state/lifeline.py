"""Children die with their runner.

A step that outlives a killed runner would write into the state that the next run continues:
measured, with kfp.local, SIGKILL of the runner leaves its child alive. Between the two stands a
shell, so a signal on the parent's death (PR_SET_PDEATHSIG) would watch the wrong process.

Reads   DPOFLOW_RUNNER_PID, or in a container DPOFLOW_RUNNER_LOCK, set by the laptop's backends
Gives   `tie_to_runner`; `tie_to_parent` for the processes that a step starts
"""

import fcntl
import multiprocessing
import os
import select
import signal
import threading
from multiprocessing.process import BaseProcess

RUNNER_PID = "DPOFLOW_RUNNER_PID"
RUNNER_LOCK = "DPOFLOW_RUNNER_LOCK"
"""A file that the runner holds with flock: a container knows no process outside."""


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def tie_to_runner() -> None:
    """Die the moment the runner does. On a cluster, where no runner is named, nothing happens."""
    if lock := os.environ.get(RUNNER_LOCK):
        threading.Thread(target=_outlast, args=(lock,), daemon=True).start()
        return
    given = os.environ.get(RUNNER_PID)
    if not given:
        return
    if not hasattr(os, "pidfd_open"):  # not Linux: look twice a second instead of being told
        threading.Thread(target=_poll, args=(int(given),), daemon=True).start()
        return
    try:
        runner = os.pidfd_open(int(given))
    except ProcessLookupError:
        _die()
    else:
        threading.Thread(target=_wait, args=(runner,), daemon=True).start()


def tie_to_parent() -> None:
    """Die the moment the process dies that `multiprocessing` started this one from."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "nobody started this process"
    threading.Thread(target=_outlive, args=(parent,), daemon=True).start()


def _outlive(parent: BaseProcess) -> None:
    parent.join()
    _die()


def _wait(runner: int) -> None:
    poll = select.poll()
    poll.register(runner, select.POLLIN)  # a pidfd is readable once its process has ended
    poll.poll()
    _die()


def _outlast(path: str) -> None:
    pause = threading.Event()
    with open(path, "rb") as lock:  # noqa: PTH123  # held open as long as this process lives
        while not pause.wait(0.5):
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            _die()


def _poll(runner: int) -> None:
    pause = threading.Event()
    while not pause.wait(0.5):
        try:
            os.kill(runner, 0)
        except ProcessLookupError:
            _die()
