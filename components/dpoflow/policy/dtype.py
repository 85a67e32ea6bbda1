"""Which type the matrix products run in: measured on this machine, once, and then remembered.

Some processors multiply bfloat16 twice as fast as float32, others slower; no table says which.

Reads   the model's own shapes
Gives   `choose`
Not     the type of weights and optimiser, which stay float32 (train/)
"""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from dpoflow.state.files import write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DtypeName = Literal["auto", "float32", "bfloat16"]

NAMED: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

WORTH_IT = 1.2
"""bfloat16 must be this many times as fast: it costs digits, and a tie must not flip by chance."""

NARROWEST = 256
"""A model less wide than this runs in float32: its probe would time the overhead and flip."""

_probed: dict[tuple[str, int, int, int], str] = {}


def choose(
    dtype: DtypeName,
    model: "PreTrainedModel",
    *,
    remember: Path | None = None,
    device: torch.device | None = None,
) -> torch.dtype:
    """The type that `dtype` names; for `auto`, the faster one here.

    A probe may come out differently when it is run again, and a resumed step must not change its
    arithmetic: with `remember` the first answer for these shapes is kept there and given for good.
    `device` is where the model will be, if it is not there yet.
    """
    if dtype != "auto":
        return NAMED[dtype]
    shapes = _shapes(model, device or model.device)
    if shapes[1] < NARROWEST:
        return torch.float32
    known, name = _remembered(remember), ":".join(map(str, shapes))
    if name not in known:
        if shapes not in _probed:
            _probed[shapes] = _probe(*shapes)
        known[name] = _probed[shapes]
        if remember is not None:
            write_text(remember, json.dumps(known))
    return NAMED[known[name]]


def _remembered(path: Path | None) -> dict[str, str]:
    """Device and shapes to the type that was chosen for them."""
    if path is None or not path.is_file():
        return {}
    known: dict[str, str] = json.loads(path.read_text("utf-8"))
    return known


def name_of(dtype: torch.dtype) -> str:
    """`float32` or `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def _shapes(model: "PreTrainedModel", device: torch.device) -> tuple[str, int, int, int]:
    config = model.config.get_text_config()
    hidden = int(config.hidden_size)
    wide = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    return device.type, hidden, wide, int(config.vocab_size)


def _probe(device: str, hidden: int, wide: int, vocab: int) -> str:
    """Best of a few rounds each, taken in turns so that a busy moment hits both."""
    best = dict.fromkeys(NAMED, float("inf"))
    shapes = [(256, hidden, wide), (256, wide, hidden), (64, hidden, min(vocab, 8192))]
    tensors = {
        name: [_operands(device, shape, dtype) for shape in shapes] for name, dtype in NAMED.items()
    }
    for _ in range(15):
        for name in NAMED:
            best[name] = min(best[name], _seconds(tensors[name], device))
    return "bfloat16" if best["float32"] >= WORTH_IT * best["bfloat16"] else "float32"


def _operands(
    device: str, shape: tuple[int, int, int], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, inner, columns = shape
    return (
        torch.full((rows, inner), 0.5, device=device, dtype=dtype),
        torch.full((columns, inner), 0.5, device=device, dtype=dtype),
    )


@torch.no_grad()
def _seconds(operands: list[tuple[torch.Tensor, torch.Tensor]], device: str) -> float:
    start = time.perf_counter()
    for left, right in operands:
        torch.nn.functional.linear(left, right)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
