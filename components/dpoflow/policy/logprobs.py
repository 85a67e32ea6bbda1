"""How likely a model finds answers: summed log-probabilities, with gradients or without.

Reads   a causal language model, prompts and answers as token ids
Gives   `Scorer` (training), `pair_logps` and `answer_nll` (scoring)
Not     the objective (train/losses.py), tokenising (tokenise.py), batches (layout.py)
Shapes  N answer tokens in a batch, H hidden

The language-model head is much of a small model's work, so it sees answer rows only. Its products
may be bfloat16; the softmax is float32.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.contracts.pairs import Message
from dpoflow.policy.attention import arguments, attending, why_concat
from dpoflow.policy.head import Expectation, TokenScores, token_scores
from dpoflow.policy.layout import Batch, Group, LayoutName, group_of, lay_out
from dpoflow.policy.tokenise import EncodedPair, answer_tokens, prompt_tokens
from dpoflow.state.events import Events

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Scorer(nn.Module):
    """A language model whose forward pass scores answers: what DDP and FSDP must wrap."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, expectation: Expectation | None = None) -> TokenScores:
        """Score each answer token of `batch`."""
        plain = without_adapters(self.model)
        out = plain.base_model(input_ids=batch.input_ids_RT, use_cache=False, **arguments(batch))
        hidden_NH = out.last_hidden_state.flatten(0, 1).index_select(0, batch.rows_N)
        head = plain.get_output_embeddings()
        return token_scores(head, hidden_NH, batch.targets_N, expectation)


def answer_sums(values_N: Tensor, batch: Batch) -> Tensor:
    """Values of tokens, summed over each answer."""
    # Sum, not mean: eq. 7 is over whole responses. What normalises by length says so itself.
    return torch.stack([values.sum() for values in values_N.split(list(batch.lengths))])


def without_adapters(model: Any) -> Any:
    """The language model itself; adapters sit inside its modules and stay at work."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def choose_layout(model: nn.Module, wanted: LayoutName | Literal["auto"]) -> LayoutName:
    """`packed` wherever the model can share prompts; ConfigError if it cannot and was asked to."""
    reason = why_concat(without_adapters(model))
    if wanted == "auto":
        return "packed" if reason is None else "concat"
    if wanted != "concat" and reason is not None:
        raise ConfigError(f"train.layout {wanted} is not for this model: {reason}; say auto")
    return wanted


def device_of(model: nn.Module) -> torch.device:
    """Where its weights lie."""
    return next(model.parameters()).device


@torch.no_grad()
def check_head(model: nn.Module) -> None:
    """Refuse models that do more to logits than their head does (soft caps, scales)."""
    plain = without_adapters(model)
    ids = torch.arange(1, 5, device=plain.device).unsqueeze(0)
    was_training = model.training
    model.eval()
    hidden = plain.base_model(input_ids=ids, use_cache=False).last_hidden_state
    ours = plain.get_output_embeddings()(hidden)
    theirs = plain(input_ids=ids, use_cache=False).logits
    model.train(was_training)
    if not torch.isfinite(theirs).all():
        raise DataRejected(
            "the model gives logits that are not finite: its weights are damaged; "
            "fetch the model folder again"
        )
    if not torch.allclose(ours.float(), theirs.float(), rtol=1e-3, atol=1e-3):
        raise ConfigError(
            f"model type {plain.config.model_type} changes its logits after the head, which "
            "training here does not follow; use another model, such as a Llama or Qwen2"
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
    num_done, layout, scorer = 0, choose_layout(model, "auto"), Scorer(model).eval()
    for places in batches_by_length([group.longest for group in groups], batch_size):
        chosen = [groups[place] for place in places]
        batch = lay_out(chosen, layout).to(model.device)
        with attending(model, layout), autocast(model.device, dtype):
            logps = answer_sums(scorer(batch).logps_N, batch).tolist()
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

    The end-of-turn token is left out: a cut answer has none, and is no less fluent for it.
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
