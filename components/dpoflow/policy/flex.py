"""Attention over shared prompts on a GPU: one FlexAttention call a layer (Dong et al. 2024).

Reads   the spans of a batch
Gives   `Masks` (which token sees which, made once a batch), `flex`
Not     processors, where FlexAttention has no backward pass (attention.py)
Shapes  R rows of T tokens; [R, heads, T, head size]
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from dpoflow.policy.layout import Span

PROMPT, PADDING = -1, -2


class Masks:
    """The block masks of one batch: one for full layers, one for each window."""

    def __init__(self, spans: Sequence[Span], shape: tuple[int, ...]) -> None:
        self._spans, self._shape = spans, shape
        self._made: dict[tuple[int | None, torch.device], BlockMask] = {}

    def of(self, window: int | None, device: torch.device) -> BlockMask:
        """Which keys each query sees, in blocks that can be passed over."""
        key = window, device
        if key not in self._made:
            rows, width = self._shape
            self._made[key] = create_block_mask(
                self.rule(window, device), B=rows, H=None, Q_LEN=width, KV_LEN=width, device=device
            )
        return self._made[key]

    def rule(self, window: int | None, device: torch.device) -> Any:
        """FlexAttention's mask_mod(row, head, query, key)."""
        group_RT, answer_RT, position_RT = (part.to(device) for part in self._labels())

        def sees(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            same = group_RT[row, query] == group_RT[row, key]
            open_to = (answer_RT[row, key] == PROMPT) | (
                answer_RT[row, key] == answer_RT[row, query]
            )
            far = position_RT[row, query] - position_RT[row, key]
            seen = same & open_to & (query >= key)
            return seen if window is None else seen & (far < window)

        return sees

    def _labels(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of each token: its group, its answer in the group (or PROMPT, PADDING), its position."""
        group_RT = torch.full(self._shape, PADDING)
        answer_RT, position_RT = group_RT.clone(), torch.zeros_like(group_RT)
        for number, span in enumerate(self._spans):
            group_RT[span.row, span.start : span.end] = number
            begin, end = span.start, span.start + span.prompt
            answer_RT[span.row, begin:end] = PROMPT
            position_RT[span.row, begin:end] = torch.arange(span.prompt)
            for answer, length in enumerate(span.answers):
                begin, end = end, end + length
                answer_RT[span.row, begin:end] = answer
                position_RT[span.row, begin:end] = torch.arange(span.prompt, span.prompt + length)
        return group_RT, answer_RT, position_RT


@cache
def _compiled() -> Any:
    """Compiled, or every score is written to memory."""
    return torch.compile(flex_attention, dynamic=True)


def flex(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float | None) -> Tensor:
    """Softmax attention under `mask`, heads that share keys included."""
    out: Tensor = _compiled()(
        query, key, value, block_mask=mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )
    return out
