"""Checkpoints that are there whole or not at all, and from which training goes on to the bit.

    checkpoints/update-40/     newest only; a folder whose name begins with a dot is half-written
        weights.safetensors    what is trained: every weight, or the adapters
        optimizer.safetensors  moments, one tensor each
        rng.safetensors        random state of the processor and of the GPU
        state.json             optimiser groups, scheduler, and what the trainer remembers
        trainer_state.json     of transformers

Reads   a model, its optimiser and scheduler
Gives   `save`, `newest`, `load_weights`, `load_optimizer`, `load_rng`, `notes`
Not     when to save (trainer.py)

Safetensors and JSON only: opening a pickle can run code.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FOLDER = "update-"


def save(
    root: Path,
    update: int,
    *,
    model: nn.Module,
    optimizer: Any,
    scheduler: Any,
    trainer_state: Any,
    notes: dict[str, Any],
) -> Path:
    """Write `update-N` beside the older one, then remove that: a kill leaves one of them whole."""
    draft, target = root / f".{FOLDER}{update}", root / f"{FOLDER}{update}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file(_trained(model), draft / "weights.safetensors")
    moments, groups = _taken_apart(optimizer.state_dict())
    save_file(moments, draft / "optimizer.safetensors")
    save_file(_rng(), draft / "rng.safetensors")
    state = {"groups": groups, "scheduler": scheduler.state_dict(), "notes": notes}
    (draft / "state.json").write_text(json.dumps(state), encoding="utf-8")
    trainer_state.save_to_json(str(draft / "trainer_state.json"))
    for path in [*draft.iterdir(), draft]:
        _to_disk(path)
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
    _to_disk(root)
    for older in root.iterdir():
        if older != target:
            shutil.rmtree(older, ignore_errors=True)
    return target


def newest(root: Path) -> Path | None:
    """The last whole checkpoint, if there is one."""
    found = {int(path.name.removeprefix(FOLDER)): path for path in root.glob(f"{FOLDER}*")}
    return found[max(found)] if found else None


def load_weights(folder: Path, model: nn.Module) -> None:
    """Put the trained weights back, in place."""
    kept, now = load_file(folder / "weights.safetensors"), _trained(model)
    assert kept.keys() == now.keys(), "a checkpoint of another model or method lies in this state"
    with torch.no_grad():
        for name, weight in now.items():
            weight.copy_(kept[name])


def load_optimizer(folder: Path, optimizer: Any, scheduler: Any) -> None:
    """Put moments, step counts and learning rates back."""
    state = _state(folder)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in load_file(folder / "optimizer.safetensors").items():
        place, _, what = name.partition(".")
        moments.setdefault(int(place), {})[what] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": state["groups"]})
    scheduler.load_state_dict(state["scheduler"])


def load_rng(folder: Path) -> None:
    """Put the random state of the processor, and of a GPU where both had one, back."""
    kept = load_file(folder / "rng.safetensors")
    torch.set_rng_state(kept["cpu"])
    if "cuda" in kept and torch.cuda.is_available():
        torch.cuda.set_rng_state(kept["cuda"])


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


def _taken_apart(state: dict[str, Any]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    moments = {
        f"{place}.{what}": torch.as_tensor(value)
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
