"""All that training needs to know of its pairs, by place.

Reads   encoded pairs
Gives   `Examples`, `strangers` (KTO's unrelated answers)
Not     the order they are seen in (plan.py), what the reference thinks (reference.py)
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

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


def strangers(
    groups: Sequence[Group], among: Sequence[Group], seed: int, *, longest: int
) -> list[Group]:
    """Each prompt with the answers of the next pair of `among` that asks another, cut to fit.

    The order is of its own; `longest` is of prompt and answer, in tokens.
    """
    order = list(range(len(among)))
    random.Random(f"{seed}:strangers").shuffle(order)  # noqa: S311  # an order, no secret
    starts = {place: at for at, place in enumerate(order)}
    found: list[Group] = []
    for place, group in enumerate(groups):
        prompt, at = group.prompt, starts.get(place, 0)
        others = (among[order[(at + step) % len(order)]] for step in range(1, len(order) + 1))
        other = next((group for group in others if group.prompt != prompt), None)
        if other is None:
            raise DataRejected(
                "train.loss kto measures how far the policy moved on answers to other prompts, and "
                "every pair has the same prompt; add other prompts, or use another train.loss"
            )
        room = max(1, longest - len(prompt))
        answers = tuple(answer[:room] for answer in other.answers)
        found.append(Group(prompt, answers, other.missing))
    return found
