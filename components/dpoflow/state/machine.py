"""What this machine gives a process: processors, a GPU, and how its threads wait for each other.

Reads   the scheduler's affinity, the cgroup's quota, the environment
Gives   `processors`, `has_gpu`, `set_thread_defaults`, `threads_each`
Not     what is done with them

libgomp, which torch's threads are of on Linux, reads the environment when it is loaded: so its
defaults are set where a process begins, before torch is imported.
"""

import math
import os
import shutil
from contextlib import suppress
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_THREADS = "OMP_NUM_THREADS"
_OURS = "DPOFLOW_OMP_NUM_THREADS"
"""What we set the variable to: another value is somebody's wish."""
SPIN_COUNT = "3000"
"""How often a thread looks before it sleeps: often enough for one that is about to come, too seldom
to keep a processor from one that has none. `make bench-busy` shows others beside it."""


def processors(cgroup: Path = _CGROUP) -> int:
    """Count those that this process may use, of which a container may have a share only."""
    some = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return some if quota is None else max(1, min(some, math.ceil(quota)))


def _quota(cgroup: Path) -> float | None:
    """Return what Kubernetes' limits become, in processors: of cgroup v2, or of v1."""
    with suppress(OSError, ValueError):  # no such file, or "max": no quota
        most, period = map(int, (cgroup / "cpu.max").read_text("ascii").split())
        return most / period
    with suppress(OSError, ValueError):
        most = int((cgroup / "cpu" / "cpu.cfs_quota_us").read_text("ascii"))
        period = int((cgroup / "cpu" / "cpu.cfs_period_us").read_text("ascii"))
        return most / period if most > 0 else None  # -1: no quota
    return None


def has_gpu() -> bool:
    """Return whether an NVIDIA GPU shows itself."""
    return Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None


def set_thread_defaults() -> None:
    """Say to OpenMP what suits this machine, where the user said nothing.

    Threads that wait for each other spin for a while, and beside another process one of them has no
    processor: then all the others spin. Where a GPU does the work they hardly wait. And they are as
    many as the host's processors, whatever part of them a pod may use.
    """
    if "OMP_WAIT_POLICY" not in os.environ and not has_gpu():
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    if _THREADS not in os.environ and processors() < (os.cpu_count() or 1):
        os.environ[_THREADS] = os.environ[_OURS] = str(processors())


def threads_each(num_processes: int) -> str:
    """Return OMP_NUM_THREADS for each of several processes: what the user said, or its share."""
    said = os.environ.get(_THREADS)
    if said and said != os.environ.get(_OURS):
        return said  # which may be a list
    return str(max(1, processors() // num_processes))
