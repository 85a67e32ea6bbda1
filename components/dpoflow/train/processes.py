"""The processes that train together, as one of them sees the others.

Reads   RANK, WORLD_SIZE and the like, as torchrun sets them
Gives   `joined`, `rank`, `size`, `share`, `gather`, `add_up`, `agreed`,
        `is_of_another`
Not     how processes are started (launch.py), how weights are split among them (shard.py)

Alone, each of these costs nothing and changes nothing. Talk between processes that is not gradients
goes over gloo, so that it may hold anything and no GPU waits for it.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, distributed

from dpoflow.contracts.errors import ConfigError

Thing = TypeVar("Thing")


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Meet the others, if torchrun started some; gives the device that is this process's own."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.type == "cuda":
        mine, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if mine >= there:
            raise ConfigError(
                f"train.processes asks for more than the {there} GPUs of this machine; each "
                "process takes one: lower it, or leave it out"
            )
        device = torch.device("cuda", mine)
        torch.cuda.set_device(device)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def is_of_another(error: Exception) -> bool:
    """Whether this is what a process sees when another one is lost."""
    said = str(error).lower()
    lost = ("connection closed", "connection reset", "connection refused", "broken pipe", "nccl")
    return isinstance(error, distributed.DistError) or any(word in said for word in lost)


def _together() -> bool:
    return distributed.is_initialized() and distributed.get_world_size() > 1


def rank() -> int:
    """Which of the processes this is; the first one speaks and writes for all."""
    return distributed.get_rank() if _together() else 0


def size() -> int:
    """How many there are."""
    return distributed.get_world_size() if _together() else 1


def share(batch: Sequence[int], of: int | None = None) -> tuple[int, ...]:
    """What this process takes of a batch, or process `of`; the shares are of like length."""
    return tuple(batch[rank() if of is None else of :: size()])


def gather(mine: Thing) -> list[Thing]:
    """What each process has, in their order."""
    if not _together():
        return [mine]
    every: list[Thing] = [mine] * size()
    distributed.all_gather_object(every, mine)
    return every


def add_up(values: Tensor) -> Tensor:
    """The sum over processes, on the processor."""
    total = values.detach().cpu()
    if _together():
        distributed.all_reduce(total)
    return total


def agreed(mine: Thing) -> Thing:
    """What the first process says."""
    return gather(mine)[0]
