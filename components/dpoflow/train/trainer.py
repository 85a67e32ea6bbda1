"""The training loop: transformers' Trainer, with our objective, order, log and checkpoints.

Reads   a model, encoded pairs, their reference margins, a plan of batches
Gives   `DpoTrainer`; after `train()` its `notes()` hold the losses and the last margins
Not     the objective (losses.py), the order (plan.py), the policy's folder (step.py)
Shapes  B pairs in the batch
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

from dpoflow.contracts.base import Contract
from dpoflow.contracts.errors import DataRejected
from dpoflow.contracts.spec import TrainConfig
from dpoflow.policy.layout import Group, lay_out
from dpoflow.policy.logprobs import autocast, response_logps, shares_prompts
from dpoflow.state.events import Events
from dpoflow.train import checkpoint
from dpoflow.train.losses import dpo_loss, reward_margin, sft_loss


class Notes(Contract):
    """What the trainer remembers across a kill."""

    first_loss: float
    last_loss: float
    seconds: float
    """Spent on updates, in all attempts that count."""
    margins: dict[int, float]
    """Place of a pair to its reward margin when it was last seen."""


class _Update:
    """Sums over the batches of one update."""

    def __init__(self) -> None:
        self.num_pairs, self.num_tokens, self.num_right = 0, 0, 0
        self.sums: dict[str, float] = {}
        self.began = time.monotonic()

    def add(self, num_tokens: int, reward_B: Tensor, **values_B: Tensor) -> None:
        self.num_pairs += len(reward_B)
        self.num_tokens += num_tokens
        self.num_right += int((reward_B > 0).sum())
        for name, value_B in {"reward_margin": reward_B, **values_B}.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value_B.double().sum())

    def means(self) -> dict[str, float]:
        spent = time.monotonic() - self.began
        return {
            **{f"train/{name}": total / self.num_pairs for name, total in self.sums.items()},
            "train/reward_accuracy": self.num_right / self.num_pairs,
            "train/tokens_per_s": self.num_tokens / spent if spent > 0 else 0.0,
        }


class DpoTrainer(Trainer):
    """One item of its data set is one batch of the plan, so that the plan alone sets the order."""

    def __init__(
        self,
        model: PreTrainedModel,
        groups: Sequence[Group],
        reference_margins: Tensor,
        batches: Sequence[tuple[int, ...]],
        config: TrainConfig,
        *,
        dtype: torch.dtype,
        folder: Path,
        events: Events,
    ) -> None:
        planned = _Batches(batches)
        super().__init__(
            model=model,
            args=_arguments(config, folder),
            train_dataset=planned,
            data_collator=self._collate,
        )
        self.remove_callback(PrinterCallback)
        self.loss_is_scaled_for_ga = False  # ours is a mean over the batch
        self._first_loss: float | None = None
        self._last_loss, self._seconds = math.nan, 0.0
        self._margins: dict[int, float] = {}
        self._model, self._batches = model, planned
        self._shared = shares_prompts(model)
        self._groups, self._reference_margins = groups, reference_margins
        self._config, self._dtype, self._events = config, dtype, events
        self._folder, self._update = folder, _Update()

    def _collate(self, items: list[tuple[int, ...]]) -> dict[str, Any]:
        (places,) = items
        chosen = [self._groups[place] for place in places]
        return {"places": places, "batch": lay_out(chosen, shared=self._shared)}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # the Trainer's signature
        num_items_in_batch: Any = None,
    ) -> Any:
        """The mean over one batch of eq. 7, and of the supervised term where it has a weight."""
        places, device = list(inputs["places"]), self.args.device
        batch = inputs["batch"].to(device)
        with autocast(device, self._dtype):
            chosen_B, rejected_B = response_logps(model, batch)
        policy_B, reference_B = chosen_B - rejected_B, self._reference_margins[places].to(device)
        loss_B = dpo_loss(policy_B, reference_B, beta=self._config.beta)
        reward_B = reward_margin(policy_B, reference_B, beta=self._config.beta).detach()
        sft_B = sft_loss(chosen_B, torch.tensor(batch.lengths[::2], device=device))
        self._check(loss_B.detach(), places)
        self._update.add(
            batch.num_tokens,
            reward_B,
            loss=loss_B.detach(),
            sft_loss=sft_B.detach(),
            chosen_logps=chosen_B.detach(),
            rejected_logps=rejected_B.detach(),
        )
        self._margins.update(zip(places, reward_B.tolist(), strict=True))
        loss = loss_B.mean()
        if self._config.sft_weight:
            loss = loss + self._config.sft_weight * sft_B.mean()
        return (loss, {}) if return_outputs else loss

    def _check(self, loss_B: Tensor, places: Sequence[int]) -> None:
        if not torch.isfinite(loss_B).all():
            raise DataRejected(
                f"the loss at update {self.state.global_step + 1} is not finite (pairs {places}); "
                "lower train.learning_rate, or make train.dtype float32"
            )
        if self._first_loss is None:
            gap = (loss_B - math.log(2)).abs().max().item()
            assert gap < 1e-3, f"policy and reference differ by {gap} in loss before any update"

    def notes(self) -> Notes:
        """What happened so far."""
        assert self._first_loss is not None, "nothing was trained yet"
        return Notes(
            first_loss=self._first_loss,
            last_loss=self._last_loss,
            seconds=self._seconds,
            margins=self._margins,
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One update's figures, as events instead of a printed dictionary."""
        if "grad_norm" not in logs:
            return  # the summary at the end
        update, total = self.state.global_step, self.state.max_steps
        values = {
            **self._update.means(),
            "train/grad_norm": float(logs["grad_norm"]),
            "train/learning_rate": float(logs["learning_rate"]),
        }
        if not math.isfinite(values["train/grad_norm"]):
            raise DataRejected(
                f"the gradient at update {update} is not finite; "
                "lower train.learning_rate, or make train.dtype float32"
            )
        self._events.metrics(update, values, phase="training")
        self._events.progress("training", update, total, unit="updates")
        self._seconds += time.monotonic() - self._update.began
        self._last_loss = values["train/loss"]
        if self._first_loss is None:
            self._first_loss = self._last_loss
        self._update = _Update()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: our inputs are not the model's own."""
        return 0

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any]:
        return SequentialSampler(self._batches)

    # ---------------------------------------------------------------- checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            return  # the policy is about to be written
        checkpoint.save(
            self._folder,
            self.state.global_step,
            model=self._model,
            optimizer=self.optimizer,
            scheduler=self.lr_scheduler,
            trainer_state=self.state,
            notes=self.notes().model_dump(mode="json"),
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoint.load_weights(Path(resume_from_checkpoint), self._model)
        notes = Notes.model_validate(checkpoint.notes(Path(resume_from_checkpoint)))
        self._first_loss, self._last_loss = notes.first_loss, notes.last_loss
        self._seconds, self._margins = notes.seconds, dict(notes.margins)

    def _load_optimizer_and_scheduler(self, folder: str | None) -> None:
        if folder is not None:
            checkpoint.load_optimizer(Path(folder), self.optimizer, self.lr_scheduler)

    def _load_rng_state(self, folder: str | None) -> None:
        if folder is not None:
            checkpoint.load_rng(Path(folder))


class _Batches(Dataset[tuple[int, ...]]):
    def __init__(self, batches: Sequence[tuple[int, ...]]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, place: int) -> tuple[int, ...]:
        return self._batches[place]


def _arguments(config: TrainConfig, folder: Path) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,  # one item is one batch of the plan
        gradient_accumulation_steps=config.gradient_accumulation,
        num_train_epochs=1,  # the plan holds every epoch
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup_ratio,  # below 1 it is a share
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_steps=config.save_steps,
        seed=config.seed,
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to=[],
        log_level="error",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # noqa: SLF001  # DataParallel goes past our forward
    return arguments
