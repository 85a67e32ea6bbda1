"""The same batches through TRL's trainers and through ours: one loss, one gradient, one path."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parity.oracle import PLAIN, Ours, Theirs, encoded, gap, policy, reference_logps
from tests.tiny import FAMILIES, Family
from torch import Tensor

from dpoflow.contracts.objectives import LossName
from dpoflow.contracts.spec import TrainConfig
from dpoflow.policy.layout import Group, LayoutName, group_of

LAYOUTS: tuple[LayoutName, ...] = ("packed", "shared", "concat")

F32, F64 = torch.float32, torch.float64

SHARED: dict[str, tuple[str, TrainConfig]] = {
    "sigmoid": ("sigmoid", TrainConfig(loss="sigmoid", beta=0.1)),
    "hinge": ("hinge", TrainConfig(loss="hinge", beta=0.02)),
    "ipo": ("ipo", TrainConfig(loss="ipo_mean", beta=0.5)),
    "robust": ("robust", TrainConfig(loss="robust", beta=0.1, label_smoothing=0.1)),
    "sigmoid_norm": ("sigmoid_norm", TrainConfig(loss="sigmoid_norm", beta=2.0)),
}
"""Objective to its name in TRL and our config."""

METRICS = {
    "rewards/chosen": "train/reward_chosen",
    "rewards/rejected": "train/reward_rejected",
    "rewards/margins": "train/reward_margin",
    "rewards/accuracies": "train/reward_accuracy",
    "logps/chosen": "train/chosen_logps",
    "logps/rejected": "train/rejected_logps",
    "entropy": "train/entropy",
    "mean_token_accuracy": "train/token_accuracy",
}

pytestmark = pytest.mark.filterwarnings("ignore")  # what TRL and datasets warn of is theirs


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")


@pytest.fixture
def _trl_in_float64(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TRL's head adds up in float32, which is 4e-7 of the loss; here it adds up in float64."""
    from trl.kernels import chunked_logprob  # type: ignore[import-untyped]
    from trl.trainer import utils  # type: ignore[import-untyped]

    text = Path(chunked_logprob.__file__).read_text("utf-8")
    wider = text.replace("torch.float32", "torch.float64").replace(".float()", ".double()")
    assert wider != text
    module: dict[str, Any] = {"__name__": "trl.kernels.wider", "__package__": "trl.kernels"}
    file = tmp_path / "wider.py"  # triton, where torch brings it, reads a kernel's lines there
    file.write_text(wider, "utf-8")
    exec(compile(wider, file, "exec"), module)  # noqa: S102  # TRL's own text, a type changed
    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", module["ChunkedLogProbFunction"])


def every_case() -> list[Any]:
    """Every objective, family and method; all but a handful are for test-full."""
    cases = []
    for name in SHARED:
        for family in FAMILIES:
            for lora in (False, True):
                quick = (name == "sigmoid" and not lora) or family == "llama"
                label = f"{name}-{family}-{'lora' if lora else 'full'}"
                marks = [] if quick else [pytest.mark.full]
                cases.append(pytest.param(name, family, lora, id=label, marks=marks))
    return cases


def one_step(*models: Any) -> None:
    """A plain AdamW step of the first one's gradient, and the same weights in all."""
    first, *others = models
    torch.optim.AdamW([w for w in first.parameters() if w.requires_grad], lr=2e-4).step()
    moved = {name: weight for name, weight in first.named_parameters() if weight.requires_grad}
    with torch.no_grad():
        for other in others:
            weights = dict(other.named_parameters())
            for name, weight in moved.items():
                weights[name].copy_(weight)


@pytest.mark.parametrize(("name", "family", "lora"), every_case())
def test_in_float32_loss_gradients_and_metrics_are_those_of_trl_at_every_step(
    name: str, family: Family, tmp_path: Path, *, lora: bool
) -> None:
    theirs_name, config = SHARED[name]
    pairs = encoded()
    reference = reference_logps(family, [group_of(pair) for pair in pairs])
    theirs = Theirs(policy(family, lora=lora, dtype=F32), tmp_path)
    ours = [
        Ours(policy(family, lora=lora, dtype=F32), tmp_path, config, pairs, reference, layout=each)
        for each in LAYOUTS
    ]

    for _ in range(5):
        expected, metrics = theirs.update(theirs_name, config, pairs, reference)
        for each in ours:
            loss, figures = each.update([tuple(range(len(pairs)))])
            assert loss == pytest.approx(expected, abs=1e-4, rel=1e-5)
            assert gap(each.model, theirs.model) < 1e-4
            for their_metric, figure in METRICS.items():
                same = pytest.approx(metrics[their_metric], rel=1e-4, abs=1e-4)
                assert figures[figure] == same, their_metric
        one_step(theirs.model, *(each.model for each in ours))


@pytest.mark.usefixtures("_trl_in_float64")
@pytest.mark.parametrize(("name", "family", "lora"), every_case())
def test_in_float64_twenty_updates_go_the_way_of_trl(
    name: str, family: Family, tmp_path: Path, *, lora: bool
) -> None:
    theirs_name, config = SHARED[name]
    pairs = encoded()
    reference = reference_logps(family, [group_of(pair) for pair in pairs])
    theirs = Theirs(policy(family, lora=lora, dtype=F64), tmp_path)
    batches = [(0, 1, 2), (3, 4, 5)]

    def way(update: Any, model: Any) -> list[float]:
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer, losses = torch.optim.AdamW(trained, lr=2e-4), []
        for step in range(20):
            losses.append(update(batches[step % 2]))
            optimizer.step()
        return losses

    def their_update(places: tuple[int, ...]) -> float:
        some = [pairs[place] for place in places]
        known = [reference[place] for place in places]
        return theirs.update(theirs_name, config, some, known)[0]

    expected = way(their_update, theirs.model)
    assert len({round(loss, 3) for loss in expected}) > 5, "it stands still"
    for layout in LAYOUTS:
        model = policy(family, lora=lora, dtype=F64)
        ours = Ours(model, tmp_path, config, pairs, reference, layout=layout)
        found = way(lambda places, us=ours: us.update([places])[0], ours.model)
        assert found == pytest.approx(expected, abs=1e-6), layout


def test_with_a_supervised_term_they_are_those_of_trl_for_one_pair(tmp_path: Path) -> None:
    # One pair: over several, TRL weighs each token alike, and we, as Pang et al., each answer.
    config, pair = TrainConfig(sft_weight=0.7), encoded(1)
    reference = reference_logps("llama", [group_of(pair[0])])
    theirs = Theirs(policy("llama", lora=False, dtype=F32), tmp_path)
    model = policy("llama", lora=False, dtype=F32)
    ours = Ours(model, tmp_path, config, pair, reference, layout="packed")

    expected, _ = theirs.update("sigmoid", config, pair, reference)

    assert ours.update([(0,)])[0] == pytest.approx(expected, abs=1e-4)
    assert gap(ours.model, theirs.model) < 1e-4


def test_padding_order_packing_and_cutting_change_nothing(tmp_path: Path) -> None:
    pairs = encoded(12)
    reference = reference_logps("llama", [group_of(pair) for pair in pairs])
    whole = tuple(range(12))
    cuts: list[list[tuple[int, ...]]] = [
        [whole],
        [whole[::-1]],
        [(place,) for place in whole],
        [whole[:7], whole[7:]],
    ]
    losses: list[float] = []
    models: list[Any] = []
    for layout in LAYOUTS:
        for cut in cuts:
            model = policy("llama", lora=False, dtype=F64)
            ours = Ours(model, tmp_path, TrainConfig(), pairs, reference, layout=layout)
            losses.append(ours.update(cut)[0])
            models.append(ours.model)

    assert losses == pytest.approx([losses[0]] * len(losses), abs=1e-9)
    assert max(gap(model, models[0]) for model in models) < 1e-6


# ------------------------------------------------- trainers of their own


@pytest.mark.usefixtures("_trl_in_float64")
def test_kto_is_that_of_trls_kto_trainer(tmp_path: Path) -> None:
    import trl
    from datasets import Dataset
    from tests.tiny import tiny_model, tiny_tokenizer

    oracle: Any = trl
    config = TrainConfig(loss="kto", beta=0.3, desirable_weight=1.3, undesirable_weight=0.8)
    pairs = encoded()
    groups = [group_of(pair) for pair in pairs]
    turned = [
        Group(group.prompt, other.answers)
        for group, other in zip(groups, [groups[-1], *groups[:-1]], strict=True)
    ]
    # Of this model the policy has moved away: kl is above 0.
    reference, strange = (reference_logps("llama", of, seed=5) for of in (groups, turned))
    words = {"prompt": ["sea?"] * 2, "completion": ["blue", "snow"], "label": [True, False]}
    trainer = oracle.KTOTrainer(
        model=policy("llama", lora=False, dtype=F64),
        ref_model=tiny_model("llama", seed=1),
        args=oracle.KTOConfig(
            output_dir=str(tmp_path),
            **PLAIN,
            beta=config.beta,
            desirable_weight=config.desirable_weight,
            undesirable_weight=config.undesirable_weight,
        ),
        train_dataset=Dataset.from_dict(words),
        processing_class=tiny_tokenizer(),
    )
    trainer.precompute_ref_logps = True
    rows = [
        {
            "prompt_ids": [*group.prompt],
            "completion_ids": [*group.answers[place]],
            "KL_completion_ids": [*other.answers[place]],
            "label": place == 0,
        }
        for group, other in zip(groups, turned, strict=True)
        for place in (0, 1)
    ]
    batch = trainer.data_collator(rows)

    def sums(logps: list[list[Tensor]]) -> Tensor:
        return torch.stack([part.sum() for parts in logps for part in parts])

    batch["ref_logps"], batch["ref_KL_logps"] = sums(reference), sums(strange)
    expected = trainer.compute_loss(trainer.model.train(), batch)
    expected.backward()
    ours = Ours(
        policy("llama", lora=False, dtype=F64),
        tmp_path,
        config,
        pairs,
        reference,
        layout="packed",
        strangers=turned,
        strangers_reference=strange,
    )

    found, _ = ours.update([tuple(range(len(pairs)))])

    assert trainer._metrics["train"]["kl"][-1] > 0
    assert found == pytest.approx(expected.item(), abs=1e-6)
    assert gap(ours.model, trainer.model) < 1e-5


@pytest.mark.parametrize("loss", ["simpo", "orpo"])
def test_simpo_and_orpo_are_those_of_trls_experimental_trainers(loss: LossName) -> None:
    """Their trainers score prompts, too (ORPO's supervised term); the objectives are the same."""
    from types import SimpleNamespace

    from trl.experimental.cpo import CPOTrainer  # type: ignore[import-untyped]
    from trl.experimental.orpo import ORPOTrainer  # type: ignore[import-untyped]

    from dpoflow.train.losses import OBJECTIVES, Scored

    torch.manual_seed(0)
    tokens = torch.tensor([[8.0, 3.0], [20.0, 31.0], [5.0, 5.0]]).double()
    sums = -tokens * torch.rand(3, 2).double() * 2
    config = TrainConfig(loss=loss, beta=1.7)
    columns = (*sums.unbind(1), *torch.zeros(2, 3).double(), *tokens.unbind(1))
    given = torch.ones(3).double()
    scored = Scored(*columns, torch.zeros(()), given, given)
    mean = sums / tokens
    found = OBJECTIVES[loss](scored, config)
    if loss == "simpo":
        them = SimpleNamespace(
            alpha=0.0,
            beta=1.7,
            simpo_gamma=config.gamma,
            loss_type="simpo",
            label_smoothing=0.0,
            accelerator=SimpleNamespace(device=torch.device("cpu")),
        )
        expected = CPOTrainer.cpo_loss(them, *mean.unbind(1))[0]
    else:
        them = SimpleNamespace(beta=1.7, accelerator=SimpleNamespace(device=torch.device("cpu")))
        expected = -mean[:, 0] - ORPOTrainer.odds_ratio_loss(them, *mean.unbind(1))[0]

    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
