"""What the reference thinks of every pair: computed once, before the first update.

Reads   the model as it starts, the plan's first look at each pair
Gives   `margins`: log p(chosen) - log p(rejected) of each pair, kept on disk for a resumed run
Not     the policy's own log-probabilities (trainer.py)

The same code, types and batches as in training: so policy and reference agree on the first batch to
the last bit, and the first loss is ln 2.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from dpoflow.contracts.base import sha256_json
from dpoflow.policy.dtype import name_of
from dpoflow.policy.layout import Group, lay_out
from dpoflow.policy.logprobs import autocast, response_logps, shares_prompts
from dpoflow.state.events import Events


def margins(
    model: PreTrainedModel,
    groups: Sequence[Group],
    batches: Sequence[tuple[int, ...]],
    *,
    dtype: torch.dtype,
    keep: Path,
    events: Events,
) -> Tensor:
    """The reference margin of each group, by place; NaN for one that no batch holds."""
    key = sha256_json([[(g.prompt, g.answers) for g in groups], batches, name_of(dtype)])
    kept = _read(keep, key)
    if kept is not None:
        return kept
    found = torch.full((len(groups),), torch.nan)
    firsts = _first_look(batches)
    num_done, num_pairs = 0, sum(map(len, firsts))
    for batch in firsts:
        found[list(batch)] = _margin(model, [groups[place] for place in batch], dtype)
        num_done += len(batch)
        events.progress("reference", num_done, num_pairs, unit="pairs")
    _write(keep, key, found)
    return found


def _first_look(batches: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The batches of the first epoch, whole or in part: those before any pair comes again."""
    seen: set[int] = set()
    firsts: list[tuple[int, ...]] = []
    for batch in batches:
        if not seen.isdisjoint(batch):
            break
        seen.update(batch)
        firsts.append(batch)
    return firsts


@torch.no_grad()
def _margin(model: PreTrainedModel, groups: Sequence[Group], dtype: torch.dtype) -> Tensor:
    model.eval()
    batch = lay_out(groups, shared=shares_prompts(model)).to(model.device)
    with autocast(model.device, dtype):
        chosen_B, rejected_B = response_logps(model, batch)
    return (chosen_B - rejected_B).cpu()


def _read(path: Path, key: str) -> Tensor | None:
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as kept:
        if (kept.metadata() or {}).get("key") != key:
            return None
        margins: Tensor = kept.get_tensor("margins")
        return margins


def _write(path: Path, key: str, found: Tensor) -> None:
    draft = path.with_suffix(".draft")
    save_file({"margins": found}, draft, metadata={"key": key})
    draft.replace(path)
