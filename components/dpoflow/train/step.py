"""Fine-tune the policy on preference pairs with DPO.

Reads   train.parquet of an artifact of pairs, and two model directories: where the policy starts,
        and the reference it is held to
Gives   a model directory (safetensors, tokenizer, chat template) with training.json, a report with
        the curves, `TrainResult`
Not     training (work.py), who does it (launch.py), making pairs (synthesize/), judging the policy
        (evaluate/)

Killed at any moment and called again with the same arguments, it ends in the same policy.
"""

import json
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from dpoflow.contracts import manifest
from dpoflow.contracts.base import canonical_json
from dpoflow.contracts.results import TrainResult
from dpoflow.contracts.spec import TrainConfig
from dpoflow.state.events import Events, read_events, seconds_text
from dpoflow.state.step import StepState
from dpoflow.train.alarms import alarms_of
from dpoflow.train.launch import gpus_of_others, launch
from dpoflow.train.outcome import Job, Outcome, finished


def run(
    config: TrainConfig,
    *,
    pairs: Path,
    init: Path,
    reference: Path,
    policy: Path,
    report: Path,
    state: StepState,
) -> TrainResult:
    """Train on `pairs` from `init`, fill `policy` and `report`, and say how it went."""
    job = Job(config=config, pairs=pairs, init=init, reference=reference, state=state.folder)
    outcome = finished(job)
    if outcome is None:
        outcome = _trained(job, state)
    figures = _figures(state)
    state.events.say(_told(outcome, dict(figures)), phase="training")
    alarms = alarms_of(figures)
    _report(figures, alarms, report)
    return _export(job, outcome, alarms, policy, state.events)


def _trained(job: Job, state: StepState) -> Outcome:
    """Train, wherever that is, and count the GPUs that it takes there."""
    config = job.config
    here = config.backend == "inprocess"
    with nullcontext() if here else state.usage.elsewhere(gpus_of_others(config)):
        launch(job, state.events)
    outcome = finished(job)
    assert outcome is not None, "training ended without an outcome"
    if config.backend == "trainjob":  # not its queueing, which the clock here cannot tell apart
        gpus = config.trainjob.nodes * config.trainjob.gpus
        state.usage.add_gpu_seconds(outcome.seconds * gpus)
    return outcome


def _told(outcome: Outcome, figures: dict[int, dict[str, float]]) -> str:
    """The training in a sentence; held-out pairs as the weights that are kept see them."""
    last = outcome.num_updates if outcome.best_update is None else outcome.best_update
    watched = figures.get(last, {}).get("heldout/reward_accuracy")
    many = len(outcome.heldout_ids)
    held_out = "" if watched is None else f", in {watched:.0%} of {many:,} held out"
    return (
        f"{outcome.num_updates:,} updates on {len(outcome.pair_ids):,} pairs in "
        f"{seconds_text(outcome.seconds)}: loss {outcome.first_loss:.3f} → {outcome.last_loss:.3f};"
        f" chosen is preferred in {outcome.accuracy:.0%} of the pairs{held_out}"
    )


def _export(
    job: Job, outcome: Outcome, alarms: Sequence[str], policy: Path, events: Events
) -> TrainResult:
    events.say("writing the policy", phase="writing", passing=True)
    _write_weights(job, policy)
    _copy_words(job.init, policy)
    facts = {
        "first_loss": outcome.first_loss,
        "last_loss": outcome.last_loss,
        "num_pairs": len(outcome.pair_ids),
        "num_heldout": len(outcome.heldout_ids),
        "num_dropped": sum(outcome.dropped.values()),
        "num_cut": outcome.num_cut,
        "num_steps": outcome.num_updates,
        "best_step": outcome.best_update,
        "accuracy": outcome.accuracy,
        "dtype": outcome.dtype,
        "alarms": alarms,
    }
    story = {  # no times: the same training must leave the same bytes
        **facts,
        "config": job.config.model_dump(mode="json"),
        "layout": outcome.layout,
        "dropped": outcome.dropped,
        "pair_ids": outcome.pair_ids,
        "heldout_ids": outcome.heldout_ids,
    }
    (policy / "training.json").write_text(canonical_json(story) + "\n", encoding="utf-8")
    digest = manifest.digest_of(policy)
    return TrainResult.model_validate(
        {**facts, "policy_digest": digest, "seconds": outcome.seconds}
    )


def _figures(state: StepState) -> list[tuple[int, dict[str, float]]]:
    """(update, its figures), those of a killed attempt included; what differs by the run is not."""
    events, _ = read_events(state.folder / "events.jsonl")
    told: dict[int, dict[str, float]] = {}
    for event in events:
        if event.metrics:
            told.setdefault(event.at or 0, {}).update(event.metrics)
    return [
        (update, {name: value for name, value in told[update].items() if not _varies(name)})
        for update in sorted(told)
    ]


def _report(
    figures: list[tuple[int, dict[str, float]]], alarms: Sequence[str], report: Path
) -> None:
    """The figures of every update, as numbers and as curves."""
    from dpoflow.train.page import curves_page

    text = canonical_json({"updates": figures, "alarms": alarms})
    (report / "figures.json").write_text(text + "\n", encoding="utf-8")
    (report / "curves.html").write_text(curves_page(figures, alarms), encoding="utf-8")


def _varies(name: str) -> bool:
    return name.endswith(("_per_s", "_mib"))


def _write_weights(job: Job, policy: Path) -> None:
    """Full weights, so that the folder loads without peft; adapters beside them."""
    from dpoflow.policy.load import load
    from dpoflow.train import checkpoint
    from dpoflow.train.prepare import prepared

    start, _ = load(job.init)
    model: Any = prepared(start, job.config)
    checkpoint.load_weights(job.trained, model)
    if hasattr(model, "merge_and_unload"):
        _write_adapters(model, policy / "adapter")
        model = model.merge_and_unload()
    model.config.use_cache = True  # without it generation would crawl
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
    from dpoflow.policy.load import NEEDED

    for pattern in NEEDED:
        for path in model.glob(pattern):
            if path.name != "config.json" and "safetensors" not in path.name:
                shutil.copyfile(path, policy / path.name)
