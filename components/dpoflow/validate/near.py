"""Prompts that are nearly the same.

Reads   plain texts of prompts
Gives   `alike` (whether two are near), `clusters` (which hang together)
Not     how near ones are found among a million: see join.py; which side they are on: see split.py

Two prompts are near when the sets of their runs of five characters, case and blanks aside, have a
Jaccard similarity of 0.8 or more, as in Lee et al. 2022; the spec may say another number. Prompts
with other numbers in them are never near: who knows 23 + 45 does not know 23 + 46.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

from dpoflow.validate.join import Join, Joined
from dpoflow.validate.runs import RUN, Numbers, numbers_in


@lru_cache(128)
def _runs(text: str) -> frozenset[str]:
    return frozenset(text[at : at + RUN] for at in range(max(1, len(text) - RUN + 1)))


def alike(left: str, right: str, least: float) -> bool:
    """Whether two plain texts are as similar as `least`, exactly."""
    if numbers_in(left) != numbers_in(right):
        return False
    one, other = _runs(left), _runs(right)
    common = len(one & other)
    return common >= least * (len(one) + len(other) - common)


def clusters(
    texts: Callable[[], Iterable[str]],
    text_of: Callable[[int], str],
    least: float,
    above: Numbers,
    folder: Path,
) -> Numbers:
    """For each text the smallest that it hangs together with.

    Joined are all that are `alike`, and what `above` joins already: each text to itself, or to a
    smaller one. `texts` are read several times, which is quick where the shortest come first. What
    is as large as they are lies in `folder`; memory grows with their number alone.
    """
    joined = Joined(above)

    def near(one: int, other: int) -> bool:
        return alike(text_of(one), text_of(other), least)

    if len(above) > 1:
        Join(texts, near, least, joined, folder).run()
    return joined.flat()
