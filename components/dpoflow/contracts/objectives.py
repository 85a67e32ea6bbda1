"""The objectives that `train.loss` names, and which knobs each uses.

Gives   `LossName`, `USES`, `REFERENCE_FREE`
Not     the mathematics (train/losses.py)
"""

from typing import Literal

LossName = Literal[
    "sigmoid", "robust", "hinge", "ipo_sum", "ipo_mean", "sigmoid_norm", "simpo", "orpo", "kto"
]

USES: dict[str, tuple[LossName, ...]] = {
    "label_smoothing": ("sigmoid", "robust", "sigmoid_norm"),
    "gamma": ("simpo",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
}
"""Knob to the objectives that use it; the others refuse it. `beta` and `sft_weight` go with all."""


REFERENCE_FREE: frozenset[LossName] = frozenset({"simpo", "orpo"})
"""Objectives that compare with no reference."""
