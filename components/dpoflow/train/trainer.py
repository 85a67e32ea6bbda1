"""The training loop: transformers' Trainer, with our objective, order, log and checkpoints.

Reads   a model, encoded pairs, what the reference thinks of them, a plan of updates
Gives   `DpoTrainer`; after `train()` its `notes()` hold the losses and the last margins
Not     objectives (losses.py), the order (plan.py), figures (figures.py), the folder (step.py)
Shapes  B pairs in the batch, N answer tokens
"""

import math
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader, Dataset

from dpoflow.contracts.base import Contract
from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.contracts.objectives import REFERENCE_FREE
from dpoflow.contracts.spec import TrainConfig
from dpoflow.policy.head import Expectation
from dpoflow.policy.layout import LayoutName, given, lay_out
from dpoflow.policy.logprobs import Scorer, answer_sums, autocast
from dpoflow.state.events import Events
from dpoflow.train import checkpoint, processes
from dpoflow.train.alarms import Alarms, Memory
from dpoflow.train.examples import Examples
from dpoflow.train.figures import Figures, peak_mib
from dpoflow.train.library import PrinterCallback, Trainer, TrainingArguments
from dpoflow.train.losses import OBJECTIVES, Scored, sft_loss
from dpoflow.train.plan import Update, in_order
from dpoflow.train.preemption import Preemption
from dpoflow.train.shard import whole

_BEST = "best-"
_NEVER = (-1, 0.0)
_FIRST_GAP = 1e-2
"""Nats between a policy and the same weights as its reference that rounding cannot explain."""


class Notes(Contract):
    """What the trainer remembers across a kill."""

    first_loss: float
    last_loss: float
    seconds: float
    """Spent on updates, in all attempts that count."""
    margins: dict[int, tuple[int, float]]
    """Place of a pair to the update it was last seen in, and its reward margin then."""
    best_margin: float | None = None
    """The largest held-out one, where training may stop early."""
    best_update: int = 0
    looks_since: int = 0
    """Held-out looks since then."""
    alarms: Memory = Memory()


class DpoTrainer(Trainer):
    """One item of its data set is one update of the plan, so that the plan alone sets the order."""

    stopped_early = False
    """Whether the held-out margin had not grown for long enough."""

    def __init__(
        self,
        scorer: Scorer,
        examples: Examples,
        updates: Sequence[Update],
        config: TrainConfig,
        *,
        layout: LayoutName,
        dtype: torch.dtype,
        folder: Path,
        events: Events,
        heldout: Examples | None = None,
        starts_at_reference: bool = True,
        preemption: Preemption | None = None,
    ) -> None:
        planned = _Updates(updates)
        looks = math.ceil(len(updates) / config.heldout_looks) if heldout else None
        super().__init__(
            model=scorer,
            args=_arguments(config, folder, looks),
            train_dataset=planned,
            eval_dataset=planned if heldout else None,  # never read: `evaluate` is ours
            data_collator=lambda items: {"update": items[0]},
        )
        # What FSDP has split is in place and reduces its own gradients: not to be wrapped again.
        self.is_distributed_loading_by_transformers = isinstance(scorer, FSDPModule)
        self.remove_callback(PrinterCallback)
        self._first_loss: float | None = None
        self._last_loss, self._seconds = math.nan, 0.0
        self._margins: dict[int, tuple[int, float]] = {}
        self._best_margin: float | None = None
        self._best_update = self._looks_since = 0
        self.policy, self._updates = scorer.model, planned
        self._examples, self._heldout = examples, heldout
        self._layout, self._dtype = layout, dtype
        self._config, self._events = config, events
        self._folder, self._figures = folder, Figures()
        self._alarms = Alarms()
        self._preemption = preemption or Preemption()
        self._starts_at_reference = starts_at_reference and config.loss not in REFERENCE_FREE

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Any = None,  # the Trainer's signature
    ) -> Tensor:
        """Gradients of one update: the mean over its pairs, however they are cut into batches.

        Processes divide each batch. They then take the mean of their gradients, so each counts its
        own pairs that many times more.
        """
        model.train()
        batches, total = inputs["update"], torch.zeros((), dtype=torch.float64)
        num_pairs = sum(map(len, batches))
        for number, places in enumerate(batches, start=1):
            last = number == len(batches)
            with nullcontext() if last else self.accelerator.no_sync(model):
                mine = processes.share(places)
                # With nothing to do it still takes part: the others wait for it at each layer.
                loss_B = self._loss(model, self._examples, mine or places[:1], counts=bool(mine))
                loss = loss_B.sum() * (processes.size() if mine else 0) / num_pairs
                self.accelerator.backward(loss)
            total += loss.detach().cpu()
        return total.to(self.args.device)

    def _loss(
        self, model: nn.Module, examples: Examples, places: Sequence[int], *, counts: bool
    ) -> Tensor:
        """The objective and, where it has a weight, the supervised term, of each pair."""
        config, device = self._config, self.args.device
        batch = lay_out([examples.groups[place] for place in places], self._layout).to(device)
        kl = torch.zeros((), device=device)
        if config.loss == "kto":
            kl = self._kl(model, examples, places, counts=counts)

        def slopes(among: slice, sums_A: Tensor) -> Tensor:
            """What the head is told to expect, so that it need not make its logits twice."""
            with torch.enable_grad():
                sums_A = sums_A.detach().requires_grad_()
                pairs = slice(among.start // 2, among.stop // 2)
                some = examples.scored(sums_A, batch.lengths[among], places[pairs], kl)
                (slopes_A,) = torch.autograd.grad(torch.stack(self._terms(some)).sum(), sums_A)
            return slopes_A

        with autocast(device, self._dtype):
            learning = torch.is_grad_enabled()
            scores = model(batch, Expectation(batch.lengths, 2, slopes if learning else None))
        of = examples.scored(answer_sums(scores.logps_N, batch), batch.lengths, places, kl)
        loss_B, supervised_B = self._terms(of)
        if counts:
            self._check(loss_B.detach(), of, [examples.pair_ids[place] for place in places])
            reference = examples.reference
            tokens_N = reference.tokens_of(places) if reference else None
            margin_B = self._figures.add(config, batch, of, scores, tokens_N, loss_B)
            if learning:
                update, margins = self.state.global_step, margin_B.tolist()
                self._margins |= {
                    place: (update, margin) for place, margin in zip(places, margins, strict=True)
                }
        return loss_B + supervised_B

    def _terms(self, of: Scored) -> tuple[Tensor, Tensor]:
        """The objective, and the supervised term times its weight."""
        weight_B = self._config.sft_weight * of.chosen_given_B
        supervised_B = weight_B * sft_loss(of.chosen_B, of.chosen_tokens_B)
        return OBJECTIVES[self._config.loss](of, self._config), supervised_B

    @torch.no_grad()
    def _kl(
        self, model: nn.Module, examples: Examples, places: Sequence[int], *, counts: bool
    ) -> Tensor:
        """KTO's z0: the mean log-ratio of answers to other prompts, at least 0."""
        groups, reference = examples.strangers, examples.strangers_reference
        assert groups is not None
        assert reference is not None
        unlike = [groups[place] for place in places]
        batch = lay_out(unlike, self._layout).to(self.args.device)
        with autocast(self.args.device, self._dtype):
            # As the reference was: in the same parts, so that a policy that is it has moved by 0.
            scores = model(batch, Expectation(batch.lengths, 2))
            sums_A = answer_sums(scores.logps_N, batch)
        given_A = counts * given(unlike).to(sums_A)
        moved_A = given_A * (sums_A - reference.sums_PA[list(places)].flatten().to(sums_A))
        total, many = processes.add_up(
            torch.stack([moved_A.double().sum(), given_A.double().sum()]).cpu()
        )
        z0: Tensor = (total / many).clamp(min=0).to(sums_A)
        return z0

    def _check(self, loss_B: Tensor, of: Scored, pair_ids: Sequence[str]) -> None:
        if not torch.isfinite(loss_B).all():
            broken = [
                pair_id
                for pair_id, loss in zip(pair_ids, loss_B.tolist(), strict=True)
                if not math.isfinite(loss)
            ]
            raise DataRejected(
                f"the loss at update {self.state.global_step + 1} is not finite (pairs "
                f"{', '.join(broken[:3])}); lower train.learning_rate, or make train.dtype float32"
            )
        if self._first_loss is None and self._starts_at_reference:
            gap = (of.policy_margin - of.reference_margin).detach().abs().max().item()
            if gap >= _FIRST_GAP:
                raise ConfigError(
                    f"policy and reference are the same weights and differ by {gap:.3g} nats on "
                    "pairs before any update: what is kept of the reference was computed in "
                    "another way; remove the home's folder reference/, and set train.dtype float32 "
                    "if it comes again"
                )

    def notes(self) -> Notes:
        """What happened so far."""
        assert self._first_loss is not None, "nothing was trained yet"
        margins: dict[int, tuple[int, float]] = {}
        for each in processes.gather(self._margins):
            # Another process may have had the pair in an earlier epoch.
            margins |= {at: told for at, told in each.items() if told > margins.get(at, _NEVER)}
        return Notes(
            first_loss=self._first_loss,
            last_loss=self._last_loss,
            seconds=self._seconds,
            margins=margins,
            best_margin=self._best_margin,
            best_update=self._best_update,
            looks_since=self._looks_since,
            alarms=self._alarms.memory,
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One update's figures, as events instead of a printed dictionary."""
        if "grad_norm" not in logs:
            return  # the summary at the end
        update, total = self.state.global_step, self.state.max_steps
        values = {
            **self._figures.means("train"),
            "train/memory_mib": peak_mib(),
            "train/grad_norm": float(logs["grad_norm"]),
            "train/learning_rate": float(logs["learning_rate"]),
        }
        if not math.isfinite(values["train/grad_norm"]):
            raise DataRejected(
                f"the gradient at update {update} is not finite; "
                "lower train.learning_rate, or make train.dtype float32"
            )
        self._events.metrics(update, values, phase="training")
        for alarm in self._alarms.of(values):
            self._events.say(f"update {update}: {alarm}", phase="training")
        self._events.progress("training", update, total, unit="updates")
        self._seconds += time.monotonic() - self._figures.began
        self._last_loss = values["train/loss"]
        if self._first_loss is None:
            self._first_loss = self._last_loss
        self._figures = Figures()
        if update == total and self._heldout is not None:
            self.control.should_evaluate = True  # also where the looks do not divide the updates
        if any(processes.gather(self._preemption.asked)):
            self.control.should_save = self.control.should_training_stop = True

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """One look at the held-out pairs: their figures, and whether it is time to stop."""
        assert self._heldout is not None
        training, self._figures = self._figures, Figures()
        self.model_wrapped.eval()
        for places in in_order(len(self._heldout.groups), self._config.batch_size):
            mine = processes.share(places)
            self._loss(self.model_wrapped, self._heldout, mine or places[:1], counts=bool(mine))
        values, self._figures = self._figures.means("heldout"), training
        self._figures.began = time.monotonic()
        update = self.state.global_step
        self._events.metrics(update, values, phase="training")
        if self._config.early_stop is not None:
            self._stop_in_time(update, values["heldout/reward_margin"])
        # Else the Trainer looks again where a look and the end of the epoch fall together.
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, values
        )
        return values

    def _stop_in_time(self, update: int, margin: float) -> None:
        if self._best_margin is None or margin > self._best_margin:
            self._best_margin, self._best_update, self._looks_since = margin, update, 0
            checkpoint.save_weights(self.best_at(update), self.policy)
            return
        self._looks_since += 1
        if self._looks_since >= (self._config.early_stop or 0):
            self.stopped_early = self.control.should_training_stop = True
            # A checkpoint from here would be one to go on from; killed now, it stops here again.
            self.control.should_save = False
            self._events.say(
                f"stopped early after update {update}: the held-out margin was largest "
                f"({self._best_margin:.3f}) after update {self._best_update}",
                phase="training",
            )

    def best_at(self, update: int) -> Path:
        """Where the weights of the best look lie: a checkpoint names the update."""
        return self._folder.with_name(f"{_BEST}{update}")

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: our inputs are not the model's own."""
        return 0

    def get_train_dataloader(self) -> DataLoader[Update]:
        """Every process is given every update, and takes its share of the batches."""
        return DataLoader(self._updates, batch_size=1, collate_fn=self.data_collator)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        norm: Tensor = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        return whole(norm)

    # ---------------------------------------------------------------- checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            return  # the policy is about to be written
        checkpoint.save(
            self._folder,
            self.state.global_step,
            config=self._config.model_dump(mode="json"),
            model=self.policy,
            optimizer=self.optimizer,
            scheduler=self.lr_scheduler,
            trainer_state=self.state,
            notes=self.notes().model_dump(mode="json"),
        )
        if processes.rank() == 0:  # no checkpoint speaks of earlier ones any more
            kept = self.best_at(self._best_update)
            for older in set(self._folder.parent.glob(f"{_BEST}*")) - {kept}:
                shutil.rmtree(older, ignore_errors=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoint.load_weights(Path(resume_from_checkpoint), self.policy)
        notes = Notes.model_validate(checkpoint.notes(Path(resume_from_checkpoint)))
        self._first_loss, self._last_loss = notes.first_loss, notes.last_loss
        self._seconds, self._margins = notes.seconds, dict(notes.margins)
        self._best_margin, self._best_update = notes.best_margin, notes.best_update
        self._looks_since, self._alarms = notes.looks_since, Alarms(notes.alarms)

    def _load_optimizer_and_scheduler(self, folder: str | None) -> None:
        if folder is not None:
            checkpoint.load_optimizer(Path(folder), self.optimizer, self.lr_scheduler)

    def _load_rng_state(self, folder: str | None) -> None:
        if folder is not None:
            checkpoint.load_rng(Path(folder))


class _Updates(Dataset[Update]):
    def __init__(self, updates: Sequence[Update]) -> None:
        self._updates = updates

    def __len__(self) -> int:
        return len(self._updates)

    def __getitem__(self, place: int) -> Update:
        return self._updates[place]


def _arguments(config: TrainConfig, folder: Path, looks: int | None) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,  # one item is one update of the plan
        num_train_epochs=1,  # the plan holds every epoch
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup_ratio,  # below 1 it is a share
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_steps=config.save_steps,
        eval_strategy="steps" if looks else "no",
        eval_steps=looks,
        seed=config.seed,
        use_cpu=config.device == "cpu" or not torch.cuda.is_available(),
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        report_to=[],
        log_level="error",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # noqa: SLF001  # DataParallel goes past our forward
    return arguments
