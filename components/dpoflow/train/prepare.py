"""The model as it is trained, and the pairs as it sees them.

Reads   a loaded model and tokenizer, the train section of the spec, pairs
Gives   `prepared` (adapters, no dropout, activation checkpointing), `encode`, `watched`,
        `most_tokens`
Not     the training itself (work.py)
"""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.contracts.pairs import PreferencePair, Rating, read_parquet
from dpoflow.contracts.spec import TrainConfig
from dpoflow.policy.tokenise import EncodedPair, EncodedPairs, encode_pair, encode_rating
from dpoflow.state.events import Events

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PAIRS, RATINGS = "train.parquet", "ratings.parquet"
"""What merge leaves."""

Model = TypeVar("Model", bound=nn.Module)


def prepared(model: Any, config: TrainConfig) -> "PreTrainedModel":
    """The model with what is to be trained switched on, and without its own dropout."""
    without_dropout(model)
    if config.method == "lora":
        model = _with_adapters(model, config)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ConfigError(
            f"train.method {config.method} leaves nothing to train; name modules of this model in "
            "train.lora.targets, or set train.method: full"
        )
    if config.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.compile:
        _compile(model)
    trained: PreTrainedModel = model
    return trained


def _compile(model: nn.Module) -> None:
    """The feed-forward parts: attention here is told of each batch by numbers, not by tensors."""
    parts = [module for name, module in model.named_modules() if name.endswith(".mlp")]
    if not parts:
        raise ConfigError(
            "train.compile finds no feed-forward part (.mlp) in this model; leave it out"
        )
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++")), None)
    if compiler is None or shutil.which(compiler) is None:
        raise ConfigError(
            f"train.compile needs a C++ compiler, and there is no {compiler or 'g++ or clang++'}; "
            "install one, or leave train.compile out"
        )
    for part in parts:
        part.compile(dynamic=True)


def without_dropout(model: Model) -> Model:
    """Policy and reference are compared on one footing; adapters keep the dropout they ask for."""
    module: Any
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # Llama and its kin keep the rate as a number
    return model


def _with_adapters(model: "PreTrainedModel", config: TrainConfig) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers.pytorch_utils import Conv1D

    targets = config.lora.targets
    adapters = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,  # type: ignore[arg-type]  # it only divides by the rank
        lora_dropout=config.lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    try:
        return get_peft_model(model, adapters)
    except ValueError as error:
        raise ConfigError(
            f"train.lora.targets {targets} does not fit this model ({error}); "
            "name its linear modules, or say all-linear"
        ) from None


def most_tokens(model: "PretrainedConfig", config: TrainConfig) -> int:
    """Tokens that a prompt and an answer may have: as the spec says, if the model can read that."""
    reads = getattr(model.get_text_config(), "max_position_embeddings", None)
    return config.max_tokens if reads is None else min(config.max_tokens, int(reads))


def longest_pair(model: "PreTrainedModel", config: TrainConfig, events: Events) -> int:
    """The same, and a word about it where it is not what the spec says."""
    most = most_tokens(model.config, config)
    if most < config.max_tokens:
        events.say(
            f"the model reads {most} tokens at most: train.max_tokens {config.max_tokens} is taken "
            "for that"
        )
    return most


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    config: TrainConfig,
    max_tokens: int,
    events: Events,
) -> tuple[EncodedPairs, dict[str, int]]:
    """Pairs as tokens, and how many were left out by reason."""
    encoded = EncodedPairs()
    dropped: Counter[str] = Counter()
    for made in _encoded(tokenizer, folder, config, max_tokens):
        if isinstance(made, EncodedPair):
            encoded.append(made)
        else:
            dropped[made] += 1
    why = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
    if not encoded:
        raise DataRejected(
            f"{PAIRS} has no pair to train on (dropped: {why or 'none, it is empty'}); "
            "raise train.max_tokens, or look at the data"
        )
    if dropped:
        events.say(f"dropped {dropped.total()} of {dropped.total() + len(encoded)} pairs: {why}")
    if encoded.num_cut:
        events.say(f"cut {encoded.num_cut} of {len(encoded)} pairs to {max_tokens} tokens")
    return encoded, dict(sorted(dropped.items()))


def _encoded(
    tokenizer: "PreTrainedTokenizerBase", folder: Path, config: TrainConfig, max_tokens: int
) -> Iterator[EncodedPair | str]:
    """Each pair and each rated answer as tokens, or why it is left out."""
    path = folder / RATINGS
    ratings = read_parquet(path, Rating) if path.is_file() else iter(())
    first = next(ratings, None)
    if first is not None and config.loss != "kto":
        raise ConfigError(
            f"the data has answers that were rated by themselves, and train.loss {config.loss} "
            "compares two; set train.loss: kto, or leave their source out of data.sources"
        )
    for pair in read_parquet(folder / PAIRS, PreferencePair):
        yield (
            encode_pair(tokenizer, pair, max_tokens, config.too_long)
            if pair.label == "preferred"
            else f"label_{pair.label}"
        )
    for rating in chain([] if first is None else [first], ratings):
        yield encode_rating(tokenizer, rating, max_tokens, config.too_long)


def watched(pairs: EncodedPairs, fraction: float, seed: int) -> tuple[EncodedPairs, EncodedPairs]:
    """(learnt from, only watched): this share of the prompts, those of the smallest seeded hash."""

    def place(pair: EncodedPair) -> bytes:
        return hashlib.sha256(f"{seed}:{pair.prompt}".encode()).digest()

    prompts = sorted({place(pair) for pair in pairs})
    kept_out = set(prompts[: round(fraction * len(prompts))])
    if not kept_out:
        return pairs, EncodedPairs()
    return (
        EncodedPairs(pair for pair in pairs if place(pair) not in kept_out),
        EncodedPairs(pair for pair in pairs if place(pair) in kept_out),
    )
