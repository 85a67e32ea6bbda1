"""How likely a model finds answers: summed log-probabilities, with gradients or without.

Reads   a causal language model, prompts and answers as token ids
Gives   `response_logps` (training), `pair_logps` and `answer_nll` (scoring), batches for them
Not     the objective (train/losses.py), tokenising (tokenise.py)
Shapes  R rows of T tokens in a batch, N answer tokens in all, H hidden, V vocabulary, B pairs

The language-model head is most of a small model's work and memory, so it sees answer rows only, and
never more of them at once than `CHUNK` logits hold. Its products may be bfloat16; the softmax is
float32.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dpoflow.contracts.errors import ConfigError
from dpoflow.contracts.pairs import Message
from dpoflow.policy.tokenise import EncodedPair, answer_tokens, prompt_tokens
from dpoflow.state.events import Events

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHUNK = 1 << 24
"""Logits that exist at once."""

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


@dataclass(frozen=True, slots=True)
class Batch:
    """Groups laid out for one forward pass; answers in the groups' order."""

    input_ids_RT: Tensor
    rows_N: Tensor
    """Which of the R*T hidden rows predict an answer token."""
    targets_N: Tensor
    """The tokens they should predict."""
    lengths: tuple[int, ...]
    """Tokens of each answer."""
    num_tokens: int
    """Tokens that are fed, padding left out."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch where the model is."""
        return replace(
            self,
            input_ids_RT=self.input_ids_RT.to(device),
            rows_N=self.rows_N.to(device),
            targets_N=self.targets_N.to(device),
        )


def group_of(pair: EncodedPair) -> Group:
    """Chosen first, rejected second."""
    return Group(pair.prompt, (pair.chosen, pair.rejected))


def lay_out(groups: Sequence[Group]) -> Batch:
    """One row an answer, padded on the right.

    No mask goes with it: attention is causal, so nothing that counts ever sees the padding. The last
    token of a row predicts nothing and is not fed.
    """
    rows = [(group.prompt, answer) for group in groups for answer in group.answers]
    width = max(len(prompt) + len(answer) for prompt, answer in rows) - 1
    input_ids_RT = torch.zeros(len(rows), width, dtype=torch.long)
    places: list[Tensor] = []
    for row, (prompt, answer) in enumerate(rows):
        fed = (prompt + answer)[:-1]
        input_ids_RT[row, : len(fed)] = torch.tensor(fed)
        start = row * width + len(prompt) - 1
        places.append(torch.arange(start, start + len(answer)))
    targets = [token for _, answer in rows for token in answer]
    return Batch(
        input_ids_RT,
        torch.cat(places),
        torch.tensor(targets),
        tuple(len(answer) for _, answer in rows),
        sum(len(prompt) + len(answer) - 1 for prompt, answer in rows),
    )


def answer_logps(model: nn.Module, batch: Batch) -> Tensor:
    """Summed log-probability of each answer in `batch`, float32, with gradients where wanted."""
    decoder, head = _parts(model)
    hidden = decoder(input_ids=batch.input_ids_RT, use_cache=False).last_hidden_state
    hidden_NH = hidden.flatten(0, 1).index_select(0, batch.rows_N)
    logps_N = _chunked_logps(head, hidden_NH, batch.targets_N)
    # Sum, not mean: eq. 7 is over whole responses. Length-normalising is another objective.
    return torch.stack([logps.sum() for logps in logps_N.split(list(batch.lengths))])


def response_logps(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Summed log-probabilities of a batch of pairs: (chosen_B, rejected_B)."""
    chosen_B, rejected_B = answer_logps(model, batch).view(-1, 2).unbind(dim=1)
    return chosen_B, rejected_B


def _parts(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The stack that ends in hidden states, and the head that makes logits of them."""
    plain: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    return plain.base_model, plain.get_output_embeddings()


def _chunked_logps(head: nn.Module, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
    rows = max(1, CHUNK // _vocabulary(head))
    parts = zip(hidden_NH.split(rows), targets_N.split(rows), strict=True)
    if torch.is_grad_enabled():
        # The backward pass makes a chunk's logits again instead of keeping every chunk's.
        return torch.cat(
            [checkpoint(_logps, head, *part, use_reentrant=False) for part in parts]
        )
    return torch.cat([_logps(head, *part) for part in parts])


def _logps(head: nn.Module, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
    logits_NV = head(hidden_NH).float()
    picked_N: Tensor = logits_NV.gather(1, targets_N.unsqueeze(1)).squeeze(1)
    return picked_N - logits_NV.logsumexp(dim=1)


def _vocabulary(head: nn.Module) -> int:
    weight = head.weight
    assert isinstance(weight, Tensor)
    return int(weight.shape[0])


@torch.no_grad()
def check_head(model: nn.Module) -> None:
    """Refuse models that do more to logits than their head does (soft caps, scales)."""
    decoder, head = _parts(model)
    plain: Any = model
    ids = torch.arange(1, 5, device=plain.device).unsqueeze(0)
    was_training = model.training
    model.eval()
    ours = head(decoder(input_ids=ids, use_cache=False).last_hidden_state)
    theirs = plain(input_ids=ids, use_cache=False).logits
    model.train(was_training)
    if not torch.allclose(ours.float(), theirs.float(), rtol=1e-3, atol=1e-3):
        raise ConfigError(
            f"model type {plain.config.model_type} changes its logits after the head, which training "
            "here does not follow; use another model, such as a Llama or Qwen2"
        )


def batches_by_length(longest: Sequence[int], batch_size: int) -> list[list[int]]:
    """Places of like length together, longest first; ties keep their order."""
    order = sorted(range(len(longest)), key=lambda place: (-longest[place], place))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


@torch.no_grad()
def _scores(
    model: "PreTrainedModel",
    groups: Sequence[Group],
    batch_size: int,
    dtype: torch.dtype,
    events: Events,
    phase: str,
) -> Iterator[tuple[int, list[float]]]:
    """(place of a group, the log-probability of each of its answers), longest groups first."""
    check_head(model)
    num_done = 0
    model.eval()
    for places in batches_by_length([group.longest for group in groups], batch_size):
        chosen = [groups[place] for place in places]
        with autocast(model.device, dtype):
            logps = answer_logps(model, lay_out(chosen).to(model.device)).tolist()
        for place, group in zip(places, chosen, strict=True):
            yield place, [logps.pop(0) for _ in group.answers]
        num_done += len(places)
        events.progress(phase, num_done, len(groups), unit="rows")


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Matrix products in `dtype`; float32 leaves everything as it is."""
    lower = dtype if dtype != torch.float32 else torch.bfloat16
    return torch.autocast(device.type, dtype=lower, enabled=dtype != torch.float32)


def pair_logps(
    model: "PreTrainedModel",
    pairs: Sequence[EncodedPair],
    *,
    batch_size: int,
    dtype: torch.dtype,
    events: Events,
    phase: str,
) -> tuple[list[float], list[float]]:
    """(chosen, rejected): the summed log-probabilities of every pair, in the pairs' order."""
    groups = [group_of(pair) for pair in pairs]
    found = dict(_scores(model, groups, batch_size, dtype, events, phase))
    both = [found[place] for place in range(len(pairs))]
    return [chosen for chosen, _ in both], [rejected for _, rejected in both]


def answer_nll(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[tuple[Message, ...]],
    answers: Sequence[str],
    *,
    batch_size: int,
    dtype: torch.dtype,
    events: Events,
    phase: str,
) -> list[tuple[float, int]]:
    """(negative log-likelihood in nats, tokens) of each answer; exp(sum / tokens) is perplexity.

    The end-of-turn token is left out: an answer that was cut has none, and is not less fluent for it.
    An answer without tokens counts (0.0, 0).
    """
    groups: dict[int, Group] = {}
    for place, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        said = answer_tokens(tokenizer, prompt, answer)[:-1]
        if said:
            groups[place] = Group(prompt_tokens(tokenizer, prompt), (said,))
    found = dict(_scores(model, list(groups.values()), batch_size, dtype, events, phase))
    results = [(0.0, 0)] * len(prompts)
    for index, (place, group) in enumerate(groups.items()):
        results[place] = (-found[index][0], len(group.answers[0]))
    return results
