"""Prompts that are nearly the same: MinHash (Broder 1997), looked up band by band.

Reads   texts of prompts
Gives   `bands_of` (one prompt's keys), `alike` (whether two are near), `clusters`
Not     which side a cluster is on: see split.py

Two prompts are near when the sets of their runs of five characters, case and blanks aside, have a
Jaccard similarity of 0.8 or more, as in Lee et al. 2022; the spec may say another number. Sixteen
bands of eight hashes find 94 of 100 pairs that are as similar as that and 6 of 100 that are half as
similar; what is found is compared exactly, so nothing is called near that is not. Prompts with
other numbers in them are never near: who knows 23 + 45 does not know 23 + 46.
"""

import functools
import re
from collections.abc import Callable, Iterable

import numpy as np
import xxhash
from datasketch import MinHash
from numpy.typing import NDArray

NUM_BANDS, _ROWS = 16, 8
KEY_BYTES = 8
_RUN = 5
_NUMBER = re.compile(r"\d+")
_HEADS = 8
"""Prompts of one key that a further one is compared with; more of one key is one template."""


def _runs(text: str) -> set[str]:
    return {text[at : at + _RUN] for at in range(max(1, len(text) - _RUN + 1))}


def bands_of(text: str) -> bytes:
    """`NUM_BANDS` keys of `KEY_BYTES` bytes; near texts very likely share one. Takes plain text.

    The numbers are part of every key: prompts of one template do not crowd each other out.
    """
    sketch = _empty().copy()
    sketch.update_batch(_runs(text))
    rows = sketch.hashvalues.reshape(NUM_BANDS, _ROWS)
    numbers = " ".join(_NUMBER.findall(text)).encode()
    keys = (xxhash.xxh3_64_digest(row.tobytes() + numbers, seed=at) for at, row in enumerate(rows))
    return b"".join(keys)


def alike(left: str, right: str, least: float) -> bool:
    """Whether two plain texts are as similar as `least`, exactly."""
    if _NUMBER.findall(left) != _NUMBER.findall(right):
        return False
    one, other = _runs(left), _runs(right)
    common = len(one & other)
    return common >= least * (len(one) + len(other) - common)


def clusters(
    num: int, keys: Iterable[NDArray[np.uint64]], near: Callable[[int, int], bool]
) -> NDArray[np.int64]:
    """For each of `num` items the smallest item it hangs together with.

    Each of `keys` [num] joins items of one value if `near` says so of the two. Memory does not
    depend on how many keys there are.
    """
    above = np.arange(num)

    def top(item: int) -> int:
        while above[item] != item:
            above[item] = above[above[item]]
            item = int(above[item])
        return item

    for column in keys:
        order = np.argsort(column, kind="stable")
        again = np.flatnonzero(column[order][1:] == column[order][:-1]) + 1
        heads: list[int] = []
        last = -1
        for place in again.tolist():
            item = int(order[place])
            if place != last + 1:
                heads = [int(order[place - 1])]
            last = place
            _join(item, heads, top, above, near)
    while (above[above] != above).any():
        above = above[above]
    return above


def _join(
    item: int,
    heads: list[int],
    top: Callable[[int], int],
    above: NDArray[np.int64],
    near: Callable[[int, int], bool],
) -> None:
    """Hang `item` together with the first of `heads` that it is near; else it is one of them."""
    for head in heads:
        one, other = top(item), top(head)
        if one == other:
            return
        if near(item, head):
            above[max(one, other)] = min(one, other)
            return
    if len(heads) < _HEADS:
        heads.append(item)


@functools.cache
def _empty() -> MinHash:
    return MinHash(num_perm=NUM_BANDS * _ROWS, seed=1, hashfunc=_hash, scheme="affine32")


def _hash(run: str) -> int:
    return xxhash.xxh32_intdigest(run.encode())
