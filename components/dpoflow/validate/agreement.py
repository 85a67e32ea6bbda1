"""Whether annotators agree beyond chance: Cohen's kappa of two, Fleiss' of all.

Reads   for each row, who said what of its first and its second answer
Gives   `said` (one row's votes), `agreement_of` (kappas, and on how many rows they rest)
Not     which answer wins: see sources/formats

Cohen 1960 and Fleiss 1971, the latter with as many annotators a row as there are (two at least). A
vote is for the first answer as it was shown, for the second, or a tie. Where everybody always says
the same, chance explains all and kappa is not defined: None.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpoflow.contracts.pairs import PreferencePair, Vote

SAYS = ("first", "second", "tie")
_MOST = 12
"""Annotators that are compared one by one: those with most votes."""


def said(pair: PreferencePair) -> dict[str, str]:
    """Annotator to what they said, for a pair with two or more votes of people."""
    if pair.provenance is not None or len(pair.votes) < 2:
        return {}
    votes = {vote.annotator: _side(vote, pair) for vote in pair.votes if vote.verdict != "invalid"}
    return votes if len(votes) > 1 else {}


def _side(vote: Vote, pair: PreferencePair) -> str:
    if vote.verdict == "tie":
        return "tie"
    if vote.order == "unordered":  # any order will do that does not hang on who won
        chosen_first = pair.chosen.content < pair.rejected.content
    else:
        chosen_first = vote.order == "chosen_first"
    return "first" if (vote.verdict == "chosen") == chosen_first else "second"


class _Agreement:
    """Counts rows as they come; memory grows with annotators, not with rows."""

    def __init__(self) -> None:
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
        for one, other in combinations(sorted(votes), 2):
            table = self._tables.setdefault((one, other), np.zeros((3, 3), np.int64))
            table[SAYS.index(votes[one]), SAYS.index(votes[other])] += 1

    def told(self) -> dict[str, Any] | None:
        """As the report has it; None without a row that two people saw."""
        if not self._rows:
            return None
        shares = self._shares / self._shares.sum()
        most = {name for name, _ in self._votes.most_common(_MOST)}
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
                if {one, other} <= most
            ],
        }


def cohen_kappa(table: NDArray[np.int64]) -> float | None:
    """Of a square table of counts: what one annotator says in rows, the other in columns."""
    share = table / table.sum()
    return _beyond(float(np.trace(share)), float(share.sum(0) @ share.sum(1)))


def _beyond(seen: float, chance: float) -> float | None:
    return None if chance > 1 - 1e-12 else (seen - chance) / (1 - chance)


def agreement_of(rows: Iterable[Mapping[str, str]]) -> dict[str, Any] | None:
    """What the report says of all rows, each annotator to one of `SAYS`; None without any."""
    agreement = _Agreement()
    for row in rows:
        agreement.add(row)
    return agreement.told()
