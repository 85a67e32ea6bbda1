"""Children die with their runner.

A step that outlives a killed runner would write into the state that the next run continues:
measured, with kfp.local, SIGKILL of the runner leaves its child alive. Between the two stands a
shell, so a signal on the parent's death (PR_SET_PDEATHSIG) would watch the wrong process.

Reads   DPOFLOW_RUNNER_PID, set by the laptop backend
Gives   `tie_to_runner`; `tie_to_parent` for the processes that a step starts
"""

import multiprocessing
import os
import select
import signal
import threading
from multiprocessing.process import BaseProcess

RUNNER_PID = "DPOFLOW_RUNNER_PID"


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def tie_to_runner() -> None:
    """Die the moment the runner does. Without DPOFLOW_RUNNER_PID (on a cluster) nothing happens."""
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


def _poll(runner: int) -> None:
    pause = threading.Event()
    while not pause.wait(0.5):
        try:
            os.kill(runner, 0)
        except ProcessLookupError:
            _die()
