"""The language-model head, a slice of the vocabulary at a time.

Reads   hidden rows that predict a token, and those tokens
Gives   `token_logps`: the log-probability of each, float32 at least, with exact gradients
Not     which rows (layout.py), sums over answers (logprobs.py)
Shapes  N rows, H hidden, V vocabulary, v a slice of it

The logits of a small model's batch are larger than the model. Here at most `SLICE` of them exist at
once: the forward pass keeps each row's normaliser only, the backward pass makes the logits again.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

SLICE = 1 << 22
"""Logits that exist at once."""


def token_logps(head: nn.Module, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
    """log p(target) of each row."""
    if type(head) is nn.Linear:
        kind = _product_type(hidden_NH)
        bias = head.bias
        found: Tensor = _TokenLogps.apply(  # type: ignore[no-untyped-call]
            hidden_NH, head.weight, bias, targets_N, kind
        )
        return found
    # A head with adapters, or of another making: whole vocabulary, few rows, made again backwards.
    rows = max(1, SLICE // int(head.weight.shape[0]))  # type: ignore[index]
    parts = zip(hidden_NH.split(rows), targets_N.split(rows), strict=True)
    return torch.cat([checkpoint(_plainly, head, *part, use_reentrant=False) for part in parts])


def _plainly(head: nn.Module, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
    logits_NV = _widened(head(hidden_NH))
    return logits_NV.gather(1, targets_N.unsqueeze(1)).squeeze(1) - logits_NV.logsumexp(dim=1)


def _product_type(hidden: Tensor) -> torch.dtype:
    """What autocast, if it is on, would multiply in."""
    device = hidden.device.type
    on = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else hidden.dtype


def _widened(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _slices(num_rows: int, vocabulary: int) -> Iterator[slice]:
    width = max(128, SLICE // max(1, num_rows))
    for begin in range(0, vocabulary, width):
        yield slice(begin, min(begin + width, vocabulary))


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        kind: torch.dtype,
    ) -> Tensor:
        low_NH = hidden_NH.to(kind)
        num_rows = len(targets_N)
        largest_N = _widened(low_NH.new_full((num_rows,), -torch.inf))
        total_N, picked_N = torch.zeros_like(largest_N), torch.zeros_like(largest_N)
        for part in _slices(num_rows, len(weight_VH)):
            logits_Nv = _logits(low_NH, weight_VH, bias_V, part)
            larger_N = torch.maximum(largest_N, logits_Nv.amax(dim=1))
            here_N, places_N = _inside(targets_N, part)
            picked_N += here_N * logits_Nv.gather(1, places_N.unsqueeze(1)).squeeze(1)
            logits_Nv.sub_(larger_N.unsqueeze(1)).exp_()
            total_N = total_N * (largest_N - larger_N).exp() + logits_Nv.sum(dim=1)
            largest_N = larger_N
        normaliser_N = largest_N + total_N.log()
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, targets_N, normaliser_N)
        ctx.kind = kind
        return picked_N - normaliser_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_N,) = grads
        hidden_NH, weight_VH, bias_V, targets_N, normaliser_N = ctx.saved_tensors
        kind, low_NH = ctx.kind, hidden_NH.to(ctx.kind)
        grad_hidden_NH = torch.zeros_like(_widened(low_NH))
        grad_weight_VH = torch.empty_like(weight_VH) if ctx.needs_input_grad[1] else None
        grad_bias_V = torch.empty_like(bias_V) if ctx.needs_input_grad[2] else None
        for part in _slices(len(targets_N), len(weight_VH)):
            # d log p(target) / d logits: one at the target, less the probabilities.
            grad_Nv = _logits(low_NH, weight_VH, bias_V, part)
            grad_Nv.sub_(normaliser_N.unsqueeze(1)).exp_().mul_(-grad_N.unsqueeze(1))
            here_N, places_N = _inside(targets_N, part)
            grad_Nv.scatter_add_(1, places_N.unsqueeze(1), (here_N * grad_N).unsqueeze(1))
            low_Nv = grad_Nv.to(kind)
            grad_hidden_NH += low_Nv @ weight_VH[part].to(kind)
            if grad_weight_VH is not None:
                grad_weight_VH[part] = low_Nv.T @ low_NH
            if grad_bias_V is not None:
                grad_bias_V[part] = grad_Nv.sum(dim=0)
        return grad_hidden_NH.to(hidden_NH.dtype), grad_weight_VH, grad_bias_V, None, None


def _logits(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, part: slice) -> Tensor:
    """A fresh tensor, so that it may be worked on in place."""
    bias_v = None if bias_V is None else bias_V[part].to(hidden_NH.dtype)
    return _widened(linear(hidden_NH, weight_VH[part].to(hidden_NH.dtype), bias_v))


def _inside(targets_N: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Which targets lie in this slice, and where in it; the others point at its first column."""
    here_N = (targets_N >= part.start) & (targets_N < part.stop)
    return here_N, torch.where(here_N, targets_N - part.start, 0)
