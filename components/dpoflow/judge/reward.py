"""A judge that is a reward model: a sequence classifier that gives each answer a number.

Reads   `RewardJudgeConfig`, the folder with the models that snapshot pinned
Gives   `RewardJudge`
Not     pinning the model (snapshot/), counting what an outcome is worth (qualify.py)
"""

import asyncio
import functools
from collections.abc import Sequence
from math import isfinite, tanh
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from dpoflow.contracts.base import sha256_json
from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.contracts.judges import RewardJudgeConfig, reward_folder
from dpoflow.contracts.pairs import Message
from dpoflow.judge.verdict import Outcome, Verdict, unordered

if TYPE_CHECKING:  # torch and transformers take seconds, and a judge's name needs neither
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class RewardJudge:
    """Compares answers by the reward of each, after Bradley and Terry (1952).

    P(first is better) = sigmoid(r_first - r_second), and the margin is 2P - 1. Each answer has a
    pass of its own: without padding its reward hangs on nothing else, and a few hundred tokens keep
    a GPU busy by themselves.
    """

    def __init__(self, config: RewardJudgeConfig, models: Path | None) -> None:
        self.id = identify(config)
        folder = models / reward_folder(config.model) if models is not None else None
        if folder is None or not folder.is_dir():
            raise ConfigError(
                f"the judge's model {config.model} is not among those that were pinned; give "
                "--in judges=DIR, the folder that snapshot calls judges_uri"
            )
        self._config, self._folder = config, folder
        self._one_at_a_time = asyncio.Lock()
        # Each answer meets all the others: it is scored once.
        self._reward = functools.lru_cache(maxsize=512)(self._score)

    async def decide(self, conversation: Sequence[Message], first: str, second: str) -> Outcome:
        """Each answer is scored alone, so there is no order to swap."""
        turns = tuple(conversation)
        async with self._one_at_a_time:
            rewards = [
                await asyncio.to_thread(self._reward, turns, answer) for answer in (first, second)
            ]
        return unordered(self.id, _difference(*rewards))

    @functools.cached_property
    def _loaded(self) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        from dpoflow.policy.load import load_reward_model

        return load_reward_model(self._folder)

    def _score(self, conversation: tuple[Message, ...], answer: str) -> float | None:
        """The reward; None where the model cannot read so much."""
        import torch

        from dpoflow.policy.tokenise import conversation_tokens

        model, tokenizer = self._loaded
        turn = Message(role="assistant", content=answer)
        tokens = conversation_tokens(tokenizer, [*conversation, turn])
        reads = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        limits = [each for each in (self._config.max_tokens, reads) if each is not None]
        if len(tokens) > min(limits, default=len(tokens)):
            return None
        with torch.inference_mode():
            told = model(input_ids=torch.tensor([tokens], device=model.device))
        reward = float(told.logits[0, 0])
        if not isfinite(reward):
            raise DataRejected(
                f"the reward model {self._config.model} gives {reward}; its weights are damaged, "
                "or too large for the type they are saved in: name another"
            )
        return reward


def identify(config: RewardJudgeConfig) -> str:
    """The model's name, and a digest of its URI and whatever else changes verdicts."""
    knobs = config.model_dump(mode="json", exclude={"qualification"})
    return f"reward:{PurePath(config.model).name}:{sha256_json(knobs)[:12]}"


def _difference(first: float | None, second: float | None) -> Verdict:
    if first is None or second is None:
        return Verdict(choice="invalid", rationale="longer than the reward model reads")
    margin = tanh((first - second) / 2)  # 2 sigmoid(x) - 1 = tanh(x / 2)
    told = f"{max(first, second):.3f} against {min(first, second):.3f}"
    if first == second:
        return Verdict(choice="tie", margin=0.0, rationale=told)
    return Verdict(choice="first" if first > second else "second", margin=margin, rationale=told)
