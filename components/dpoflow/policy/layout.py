"""Prompts and their answers as one batch of tokens.

Reads   groups: a prompt and the answers to it, as token ids
Gives   `Group`, `Groups`, `Batch`, `lay_out` in one of three layouts; `given`
Not     attention over a shared prompt (attention.py), scoring (logprobs.py)
Shapes  R rows of T tokens in a batch, N answer tokens in all

    packed   one row without padding: prompt, answer, answer, prompt, answer, answer …
    shared   a row a group, padded on the right: prompt, answer, answer
    concat   a row an answer, padded on the right: prompt, answer

Where answers share a prompt, the positions of each go on from the prompt's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, overload

import torch
from torch import Tensor

from dpoflow.policy.tokenise import EncodedPair, EncodedPairs

LayoutName = Literal["packed", "shared", "concat"]
Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """One prompt and the answers to it that are scored."""

    prompt: Tokens
    answers: tuple[Tokens, ...]
    missing: int | None = None
    """Place of an answer that nobody gave. One token stands there, and counts for nothing."""

    @property
    def longest(self) -> int:
        """Tokens of the prompt and its longest answer."""
        return len(self.prompt) + max(map(len, self.answers))


def group_of(pair: EncodedPair) -> Group:
    """Chosen first, rejected second."""
    answers = (pair.chosen, pair.rejected)
    if all(answers):
        return Group(pair.prompt, answers)
    # So that every group has two: a token more for the head, and none for the layers below.
    stand_in = max(answers, key=len)[-1:]
    both = (pair.chosen or stand_in, pair.rejected or stand_in)
    return Group(pair.prompt, both, answers.index(()))


def given(groups: Sequence[Group]) -> Tensor:
    """1 for each answer that somebody gave, 0 for each that is missing; in the batch's order."""
    return torch.tensor(
        [float(place != group.missing) for group in groups for place in range(len(group.answers))]
    )


class Groups(Sequence[Group]):
    """The groups of encoded pairs, made as they are asked for."""

    def __init__(self, pairs: EncodedPairs) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    @overload
    def __getitem__(self, place: int) -> Group: ...
    @overload
    def __getitem__(self, place: slice) -> "Groups": ...
    def __getitem__(self, place: int | slice) -> "Group | Groups":
        if isinstance(place, slice):
            return Groups(self._pairs[place])
        return group_of(self._pairs[place])


@dataclass(frozen=True, slots=True)
class Span:
    """Where a group lies: in `row` its prompt begins at `start`, its answers follow."""

    row: int
    start: int
    prompt: int
    answers: tuple[int, ...]
    """Tokens fed of each: the last one predicts nothing and is not fed."""

    @property
    def end(self) -> int:
        """The first place after it."""
        return self.start + self.prompt + sum(self.answers)


@dataclass(frozen=True, slots=True)
class Batch:
    """Groups laid out for one forward pass; answers in the groups' order."""

    input_ids_RT: Tensor
    position_ids_RT: Tensor | None
    """None counts up from 0 in each row."""
    rows_N: Tensor
    """Which of the R*T hidden rows predict an answer token."""
    targets_N: Tensor
    """The tokens they should predict."""
    lengths: tuple[int, ...]
    """Tokens of each answer."""
    num_tokens: int
    """Tokens that are fed, padding left out."""
    spans: tuple[Span, ...] | None
    """None where no prompt is shared."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch where the model is."""
        positions = self.position_ids_RT
        return replace(
            self,
            input_ids_RT=self.input_ids_RT.to(device),
            position_ids_RT=None if positions is None else positions.to(device),
            rows_N=self.rows_N.to(device),
            targets_N=self.targets_N.to(device),
        )


def lay_out(groups: Sequence[Group], layout: LayoutName) -> Batch:
    """`groups` as one batch; all but `concat` belong inside `attention.attending`."""
    if layout == "concat":
        return _concat(groups)
    return _sharing([groups] if layout == "packed" else [[group] for group in groups])


def _sharing(rows_of_groups: Sequence[Sequence[Group]]) -> Batch:
    input_ids: list[list[int]] = []
    positions: list[list[int]] = []
    predicting: list[tuple[int, int]] = []
    spans: list[Span] = []
    for row, groups in enumerate(rows_of_groups):
        ids: list[int] = []
        places: list[int] = []
        for group in groups:
            start, opening = len(ids), len(group.prompt)
            ids += group.prompt
            places += range(opening)
            for answer in group.answers:
                # The prompt's last row predicts the first token of every answer to it.
                predicting.append((row, start + opening - 1))
                predicting += [(row, len(ids) + step) for step in range(len(answer) - 1)]
                ids += answer[:-1]
                places += range(opening, opening + len(answer) - 1)
            fed = tuple(len(answer) - 1 for answer in group.answers)
            spans.append(Span(row, start, opening, fed))
        input_ids.append(ids)
        positions.append(places)
    width = max(map(len, input_ids))
    every = [group for groups in rows_of_groups for group in groups]
    return Batch(
        _padded(input_ids, width),
        _padded(positions, width),
        torch.tensor([row * width + place for row, place in predicting]),
        _targets(every),
        _lengths(every),
        sum(map(len, input_ids)),
        tuple(spans),
    )


def _concat(groups: Sequence[Group]) -> Batch:
    """No mask goes with it: attention is causal, so nothing that counts ever sees the padding."""
    fed = [(group.prompt + answer)[:-1] for group in groups for answer in group.answers]
    openings = [len(group.prompt) for group in groups for _ in group.answers]
    width = max(map(len, fed))
    predicting: list[int] = []
    for row, (tokens, opening) in enumerate(zip(fed, openings, strict=True)):
        predicting += range(row * width + opening - 1, row * width + len(tokens))
    return Batch(
        _padded(fed, width),
        None,
        torch.tensor(predicting),
        _targets(groups),
        _lengths(groups),
        sum(map(len, fed)),
        None,
    )


def _padded(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    padded_RT = torch.zeros(len(rows), width, dtype=torch.long)
    for row, values in enumerate(rows):
        padded_RT[row, : len(values)] = torch.tensor(values)
    return padded_RT


def _targets(groups: Sequence[Group]) -> Tensor:
    return torch.tensor([token for group in groups for answer in group.answers for token in answer])


def _lengths(groups: Sequence[Group]) -> tuple[int, ...]:
    return tuple(len(answer) for group in groups for answer in group.answers)
