"""Weights split over processes (FSDP2), and put together again.

Reads   a model in each process
Gives   `shard`, `whole`, `as_split`
Not     copies that only add up their gradients (DDP: the Trainer does that)
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from dpoflow.policy.logprobs import Scorer, without_adapters
from dpoflow.train import processes


def shard(scorer: Scorer, device: torch.device) -> None:
    """Each decoder layer is gathered when its turn comes; embeddings and head stay for the pass."""
    mesh = init_device_mesh(device.type, (processes.size(),))
    plain = without_adapters(scorer.model)
    blocks = set(plain._no_split_modules or ())  # noqa: SLF001  # where every library asks
    for module in plain.modules():
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh)
    fully_shard(scorer, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on the processor; every process must ask at once."""
    detached: Any = tensor.detach()
    return (detached.full_tensor() if isinstance(detached, DTensor) else detached).cpu()


def as_split(tensor: Tensor, like: Tensor) -> Tensor:
    """The part of `tensor` that this process holds where `like` is split, else all of it."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    here = tensor.to(like.device)
    return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)
