"""Every pair of near texts among a million: an exact join, in time that is nearly linear.

Reads   texts, the shortest first, as often as asked; a judge of two of them
Gives   `Join`: what is near hangs together in a `Joined`
Not     what near means: see near.py; hashes, windows and walks of runs: see runs.py

Nothing is left to chance. Let x have n runs and y no fewer, m. If they are near by t, they have at
least t/(1 + t) · (n + m) runs in common (Bayardo et al. 2007), and so x has at most
d = n - 2t/(1 + t) · n that y has not. Of d + 1 windows of x that share no run one is then whole in
y. So each text is indexed by d + 1 windows of 1, 2, 4 or 8 runs in a row, and looks itself up by
all walks of so many through its own runs. Windows of one run are the prefix filter of Chaudhuri et
al. 2006; longer ones are rarer. The k-th window has to meet only those y that may lack k runs of
x, and they are the shorter the larger k is (after Xiao et al. 2008). Which windows are taken, the
rarest, is a matter of time alone.

What meets is dropped where sketches show that it differs in too many runs, and judged exactly
where they do not, unless it hangs together already. That, too, is what keeps a hundred thousand
rows of one template from being compared all with all.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpoflow.validate.runs import LEVELS, Batch, Hashes, Marks, Numbers, numbers_in, spread

_CELLS = 1 << 17
"""Runs in one batch, about."""
_COUNTERS = 22
"""log2 of the counters that tell rare windows of a level from frequent ones."""
_COUNTED = 1 << 24
"""Of so many runs; more tell no more."""
_WANTED = 26
"""log2 of the marks that tell which walks any window can meet."""
_MOST_WALKS = 4
"""For each run of a prompt; with more it looks itself up by shorter ones."""
_ENTRIES = 1 << 22
"""In one part of the scratch files, about."""
_BLOCK = 1 << 20
"""Pairs that are looked at together."""
_SKETCH_BYTES = 1 << 27
"""Of all texts together."""
_EPSILON = 1e-6
"""So much is any bound on a number of runs too low, for what is lost in floating point."""


def _bits(wanted: int, num: int) -> int:
    """Of one sketch: a power of two, no more than there is memory for."""
    return 1 << max(8, min(wanted, 8 * _SKETCH_BYTES // num).bit_length() - 1)


class Joined:
    """Which texts hang together: union-find."""

    def __init__(self, above: Numbers) -> None:
        self._above = above.copy()

    def top(self, item: int) -> int:
        """The smallest text that `item` hangs together with."""
        above = self._above
        while above[item] != item:
            above[item] = above[above[item]]
            item = int(above[item])
        return item

    def join(self, one: int, other: int) -> None:
        """Let what two tops stand for hang together."""
        self._above[max(one, other)] = min(one, other)

    def flat(self) -> Numbers:
        """The top of each."""
        while True:
            higher = self._above[self._above]
            if np.array_equal(higher, self._above):
                return self._above
            self._above = higher


class _Parts:
    """Entries on disk, by the first bits of their key; a column of further numbers for each."""

    def __init__(self, folder: Path, bits: int) -> None:
        folder.mkdir()
        self._shift = np.uint64(64 - bits) if bits else None
        self._folder, self._num = folder, 1 << bits
        self._waiting = list[tuple[Hashes, ...]]()

    def add(self, *columns: Hashes) -> None:
        """Keys, and what belongs to each."""
        self._waiting.append(columns)
        if sum(len(keys) for keys, *_ in self._waiting) > _BLOCK:
            self.flush()

    def flush(self) -> None:
        """After the last one."""
        columns = tuple(map(np.concatenate, zip(*self._waiting, strict=True)))
        self._waiting = []
        if not columns:
            return
        order = np.argsort(columns[0])
        columns = tuple(column[order] for column in columns)
        starts = np.arange(self._num, dtype=np.uint64)
        starts = starts if self._shift is None else starts << self._shift
        ends = [*np.searchsorted(columns[0], starts), len(order)]
        for part in range(self._num):
            if ends[part] < ends[part + 1]:
                for nth, column in enumerate(columns):
                    with (self._folder / f"{part}.{nth}").open("ab") as out:
                        out.write(column[ends[part] : ends[part + 1]].tobytes())

    def read(self, part: int, nth: int = 0) -> Hashes:
        """One column of one part, in no order."""
        path = self._folder / f"{part}.{nth}"
        return np.fromfile(path, np.uint64) if path.exists() else np.empty(0, np.uint64)


class Join:
    """Joins what is near. Texts are items in the order they come; by size, ranks."""

    def __init__(
        self,
        texts: Callable[[], Iterable[str]],
        near: Callable[[int, int], bool],
        least: float,
        joined: Joined,
        folder: Path,
    ) -> None:
        self._texts, self._joined, self._folder = texts, joined, folder
        self._near = lru_cache(1 << 18)(near)  # a pair may meet at many windows
        self._num = len(joined.flat())
        self._share = least / (1 + least)
        """Of the runs of two near texts, counted for each, so many are common."""
        self._salts = np.empty(self._num, np.uint64)
        self._sizes = np.empty(self._num, np.int64)
        self._counts = {level: np.zeros(1 << _COUNTERS, np.uint32) for level in LEVELS}
        self._id_bits = np.uint64((self._num - 1).bit_length())
        self._ids = (np.uint64(1) << self._id_bits) - np.uint64(1)

    def run(self) -> None:
        """Look at every text, then let windows and walks meet, the longest first."""
        self._survey()
        self._items = np.argsort(self._sizes, kind="stable")
        self._sorted_sizes = self._sizes[self._items]
        self._ranks = np.empty_like(self._items)
        self._ranks[self._items] = np.arange(self._num)
        self._levels = np.full(self._num, LEVELS[0])  # of each one's windows; then, at most
        self._reach = np.full(self._num, LEVELS[0])  # the longest walks it looks itself up by
        for level in LEVELS:
            try:
                self._pass(level)
            finally:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _batches(self, of: Marks | None = None) -> Iterator[tuple[Numbers, Batch]]:
        """(items, batch), of those that are marked."""
        items, texts, longest = list[int](), list[str](), 0
        for item, text in enumerate(self._texts()):
            if of is not None and not of[item]:
                continue
            longest = max(longest, len(text))
            if texts and longest * (len(texts) + 1) > _CELLS:
                yield np.array(items), Batch(texts, self._salts[items])
                items, texts, longest = [], [], len(text)
            items.append(item)
            texts.append(text)
        if texts:
            yield np.array(items), Batch(texts, self._salts[items])

    def _survey(self) -> None:
        """Numbers and sizes of all texts, their sketches, and how frequent windows are."""
        lengths = np.empty(self._num)
        for item, text in enumerate(self._texts()):
            lengths[item] = len(text) + 1
            numbers = " ".join(numbers_in(text)).encode()
            self._salts[item] = int.from_bytes(blake2b(numbers, digest_size=8).digest())
        typical = int((lengths**2).sum() / lengths.sum())  # by characters: long texts count more
        coarse, fine = (_bits(times * typical, self._num) for times in (2, 8))
        self._coarse = np.empty((self._num, coarse // 64), np.uint64)
        self._fine = np.empty((self._num, fine // 64), np.uint64)
        seen = counted = 0
        for items, batch in self._batches():
            self._sizes[items] = batch.sizes
            self._coarse[items] = batch.sketches(coarse)
            self._fine[items] = batch.sketches(fine)
            seen += batch.firsts.size
            if counted * lengths.sum() <= _COUNTED * seen:
                counted += batch.firsts.size
                self._count(batch)

    def _count(self, batch: Batch) -> None:
        for level in LEVELS:
            hashes, _ = batch.windows(level)
            some = hashes[batch.firsts[:, : hashes.shape[1]]] >> np.uint64(64 - _COUNTERS)
            np.add.at(self._counts[level], some.astype(np.intp), np.uint32(1))

    def _pass(self, level: int) -> None:
        """Windows and walks of up to `level` runs.

        First everything, by whatever windows are best. Later only texts that have too many of the
        longer walks, and for them what was indexed by longer windows is so once more by others.
        """
        probing = self._reach == level
        indexed = self._levels >= level if level == LEVELS[0] else self._levels > level
        if not probing.any() or not indexed.any():
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        total = 2 * int(self._sizes.sum())
        bits = min(max(total // _ENTRIES, 1).bit_length() - 1, 7)
        self._index = _Parts(self._folder / "windows", bits)
        self._walks = _Parts(self._folder / "walks", bits)
        self._wanted = np.zeros(1 << _WANTED, bool)
        used = set[int]()
        for items, batch in self._batches(indexed):
            used |= self._add_windows(items, batch, level)
        for items, batch in self._batches(probing):
            self._add_walks(items, batch, sorted(used))
        self._index.flush()
        self._walks.flush()
        for part in range(1 << bits):
            self._meet(part)

    def _add_windows(self, items: Numbers, batch: Batch, most: int) -> set[int]:
        """Index texts by the rarest windows; returns of which levels."""
        sizes = self._sizes[items]
        num = np.floor(sizes - 2 * self._share * sizes + _EPSILON).astype(np.int64) + 1
        nth = np.arange(num.max())
        levels = [each for each in LEVELS if each <= most and each * num.min() <= sizes.max()]
        found = {level: self._rarest(batch, level, num, nth) for level in levels}
        costs = np.stack([cost for cost, _ in found.values()])
        best = np.array(list(found))[costs.argmin(0)]
        if most == LEVELS[0]:
            self._levels[items] = best
        largest = (sizes[:, None] - nth + _EPSILON) / self._share - sizes[:, None] + _EPSILON
        limits = np.searchsorted(self._sorted_sizes, largest, "right") - 1
        for level in set(best.tolist()):
            some = (best == level)[:, None] & (nth < num[:, None])
            rows, places = np.nonzero(some)
            hashes = found[level][1][rows, places]
            self._wanted[hashes >> np.uint64(64 - _WANTED)] = True
            self._index.add(self._key(hashes, items[rows]), limits[rows, places].astype(np.uint64))
        return set(best.tolist())

    def _rarest(
        self, batch: Batch, level: int, num: Numbers, nth: Numbers
    ) -> tuple[NDArray[np.float64], Hashes]:
        """What comparing is likely to cost, and the `num` rarest windows, the rarest first."""
        hashes, used = batch.windows(level)
        counts = self._counts[level][hashes >> np.uint64(64 - _COUNTERS)].astype(np.uint64)
        none = np.uint64(2**64 - 1)
        order = np.where(
            used, counts << np.uint64(32) | np.arange(hashes.shape[1], dtype=np.uint64), none
        )
        order = np.sort(order, axis=1)[:, : len(nth)]
        if order.shape[1] < len(nth):
            order = np.pad(order, ((0, 0), (0, len(nth) - order.shape[1])), constant_values=none)
        weights = np.maximum(num[:, None] - nth, 0)
        costs = (order >> np.uint64(32)).astype(float) * weights
        costs = costs.sum(1)
        costs[order[np.arange(len(num)), num - 1] == none] = np.inf
        if not hashes.shape[1]:
            return costs, order
        places = np.minimum(order & np.uint64(2**32 - 1), hashes.shape[1] - 1).astype(np.int64)
        return costs, np.take_along_axis(hashes, places, 1)

    def _add_walks(self, items: Numbers, batch: Batch, levels: list[int]) -> None:
        """Let texts look themselves up by all their walks, as far as there are not too many."""
        for level, walks, full in batch.walks(levels, _MOST_WALKS):
            self._reach[items[full]] = level // 2
            if level in levels:
                some = self._wanted[walks.hashes >> np.uint64(64 - _WANTED)]
                self._walks.add(self._key(walks.hashes[some], items[walks.rows[some]]))

    def _key(self, hashes: Hashes, items: Numbers) -> Hashes:
        """The first bits are the hash's, the last say of which text."""
        return hashes & ~self._ids | self._ranks[items].astype(np.uint64)

    def _meet(self, part: int) -> None:
        """Hold every window of one part against the walks that are the same."""
        keys, limits = self._index.read(part), self._index.read(part, 1)
        order = np.argsort(keys)
        keys, limits = keys[order], limits[order]
        walks = np.sort(self._walks.read(part))
        first = np.searchsorted(walks, keys, "right")
        last = np.searchsorted(walks, keys & ~self._ids | limits, "right")
        some = first < last
        first, last = first[some], last[some]
        ones, others = (
            self._items[(each & self._ids).astype(np.int64)] for each in (keys[some], walks)
        )
        for step in (0, 1, 3, 7, 15):  # what hangs together soon need not be looked at all to all
            some = first + step < last
            self._look_at(ones[some], others[first[some] + step])
        self._look_at_rest(walks >> self._id_bits, ones, others, first, last)

    def _look_at_rest(
        self, hashes: Hashes, ones: Numbers, others: Numbers, first: Numbers, last: Numbers
    ) -> None:
        """All of `others[first:last]` for each of `ones` that are not known to hang together.

        Of those that meet at one hash most may be one cluster: its own are not held against each
        other.
        """
        if not len(ones):
            return
        tops = self._joined.flat()
        begins = np.flatnonzero(np.r_[True, hashes[1:] != hashes[:-1]])
        middle = (begins + np.r_[begins[1:], len(hashes)]) // 2
        chiefs = np.repeat(tops[others[middle]], np.diff(np.r_[begins, len(hashes)]))
        strangers = np.flatnonzero(tops[others] != chiefs)
        own = tops[ones] == chiefs[first]
        among = np.searchsorted(strangers, first[own]), np.searchsorted(strangers, last[own])
        self._look_at_all(ones[own], others[strangers], *among)
        self._look_at_all(ones[~own], others, first[~own], last[~own])

    def _look_at_all(self, ones: Numbers, others: Numbers, first: Numbers, last: Numbers) -> None:
        """All of `others[first:last]` for each of `ones`, so many pairs at a time."""
        counts = last - first
        ends = np.cumsum(counts)
        done = 0
        while done < len(ones):
            upto = int(np.searchsorted(ends, (ends[done - 1] if done else 0) + _BLOCK, "right"))
            upto = max(upto, done + 1)
            which, nth = spread(counts[done:upto])
            self._look_at(ones[done:upto][which], others[first[done:upto][which] + nth])
            done = upto

    def _look_at(self, ones: Numbers, others: Numbers) -> None:
        """Join those of the pairs that are near."""
        tops = self._joined.flat()
        apart = tops[ones] != tops[others]
        ones, others = ones[apart], others[apart]
        for sketches in (self._coarse, self._fine):
            ones, others = self._plausible(sketches, ones, others)
        self._verify(ones, others)

    def _plausible(
        self, sketches: Hashes, ones: Numbers, others: Numbers
    ) -> tuple[Numbers, Numbers]:
        """Without the pairs whose sketches differ in more bits than near ones' runs can."""
        sizes = self._sizes[ones] + self._sizes[others]
        differ = np.empty_like(sizes)
        block = max(1, 4 * _BLOCK // sketches.shape[1])
        for at in range(0, len(ones), block):
            here = slice(at, at + block)
            bits = np.bitwise_count(sketches[ones[here]] ^ sketches[others[here]])
            differ[here] = bits.sum(1, dtype=np.int64)
        some = differ <= sizes - 2 * self._share * sizes + _EPSILON
        return ones[some], others[some]

    def _verify(self, ones: Numbers, others: Numbers) -> None:
        for one, other in sorted(set(zip(ones.tolist(), others.tolist(), strict=True))):
            tops = self._joined.top(one), self._joined.top(other)
            if tops[0] != tops[1] and self._near(one, other):
                self._joined.join(*tops)
