"""Runs of five characters of many texts at once, as numbers.

Reads   plain texts of about the same length
Gives   `Batch`: which runs texts have, windows to index them by, walks to find others' windows by,
        sketches; `numbers_in`
Not     what is looked up where: see join.py; what is near: see near.py
Shapes  B texts, L places at which a run may begin

A run is a hash of 64 bits. Two runs of one pair of texts that had the same one would make it look
a run more or less alike. With R runs in both together that happens to one of 2⁶⁵/R² pairs, so to
one of 5·10¹⁴ of 130 characters and one of 9·10⁹ of 32,000, and would matter only to a pair that is
exactly as near as it must be. Anywhere else equal hashes only give more to compare.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

RUN = 5
LEVELS = (8, 4, 2, 1)
"""Runs in a window or walk."""

Hashes = NDArray[np.uint64]
Numbers = NDArray[np.int64]
Marks = NDArray[np.bool_]

_NUMBER = re.compile(r"\d+")
_NO_CHARACTER = 0x1FFFFF
"""Fills up what is shorter; beyond Unicode."""
_NO_RUN = np.uint64(2**64 - 1)
_ODD = {
    1: np.uint64(0x9E3779B97F4A7C15),
    2: np.uint64(0xD6E8FEB86659FD93),
    4: np.uint64(0xA0761D6478BD642F),
    8: np.uint64(0xE7037ED1A0B428DB),
}
"""Any odd numbers do."""


def numbers_in(text: str) -> list[str]:
    """As they are written."""
    return _NUMBER.findall(text)


def mixed(value: Hashes) -> Hashes:
    """Scatter 64 bits one to one: the end of splitmix64 (Steele et al. 2014)."""
    value = value ^ (value >> np.uint64(30))
    value *= np.uint64(0xBF58476D1CE4E5B9)
    value ^= value >> np.uint64(27)
    value *= np.uint64(0x94D049BB133111EB)
    value ^= value >> np.uint64(31)
    return value


def _joined(left: Hashes, right: Hashes, level: int) -> Hashes:
    """Of two neighbours of half as many runs, one of `level`."""
    return left * _ODD[level] + right


@dataclass(frozen=True)
class Walks:
    """Runs of one text of which each goes on where the one before it leaves off."""

    rows: Numbers
    hashes: Hashes
    starts: Numbers
    """The four characters that a walk begins with, by number; in ascending order."""
    ends: Numbers


class Batch:
    """Texts side by side."""

    def __init__(self, texts: Sequence[str], salts: Hashes) -> None:
        self._salts = salts
        """For each text; windows and walks of texts with different ones never meet."""
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        num_runs = np.maximum(lengths - RUN + 1, 1)
        width = int(num_runs.max()) + RUN - 1
        codes = np.full((len(texts), width), _NO_CHARACTER, np.uint64)
        flat = "".join(texts).encode("utf-32-le", "surrogatepass")
        codes[np.arange(width) < lengths[:, None]] = np.frombuffer(flat, "<u4")
        # 63 of the 105 bits of five characters, then the other 42.
        two = codes[:, :-1] | codes[:, 1:] << np.uint64(21)
        self._fours = two[:, :-2] * _ODD[1] + two[:, 2:]  # [B, L + 1]
        three = mixed(two[:, :-3] | codes[:, 2:-2] << np.uint64(42))
        self._hashes = mixed(three + two[:, 3:])  # [B, L]
        is_run = np.arange(width - RUN + 1) < num_runs[:, None]
        self._hashes[~is_run] = _NO_RUN
        self.firsts = _one_of_each(self._hashes) & is_run

    @property
    def sizes(self) -> Numbers:
        """[B]: different runs of each text."""
        sizes: Numbers = self.firsts.sum(1)
        return sizes

    def sketches(self, num_bits: int) -> Hashes:
        """[B, bits / 64]: each run turns one bit over.

        Two texts differ in at least as many runs as their sketches do in bits.
        """
        rows, places = np.nonzero(self.firsts)
        bits = (self._hashes[rows, places] >> np.uint64(32)).astype(np.int64) % num_bits
        found = np.zeros(len(self.firsts) * num_bits // 64, np.uint64)
        turned = np.uint64(1) << (bits % 64).astype(np.uint64)
        np.bitwise_xor.at(found, (rows * num_bits + bits) // 64, turned)
        return found.reshape(len(self.firsts), -1)

    @cached_property
    def _by_level(self) -> dict[int, Hashes]:
        """[B, L'] for each level: the runs from here on, salted last."""
        found = {1: self._hashes}
        for level in (2, 4, 8):
            half = found[level // 2]
            if half.shape[1] <= level // 2:
                break
            found[level] = _joined(half[:, : -(level // 2)], half[:, level // 2 :], level)
        return found

    def windows(self, level: int) -> tuple[Hashes, Marks]:
        """[B, L'] twice: a hash of `level` runs in a row, and whether to use it.

        No two of the windows in use have a run in common: each run counts at one of its places
        only, and between places that do not count windows stand end to end.
        """
        hashes = self._by_level.get(level, np.empty((len(self.firsts), 0), np.uint64))
        places = np.arange(self.firsts.shape[1])
        before = np.maximum.accumulate(np.where(self.firsts, -1, places), axis=1)
        offset = places - before - 1  # since the last place that does not count
        here, last = offset[:, : hashes.shape[1]], offset[:, level - 1 :][:, : hashes.shape[1]]
        used = self.firsts[:, : hashes.shape[1]] & (here % level == 0) & (last == here + level - 1)
        return self._salted(hashes, self._salts[:, None], level), used

    def walks(self, levels: Sequence[int], most: int) -> Iterator[tuple[int, Walks, Numbers]]:
        """(level, walks of so many runs, texts that have too many of them, and so give none).

        A text that has every run of another's window has the window as a walk, though not always
        in one piece: where four characters stand in it twice, either may go on as the other does.
        Too many are more than `most` times its runs.
        """
        walks, pointers = self._first_walks()
        sizes = self.sizes
        for level in sorted(LEVELS):
            if level > max(levels):
                return
            full = np.empty(0, np.int64)
            if level > 1:
                walks, pointers, full = _longer(walks, pointers, level, most * sizes)
            if level in levels or len(full):
                salted = self._salted(walks.hashes, self._salts[walks.rows], level)
                yield level, Walks(walks.rows, salted, walks.starts, walks.ends), full

    def _first_walks(self) -> tuple[Walks, Numbers]:
        """Each run by itself, sorted by the four characters that it begins with."""
        order = np.argsort(self._fours, axis=1)
        ordered = np.take_along_axis(self._fours, order, 1)
        is_new = np.ones_like(ordered, bool)
        is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        fours = np.empty(order.shape, np.int64)
        np.put_along_axis(fours, order, (is_new.cumsum() - 1).reshape(order.shape), 1)
        rows = np.repeat(np.arange(len(order)), order.shape[1])
        places = order.ravel()
        counts = places < self.firsts.shape[1]
        rows, places = rows[counts], places[counts]
        counts = self.firsts[rows, places]
        rows, places = rows[counts], places[counts]
        starts, ends = fours[rows, places], fours[rows, places + 1]
        num_fours = int(np.count_nonzero(is_new))
        return Walks(rows, self._hashes[rows, places], starts, ends), _pointers(starts, num_fours)

    def _salted(self, hashes: Hashes, salts: Hashes, level: int) -> Hashes:
        return (hashes ^ salts) * _ODD[level]


def _one_of_each(hashes: Hashes) -> Marks:
    """[B, L]: one place of each hash of a row."""
    order = np.argsort(hashes, axis=1)
    ordered = np.take_along_axis(hashes, order, 1)
    is_new = np.ones_like(ordered, bool)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    found = np.empty_like(is_new)
    np.put_along_axis(found, order, is_new, 1)
    return found


def spread(counts: Numbers) -> tuple[Numbers, Numbers]:
    """(which, how manieth): each place as often as its count says."""
    which = np.repeat(np.arange(len(counts)), counts)
    before = np.cumsum(counts) - counts
    return which, np.arange(len(which)) - before[which]


def _longer(
    walks: Walks, pointers: Numbers, level: int, most: Numbers
) -> tuple[Walks, Numbers, Numbers]:
    """Walks of twice as many runs, where their groups begin, and rows with more than `most`."""
    first, num = pointers[walks.ends], np.diff(pointers)[walks.ends]
    each = np.bincount(walks.rows, num, len(most))
    full = np.flatnonzero(each > most)
    num[(each > most)[walks.rows]] = 0
    which, nth = spread(num)
    other = first[which] + nth
    made = Walks(
        walks.rows[which],
        _joined(walks.hashes[which], walks.hashes[other], level),
        walks.starts[which],
        walks.ends[other],
    )
    return made, _pointers(made.starts, len(pointers) - 1), full


def _pointers(starts: Numbers, num: int) -> Numbers:
    """Where each group begins, and where the last one ends."""
    ends: Numbers = np.cumsum(np.bincount(starts, minlength=num))
    return np.concatenate([np.zeros(1, np.int64), ends])
