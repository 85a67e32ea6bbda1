"""Attention of one new token, without copying the keys that its heads share.

Reads   queries, keys and values of a decoding step
Gives   `decoding` (inside it a model attends this way), registered with transformers
Not     drawing tokens (generate.py)
Shapes  B rows, H query heads, K key heads, T positions, D head size

Where several query heads share one key head (Ainslie et al. 2023), transformers repeats the keys
H/K times at every step. With a single new token those heads may instead stand as H/K queries of one
head, which see the same positions: the same sums, and a step of 64 rows twice as fast.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from dpoflow.policy.library import (
    AttentionInterface,
    AttentionMaskInterface,
    sdpa_attention_forward,
    sdpa_mask,
)

NAME = "dpoflow_decoding"

KNOWN = {"dropout", "scaling", "is_causal", "position_ids", "use_cache", "sliding_window"}
"""What a call may bring: the mask says all of a window. Anything more is left to transformers."""


def _attention(
    module: nn.Module,
    query_BH1D: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    attention_mask: Tensor | None,
    **more: Any,
) -> tuple[Tensor, None]:
    """The signature of transformers' attention functions."""
    rows, heads, new, size = query_BH1D.shape
    groups = heads // key_BKTD.shape[1]
    if new > 1 or groups == 1 or any(more[name] is not None for name in more.keys() - KNOWN):
        out: tuple[Tensor, None] = sdpa_attention_forward(
            module, query_BH1D, key_BKTD, value_BKTD, attention_mask, **more
        )
        return out
    out_BKGD = scaled_dot_product_attention(
        query_BH1D.view(rows, -1, groups, size),
        key_BKTD,
        value_BKTD,
        attn_mask=attention_mask,
        dropout_p=more.get("dropout") or 0.0,
        scale=more.get("scaling"),
    )
    return out_BKGD.reshape(rows, new, heads, -1), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextlib.contextmanager
def decoding(model: Any) -> Iterator[None]:
    """Inside, `model` attends as above, if it goes through transformers' own switch at all."""
    before = model.config._attn_implementation  # noqa: SLF001  # the only place that tells
    if before != "sdpa":
        yield
        return
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
