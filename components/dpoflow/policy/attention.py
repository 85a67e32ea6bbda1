"""Attention over a prompt that several answers share.

Reads   queries, keys and values of one shared row, and its spans
Gives   `may_share` (whether a model can), `sharing` (inside it does), registered with transformers
Not     laying rows out (layout.py)
Shapes  [1, heads, T, head size]

An answer attends to its prompt and to itself, never to another answer or group: two exact calls of
scaled_dot_product_attention a pair, and no kernel of our own. They run in float32 even where matrix
products are bfloat16: on processors that is faster backwards, and it is exact.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from dpoflow.policy.layout import Batch, Span

NAME = "dpoflow_shared_prompt"

PROVEN = ("llama", "qwen2", "gpt2")
"""Families whose shared and separate log-probabilities are compared by tests."""


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    spans: tuple[Span, ...],
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The signature of transformers' attention functions; `spans` comes through the model."""
    with torch.autocast(query.device.type, enabled=False):
        kind = torch.promote_types(query.dtype, torch.float32)
        query, key, value = query.to(kind), key.to(kind), value.to(kind)
        out = [part for span in spans for part in _of_group(query, key, value, span, scaling)]
    return torch.cat(out, dim=2).transpose(1, 2).contiguous(), None


def _of_group(
    query: Tensor, key: Tensor, value: Tensor, span: Span, scaling: float | None
) -> Iterator[Tensor]:
    """The first answer goes on from the prompt causally; each other one sees prompt and itself."""
    grouped = query.shape[1] != key.shape[1]
    prompt, first = span.prompt, span.answers[0]
    begin, end = span.start, span.start + prompt + first
    yield scaled_dot_product_attention(
        query[:, :, begin:end],
        key[:, :, begin:end],
        value[:, :, begin:end],
        is_causal=True,
        scale=scaling,
        enable_gqa=grouped,
    )
    for length in span.answers[1:]:
        begin, end = end, end + length
        if length == 0:
            continue
        sees = torch.ones(length, prompt + length, dtype=torch.bool, device=query.device)
        yield scaled_dot_product_attention(
            query[:, :, begin:end],
            _prompt_and_self(key, span, begin, end),
            _prompt_and_self(value, span, begin, end),
            attn_mask=sees.tril(prompt),
            scale=scaling,
            enable_gqa=grouped,
        )


def _prompt_and_self(tensor: Tensor, span: Span, begin: int, end: int) -> Tensor:
    prompt = tensor[:, :, span.start : span.start + span.prompt]
    return torch.cat([prompt, tensor[:, :, begin:end]], dim=2)


AttentionInterface.register(NAME, _attention)


@contextlib.contextmanager
def sharing(model: Any, batch: Batch) -> Iterator[dict[str, Any]]:
    """Inside, `model` attends as `batch` is laid out; gives the arguments it needs for that."""
    if batch.spans is None:
        yield {}
        return
    before = model.config._attn_implementation  # noqa: SLF001  # the only place that tells
    model.set_attn_implementation(NAME)
    try:
        yield {"position_ids": batch.position_ids_RT, "spans": batch.spans}
    finally:
        model.set_attn_implementation(before)


def may_share(model: Any) -> bool:
    """Whether every layer of `model` attends to everything before it, through transformers' switch.

    Sliding windows, recurrent layers and attention of a model's own go side by side.
    """
    config = model.config.get_text_config()
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    return (
        config.model_type in PROVEN
        and all(kind == "full_attention" for kind in layers)
        and model.config._attn_implementation == "sdpa"  # noqa: SLF001
    )
