"""Prompts and their answers as one batch of tokens.

Reads   groups: a prompt and the answers to it, as token ids
Gives   `Group`, `Batch`, `lay_out`: with the prompt once (shared), or once an answer (side by side)
Not     attention over a shared prompt (attention.py), scoring (logprobs.py)
Shapes  R rows of T tokens in a batch, N answer tokens in all

Shared, a batch is one row without padding: prompt, answer, answer, prompt, answer, answer … Each
answer's positions go on from its prompt's. Side by side, each answer has a row, padded on the
right.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dpoflow.policy.tokenise import EncodedPair

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """One prompt and the answers to it that are scored."""

    prompt: Tokens
    answers: tuple[Tokens, ...]

    @property
    def longest(self) -> int:
        """Tokens of the prompt and its longest answer."""
        return len(self.prompt) + max(map(len, self.answers))


def group_of(pair: EncodedPair) -> Group:
    """Chosen first, rejected second."""
    return Group(pair.prompt, (pair.chosen, pair.rejected))


@dataclass(frozen=True, slots=True)
class Span:
    """Where a group lies in a shared row: its prompt begins at `start`, its answers follow."""

    start: int
    prompt: int
    answers: tuple[int, ...]
    """Tokens fed of each: the last one predicts nothing and is not fed."""


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
    """Of a shared row; None side by side."""

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


def lay_out(groups: Sequence[Group], *, shared: bool) -> Batch:
    """`groups` as one batch; `shared` only for models that `attention.may_share` says yes to."""
    return _shared(groups) if shared else _side_by_side(groups)


def _shared(groups: Sequence[Group]) -> Batch:
    input_ids: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    spans: list[Span] = []
    for group in groups:
        start, opening = len(input_ids), len(group.prompt)
        input_ids += group.prompt
        positions += range(opening)
        for answer in group.answers:
            # The prompt's last row predicts the first token of every answer to it.
            rows += [start + opening - 1, *range(len(input_ids), len(input_ids) + len(answer) - 1)]
            input_ids += answer[:-1]
            positions += range(opening, opening + len(answer) - 1)
        spans.append(Span(start, opening, tuple(len(answer) - 1 for answer in group.answers)))
    return Batch(
        torch.tensor([input_ids]),
        torch.tensor([positions]),
        torch.tensor(rows),
        _targets(groups),
        _lengths(groups),
        len(input_ids),
        tuple(spans),
    )


def _side_by_side(groups: Sequence[Group]) -> Batch:
    """No mask goes with it: attention is causal, so nothing that counts ever sees the padding."""
    fed = [(group.prompt + answer)[:-1] for group in groups for answer in group.answers]
    openings = [len(group.prompt) for group in groups for _ in group.answers]
    width = max(map(len, fed))
    input_ids_RT = torch.zeros(len(fed), width, dtype=torch.long)
    rows: list[int] = []
    for row, (tokens, opening) in enumerate(zip(fed, openings, strict=True)):
        input_ids_RT[row, : len(tokens)] = torch.tensor(tokens)
        rows += range(row * width + opening - 1, row * width + len(tokens))
    return Batch(
        input_ids_RT,
        None,
        torch.tensor(rows),
        _targets(groups),
        _lengths(groups),
        sum(map(len, fed)),
        None,
    )


def _targets(groups: Sequence[Group]) -> Tensor:
    return torch.tensor([token for group in groups for answer in group.answers for token in answer])


def _lengths(groups: Sequence[Group]) -> tuple[int, ...]:
    return tuple(len(answer) for group in groups for answer in group.answers)
