"""Training itself, as each of its processes does it.

Reads   a `Job`: config, pairs, the models to start from and to be held to, a state folder
Gives   `work`: trained weights and an `Outcome` in the state's work folder
Not     the policy's folder (step.py), starting processes (launch.py, __main__.py)

Killed at any moment and called again, it ends in the same weights, bit for bit on a processor: the
plan is a function of the seed, checkpoints lie in the state, and what the reference thinks lies in
the home for every run.
"""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dpoflow.contracts import manifest
from dpoflow.contracts.errors import ConfigError, ServiceUnavailable
from dpoflow.contracts.objectives import REFERENCE_FREE
from dpoflow.contracts.spec import TrainConfig
from dpoflow.policy import load
from dpoflow.policy.attention import attending
from dpoflow.policy.dtype import choose, name_of
from dpoflow.policy.layout import Group, Groups
from dpoflow.policy.logprobs import Scorer, check_head, choose_layout
from dpoflow.policy.tokenise import EncodedPairs
from dpoflow.state.events import Events, read_events
from dpoflow.state.step import StepState
from dpoflow.train import checkpoint, processes
from dpoflow.train.examples import Examples, Strangers
from dpoflow.train.outcome import Job, Outcome
from dpoflow.train.plan import Batch, first_look, in_order, plan
from dpoflow.train.preemption import Preemption
from dpoflow.train.prepare import encode, longest_pair, prepared, watched, without_dropout
from dpoflow.train.reference import ReferenceLogps, reference_logps
from dpoflow.train.shard import shard
from dpoflow.train.trainer import DpoTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Ask = Callable[[Sequence[Group], Sequence[Batch]], ReferenceLogps]
"""From groups, and the batches they are scored in, to what the reference thinks of them."""


def work(job: Job) -> None:
    """Train as `job` says, alone or as one of several processes."""
    try:
        with Preemption() as preemption, processes.joined(_device(job.config)) as device:
            _Work(job, device, preemption).run()
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"training does not fit the GPU ({str(error).splitlines()[0]}); lower train.batch_size "
            "and raise train.gradient_accumulation by as much, set train.activation_checkpointing, "
            "or shard over more GPUs: dpoflow plan estimates what is needed"
        ) from None


def _device(config: TrainConfig) -> torch.device:
    there = torch.cuda.is_available()
    if config.device == "cuda" and not there:
        raise ConfigError(
            f"train.device cuda: torch {torch.__version__} finds no GPU on this machine; run where "
            "there is one, or set train.device: auto"
        )
    return torch.device("cuda" if there and config.device != "cpu" else "cpu")


class _Work:
    """One process's part of one training."""

    def __init__(self, job: Job, device: torch.device, preemption: Preemption) -> None:
        self._job, self._config = job, job.config
        self._device, self._preemption = device, preemption
        self._state = StepState(job.state, "train")
        speaks = processes.rank() == 0
        self._events = self._state.events if speaks else Events(Path(os.devnull), "train")
        if self._config.batch_size < processes.size():
            raise ConfigError(
                f"train.batch_size {self._config.batch_size} cannot be shared by "
                f"{processes.size()} processes; raise it to a multiple of them"
            )

    def run(self) -> None:
        """From files to trained weights."""
        config, many = self._config, processes.size()
        among = f", {many} processes" if many > 1 else ""
        self._events.say(f"training on {self._device.type}{among}", passing=True)
        torch.manual_seed(config.seed)
        start, tokenizer = self._load(self._job.init)
        self._longest = longest_pair(start, config, self._events)
        encoded, dropped = encode(tokenizer, self._job.pairs, config, self._longest, self._events)
        learnt, kept_out = watched(encoded, config.heldout_fraction, config.seed)
        known = self._state.root / "dtype.json"
        chosen = None
        if processes.rank() == 0:  # the others' clocks may tell them otherwise
            chosen = choose(config.dtype, start, remember=known, device=self._device)
        self._dtype = processes.agreed(chosen) or torch.float32
        check_head(start)
        trained = prepared(start, config)
        checkpoint.room_for(self._state.work, trained, with_best=config.early_stop is not None)
        self._layout = choose_layout(trained, config.layout)
        scorer = self._scorer(trained)
        updates = plan(
            [pair.longest for pair in learnt],
            batch_size=config.batch_size,
            accumulation=config.gradient_accumulation,
            epochs=config.epochs,
            seed=config.seed,
        )
        ask = self._reference(scorer, tokenizer)
        groups = Groups(learnt)
        examples = self._examples(learnt, groups, first_look(updates), ask)
        heldout = None
        if kept_out:
            order = in_order(len(kept_out), config.batch_size)
            heldout = self._examples(kept_out, groups, order, ask)
        del ask  # and with it another model, if it was asked
        with attending(trained, self._layout):
            trainer = DpoTrainer(
                scorer,
                examples,
                updates,
                config,
                layout=self._layout,
                dtype=self._dtype,
                folder=self._state.work / "checkpoints",
                events=self._events,
                heldout=heldout,
                starts_at_reference=self._starts_at_reference,
                preemption=self._preemption,
            )
            self._train(trainer, len(updates))
        self._keep(trainer, learnt, kept_out, dropped)

    def _load(self, folder: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        # Weights that will be split come to the GPU block by block: they may not fit it whole.
        device = torch.device("cpu") if self._config.sharding == "fsdp" else self._device
        return load.load(folder, device=device, bits=self._config.lora.bits)

    def _scorer(self, model: "PreTrainedModel") -> Scorer:
        scorer = Scorer(model)
        if self._config.sharding == "fsdp" and processes.size() > 1:
            shard(scorer, self._device)
        return scorer

    @functools.cached_property
    def _starts_at_reference(self) -> bool:
        return _digest_of(self._job.init) == self._reference_digest

    @functools.cached_property
    def _reference_digest(self) -> str:
        return _digest_of(self._job.reference)

    def _reference(self, scorer: Scorer, tokenizer: "PreTrainedTokenizerBase") -> Ask:
        """What to ask for the reference's log-probabilities; loads it when it is first needed."""

        @functools.cache
        def another() -> Scorer:
            model, its_tokenizer = self._load(self._job.reference)
            if its_tokenizer.get_vocab() != tokenizer.get_vocab():
                raise ConfigError(
                    "train.reference has another tokenizer than the model that is trained: their "
                    "log-probabilities are of other tokens; name a reference of the same family"
                )
            check_head(model)
            return self._scorer(without_dropout(model))

        def ask(groups: Sequence[Group], batches: Sequence[Batch]) -> ReferenceLogps:
            return reference_logps(
                (lambda: scorer) if self._starts_at_reference else another,
                groups,
                batches,
                model_digest=" ".join(
                    (
                        self._reference_digest,
                        f"{self._config.lora.bits or ''}",
                        "compiled" * self._config.compile,
                    )
                ).strip(),
                layout=self._layout,
                dtype=self._dtype,
                keep=self._state.root / "reference",
                events=self._events,
                stopped=lambda: any(processes.gather(self._preemption.asked)),
            )

        return ask

    def _examples(
        self, pairs: EncodedPairs, learnt: Groups, batches: Sequence[Batch], ask: Ask
    ) -> Examples:
        ids, groups = pairs.ids, Groups(pairs)
        if self._config.loss in REFERENCE_FREE:
            return Examples(ids, groups, reference=None)
        if self._config.loss != "kto":
            return Examples(ids, groups, ask(groups, batches))
        others = Strangers(groups, learnt, self._config.seed, longest=self._longest)
        return Examples(ids, groups, ask(groups, batches), others, ask(others, batches))

    def _train(self, trainer: DpoTrainer, total: int) -> None:
        """From the newest checkpoint on, to the last update, the best look or a SIGTERM."""
        folder = self._state.work / "checkpoints"
        earlier = checkpoint.newest(folder, self._config.model_dump(mode="json"))
        if earlier is not None:
            where = earlier.name.replace("-", " ")
            told = f"continuing after {where} of {total}"
            self._events.say(told, phase="training", passing=True)
        elif lost := self._lost():
            self._events.say(
                f"an earlier attempt came to update {lost} and left no checkpoint "
                f"(train.save_steps {self._config.save_steps}): from the start",
                phase="training",
                passing=True,
            )
        trainer.train(resume_from_checkpoint=str(earlier) if earlier else None)
        done = trainer.state.global_step
        if done < total and not trainer.stopped_early:
            raise ServiceUnavailable(
                f"stopped by SIGTERM after update {done} of {total}, which is kept; "
                "the same command goes on from there"
            )

    def _lost(self) -> int:
        """The last update that an earlier attempt told of."""
        events, _ = read_events(self._state.folder / "events.jsonl")
        return max((event.done for event in events if event.phase == "training"), default=0)

    def _keep(
        self,
        trainer: DpoTrainer,
        learnt: EncodedPairs,
        kept_out: EncodedPairs,
        dropped: dict[str, int],
    ) -> None:
        notes, best = trainer.notes(), None
        if notes.best_margin is not None:
            best = notes.best_update
            checkpoint.load_weights(trainer.best_at(best), trainer.policy)
        outcome = Outcome(
            first_loss=notes.first_loss,
            last_loss=notes.last_loss,
            accuracy=sum(margin > 0 for _, margin in notes.margins.values()) / len(notes.margins),
            num_updates=trainer.state.global_step,
            best_update=best,
            dtype=name_of(self._dtype),
            layout=self._layout,
            seconds=notes.seconds,
            pair_ids=tuple(learnt.ids),
            heldout_ids=tuple(kept_out.ids),
            dropped=dropped,
            num_cut=learnt.num_cut + kept_out.num_cut,
        )
        checkpoint.save_weights(
            self._job.trained, trainer.policy, outcome=outcome.model_dump_json(indent=1)
        )


def _digest_of(model: Path) -> str:
    """A model folder's digest: from its manifest, or from its bytes where it has none."""
    sealed = (model / manifest.FILE_NAME).is_file()
    return manifest.read(model).digest if sealed else manifest.digest_of(model)
