"""TRL 1.16 and our trainer on the same tokens, weights and reference, one update at a time.

TRL as it ships, less what changes the arithmetic (bfloat16) or speaks to others (telemetry). The
reference's log-probabilities come from neither: plain logits of another model, in float64.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset  # type: ignore[import-untyped]
from peft import LoraConfig, get_peft_model
from tests.tiny import Family, tiny_model, tiny_pairs, tiny_tokenizer
from torch import Tensor, nn

from dpoflow.contracts.spec import TrainConfig
from dpoflow.policy.attention import attending
from dpoflow.policy.layout import Group, LayoutName, group_of
from dpoflow.policy.logprobs import Scorer
from dpoflow.policy.tokenise import EncodedPair, encode_pair
from dpoflow.state.events import Events
from dpoflow.train.examples import Examples
from dpoflow.train.figures import Figures
from dpoflow.train.reference import ReferenceLogps
from dpoflow.train.trainer import DpoTrainer

DEVICE: Literal["cpu", "cuda"] = "cuda" if os.environ.get("DPOFLOW_GPU_CHECK") else "cpu"
"""Where both compute."""

PLAIN: dict[str, Any] = {
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": DEVICE == "cpu",
    "report_to": [],
    "disable_tqdm": True,
    "max_length": None,
}
"""TRL without what changes the arithmetic or speaks to others."""

Gradients = dict[str, Tensor]


def encoded(number: int = 6, *, seed: int = 0) -> list[EncodedPair]:
    made = [encode_pair(tiny_tokenizer(), pair, 256) for pair in tiny_pairs(number, seed=seed)]
    return [pair for pair in made if isinstance(pair, EncodedPair)]


def policy(family: Family, *, lora: bool, dtype: torch.dtype) -> Any:
    """The model to train; adapters start away from zero, so that every weight has a gradient."""
    model: Any = tiny_model(family, seed=0).to(dtype)
    if dtype == torch.float64:
        _norms_in_float64(model)
    if lora:
        torch.manual_seed(2)
        settings = LoraConfig(
            task_type="CAUSAL_LM",
            r=4,
            target_modules="all-linear",
            init_lora_weights=False,
            fan_in_fan_out=family == "gpt2",
        )
        model = get_peft_model(model, settings)
    return model


def _norms_in_float64(model: nn.Module) -> None:
    """transformers rounds to float32 inside its RMS norms, whatever the weights are."""
    module: Any
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            shift = 1.0 if type(module).__name__.startswith("Gemma") else 0.0
            eps = getattr(module, "variance_epsilon", None) or module.eps
            module.forward = partial(_rms_norm, module, shift=shift, eps=eps)


def _rms_norm(module: Any, x: Tensor, *, shift: float, eps: float) -> Tensor:
    return (module.weight + shift) * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


@torch.no_grad()
def reference_logps(
    family: Family, groups: Sequence[Group], *, seed: int = 1
) -> list[list[Tensor]]:
    """log p of each token of each answer, from plain logits of a model a little off the policy."""
    model, other = tiny_model(family, seed=0).double(), tiny_model(family, seed=seed).double()
    for weight, away in zip(model.parameters(), other.parameters(), strict=True):
        weight.lerp_(away, 0.1)

    def tokens(prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
        logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
        rows = logits[len(prompt) - 1 : -1].log_softmax(dim=-1)
        return rows.gather(1, torch.tensor(answer).unsqueeze(1)).squeeze(1)

    return [[tokens(group.prompt, answer) for answer in group.answers] for group in groups]


class Theirs:
    """TRL's DPOTrainer."""

    def __init__(self, model: Any, folder: Path, *, reference: Any = None) -> None:
        """Reference log-probabilities come with each batch, unless there is a model for them."""
        import trl  # 4 s, and only here

        oracle: Any = trl  # untyped
        words = {"prompt": ["the sea?"], "chosen": ["blue"], "rejected": ["snow"]}
        self.model, self._dtype = model, model.dtype
        self.trainer = oracle.DPOTrainer(
            model=self.model,
            ref_model=reference,
            args=oracle.DPOConfig(
                output_dir=str(folder),
                **PLAIN,
                precompute_ref_log_probs=reference is None,
            ),
            train_dataset=Dataset.from_dict(words),
            processing_class=tiny_tokenizer(),
        )

    def update(
        self,
        loss: str,
        config: TrainConfig,
        pairs: Sequence[EncodedPair],
        reference: list[list[Tensor]],
    ) -> tuple[float, dict[str, float]]:
        """Loss and metrics of one batch; gradients are left on the model."""
        trainer = self.trainer
        trainer.loss_types, trainer.loss_weights = [loss], [1.0]
        if config.sft_weight:
            trainer.loss_types, trainer.loss_weights = [loss, "sft"], [1.0, config.sft_weight]
        trainer.beta, trainer.label_smoothing = config.beta, config.label_smoothing
        rows = [
            {"prompt_ids": [*p.prompt], "chosen_ids": [*p.chosen], "rejected_ids": [*p.rejected]}
            for p in pairs
        ]
        batch = trainer.data_collator(rows)
        for place, name in enumerate(("chosen", "rejected")):
            sums = [answers[place].sum() for answers in reference]
            batch[f"ref_{name}_logps"] = torch.stack(sums).to(self._dtype)
        trainer._metrics["train"].clear()
        self.model.zero_grad()
        found = trainer.compute_loss(self.model.train(), trainer._prepare_inputs(batch))
        found.backward()
        metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
        return found.item(), metrics


class Ours:
    """Our trainer, in one layout."""

    def __init__(
        self,
        model: Any,
        folder: Path,
        config: TrainConfig,
        pairs: Sequence[EncodedPair],
        reference: list[list[Tensor]],
        *,
        layout: LayoutName,
        strangers: Sequence[Group] | None = None,
        strangers_reference: list[list[Tensor]] | None = None,
    ) -> None:
        self.model, self._layout = model, layout
        groups = [group_of(pair) for pair in pairs]
        examples = Examples(
            [pair.pair_id for pair in pairs],
            groups,
            _as_kept(groups, reference),
            strangers,
            _as_kept(strangers, strangers_reference) if strangers and strangers_reference else None,
        )
        self.trainer = DpoTrainer(
            Scorer(self.model),
            examples,
            [(tuple(range(len(pairs))),)],
            config.model_copy(update={"device": DEVICE}),
            layout=layout,
            dtype=torch.float32,  # no autocast: products are in the weights' type
            folder=folder,
            events=Events(folder / "events.jsonl", "train"),
            starts_at_reference=False,
        )

    def update(self, batches: Sequence[tuple[int, ...]]) -> tuple[float, dict[str, float]]:
        """Loss and figures of one update; gradients are left on the model."""
        self.model.zero_grad()
        self.trainer._figures = Figures()
        with attending(self.model, self._layout):
            found = self.trainer.training_step(self.trainer.model, {"update": batches})
        return found.item(), self.trainer._figures.means("train")


def _as_kept(groups: Sequence[Group], logps: list[list[Tensor]]) -> ReferenceLogps:
    return ReferenceLogps(groups, torch.cat([part for parts in logps for part in parts]))


def gradients(model: nn.Module) -> Gradients:
    return {name: w.grad for name, w in model.named_parameters() if w.grad is not None}


def gap(ours: nn.Module, theirs: nn.Module) -> float:
    """The largest relative L2 distance between two models' gradients, tensor by tensor."""
    mine, other = gradients(ours), gradients(theirs)
    assert mine.keys() == other.keys()
    assert mine
    gaps = [(mine[n] - other[n]).norm() / other[n].norm().clamp(min=1e-12) for n in mine]
    return float(torch.stack(gaps).max())
