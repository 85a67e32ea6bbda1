"""Negative and positive controls: what is learnt is what the labels say, on pairs never seen."""

import random
from pathlib import Path

import pytest
import torch
from tests.tiny import WORDS, pair_of, tiny_pairs, tiny_tokenizer
from tests.training import Job

from dpoflow.contracts.pairs import PreferencePair
from dpoflow.contracts.spec import TrainConfig
from dpoflow.policy.load import load
from dpoflow.policy.logprobs import pair_logps
from dpoflow.policy.tokenise import EncodedPair, encode_pair
from dpoflow.state.events import Events

CONFIG = TrainConfig(
    learning_rate=5e-4, epochs=3, batch_size=8, dtype="float32", heldout_fraction=0
)


def swapped(pair: PreferencePair) -> PreferencePair:
    return pair_of(pair.prompt[0].content, pair.rejected.content, pair.chosen.content)


def alike(count: int, seed: int) -> list[PreferencePair]:
    """Both answers from the same words: which is chosen says nothing."""
    dice = random.Random(seed)  # noqa: S311

    def text() -> str:
        return " ".join(dice.choice(WORDS) for _ in range(dice.randint(3, 14)))

    return [pair_of(f"{row} {text()}", text(), text()) for row in range(count)]


def heldout_accuracy(
    folder: Path, training: list[PreferencePair], heldout: list[PreferencePair]
) -> float:
    """Share of unseen pairs whose chosen answer gained on the rejected one."""
    job = Job(folder, training)
    job.run(CONFIG)
    encoded = [encode_pair(tiny_tokenizer(), pair, 256) for pair in heldout]
    margins = []
    for where in (job.policy(), job.model):
        chosen, rejected = pair_logps(
            load(where)[0],
            [pair for pair in encoded if isinstance(pair, EncodedPair)],
            batch_size=32,
            dtype=torch.float32,
            events=Events(folder / "events.jsonl", "test"),
            phase="test",
        )
        margins.append(torch.tensor(chosen) - torch.tensor(rejected))
    return float((margins[0] > margins[1]).float().mean())


def test_pairs_that_differ_are_told_apart_on_prompts_never_seen(tmp_path: Path) -> None:
    assert heldout_accuracy(tmp_path, tiny_pairs(64), tiny_pairs(100, seed=9)) > 0.9


def test_swapped_labels_teach_the_opposite(tmp_path: Path) -> None:
    wrong = [swapped(pair) for pair in tiny_pairs(64)]

    assert heldout_accuracy(tmp_path, wrong, tiny_pairs(100, seed=9)) < 0.1


def test_labels_without_meaning_teach_nothing(tmp_path: Path) -> None:
    found = heldout_accuracy(tmp_path, alike(64, seed=1), alike(200, seed=2))

    assert found == pytest.approx(0.5, abs=3 * (0.25 / 200) ** 0.5)  # three standard errors
