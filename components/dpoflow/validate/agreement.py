"""Whether annotators agree beyond chance: Cohen's kappa of two, Fleiss' of all.

Reads   for each row, who said what of its first and its second answer
Gives   `said` (one row's votes), `agreement_of` (kappas, and on how many rows they rest)
Not     which answer wins: see sources/formats

Cohen 1960 and Fleiss 1971, the latter with as many annotators a row as there are (two at least). A
vote is for the first answer as the first annotator was shown them, for the second, or a tie. Where
everybody always says the same, chance explains all and kappa is not defined: None.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpoflow.contracts.pairs import PreferencePair

SAYS = ("first", "second", "tie")
_MOST = 12
"""Annotators that are compared one by one: those with most votes."""


def said(pair: PreferencePair) -> dict[str, str]:
    """Annotator to what they said, for a pair with two or more votes of people."""
    if pair.provenance is not None or len(pair.votes) < 2:
        return {}
    orders = [vote.order for vote in pair.votes if vote.order != "unordered"]
    # Where nobody says in which, any order will do that does not hang on who won.
    alphabetic = pair.chosen.content < pair.rejected.content
    chosen_first = orders[0] == "chosen_first" if orders else alphabetic
    votes = {
        vote.annotator: "tie"
        if vote.verdict == "tie"
        else ("first" if (vote.verdict == "chosen") == chosen_first else "second")
        for vote in pair.votes
        if vote.verdict != "invalid"
    }
    return votes if len(votes) > 1 else {}


class _Agreement:
    """Counts rows as they come; of annotators it keeps their number of votes."""

    def __init__(self, most: Collection[str]) -> None:
        self._most = most
        self._tables: dict[tuple[str, str], NDArray[np.int64]] = {}
        self._votes = Counter[str]()
        self._rows, self._agreeing = 0, 0.0
        self._shares = np.zeros(len(SAYS))

    def add(self, votes: Mapping[str, str]) -> None:
        """One row: annotator to one of `SAYS`."""
        self._rows += 1
        counts = np.array([list(votes.values()).count(each) for each in SAYS])
        size = int(counts.sum())
        self._agreeing += float((counts * (counts - 1)).sum()) / (size * (size - 1))
        self._shares += counts
        self._votes.update(votes.keys())
        for one, other in combinations(sorted(votes.keys() & self._most), 2):
            table = self._tables.setdefault((one, other), np.zeros((3, 3), np.int64))
            table[SAYS.index(votes[one]), SAYS.index(votes[other])] += 1

    def told(self) -> dict[str, Any] | None:
        """As the report has it; None without a row that two people saw."""
        if not self._rows:
            return None
        shares = self._shares / self._shares.sum()
        return {
            "num_rows": self._rows,
            "num_annotators": len(self._votes),
            "agreeing": self._agreeing / self._rows,
            "fleiss_kappa": _beyond(self._agreeing / self._rows, float((shares**2).sum())),
            "cohen_kappas": [
                {
                    "annotators": [one, other],
                    "num_rows": int(table.sum()),
                    "kappa": cohen_kappa(table),
                }
                for (one, other), table in sorted(self._tables.items())
            ],
        }


def cohen_kappa(table: NDArray[np.int64]) -> float | None:
    """Of a square table of counts: what one annotator says in rows, the other in columns."""
    share = table / table.sum()
    return _beyond(float(np.trace(share)), float(share.sum(0) @ share.sum(1)))


def _beyond(seen: float, chance: float) -> float | None:
    return None if chance > 1 - 1e-12 else (seen - chance) / (1 - chance)


def agreement_of(rows: Callable[[], Iterable[Mapping[str, str]]]) -> dict[str, Any] | None:
    """What the report says of all rows, each annotator to one of `SAYS`; None without any.

    `rows` is asked twice, always for the same: first for who voted most.
    """
    num_votes = Counter[str]()
    for row in rows():
        num_votes.update(row.keys())
    agreement = _Agreement({name for name, _ in num_votes.most_common(_MOST)})
    for row in rows():
        agreement.add(row)
    return agreement.told()
