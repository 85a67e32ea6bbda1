"""The figures of one update: sums over its batches, told as means.

Reads   what an objective saw of each batch
Gives   `Figures`, `rewards`
Not     where figures go (trainer.py), what they warn of (alarms.py)
Shapes  B pairs in the batch, N answer tokens
"""

import resource
import time
from collections import defaultdict

import torch
from torch import Tensor

from dpoflow.contracts.objectives import REFERENCE_FREE
from dpoflow.contracts.spec import TrainConfig
from dpoflow.policy.head import TokenScores
from dpoflow.policy.layout import Batch
from dpoflow.train import processes
from dpoflow.train.losses import Scored, sft_loss


def rewards(of: Scored, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """Implicit rewards of (chosen_B, rejected_B): beta times the log-ratio to the reference.

    Of whole answers, as TRL reports them, also for objectives that compare by token. Without a
    reference, beta times nats a token (Meng et al. 2024, eq. 4).
    """
    if config.loss in REFERENCE_FREE:
        mean = of.by_token()
        return config.beta * mean.chosen_B, config.beta * mean.rejected_B
    return (
        config.beta * (of.chosen_B - of.chosen_ref_B),
        config.beta * (of.rejected_B - of.rejected_ref_B),
    )


class Figures:
    """Sums over pairs and over tokens; `means()` divides them."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self.began = time.monotonic()

    def add(
        self,
        config: TrainConfig,
        batch: Batch,
        of: Scored,
        scores: TokenScores,
        reference_N: Tensor | None,
        loss_B: Tensor,
    ) -> Tensor:
        """Count one batch; gives the reward margin of each pair."""
        with torch.no_grad():
            chosen_B, rejected_B = rewards(of, config)
            up_B, down_B = of.chosen_given_B, of.rejected_given_B
            # An answer by itself is held against what the policy has moved by anyway.
            moved = config.beta * of.kl
            margin_B = torch.where(up_B > 0, chosen_B, moved) - torch.where(
                down_B > 0, rejected_B, moved
            )
            every_B = torch.ones_like(up_B)
            by_pair = {
                "loss": (loss_B, every_B),
                "sft_loss": (sft_loss(of.chosen_B, of.chosen_tokens_B), up_B),
                "reward_chosen": (chosen_B, up_B),
                "reward_rejected": (rejected_B, down_B),
                "reward_margin": (margin_B, every_B),
                "reward_accuracy": (margin_B > 0, every_B),
                "chosen_logps": (of.chosen_B, up_B),
                "rejected_logps": (of.rejected_B, down_B),
                "chosen_tokens": (of.chosen_tokens_B, up_B),
                "rejected_tokens": (of.rejected_tokens_B, down_B),
            }
            given_N, chosen_N = _tokens_of(batch, up_B, down_B)
            by_token = {
                "entropy": (scores.entropy_N, given_N),
                "token_accuracy": (scores.top_N, chosen_N),
            }
            if reference_N is not None:
                gap_N = reference_N.to(scores.logps_N.device) - scores.logps_N
                # Schulman's k3 on the data's own tokens: never negative, 0 where nothing moved.
                by_token["kl"] = (gap_N.exp() - 1 - gap_N, given_N)
        for name, (values, weights) in {**by_pair, **by_token}.items():
            total = (values.detach().double() * weights.to(values.device)).sum()
            self._count(name, float(total), int(weights.sum()))
        self._count("fed", batch.num_tokens, 0)
        return margin_B

    def _count(self, name: str, total: float, many: int) -> None:
        for key, value in ((name, total), (f"{name} n", many)):
            self._sums[key] = self._sums.get(key, 0.0) + value

    def means(self, of: str) -> dict[str, float]:
        """Every figure by its name in MLflow, over the pairs of all processes."""
        sums: defaultdict[str, float] = defaultdict(float)
        for each in processes.gather(self._sums):
            for name, total in each.items():
                sums[name] += total
        spent = max(time.monotonic() - self.began, 1e-9)
        names = [name for name in sums if sums.get(f"{name} n")]
        return {
            **{f"{of}/{name}": sums[name] / sums[f"{name} n"] for name in names},
            f"{of}/pairs_per_s": sums["loss n"] / spent,
            f"{of}/tokens_per_s": sums["fed"] / spent,
        }


def peak_mib() -> float:
    """The most memory that this process has held: of its GPU, where it has one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _tokens_of(batch: Batch, chosen_B: Tensor, rejected_B: Tensor) -> tuple[Tensor, Tensor]:
    """1 for each token of an answer that is given, and for each of a chosen one."""
    given_A = torch.stack([chosen_B, rejected_B], 1).flatten()
    chosen_A = torch.stack([chosen_B, torch.zeros_like(rejected_B)], 1).flatten()
    lengths_A = torch.tensor(batch.lengths, device=given_A.device)
    return given_A.repeat_interleave(lengths_A), chosen_A.repeat_interleave(lengths_A)
