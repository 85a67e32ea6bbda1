"""The language-model head: what the model thought of each answer token, and exact gradients.

Reads   hidden rows that predict a token, and those tokens
Gives   `token_scores`: log-probabilities, and how sure the model was
Not     which rows (layout.py), sums over answers (logprobs.py)
Shapes  N rows, A answers, H hidden, V vocabulary, v a slice of it

The logits of a batch are often larger than the model, so they exist in parts, in one of three ways:

    expected   a part is some whole pairs. Whoever asks says how steeply its loss will fall with
               each answer's log-probability, and gradients are made while the logits are there:
               three products of the head's size instead of four. The backward pass compares what
               it is given with what was expected; where they differ it takes the next way.
    sliced     a part is a slice of the vocabulary. The forward pass keeps each row's normaliser,
               the backward pass makes the logits again.
    frozen     sliced, but the head has no gradient (adapters): that of the hidden rows is summed up
               by the forward pass on its way.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

SLICE = 1 << 22
"""Logits that exist at once when sliced."""

PART = 1 << 25
"""Logits that exist at once when expected; a pair with more of them is sliced."""

BLOCK = 1 << 18
"""Logits that are worked on together once they are there: few enough for a processor's cache."""


Slopes = Callable[[slice, Tensor], Tensor]
"""From some answers' summed log-probabilities to the derivative of the loss by each."""


class TokenScores(NamedTuple):
    """What the model thought of each token, float32 at least."""

    logps_N: Tensor
    """log p(token), with gradients where wanted."""
    entropy_N: Tensor
    """Of the whole distribution, in nats; no gradients."""
    top_N: Tensor
    """Whether no other token was more likely."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """How the loss of a batch will depend on its answers."""

    lengths: Sequence[int]
    """Tokens of each answer: A of them."""
    together: int
    """Answers whose losses hang together: 2 of a pair."""
    slopes: Slopes | None = None
    """None only scores, with the very numbers that a call with slopes would give."""
    figures: bool = True
    """Whether entropy and top are wanted; else they may be NaN and False."""


def token_scores(
    head: nn.Module, hidden_NH: Tensor, targets_N: Tensor, expectation: Expectation | None = None
) -> TokenScores:
    """Score each target at its row. An expectation that fails costs time, and changes nothing."""
    if type(head) is nn.Linear:
        trained = head.weight.requires_grad
        parts = _parts(expectation, len(head.weight)) if expectation and trained else None
        found = _Scores.apply(  # type: ignore[no-untyped-call]  # torch types no Function.apply
            hidden_NH, head.weight, head.bias, targets_N, _product_type(hidden_NH), parts
        )
        return TokenScores(*found)
    # A head with adapters, or of another making: whole vocabulary, few rows, made again backwards.
    rows = max(1, SLICE // int(head.weight.shape[0]))  # type: ignore[index]
    pieces = [
        checkpoint(_plainly, head, *piece, use_reentrant=False)
        for piece in zip(hidden_NH.split(rows), targets_N.split(rows), strict=True)
    ]
    return TokenScores(*(torch.cat(column) for column in zip(*pieces, strict=True)))


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


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        kind: torch.dtype,
        parts: "list[_Part] | None",
    ) -> tuple[Tensor, Tensor, Tensor]:
        head = _Head(hidden_NH.to(kind), weight_VH, bias_V, targets_N)
        ctx.head_needs, ctx.kind, made = ctx.needs_input_grad[1:3], kind, None
        if parts is not None:
            found, made = _expected(head, parts, with_bias=ctx.needs_input_grad[2])
        elif ctx.needs_input_grad[:3] == (True, False, False):
            found, made = _sliced(head, frozen=True)
        else:
            found, _ = _sliced(head, frozen=False)
        ctx.made = made
        normaliser_N = found.pop("normaliser")
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, targets_N, normaliser_N)
        ctx.mark_non_differentiable(found["entropy"], found["top"])
        return found["logps"], found["entropy"], found["top"]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_N = grads[0]
        hidden_NH, weight_VH, bias_V, targets_N, normaliser_N = ctx.saved_tensors
        made: _Made | None = ctx.made
        if made is not None and made.slopes_N is not None:
            ctx.made = None  # its tensors are handed on
        given = made.scaled(grad_N) if made is not None else None
        if given is None:
            head = _Head(hidden_NH.to(ctx.kind), weight_VH, bias_V, targets_N)
            given = _again(head, normaliser_N, grad_N, *ctx.head_needs)
        grad_hidden_NH, grad_weight_VH, grad_bias_V = given
        return grad_hidden_NH.to(hidden_NH.dtype), grad_weight_VH, grad_bias_V, None, None, None


Gradients = tuple[Tensor, Tensor | None, Tensor | None]
"""Of hidden rows, weight and bias."""


@dataclass(frozen=True, slots=True)
class _Head:
    """The inputs of one call, in the type that products are made in."""

    low_NH: Tensor
    weight_VH: Tensor
    bias_V: Tensor | None
    targets_N: Tensor

    def logits(self, rows: slice, part: slice) -> Tensor:
        """Of these rows and this part of the vocabulary: fresh, to be worked on in place."""
        kind = self.low_NH.dtype
        bias_v = None if self.bias_V is None else self.bias_V[part].to(kind)
        return linear(self.low_NH[rows], self.weight_VH[part].to(kind), bias_v)


# ------------------------------------------------------------------------- expected


@dataclass(frozen=True, slots=True)
class _Part:
    """Some whole pairs: their rows, their answers, and what is expected of them."""

    rows: slice
    lengths: tuple[int, ...]
    slopes: Callable[[Tensor], Tensor] | None
    figures: bool


@dataclass(slots=True)
class _Made:
    """Gradients that the forward pass made; for a frozen head, one for each row's own slope."""

    grad_hidden_NH: Tensor
    slopes_N: Tensor | None
    grad_weight_VH: Tensor | None = None
    grad_bias_V: Tensor | None = None

    def scaled(self, grad_N: Tensor) -> Gradients | None:
        """The gradients for what really came, or None where it is not what was expected."""
        if self.slopes_N is None:
            return self.grad_hidden_NH * grad_N.unsqueeze(1), None, None
        steepest = self.slopes_N.abs().argmax()
        scale = grad_N[steepest] / self.slopes_N[steepest]
        gap = (grad_N - scale * self.slopes_N).abs().max()
        if not gap <= 1e-5 * grad_N.abs().max():  # also where it is no number
            return None
        every = (self.grad_hidden_NH, self.grad_weight_VH, self.grad_bias_V)
        hidden, weight, bias = (None if each is None else each.mul_(scale) for each in every)
        assert hidden is not None
        return hidden, weight, bias


def _parts(expectation: Expectation, vocabulary: int) -> list[_Part] | None:
    """As many pairs at a time as fit; None where one alone is too many."""
    parts: list[_Part] = []
    row = answer = 0
    while answer < len(expectation.lengths):
        first, rows = answer, 0
        while answer < len(expectation.lengths):
            more = sum(expectation.lengths[answer : answer + expectation.together])
            if (rows + more) * vocabulary > PART:
                break
            rows, answer = rows + more, answer + expectation.together
        if answer == first:
            return None
        among, lengths = slice(first, answer), tuple(expectation.lengths[first:answer])
        slopes = _of_answers(expectation.slopes, among)
        parts.append(_Part(slice(row, row + rows), lengths, slopes, expectation.figures))
        row += rows
    return parts


def _of_answers(slopes: Slopes | None, among: slice) -> Callable[[Tensor], Tensor] | None:
    return None if slopes is None else lambda sums_A: slopes(among, sums_A)


def _expected(
    head: _Head, parts: Sequence[_Part], *, with_bias: bool
) -> tuple[dict[str, Tensor], _Made | None]:
    logps_N = _widened(head.low_NH.new_empty(len(head.targets_N)))
    found = {name: torch.full_like(logps_N, torch.nan) for name in ("entropy", "normaliser")}
    found |= {"logps": logps_N, "top": torch.zeros_like(logps_N, dtype=torch.bool)}
    made = (
        _Made(
            torch.empty_like(_widened(head.low_NH)),
            torch.empty_like(logps_N),
            torch.zeros_like(head.weight_VH),
            torch.zeros_like(head.bias_V) if with_bias and head.bias_V is not None else None,
        )
        if parts[0].slopes is not None
        else None
    )
    for part in parts:
        logits_nV, targets_n = head.logits(part.rows, slice(None)), head.targets_N[part.rows]
        of_part = {name: all_N[part.rows] for name, all_N in found.items()}
        _told(logits_nV, targets_n, of_part, figures=part.figures)
        if made is not None:
            _add_gradients(made, head, part, logits_nV, of_part)
    return found, made


def _add_gradients(
    made: _Made, head: _Head, part: _Part, logits_nV: Tensor, found: dict[str, Tensor]
) -> None:
    """What these pairs add to the gradients; their logits are used up."""
    assert part.slopes is not None
    assert made.slopes_N is not None
    assert made.grad_weight_VH is not None
    low_nH, logps_n = head.low_NH[part.rows], found["logps"]
    sums_A = torch.stack([each.sum() for each in logps_n.split([*part.lengths])])
    lengths = torch.tensor(part.lengths, device=logps_n.device)
    slopes_n = part.slopes(sums_A).to(logps_n).repeat_interleave(lengths)
    made.slopes_N[part.rows] = slopes_n
    _into_slopes(logits_nV, found["normaliser"], head.targets_N[part.rows], slopes_n)
    made.grad_hidden_NH[part.rows] = logits_nV @ head.weight_VH.to(logits_nV.dtype)
    if logits_nV.dtype == made.grad_weight_VH.dtype:
        made.grad_weight_VH.addmm_(logits_nV.T, low_nH)
    else:
        made.grad_weight_VH += logits_nV.T @ low_nH
    if made.grad_bias_V is not None:
        made.grad_bias_V += logits_nV.sum(dim=0, dtype=made.grad_bias_V.dtype)


def _blocks(num_rows: int, vocabulary: int) -> Iterator[slice]:
    step = max(1, BLOCK // vocabulary)
    for begin in range(0, num_rows, step):
        yield slice(begin, begin + step)


def _told(logits_nV: Tensor, targets_n: Tensor, found: dict[str, Tensor], *, figures: bool) -> None:
    """Write to `found` what there is to say of these rows; the logits stay."""
    for rows in _blocks(*logits_nV.shape):
        block = _widened(logits_nV[rows])
        logps = block.log_softmax(dim=1)
        found["normaliser"][rows] = block[:, 0] - logps[:, 0]
        found["logps"][rows] = logps.gather(1, targets_n[rows].unsqueeze(1)).squeeze(1)
        if figures:
            found["top"][rows] = found["logps"][rows] >= logps.amax(dim=1)
            found["entropy"][rows] = -torch.linalg.vecdot(logps.exp(), logps)


def _into_slopes(
    logits_nV: Tensor, normaliser_n: Tensor, targets_n: Tensor, slopes_n: Tensor
) -> None:
    """Logits become the loss's derivative by each, in place.

    d log p(target) / d logits: one at the target, less the probabilities.
    """
    for rows in _blocks(*logits_nV.shape):
        slopes, places = slopes_n[rows].unsqueeze(1), targets_n[rows].unsqueeze(1)
        block = _widened(logits_nV[rows]).sub_(normaliser_n[rows].unsqueeze(1)).exp_()
        block.mul_(-slopes).scatter_add_(1, places, slopes)
        if block.dtype != logits_nV.dtype:  # else it is the very place
            logits_nV[rows] = block


# ------------------------------------------------------------------------- sliced


def _slices(num_rows: int, vocabulary: int) -> Iterator[slice]:
    width = max(128, SLICE // max(1, num_rows))
    for begin in range(0, vocabulary, width):
        yield slice(begin, min(begin + width, vocabulary))


def _sliced(head: _Head, *, frozen: bool) -> tuple[dict[str, Tensor], _Made | None]:
    """Online softmax (Milakov & Gimelshein 2018): sums are rescaled as the maximum grows."""
    low_NH, weight_VH, targets_N = head.low_NH, head.weight_VH, head.targets_N
    num_rows, wide = len(targets_N), torch.promote_types(low_NH.dtype, torch.float32)
    largest_N = low_NH.new_full((num_rows,), torch.finfo(wide).min, dtype=wide)
    total_N, picked_N, spread_N = (torch.zeros_like(largest_N) for _ in range(3))
    pull_NH = torch.zeros_like(low_NH, dtype=wide) if frozen else None
    for part in _slices(num_rows, len(weight_VH)):
        logits_Nv = _widened(head.logits(slice(None), part))
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
            pull_NH += odds_Nv.to(low_NH.dtype) @ weight_VH[part].to(low_NH.dtype)
        largest_N = larger_N
    log_total_N = total_N.log()
    normaliser_N = largest_N + log_total_N
    found = {
        "logps": picked_N - normaliser_N,
        "entropy": log_total_N - spread_N / total_N,
        "top": picked_N >= largest_N,
        "normaliser": normaliser_N,
    }
    if pull_NH is None:
        return found, None
    # d log p(target) / d hidden: the target's weights, less the expected ones.
    pull_NH = weight_VH[targets_N].to(wide) - pull_NH / total_N.unsqueeze(1)
    return found, _Made(pull_NH, slopes_N=None)


def _again(
    head: _Head, normaliser_N: Tensor, grad_N: Tensor, needs_weight: bool, needs_bias: bool
) -> Gradients:
    """The backward pass of `_sliced`, logits made again a slice at a time."""
    kind, weight_VH, targets_N = head.low_NH.dtype, head.weight_VH, head.targets_N
    grad_hidden_NH = torch.zeros_like(_widened(head.low_NH))
    grad_weight_VH = torch.empty_like(weight_VH) if needs_weight else None
    grad_bias_V = torch.empty_like(head.bias_V) if needs_bias and head.bias_V is not None else None
    for part in _slices(len(targets_N), len(weight_VH)):
        grad_Nv = _widened(head.logits(slice(None), part))
        grad_Nv.sub_(normaliser_N.unsqueeze(1)).exp_().mul_(-grad_N.unsqueeze(1))
        here_N, places_N = _inside(targets_N, part)
        grad_Nv.scatter_add_(1, places_N.unsqueeze(1), (here_N * grad_N).unsqueeze(1))
        low_Nv = grad_Nv.to(kind)
        grad_hidden_NH += low_Nv @ weight_VH[part].to(kind)
        if grad_weight_VH is not None:
            grad_weight_VH[part] = low_Nv.T @ head.low_NH
        if grad_bias_V is not None:
            grad_bias_V[part] = grad_Nv.sum(dim=0)
    return grad_hidden_NH, grad_weight_VH, grad_bias_V


def _inside(targets_N: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Which targets lie in this slice, and where in it; the others point at its first column."""
    here_N = (targets_N >= part.start) & (targets_N < part.stop)
    return here_N, torch.where(here_N, targets_N - part.start, 0)
