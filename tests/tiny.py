"""Small real things, built in memory: a tokenizer that tokenises, models of six families, pairs.

Random weights, so nothing here says anything sensible; all of it computes what the large ones do.
"""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from dpoflow.contracts.pairs import Message, PreferencePair, Rating, Source, write_parquet

Family = Literal["llama", "mistral", "qwen2", "qwen3", "gemma3", "gpt2"]
FAMILIES: tuple[Family, ...] = ("llama", "mistral", "qwen2", "qwen3", "gemma3", "gpt2")

torch.set_num_threads(1)  # matrices this small only wait for a second thread

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The shape of SmolLM2's: a default system turn, and a line break after each end of turn."""

WORDS = (
    "the sea is blue and calm today while seven small boats wait for wind near a long stone pier "
    "please write one short answer about rivers bread music snow and trains thank you very much"
).split()


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level BPE of 384 tokens with SmolLM2's special tokens and template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        [" ".join(WORDS), "system user assistant You are a helpful AI assistant"] * 4,
        trainers.BpeTrainer(
            vocab_size=384,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<|endoftext|>",  # noqa: S106  # a token of text, not a secret
        bos_token="<|im_start|>",  # noqa: S106
        eos_token="<|im_end|>",  # noqa: S106
        pad_token="<|im_end|>",  # noqa: S106
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def tiny_model(
    family: Family = "llama", *, seed: int = 0, window: int | None = None, hidden: int = 48
) -> PreTrainedModel:
    """Two layers, a vocabulary of 384, no dropout; a window for those that slide one."""
    torch.manual_seed(seed)
    ends: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    wide: dict[str, Any] = {
        "vocab_size": 384,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "tie_word_embeddings": family == "llama",
    }
    model: Any
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**wide, **ends))
    elif family == "mistral":
        model = MistralForCausalLM(MistralConfig(**wide, **ends, sliding_window=window))
    elif family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**wide, **ends))
    elif family == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**wide, **ends, head_dim=16))
    elif family == "gemma3":
        kinds = ["sliding_attention", "full_attention"]
        local: dict[str, Any] = {"sliding_window": window or 256, "layer_types": kinds}
        model = Gemma3ForCausalLM(Gemma3TextConfig(**wide, **ends, **local, head_dim=16))
    else:
        size: dict[str, Any] = {
            "vocab_size": 384,
            "n_positions": 256,
            "n_embd": 48,
            "n_layer": 2,
            "n_head": 4,
        }
        still: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        model = GPT2LMHeadModel(GPT2Config(**size, **still, **ends, initializer_range=0.2))
    model.eval()
    made: PreTrainedModel = model
    return made


def tiny_folder(folder: Path, family: Family = "llama", *, seed: int = 0, hidden: int = 48) -> Path:
    """The tiny model and tokenizer as `save_pretrained` leaves them."""
    tiny_model(family, seed=seed, hidden=hidden).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_reward_folder(folder: Path, *, labels: int = 1, scale: float = 1.0) -> Path:
    """A reward model of random weights; `scale` -1 is the same with every reward turned around."""
    torch.manual_seed(7)
    config = tiny_model("llama").config
    config.num_labels = labels
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        model.score.weight.mul_(scale)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def pair_of(prompt: str, chosen: str, rejected: str) -> PreferencePair:
    """A preferred pair of one question and two answers."""
    return PreferencePair(
        prompt=(Message(role="user", content=prompt),),
        chosen=Message(role="assistant", content=chosen),
        rejected=Message(role="assistant", content=rejected),
        source=Source(dataset="tiny", row=prompt),
    )


def tiny_pairs(count: int, *, seed: int = 0) -> list[PreferencePair]:
    """Pairs that anyone can tell apart: rejected answers speak of nothing but snow."""
    dice = random.Random(seed)  # noqa: S311  # words, not secrets
    plain = [word for word in WORDS if word != "snow"]

    def text(words: Iterable[str], low: int, high: int) -> str:
        return " ".join(dice.choice([*words]) for _ in range(dice.randint(low, high)))

    return [
        pair_of(f"{row} {text(plain, 2, 9)}", text(plain, 3, 14), text(["snow"], 3, 14))
        for row in range(count)
    ]


def ratings_of(pairs: Iterable[PreferencePair]) -> list[Rating]:
    """Each answer of the pairs by itself: chosen with a thumb up, rejected with one down."""
    return [
        Rating(prompt=pair.prompt, answer=answer, desirable=liked, source=pair.source)
        for pair in pairs
        for answer, liked in ((pair.chosen, True), (pair.rejected, False))
    ]


def pairs_folder(
    folder: Path, pairs: Iterable[PreferencePair], ratings: Iterable[Rating] = ()
) -> Path:
    """An artifact of pairs, unsealed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_parquet(pairs, PreferencePair, folder / "train.parquet")
    rated = list(ratings)
    if rated:
        write_parquet(rated, Rating, folder / "ratings.parquet")
    return folder
