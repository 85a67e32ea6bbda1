"""The same batch through TRL's DPOTrainer and through ours: one loss, one gradient.

TRL 1.16 as it ships, less what changes the arithmetic (bfloat16) or speaks to others (telemetry).
Policy and reference differ, so that the loss is not ln 2 whatever the margins are.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset  # type: ignore[import-untyped]
from tests.tiny import FAMILIES, Family, tiny_model, tiny_pairs, tiny_tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from dpoflow.policy.layout import group_of, lay_out
from dpoflow.policy.logprobs import response_logps
from dpoflow.policy.tokenise import EncodedPair, encode_pair
from dpoflow.train.losses import dpo_loss, sft_loss

BETA = 0.1


def encoded(number: int = 6) -> list[EncodedPair]:
    made = [encode_pair(tiny_tokenizer(), pair, 256) for pair in tiny_pairs(number)]
    return [pair for pair in made if isinstance(pair, EncodedPair)]


def trl_trainer(family: Family, folder: Path, **settings: Any) -> Any:
    import trl  # 4 s, and only here

    oracle: Any = trl  # untyped

    words = {"prompt": ["the sea?"], "chosen": ["blue"], "rejected": ["snow"]}
    return oracle.DPOTrainer(
        model=tiny_model(family, seed=0),
        ref_model=tiny_model(family, seed=1),
        args=oracle.DPOConfig(
            output_dir=str(folder),
            beta=BETA,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            max_length=None,
            **settings,
        ),
        train_dataset=Dataset.from_dict(words),
        processing_class=tiny_tokenizer(),
    )


def theirs(
    family: Family, folder: Path, pairs: list[EncodedPair], **settings: Any
) -> tuple[float, dict[str, Tensor]]:
    trainer = trl_trainer(family, folder, **settings)
    rows = [
        {"prompt_ids": [*p.prompt], "chosen_ids": [*p.chosen], "rejected_ids": [*p.rejected]}
        for p in pairs
    ]
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    loss.backward()
    return loss.item(), gradients(trainer.model)


def ours(
    family: Family, pairs: list[EncodedPair], *, shared: bool, sft_weight: float = 0.0
) -> tuple[float, dict[str, Tensor]]:
    policy, reference = tiny_model(family, seed=0), tiny_model(family, seed=1)
    batch = lay_out([group_of(pair) for pair in pairs], shared=shared)
    chosen_B, rejected_B = response_logps(policy, batch)
    with torch.no_grad():
        chosen_ref_B, rejected_ref_B = response_logps(reference, batch)
    loss = dpo_loss(chosen_B - rejected_B, chosen_ref_B - rejected_ref_B, beta=BETA).mean()
    tokens_B = torch.tensor([len(pair.chosen) for pair in pairs])
    loss = loss + sft_weight * sft_loss(chosen_B, tokens_B).mean()
    loss.backward()
    return loss.item(), gradients(policy)


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: w.grad for name, w in model.named_parameters() if w.grad is not None}


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")


def assert_same(ours: tuple[float, dict[str, Tensor]], expected: tuple[float, Any]) -> None:
    (loss, our_gradients), (their_loss, their_gradients) = ours, expected
    assert loss == pytest.approx(their_loss, abs=1e-4)
    assert abs(loss - 0.6931) > 0.01
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in our_gradients.items():
        gap = (gradient - their_gradients[name]).norm() / their_gradients[name].norm()
        assert gap < 1e-4, name


@pytest.mark.usefixtures("_offline")
@pytest.mark.filterwarnings("ignore")  # what TRL and datasets warn of is theirs
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "side by side"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_trl(
    family: Family, tmp_path: Path, *, shared: bool
) -> None:
    pairs = encoded()

    assert_same(ours(family, pairs, shared=shared), theirs(family, tmp_path, pairs))


@pytest.mark.usefixtures("_offline")
@pytest.mark.filterwarnings("ignore")
def test_with_a_supervised_term_they_are_those_of_trl_for_one_pair(tmp_path: Path) -> None:
    # One pair: over several, TRL weighs each token alike, and we, as Pang et al., each answer.
    pair = encoded(1)
    expected = theirs(
        "llama", tmp_path, pair, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.7]
    )

    assert_same(ours("llama", pair, shared=True, sft_weight=0.7), expected)
