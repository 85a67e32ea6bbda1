"""Attention over a prompt that several answers share.

Reads   queries, keys and values of rows laid out by layout.py, and their spans
Gives   `why_concat` (why a model cannot share prompts), `attending` (inside, it does)
Not     laying rows out (layout.py), the CUDA kernel (flex.py)
Shapes  [R, heads, T, head size]

An answer attends to its prompt and to itself, never to another answer or group. On a processor that
is two exact calls of scaled_dot_product_attention a pair, in float32 even where matrix products are
bfloat16: backwards it is faster there. On a GPU it is one FlexAttention call a layer.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from dpoflow.policy.flex import Masks, flex
from dpoflow.policy.layout import Batch, LayoutName, Span
from dpoflow.policy.library import AttentionInterface

NAME = "dpoflow_shared_prompt"

PROVEN = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "gpt2")
"""Families whose shared and separate log-probabilities are compared by tests."""

KINDS = {"full_attention", "sliding_attention"}
"""Kinds of layers whose attention is followed here."""


def why_concat(model: Any) -> str | None:
    """Why answers of `model` cannot share a prompt; None if they can."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds - KINDS:
        return f"its layers of kind {', '.join(sorted(kinds - KINDS))} carry state along the row"
    if config.model_type not in PROVEN:
        return f"sharing is tested for {', '.join(PROVEN)}, and this is {config.model_type}"
    attention = model.config._attn_implementation  # noqa: SLF001  # the only place that tells
    if attention not in {"sdpa", NAME}:
        return f"its attention is {attention}, not sdpa"
    return None


@contextlib.contextmanager
def attending(model: Any, layout: LayoutName) -> Iterator[None]:
    """Inside, `model` attends as rows of `layout` need; stay in for backward passes, too."""
    if layout == "concat":
        yield
        return
    before = model.config._attn_implementation  # noqa: SLF001  # the only place that tells
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def arguments(batch: Batch) -> dict[str, Any]:
    """What the model's forward pass takes beside the tokens."""
    if batch.spans is None:
        return {}
    return {"position_ids": batch.position_ids_RT, "shared": Shared(batch)}


class Shared:
    """A batch's spans on their way through the model to each layer's attention."""

    def __init__(self, batch: Batch) -> None:
        assert batch.spans is not None
        self.masks = Masks(batch.spans, tuple(batch.input_ids_RT.shape))
        rows: dict[int, list[Span]] = {}
        for span in batch.spans:
            rows.setdefault(span.row, []).append(span)
        self.spans_by_row = tuple(tuple(spans) for spans in rows.values())


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    shared: Shared,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The signature of transformers' attention functions; `shared` comes through the model."""
    assert dropout == 0.0, "train/ switches attention dropout off: two answers would differ by it"
    if query.device.type == "cuda":
        out = flex(query, key, value, shared.masks.of(sliding_window, query.device), scaling)
        return out.transpose(1, 2).contiguous(), None
    with torch.autocast(query.device.type, enabled=False):
        kind = torch.promote_types(query.dtype, torch.float32)
        query, key, value = query.to(kind), key.to(kind), value.to(kind)
        rows = [
            _of_row(query, key, value, spans, scaling, sliding_window)
            for spans in shared.spans_by_row
        ]
    return torch.cat(rows).transpose(1, 2).contiguous(), None


def _of_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Sequence[Span],
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """One row's groups, one after the other; padding at its end attends to nothing and gives 0."""
    row = slice(spans[0].row, spans[0].row + 1)
    query, key, value = query[row], key[row], value[row]
    parts = [part for span in spans for part in _of_group(query, key, value, span, scaling, window)]
    padding = query.shape[2] - spans[-1].end
    out = torch.cat(parts, dim=2)
    return pad(out, (0, 0, 0, padding)) if padding else out


def _of_group(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    span: Span,
    scaling: float | None,
    window: int | None,
) -> Iterator[Tensor]:
    """The first answer goes on from the prompt causally; each other one sees prompt and itself."""
    grouped = query.shape[1] != key.shape[1]
    begin, end = span.start, span.start + span.prompt + span.answers[0]
    reaches = window is None or window >= end - begin
    yield scaled_dot_product_attention(
        query[:, :, begin:end],
        key[:, :, begin:end],
        value[:, :, begin:end],
        attn_mask=None if reaches else _sees(end - begin, end - begin, window, query.device),
        is_causal=reaches,
        scale=scaling,
        enable_gqa=grouped,
    )
    for length in span.answers[1:]:
        begin, end = end, end + length
        if length == 0:
            continue
        yield scaled_dot_product_attention(
            query[:, :, begin:end],
            _prompt_and_self(key, span, begin, end),
            _prompt_and_self(value, span, begin, end),
            attn_mask=_sees(length, span.prompt + length, window, query.device),
            scale=scaling,
            enable_gqa=grouped,
        )


def _sees(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """[queries, keys]: the last query stands beside the last key, none sees what comes after it."""
    seen = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return seen if window is None else seen.triu(keys - queries - window + 1)


def _prompt_and_self(tensor: Tensor, span: Span, begin: int, end: int) -> Tensor:
    prompt = tensor[:, :, span.start : span.start + span.prompt]
    return torch.cat([prompt, tensor[:, :, begin:end]], dim=2)


AttentionInterface.register(NAME, _attention)
