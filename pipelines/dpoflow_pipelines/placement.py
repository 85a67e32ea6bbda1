"""Retries, timeouts and resources of every task: the only Kubernetes words in Python."""

import re

from kfp import kubernetes
from kfp.dsl import PipelineTask

from dpoflow.contracts.spec import TRAIN_DEADLINE_S
from dpoflow.state.step import RETRIES

_HOURS = 3600
TIMEOUT_S = {
    "snapshot": 2 * _HOURS,
    "validate": 2 * _HOURS,
    "synthesize": 12 * _HOURS,
    "merge": 2 * _HOURS,
    "train": TRAIN_DEADLINE_S,
    "evaluate": 12 * _HOURS,
    "register": 2 * _HOURS,
    "conclude": 600,
    "decide": 2 * _HOURS,
    "promote": 4 * _HOURS,
}


def place(task: PipelineTask, *, cache: bool = True) -> PipelineTask:
    """`task` with its retries and deadline.

    A retry continues from the step's own state. One that cannot help (a wrong config, rejected
    data) ends at once by itself, so the first wait may be short; see `dpoflow.state.step.begin`.
    """
    task.set_retry(num_retries=RETRIES, backoff_duration="1s", backoff_factor=2.0)
    task.set_caching_options(cache)
    step = re.sub(r"-\d+$", "", task.name)  # train-2 is the second train
    kubernetes.set_timeout(task, seconds=TIMEOUT_S[step])
    return task
