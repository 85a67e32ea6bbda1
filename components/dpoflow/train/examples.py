"""All that training needs to know of its pairs, by place.

Reads   encoded pairs
Gives   `Examples`, `Strangers` (KTO's unrelated answers)
Not     the order they are seen in (plan.py), what the reference thinks (reference.py)
"""

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from dpoflow.contracts.errors import DataRejected
from dpoflow.policy.layout import Group, given
from dpoflow.train.losses import Scored
from dpoflow.train.reference import ReferenceLogps


@dataclass(frozen=True, slots=True)
class Examples:
    """Pairs as groups of chosen and rejected, with what the reference thinks of them."""

    pair_ids: Sequence[str]
    groups: Sequence[Group]
    reference: ReferenceLogps | None
    """None for objectives that compare with none."""
    strangers: Sequence[Group] | None = None
    """Each prompt with the answers to another: KTO measures on them how far the policy moved."""
    strangers_reference: ReferenceLogps | None = None

    def scored(
        self, sums_A: Tensor, lengths: Sequence[int], places: Sequence[int], kl: Tensor
    ) -> Scored:
        """What an objective sees of the pairs at `places`, once the policy has summed them up."""
        nothing_A = torch.zeros_like(sums_A)
        known = self.reference.sums_PA[list(places)].flatten() if self.reference else nothing_A
        known_A, tokens_A = known.to(sums_A), torch.tensor(lengths).to(sums_A)
        given_A = given([self.groups[place] for place in places]).to(sums_A)
        return Scored(
            chosen_B=sums_A[::2],
            rejected_B=sums_A[1::2],
            chosen_ref_B=known_A[::2],
            rejected_ref_B=known_A[1::2],
            chosen_tokens_B=tokens_A[::2],
            rejected_tokens_B=tokens_A[1::2],
            kl=kl,
            chosen_given_B=given_A[::2],
            rejected_given_B=given_A[1::2],
        )


class Strangers(Sequence[Group]):
    """Each prompt with the answers of the next of `among` that asks another, cut to fit.

    "Next" is in an order of its own; `longest` is of prompt and answer, in tokens. Made as they are
    asked for: what is held is a number a pair.
    """

    def __init__(
        self, groups: Sequence[Group], among: Sequence[Group], seed: int, *, longest: int
    ) -> None:
        self._groups, self._among, self._longest = groups, among, longest
        self._order = array("q", range(len(among)))
        random.Random(f"{seed}:strangers").shuffle(self._order)  # noqa: S311  # no secret
        self._at = array("q", bytes(8 * len(among)))  # of each place in that order
        for at, place in enumerate(self._order):
            self._at[place] = at
        self._prompts = array("q", (hash(among[place].prompt) for place in self._order))
        self._others = self._next_others()

    def _next_others(self) -> "array[int]":
        """For each in the order the next that asks another; the order goes round."""
        num, prompts = len(self._prompts), self._prompts
        others = array("q", [-1]) * num
        for at in range(2 * num - 1, -1, -1):  # twice round: the last has its next at the start
            here, following = at % num, (at + 1) % num
            same = prompts[here] == prompts[following]
            others[here] = others[following] if same else following
        if -1 in others:
            raise DataRejected(
                "train.loss kto measures how far the policy moved on answers to other prompts, and "
                "every pair has the same prompt; add other prompts, or use another train.loss"
            )
        return others

    def __len__(self) -> int:
        return len(self._groups)

    @overload
    def __getitem__(self, place: int) -> Group: ...
    @overload
    def __getitem__(self, place: slice) -> list[Group]: ...
    def __getitem__(self, place: int | slice) -> Group | list[Group]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        prompt = self._groups[place].prompt
        following = (self._at[place] + 1 if place < len(self._at) else 1) % len(self._order)
        if self._prompts[following] == hash(prompt):
            following = self._others[following]
        other = self._among[self._order[following]]
        room = max(1, self._longest - len(prompt))
        answers = tuple(answer[:room] for answer in other.answers)
        return Group(prompt, answers, other.missing)
