"""Fine-tune the policy on preference pairs with DPO.

Reads   train.parquet of an artifact of pairs, and a model directory: where the policy starts, and
        the reference it is held to
Gives   a model directory (safetensors, tokenizer, chat template) with training.json, a report with
        the curves, `TrainResult`
Not     making pairs (synthesize/), judging the policy (evaluate/)

Killed at any moment and called again with the same arguments, it ends in the same policy, bit for
bit on a CPU: the plan is a function of the seed, checkpoints lie in `state.work`, and what the
reference thinks lies in the home for every run.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dpoflow.contracts import manifest
from dpoflow.contracts.base import canonical_json
from dpoflow.contracts.errors import ConfigError, DataRejected, ServiceUnavailable
from dpoflow.contracts.objectives import REFERENCE_FREE
from dpoflow.contracts.pairs import PreferencePair, read_parquet
from dpoflow.contracts.results import TrainResult
from dpoflow.contracts.spec import TrainConfig
from dpoflow.policy import load
from dpoflow.policy.attention import attending
from dpoflow.policy.dtype import choose, name_of
from dpoflow.policy.layout import Group, group_of
from dpoflow.policy.logprobs import check_head, choose_layout
from dpoflow.policy.tokenise import EncodedPair, encode_pair
from dpoflow.state.events import Events, read_events
from dpoflow.state.step import StepState
from dpoflow.train import checkpoint
from dpoflow.train.alarms import alarms_of
from dpoflow.train.examples import Examples, strangers
from dpoflow.train.page import curves_page
from dpoflow.train.plan import first_look, plan
from dpoflow.train.preemption import Preemption
from dpoflow.train.reference import ReferenceLogps, reference_logps
from dpoflow.train.trainer import DpoTrainer


def run(
    config: TrainConfig, *, pairs: Path, model: Path, policy: Path, report: Path, state: StepState
) -> TrainResult:
    """Train on `pairs` from `model`, fill `policy` and `report`, and say how it went."""
    _check_alone()
    torch.manual_seed(config.seed)
    start, tokenizer = load.load(model)
    encoded, dropped = _encode(tokenizer, pairs / "train.parquet", config, state.events)
    dtype = choose(config.dtype, start, remember=state.root / "dtype.json")
    check_head(start)
    trained = _prepare(start, config)
    layout = choose_layout(trained, config.layout)
    groups = [group_of(pair) for pair in encoded]
    updates = plan(
        [group.longest for group in groups],
        batch_size=config.batch_size,
        accumulation=config.gradient_accumulation,
        epochs=config.epochs,
        seed=config.seed,
    )

    def ask_reference(these: Sequence[Group]) -> ReferenceLogps:
        return reference_logps(
            trained,
            these,
            first_look(updates),
            model_digest=_digest(model),
            layout=layout,
            dtype=dtype,
            keep=state.root / "reference",
            events=state.events,
        )

    examples = _examples([pair.pair_id for pair in encoded], groups, config, ask_reference)
    folder = state.work / "checkpoints"
    with Preemption() as preemption, attending(trained, layout):
        trainer = DpoTrainer(
            trained,
            examples,
            updates,
            config,
            layout=layout,
            dtype=dtype,
            folder=folder,
            events=state.events,
            preemption=preemption,
        )
        _train(trainer, folder, state.events)
    figures = _figures(state)
    alarms = alarms_of(figures)
    _report(figures, alarms, report)
    facts = {"dtype": name_of(dtype), "alarms": alarms}
    return _export(trainer, config, encoded, dropped, facts, model, policy, state.events)


def _digest(model: Path) -> str:
    """The model folder's digest: from its manifest, or from its bytes where it has none."""
    sealed = (model / manifest.FILE_NAME).is_file()
    return manifest.read(model).digest if sealed else manifest.digest_of(model)


def _examples(
    pair_ids: Sequence[str],
    groups: Sequence[Group],
    config: TrainConfig,
    ask: Callable[[Sequence[Group]], ReferenceLogps],
) -> Examples:
    if config.loss in REFERENCE_FREE:
        return Examples(pair_ids, groups, reference=None)
    if config.loss != "kto":
        return Examples(pair_ids, groups, ask(groups))
    others = strangers(groups, config.seed)
    return Examples(pair_ids, groups, ask(groups), others, ask(others))


def _check_alone() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"train runs in one process, and WORLD_SIZE is {os.environ['WORLD_SIZE']}; "
            "start one, without torchrun or accelerate launch"
        )


def _encode(
    tokenizer: PreTrainedTokenizerBase, path: Path, config: TrainConfig, events: Events
) -> tuple[list[EncodedPair], dict[str, int]]:
    """Pairs as tokens, and how many were left out by reason."""
    encoded: list[EncodedPair] = []
    dropped: Counter[str] = Counter()
    for pair in read_parquet(path, PreferencePair):
        made = (
            encode_pair(tokenizer, pair, config.max_tokens)
            if pair.label == "preferred"
            else f"label_{pair.label}"
        )
        if isinstance(made, EncodedPair):
            encoded.append(made)
        else:
            dropped[made] += 1
    why = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
    if not encoded:
        raise DataRejected(
            f"train.parquet has no pair to train on (dropped: {why or 'none, it is empty'}); "
            "raise train.max_tokens, or look at the data"
        )
    if dropped:
        events.say(f"dropped {dropped.total()} of {dropped.total() + len(encoded)} pairs: {why}")
    return encoded, dict(sorted(dropped.items()))


def _prepare(model: Any, config: TrainConfig) -> PreTrainedModel:
    """The model with what is to be trained switched on, and without its own dropout."""
    _switch_off_dropout(model)
    if config.method == "lora":
        model = _with_adapters(model, config)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ConfigError(
            f"train.method {config.method} leaves nothing to train; name modules of this model in "
            "train.lora.targets, or set train.method: full"
        )
    prepared: PreTrainedModel = model
    return prepared


def _switch_off_dropout(model: nn.Module) -> None:
    """Policy and reference are compared on one footing; adapters keep the dropout they ask for."""
    module: Any
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # Llama and its kin keep the rate as a number


def _with_adapters(model: PreTrainedModel, config: TrainConfig) -> Any:
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


def _train(trainer: DpoTrainer, folder: Path, events: Events) -> None:
    """From the newest checkpoint on, to the last update or to a SIGTERM."""
    earlier = checkpoint.newest(folder)
    if earlier is not None:
        events.say(f"continuing after {earlier.name.replace('-', ' ')}", phase="training")
    trainer.train(resume_from_checkpoint=str(earlier) if earlier else None)
    done, total = trainer.state.global_step, trainer.state.max_steps
    if done < total:
        raise ServiceUnavailable(
            f"stopped by SIGTERM after update {done} of {total}, which is kept; "
            "the same command goes on from there"
        )


def _export(
    trainer: DpoTrainer,
    config: TrainConfig,
    encoded: list[EncodedPair],
    dropped: dict[str, int],
    facts: dict[str, Any],
    model: Path,
    policy: Path,
    events: Events,
) -> TrainResult:
    events.say("writing the policy", phase="writing")
    _write_weights(trainer.policy, policy)
    _copy_words(model, policy)
    notes = trainer.notes()
    outcome = {
        "first_loss": notes.first_loss,
        "last_loss": notes.last_loss,
        "num_pairs": len(encoded),
        "num_dropped": sum(dropped.values()),
        "num_steps": trainer.state.global_step,
        "accuracy": sum(margin > 0 for margin in notes.margins.values()) / len(notes.margins),
        **facts,
    }
    story = {  # no times: the same training must leave the same bytes
        **outcome,
        "config": config.model_dump(mode="json"),
        "dropped": dropped,
        "pair_ids": [pair.pair_id for pair in encoded],
    }
    (policy / "training.json").write_text(canonical_json(story) + "\n", encoding="utf-8")
    return TrainResult.model_validate(
        {**outcome, "policy_digest": manifest.digest_of(policy), "seconds": notes.seconds}
    )


def _figures(state: StepState) -> list[tuple[int, dict[str, float]]]:
    """(update, its figures), those of a killed attempt included; rates differ by the run."""
    events, _ = read_events(state.folder / "events.jsonl")
    told = {event.at or 0: event.metrics for event in events if event.metrics}
    return [
        (update, {name: value for name, value in told[update].items() if not _is_rate(name)})
        for update in sorted(told)
    ]


def _report(
    figures: list[tuple[int, dict[str, float]]], alarms: Sequence[str], report: Path
) -> None:
    """The figures of every update, as numbers and as curves."""
    text = canonical_json({"updates": figures, "alarms": alarms})
    (report / "figures.json").write_text(text + "\n", encoding="utf-8")
    (report / "curves.html").write_text(curves_page(figures, alarms), encoding="utf-8")


def _is_rate(name: str) -> bool:
    return name.endswith("_per_s")


def _write_weights(model: Any, policy: Path) -> None:
    """Full weights, so that the folder loads without peft; adapters beside them."""
    if hasattr(model, "merge_and_unload"):
        _write_adapters(model, policy / "adapter")
        model = model.merge_and_unload()
    model.config.use_cache = True  # the Trainer switched it off, which would make generation crawl
    model.save_pretrained(policy)


def _write_adapters(model: Any, folder: Path) -> None:
    """As peft writes them, less what differs from one machine or process to the next."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # an empty form
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = None  # a path of this machine
    if isinstance(settings["target_modules"], list):
        settings["target_modules"].sort()  # it was a set
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _copy_words(model: Path, policy: Path) -> None:
    """Tokenizer, chat template and generation config, byte for byte those of the start."""
    for pattern in load.NEEDED:
        for path in model.glob(pattern):
            if path.name != "config.json" and "safetensors" not in path.name:
                shutil.copyfile(path, policy / path.name)
