"""What the reference thinks of every pair: computed once, kept by content, used by every later run.

Reads   the reference, the plan's first look at each pair
Gives   `reference_logps`: log p of every token, kept under `ROOT/reference/KEY.safetensors`
Not     the policy's own log-probabilities (trainer.py)

KEY is the digest of the model's folder (weights, tokenizer, template), the tokens as they lie in
batches, the layout and the type of products: everything the numbers depend on, and nothing else, so
that runs with other learning rates, betas, objectives or homes share them. Batches belong to it
because bfloat16 rounds a row differently in other company: computed as in training, policy and
reference agree on the first batch to the last bit, and the first loss is ln 2.
"""

import hashlib
import itertools
import os
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpoflow.contracts.errors import DataRejected
from dpoflow.policy.attention import attending
from dpoflow.policy.dtype import name_of
from dpoflow.policy.head import Expectation
from dpoflow.policy.layout import Group, LayoutName, lay_out
from dpoflow.policy.logprobs import Scorer, autocast, device_of
from dpoflow.state.events import Events
from dpoflow.train import processes
from dpoflow.train.plan import Batch


class ReferenceLogps:
    """log p of each token of each answer; NaN where no batch held the pair."""

    def __init__(self, groups: Sequence[Group], flat: Tensor) -> None:
        lengths = [len(answer) for group in groups for answer in group.answers]
        many = len(lengths) // len(groups)
        ends = [0, *itertools.accumulate(lengths)]
        self._flat, self._ends = flat, array("q", ends[::many])
        sums = torch.stack([part.sum() for part in flat.split(lengths)])
        self.sums_PA = sums.view(len(groups), many)
        """Summed over each answer: [pairs, answers of a pair]."""

    def tokens_of(self, places: Sequence[int]) -> Tensor:
        """Of these pairs' tokens, in the order in which a batch of them has its answers."""
        return torch.cat([self._flat[self._ends[at] : self._ends[at + 1]] for at in places])


def reference_logps(
    scorer: Callable[[], Scorer],
    groups: Sequence[Group],
    batches: Sequence[Batch],
    *,
    model_digest: str,
    layout: LayoutName,
    dtype: torch.dtype,
    keep: Path,
    events: Events,
) -> ReferenceLogps:
    """Those of `keep` if all that they depend on is the same, else computed and kept there.

    `scorer` is called only if the reference must be asked.
    """
    path = kept_at(
        groups, batches, model_digest=model_digest, layout=layout, dtype=dtype, keep=keep
    )
    if processes.agreed(path.is_file()):
        events.say(f"reference log-probabilities {path.stem[:12]} are there", phase="reference")
        return ReferenceLogps(groups, load_file(path)["logps"])
    flat = _computed(scorer(), groups, batches, layout, dtype, events)
    if processes.rank() == 0:
        keep.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.draft")
        save_file({"logps": flat}, draft)
        draft.replace(path)
    return ReferenceLogps(groups, flat)


def kept_at(
    groups: Sequence[Group],
    batches: Sequence[Batch],
    *,
    model_digest: str,
    layout: LayoutName,
    dtype: torch.dtype,
    keep: Path,
) -> Path:
    """Where they lie once somebody has asked for them."""
    shares = [processes.share(batch, rank) for batch in batches for rank in range(processes.size())]
    key = _key(groups, shares, f"{model_digest} {layout} {name_of(dtype)}")
    return keep / f"{key}.safetensors"


@torch.no_grad()
def _computed(
    scorer: Scorer,
    groups: Sequence[Group],
    batches: Sequence[Batch],
    layout: LayoutName,
    dtype: torch.dtype,
    events: Events,
) -> Tensor:
    sizes = [sum(map(len, group.answers)) for group in groups]
    flat, asked = torch.zeros(sum(sizes)), torch.zeros(sum(sizes))
    parts, known = flat.split(sizes), asked.split(sizes)
    scorer.eval()
    device = device_of(scorer)
    num_done, num_pairs = 0, sum(map(len, batches))
    for places in batches:
        mine = processes.share(places)
        batch = lay_out([groups[place] for place in mine or places[:1]], layout).to(device)
        with attending(scorer.model, layout), autocast(device, dtype):
            logps_N = scorer(batch, Expectation(batch.lengths, 2)).logps_N.cpu()
        if not torch.isfinite(logps_N).all():
            raise DataRejected(
                "the reference gives log-probabilities that are not finite: the weights of the "
                "model folder are damaged, or train.dtype float32 is needed"
            )
        scored = logps_N.split([sizes[place] for place in mine or places[:1]])
        for place, logps in zip(mine, scored, strict=False):
            parts[place].copy_(logps)
            known[place].fill_(1.0)
        num_done += len(places)
        events.progress("reference", num_done, num_pairs, unit="pairs")
    flat, asked = processes.add_up(flat), processes.add_up(asked)
    return flat.masked_fill_(asked == 0, torch.nan)


def _key(groups: Sequence[Group], batches: Sequence[Batch], rest: str) -> str:
    digest = hashlib.sha256(rest.encode())
    for batch in batches:
        digest.update(b"\nbatch")
        for place in batch:
            group = groups[place]
            for tokens in (group.prompt, *group.answers):
                digest.update(f"\n{place} {len(tokens)} ".encode())
                digest.update(array("q", tokens).tobytes())
    return digest.hexdigest()
