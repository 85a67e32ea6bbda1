"""The language-model head, a slice of the vocabulary at a time.

Reads   hidden rows that predict a token, and those tokens
Gives   `token_scores`: of each its log-probability with exact gradients, and how sure the model was
Not     which rows (layout.py), sums over answers (logprobs.py)
Shapes  N rows, H hidden, V vocabulary, v a slice of it

The logits of a small model's batch are larger than the model. Here at most `SLICE` of them exist at
once. The forward pass keeps each row's normaliser and the backward pass makes the logits again. A
frozen head (adapters) lets the forward pass sum up the gradient of the hidden rows on its way, and
nothing is made twice.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

SLICE = 1 << 22
"""Logits that exist at once."""


class TokenScores(NamedTuple):
    """What the model thought of each token, float32 at least."""

    logps_N: Tensor
    """log p(token), with gradients where wanted."""
    entropy_N: Tensor
    """Of the whole distribution, in nats; no gradients."""
    top_N: Tensor
    """Whether no other token was more likely."""


def token_scores(head: nn.Module, hidden_NH: Tensor, targets_N: Tensor) -> TokenScores:
    """Score each target at its row."""
    if type(head) is nn.Linear:
        kind = _product_type(hidden_NH)
        found = _Scores.apply(  # type: ignore[no-untyped-call]
            hidden_NH, head.weight, head.bias, targets_N, kind
        )
        return TokenScores(*found)
    # A head with adapters, or of another making: whole vocabulary, few rows, made again backwards.
    rows = max(1, SLICE // int(head.weight.shape[0]))  # type: ignore[index]
    parts = [
        checkpoint(_plainly, head, *part, use_reentrant=False)
        for part in zip(hidden_NH.split(rows), targets_N.split(rows), strict=True)
    ]
    return TokenScores(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _plainly(head: nn.Module, hidden_NH: Tensor, targets_N: Tensor) -> tuple[Tensor, ...]:
    logps_NV = _widened(head(hidden_NH)).log_softmax(dim=1)
    picked_N = logps_NV.gather(1, targets_N.unsqueeze(1)).squeeze(1)
    with torch.no_grad():
        entropy_N = -(logps_NV.exp() * logps_NV).sum(dim=1)
        top_N = picked_N >= logps_NV.amax(dim=1)
    return picked_N, entropy_N, top_N


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


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        kind: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Online softmax (Milakov & Gimelshein 2018): sums are rescaled as the maximum grows."""
        low_NH = hidden_NH.to(kind)
        num_rows = len(targets_N)
        frozen = ctx.needs_input_grad[:3] == (True, False, False)
        wide = torch.promote_types(kind, torch.float32)
        largest_N = low_NH.new_full((num_rows,), torch.finfo(wide).min, dtype=wide)
        total_N, picked_N, spread_N = (torch.zeros_like(largest_N) for _ in range(3))
        pull_NH = torch.zeros_like(low_NH, dtype=wide) if frozen else None
        for part in _slices(num_rows, len(weight_VH)):
            logits_Nv = _logits(low_NH, weight_VH, bias_V, part)
            larger_N = torch.maximum(largest_N, logits_Nv.amax(dim=1))
            here_N, places_N = _inside(targets_N, part)
            picked_N += here_N * logits_Nv.gather(1, places_N.unsqueeze(1)).squeeze(1)
            shrink_N = (largest_N - larger_N).exp()
            logits_Nv.sub_(larger_N.unsqueeze(1))
            odds_Nv = logits_Nv.exp()
            spread_N += total_N * (largest_N - larger_N)
            spread_N = spread_N * shrink_N + torch.linalg.vecdot(odds_Nv, logits_Nv)
            total_N = total_N * shrink_N + odds_Nv.sum(dim=1)
            if pull_NH is not None:
                pull_NH.mul_(shrink_N.unsqueeze(1))
                pull_NH += odds_Nv.to(kind) @ weight_VH[part].to(kind)
            largest_N = larger_N
        log_total_N = total_N.log()
        normaliser_N = largest_N + log_total_N
        if pull_NH is not None:
            # d log p(target) / d hidden: the target's weights, less the expected ones.
            pull_NH = weight_VH[targets_N].to(wide) - pull_NH / total_N.unsqueeze(1)
            ctx.save_for_backward(pull_NH.to(hidden_NH.dtype))
        else:
            ctx.save_for_backward(hidden_NH, weight_VH, bias_V, targets_N, normaliser_N)
        ctx.kind, ctx.frozen = kind, frozen
        entropy_N, top_N = log_total_N - spread_N / total_N, picked_N >= largest_N
        ctx.mark_non_differentiable(entropy_N, top_N)
        return picked_N - normaliser_N, entropy_N, top_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_N = grads[0]
        if ctx.frozen:
            (pull_NH,) = ctx.saved_tensors
            return pull_NH * grad_N.unsqueeze(1).to(pull_NH.dtype), None, None, None, None
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
