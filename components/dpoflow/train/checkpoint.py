"""Checkpoints that are there whole or not at all, and from which training goes on to the bit.

    checkpoints/update-40/     newest only; a folder whose name begins with a dot is half-written
        weights.safetensors    what is trained: every weight, or the adapters
        optimizer.safetensors  moments, one tensor each
        rng.safetensors        random state of each process, and of its GPU
        state.json             config, optimiser groups, scheduler, and what the trainer remembers
        trainer_state.json     of transformers

Reads   a model, its optimiser and scheduler
Gives   `save`, `newest`, `load_weights`, `load_optimizer`, `load_rng`, `notes`;
        `save_weights`, `room_for`
Not     when to save (trainer.py)

Safetensors and JSON only: opening a pickle can run code. Where processes share the weights, each
must call these, the first one writes, and what it writes does not tell how many there were.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dpoflow.contracts.errors import ConfigError, ServiceUnavailable
from dpoflow.train import processes
from dpoflow.train.shard import as_split, whole

FOLDER = "update-"


def save(
    root: Path,
    update: int,
    *,
    config: dict[str, Any],
    model: nn.Module,
    optimizer: Any,
    scheduler: Any,
    trainer_state: Any,
    notes: dict[str, Any],
) -> None:
    """Write `update-N` beside the older one, then remove that: a kill leaves one of them whole."""
    weights = _whole(_trained(model))
    moments, groups = _taken_apart(optimizer.state_dict())
    everyones = enumerate(processes.gather(_rng()))
    rng = {f"{rank}.{of}": kept for rank, its in everyones for of, kept in its.items()}
    if processes.rank():
        return
    target = root / f"{FOLDER}{update}"
    with _drafted(target) as draft:
        save_file(weights, draft / "weights.safetensors")
        save_file(moments, draft / "optimizer.safetensors")
        save_file(rng, draft / "rng.safetensors")
        state = {
            "config": config,
            "groups": groups,
            "scheduler": scheduler.state_dict(),
            "notes": notes,
        }
        (draft / "state.json").write_text(json.dumps(state), encoding="utf-8")
        trainer_state.save_to_json(str(draft / "trainer_state.json"))
    for older in root.iterdir():
        if older != target:
            shutil.rmtree(older, ignore_errors=True)


def save_weights(folder: Path, model: nn.Module, **facts: str) -> None:
    """Write what is trained to `folder`, and a file of each of `facts` beside it."""
    weights = _whole(_trained(model))
    if processes.rank():
        return
    with _drafted(folder) as draft:
        save_file(weights, draft / "weights.safetensors")
        for name, text in facts.items():
            (draft / f"{name}.json").write_text(text + "\n", encoding="utf-8")


@contextmanager
def _drafted(target: Path) -> Iterator[Path]:
    """A folder to fill, which then takes the place of `target`, on the disk and not only in RAM."""
    draft = target.with_name(f".{target.name}")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        yield draft
        for path in [*draft.iterdir(), draft]:
            _to_disk(path)
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
        _to_disk(target.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise ServiceUnavailable(
            f"{target} could not be written ({error}); make room, and the same command goes on "
            "from the checkpoint before it"
        ) from None


def room_for(root: Path, model: nn.Module, *, with_best: bool = False) -> None:
    """Refuse to begin where two checkpoints and a policy would not fit: one replaces the other.

    `with_best`: and two sets of the best weights so far. What is there already is counted as room.
    """
    every = {id(weight): weight for weight in model.parameters()}.values()
    trained = sum(weight.numel() for weight in every if weight.requires_grad)
    need = 4 * ((6 + 2 * with_best) * trained + 2 * sum(weight.numel() for weight in every))
    there = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    free = shutil.disk_usage(root).free + there
    if need > free:
        raise ServiceUnavailable(
            f"checkpoints and policy need {need / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are "
            f"free at {root}; make room, or name another folder with --home"
        )


def newest(root: Path, config: dict[str, Any]) -> Path | None:
    """The last whole checkpoint, if there is one. ConfigError if it is of another config."""
    found = {int(path.name.removeprefix(FOLDER)): path for path in root.glob(f"{FOLDER}*")}
    if not found:
        return None
    last = found[max(found)]
    then = _state(last)["config"]
    other = [key for key in sorted({*then, *config}) if then.get(key) != config.get(key)]
    if other:
        key = other[0]
        raise ConfigError(
            f"the checkpoint {last} is of a training with {key} {then.get(key)}, and this one has "
            f"{config.get(key)}; remove {root} to begin anew"
        )
    return last


def load_weights(folder: Path, model: nn.Module) -> None:
    """Put the trained weights back, in place."""
    kept, now = load_file(folder / "weights.safetensors"), _trained(model)
    assert kept.keys() == now.keys(), "a checkpoint of another model or method lies in this state"
    with torch.no_grad():
        for name, weight in now.items():
            weight.copy_(as_split(kept[name], weight))


def load_optimizer(folder: Path, optimizer: Any, scheduler: Any) -> None:
    """Put moments, step counts and learning rates back."""
    state = _state(folder)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in load_file(folder / "optimizer.safetensors").items():
        place, _, what = name.partition(".")
        moments.setdefault(int(place), {})[what] = as_split(tensor, weights[int(place)])
    optimizer.load_state_dict({"state": moments, "param_groups": state["groups"]})
    scheduler.load_state_dict(state["scheduler"])


def load_rng(folder: Path) -> None:
    """Put the random state of the processor, and of a GPU where both had one, back."""
    kept, mine = load_file(folder / "rng.safetensors"), processes.rank()
    if f"{mine}.cpu" in kept:  # else there were fewer processes
        torch.set_rng_state(kept[f"{mine}.cpu"])
    if f"{mine}.cuda" in kept and torch.cuda.is_available():
        torch.cuda.set_rng_state(kept[f"{mine}.cuda"])


def notes(folder: Path) -> dict[str, Any]:
    """What the trainer remembered."""
    remembered: dict[str, Any] = _state(folder)["notes"]
    return remembered


def _state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return state


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """Weights that gradients reach, each once: tied ones share a tensor and the first name."""
    return {
        name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad
    }


def _whole(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: whole(weight) for name, weight in weights.items()}


def _taken_apart(state: dict[str, Any]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    moments = {
        f"{place}.{what}": whole(torch.as_tensor(value))
        for place, values in state["state"].items()
        for what, value in values.items()
    }
    return moments, state["param_groups"]


def _rng() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
