"""The processes that train together, as one of them sees the others.

Reads   RANK, WORLD_SIZE and the like, as torchrun sets them
Gives   `joined`, `rank`, `size`, `share`, `gather`, `add_up`, `agreed`
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

Thing = TypeVar("Thing")


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Meet the others, if torchrun started some; gives the device that is this process's own."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        distributed.destroy_process_group()


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
