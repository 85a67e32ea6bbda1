"""Which pairs are seen when: the whole training laid out before it starts.

Reads   how long each pair is, how many epochs, the seed
Gives   `plan`: batches of places, in order; the same ones for the same arguments
Not     what a pair is (policy/tokenise.py), updates and accumulation (trainer.py)

A plan that is a plain list makes resuming exact: update k is the same pairs whoever asks.
"""

import math
import random
from collections.abc import Sequence

WINDOW = 16
"""Batches that are sorted by length together: less padding, and still another mix each epoch."""


def plan(
    lengths: Sequence[int], *, batch_size: int, epochs: float, seed: int
) -> list[tuple[int, ...]]:
    """Batches of every epoch, one after another; the last epoch may be a part of one."""
    whole = math.ceil(epochs)
    every = [
        batch
        for epoch in range(whole)
        for batch in _epoch(lengths, batch_size, random.Random(f"{seed}:{epoch}"))  # noqa: S311
    ]
    per_epoch = len(every) // whole
    return every[: max(1, round(epochs * per_epoch))]


def _epoch(lengths: Sequence[int], batch_size: int, dice: random.Random) -> list[tuple[int, ...]]:
    order = list(range(len(lengths)))
    dice.shuffle(order)
    size = batch_size * WINDOW
    batches = []
    for start in range(0, len(order), size):
        window = sorted(order[start : start + size], key=lambda place: lengths[place])
        batches += [
            tuple(window[first : first + batch_size]) for first in range(0, len(window), batch_size)
        ]
    dice.shuffle(batches)
    return batches
