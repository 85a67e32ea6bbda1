"""Who trains: this process, several that torchrun starts here, or a Kubeflow TrainJob.

Reads   a `Job`
Gives   `launch`; once it returns, the job's weights and outcome are there. `gpus_of_others`
Not     training (work.py), the cluster's words (trainjob.py)
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from dpoflow.contracts.base import canonical_json
from dpoflow.contracts.errors import ConfigError
from dpoflow.contracts.spec import TrainConfig
from dpoflow.state import files
from dpoflow.state.events import Events
from dpoflow.state.imports import unswept
from dpoflow.state.lifeline import RUNNER_PID
from dpoflow.state.machine import threads_each
from dpoflow.train.outcome import SHUTDOWN_S, Job, cause
from dpoflow.train.preemption import Preemption


def launch(job: Job, events: Events) -> None:
    """Train. Raises what training raised, wherever that was."""
    if job.config.backend == "inprocess":
        _check_alone()
        with unswept():
            from dpoflow.train.work import work  # torch: not where others do the work

        work(job)
        return
    work_folder = job.state / "work"
    if job.config.backend == "trainjob":  # its pods see the state, not this pod's own inputs
        job = _with_own_pairs(job, work_folder)
    job.error.unlink(missing_ok=True)
    path = work_folder / "job.json"
    path.write_text(canonical_json(job) + "\n", encoding="utf-8")
    if job.config.backend == "trainjob":
        from dpoflow.train.trainjob import train_on_cluster

        train_on_cluster(job, path, events)
    else:
        _torchrun(job, path)


def gpus_of_others(config: TrainConfig) -> int:
    """How many GPUs the processes hold that torchrun starts on this machine."""
    if config.backend != "torchrun" or config.device == "cpu":
        return 0
    there = _num_gpus()
    return min(config.processes or there, there)


def _with_own_pairs(job: Job, folder: Path) -> Job:
    """The pairs copied into the state; pods of an earlier attempt may be reading them by now."""
    pairs, draft = folder / "pairs", folder / ".pairs"
    if not pairs.is_dir():
        files.publish(job.pairs, draft)
        draft.rename(pairs)
    return job.model_copy(update={"pairs": pairs})


def _check_alone() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"train.backend inprocess trains in one process, and WORLD_SIZE is "
            f"{os.environ['WORLD_SIZE']}; set train.backend: torchrun, which starts the others"
        )


def _torchrun(job: Job, path: Path) -> None:
    many = job.config.processes or _num_gpus() or 1
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(many), "--shutdown-timeout", str(SHUTDOWN_S)),
        *("-m", "dpoflow.train", str(path)),
    ]
    environment = {
        **os.environ,
        RUNNER_PID: str(os.getpid()),  # they end with this process, however it ends
        "OMP_NUM_THREADS": threads_each(many),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    log = job.state / "torchrun.log"
    before = log.stat().st_size if log.exists() else 0
    with log.open("ab") as out, Preemption() as preemption:
        group = subprocess.Popen(  # noqa: S603  # this very interpreter
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment
        )
        try:
            _await(group, preemption)
        finally:
            group.kill()
            group.wait()
    if group.returncode:
        raise cause(job, f"torchrun ended with {group.returncode}: {_last_line(log, before)}")


def _await(group: "subprocess.Popen[bytes]", preemption: Preemption) -> None:
    told = False
    while group.poll() is None:
        if preemption.asked and not told:
            group.send_signal(signal.SIGTERM)  # torchrun hands it on, and waits for all
            told = True
        with suppress(subprocess.TimeoutExpired):
            group.wait(timeout=0.2)


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _last_line(log: Path, before: int) -> str:
    """Of this attempt, whose log begins at byte `before`."""
    text = log.read_bytes()[before:].decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # torchrun ends with an error of its own, which only says that there was one.
    told = [
        line
        for line in lines
        if ("Error" in line or "Signal" in line) and "ChildFailedError" not in line
    ]
    return f"{(told or lines or ['nothing said'])[-1][:300]} (all of it: {log})"
