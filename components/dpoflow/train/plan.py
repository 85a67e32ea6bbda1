"""Which pairs are seen when: the whole training laid out before it starts.

Reads   how long each pair is, how many epochs, the seed
Gives   `plan`: updates of batches of places, in order; the same ones for the same arguments;
        `first_look`, `in_order`
Not     what a pair is (policy/tokenise.py), what an update does (trainer.py)

A plan that is a plain list makes resuming exact: update k is the same pairs whoever asks.
"""

import math
import random
from collections.abc import Sequence

Batch = tuple[int, ...]
"""Places of the pairs in one forward pass."""

Update = tuple[Batch, ...]
"""Batches whose gradients are added up; no two epochs share an update."""

WINDOW = 16
"""Batches that are sorted by length together: less padding, and still another mix each epoch."""


def plan(
    lengths: Sequence[int], *, batch_size: int, accumulation: int, epochs: float, seed: int
) -> list[Update]:
    """Updates of every epoch, one after another; the last epoch may be a part of one."""
    whole = math.ceil(epochs)
    every: list[Update] = []
    for epoch in range(whole):
        batches = _epoch(lengths, batch_size, random.Random(f"{seed}:{epoch}"))  # noqa: S311
        starts = range(0, len(batches), accumulation)
        every += [tuple(batches[start : start + accumulation]) for start in starts]
    per_epoch = len(every) // whole
    return every[: max(1, round(epochs * per_epoch))]


def first_look(updates: Sequence[Update]) -> list[Batch]:
    """The batches of the first epoch, whole or in part: those before any pair comes again."""
    seen: set[int] = set()
    firsts: list[Batch] = []
    for batch in (batch for update in updates for batch in update):
        if not seen.isdisjoint(batch):
            break
        seen.update(batch)
        firsts.append(batch)
    return firsts


def in_order(many: int, batch_size: int) -> list[Batch]:
    """Batches of everything, once."""
    return [
        tuple(range(start, min(start + batch_size, many))) for start in range(0, many, batch_size)
    ]


def _epoch(lengths: Sequence[int], batch_size: int, dice: random.Random) -> list[Batch]:
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
