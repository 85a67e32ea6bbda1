"""What the reference thinks of every pair: computed once, kept by content, used by every later run.

Reads   the reference, the plan's first look at each pair
Gives   `reference_logps`: log p of every token, kept under `ROOT/reference/KEY.safetensors`
Not     the policy's own log-probabilities (trainer.py)

KEY is the digest of the model's folder (weights, tokenizer, template), the tokens as they lie in
batches, the layout, the type of products, the device and torch's version: everything the numbers
depend on, and nothing else, so that runs with other learning rates, betas or objectives share them.
Batches belong to it
because bfloat16 rounds a row differently in other company: computed as in training, policy and
reference agree on the first batch to the last bit, and the first loss is ln 2.
"""

import hashlib
import itertools
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpoflow.contracts.errors import DataRejected, ServiceUnavailable
from dpoflow.policy.attention import attending
from dpoflow.policy.dtype import name_of
from dpoflow.policy.head import Expectation
from dpoflow.policy.layout import Group, LayoutName, lay_out
from dpoflow.policy.logprobs import Scorer, autocast, device_of
from dpoflow.state import files
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
    stopped: Callable[[], bool] = lambda: False,
) -> ReferenceLogps:
    """Those of `keep` if all that they depend on is the same, else computed and kept there.

    `scorer` is called only if the reference must be asked. ServiceUnavailable once `stopped`.
    """
    path = kept_at(
        groups, batches, model_digest=model_digest, layout=layout, dtype=dtype, keep=keep
    )
    flat = processes.agreed(_kept(path, events))
    if flat is None:
        flat = _computed(scorer(), groups, batches, layout, dtype, events, stopped)
        if processes.rank() == 0:
            files.replace(path, lambda draft: save_file({"logps": flat}, draft))
    return ReferenceLogps(groups, flat)


def _kept(path: Path, events: Events) -> Tensor | None:
    """What was kept; what a failing disk left of it is computed again."""
    if processes.rank() or not path.is_file():
        return None
    try:
        flat = load_file(path)["logps"]
    except (SafetensorError, KeyError) as error:
        told = f"{path} is damaged ({error}): asking the reference again"
        events.say(told, phase="reference", passing=True)
        return None
    told = f"reference log-probabilities {path.stem[:12]} are there"
    events.say(told, phase="reference", passing=True)
    return flat


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
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    way = f"{layout} {name_of(dtype)} {here} {torch.__version__}"
    key = _key(groups, shares, f"{model_digest} {way}")
    return keep / f"{key}.safetensors"


@torch.no_grad()
def _computed(
    scorer: Scorer,
    groups: Sequence[Group],
    batches: Sequence[Batch],
    layout: LayoutName,
    dtype: torch.dtype,
    events: Events,
    stopped: Callable[[], bool],
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
            logps_N = scorer(batch, Expectation(batch.lengths, 2, figures=False)).logps_N.cpu()
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
        if stopped():
            raise ServiceUnavailable(
                f"stopped by SIGTERM after the reference was asked about {num_done} of {num_pairs} "
                "pairs; the same command asks about them again"
            )
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
