"""Whether a judge may decide: held against people's labels, in both orders.

Reads   labelled pairs with a judge's verdicts on them, asked here or recorded elsewhere
Gives   `Item`, `qualify`
Not     asking the judge and reading files (labelled.py)

A judge is used in both orders and only agreement counts, so that is what is measured: kappa is
Cohen's, between the label and the verdict that both orders agree on, where none is a category of
its own. Plain accuracy overstates a judge: half of it is luck, and one order hides the other.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpoflow.contracts.judges import Qualification, SliceOfJudge
from dpoflow.judge.verdict import Choice, Outcome

LEAST_KAPPA = 0.4
"""Of the interval's lower end: Landis and Koch's `moderate`."""

LEAST_AGREEMENT = 0.8
LEAST_PAIRS = 20
"""A judge that is right on a handful may be lucky, and the bootstrap cannot see that."""

_RESAMPLES = 10_000
_COLUMNS: dict[str | None, int] = {"first": 0, "second": 1, "tie": 2, None: 3}


class Item(NamedTuple):
    """One labelled pair and what a judge said of it. Answers are named as the data has them."""

    label: Literal["first", "second", "tie"]
    forward: Choice
    """With the first answer shown first."""
    swapped: Choice
    """With the second answer shown first; still named as the data has them."""
    slice: str | None = None
    lengths: tuple[int, int] | None = None
    """Characters of both answers, where they are known."""
    settled: Outcome | None = None
    """What the judge itself made of its verdicts, where it was asked here: a panel weighs them."""

    @property
    def agreed(self) -> Choice | None:
        """What a pair would be made by: the side, or the tie, that both orders agree on."""
        if self.settled is not None:
            return self.settled.winner or ("tie" if self.settled.label == "tie" else None)
        same = self.forward == self.swapped and self.forward != "invalid"
        return self.forward if same else None


def qualify(
    judge: str,
    items: Sequence[Item],
    *,
    least_kappa: float = LEAST_KAPPA,
    least_agreement: float = LEAST_AGREEMENT,
    seed: int = 0,
) -> Qualification:
    """The figures of `judge` on `items`, and the verdict on it."""
    assert items, "nothing to judge a judge by"
    table = np.zeros((4, 4), dtype=np.int64)
    for item in items:
        table[_COLUMNS[item.label], _COLUMNS[item.agreed]] += 1
    drawn = np.random.default_rng(seed).multinomial(
        len(items), table.ravel() / len(items), size=_RESAMPLES
    )
    low, high = np.quantile(_kappa(drawn.reshape(-1, 4, 4)), (0.025, 0.975))
    kappa, agreement = float(_kappa(table[None])[0]), _agreement(items)
    short = [
        text
        for text, enough in (
            (
                f"{len(items)} pairs are too few, asked {LEAST_PAIRS}",
                len(items) >= LEAST_PAIRS,
            ),
            (f"kappa's lower end is {low:.2f}, asked {least_kappa:g}", low >= least_kappa),
            (
                f"both orders agree on {agreement:.0%}, asked {least_agreement:.0%}",
                agreement >= least_agreement,
            ),
        )
        if not enough
    ]
    told = f"kappa {kappa:.2f} [{low:.2f}, {high:.2f}], both orders agree on {agreement:.0%}"
    word = "unqualified" if short else "qualified"
    return Qualification(
        judge=judge,
        n=len(items),
        accuracy_forward=_share(item.forward == item.label for item in items),
        accuracy_swapped=_share(item.swapped == item.label for item in items),
        both_correct=_both_correct(items),
        positional_agreement=agreement,
        first_position_rate=_first_position(items),
        invalid=_share(
            each == "invalid" for item in items for each in (item.forward, item.swapped)
        ),
        kappa=kappa,
        kappa_ci=(float(low), float(high)),
        length_flip_rate=_length_flips(items),
        least_kappa=least_kappa,
        least_agreement=least_agreement,
        qualified=not short,
        sentence=f"{word} on {len(items)} pairs: {'; '.join(short) or told}",
        slices={
            name: SliceOfJudge(
                n=len(part), both_correct=_both_correct(part), positional_agreement=_agreement(part)
            )
            for name, part in _sliced(items).items()
        },
    )


def _kappa(tables: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cohen 1960 of each table of label against verdict; 0 where chance alone explains all."""
    n = tables.sum(axis=(1, 2))
    seen = np.trace(tables, axis1=1, axis2=2) / n
    chance = (tables.sum(axis=1) * tables.sum(axis=2)).sum(axis=1) / n**2
    left = 1 - chance
    kappa: NDArray[np.float64] = np.zeros_like(left)
    np.divide(seen - chance, left, out=kappa, where=left > 0)
    return kappa


def _share(each: Iterable[bool]) -> float:
    told = list(each)
    return sum(told) / len(told)


def _both_correct(items: Sequence[Item]) -> float:
    return _share(item.agreed == item.label for item in items)


def _agreement(items: Sequence[Item]) -> float:
    return _share(item.agreed is not None for item in items)


def _first_position(items: Sequence[Item]) -> float | None:
    forward = [item.forward == "first" for item in items if item.forward in ("first", "second")]
    swapped = [item.swapped == "second" for item in items if item.swapped in ("first", "second")]
    return _share([*forward, *swapped]) if forward or swapped else None


def _length_flips(items: Sequence[Item]) -> float | None:
    flips = []
    for item in items:
        if item.lengths is None or item.label == "tie" or item.lengths[0] == item.lengths[1]:
            continue
        longer = "first" if item.lengths[0] > item.lengths[1] else "second"
        if item.label != longer:
            flips.append(item.agreed == longer)
    return _share(flips) if flips else None


def _sliced(items: Sequence[Item]) -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = {}
    for item in items:
        if item.slice is not None:
            found.setdefault(item.slice, []).append(item)
    return dict(sorted(found.items()))
