"""Objectives over preference pairs, each beside its equation, and the supervised term.

Reads   summed log-probabilities of answers under policy and reference, and their lengths
Gives   one loss per pair, in the dtype it was handed; `OBJECTIVES` by the name of `train.loss`
Not     masking, summing, averaging: see policy/logprobs.py, trainer.py
Shapes  B pairs in the batch

A new objective is a function here, its line in OBJECTIVES, and its line in contracts/objectives.py,
which says what knobs it uses.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dpoflow.contracts.objectives import LossName
from dpoflow.contracts.spec import TrainConfig


def dpo_loss(
    policy_margin_B: Tensor,
    reference_margin_B: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """-log sigmoid(beta * (policy margin - reference margin)): Rafailov et al. 2023, eq. 7.

    With smoothing, conservative DPO (Mitchell 2023): a label is taken to be wrong that often.
    """
    reward_B = reward_margin(policy_margin_B, reference_margin_B, beta=beta)
    right_B, wrong_B = -logsigmoid(reward_B), -logsigmoid(-reward_B)
    return (1 - label_smoothing) * right_B + label_smoothing * wrong_B


def robust_dpo_loss(
    policy_margin_B: Tensor, reference_margin_B: Tensor, *, beta: float, label_smoothing: float
) -> Tensor:
    """Unbiased where that share of labels is flipped: Chowdhury et al. 2024."""
    reward_B = reward_margin(policy_margin_B, reference_margin_B, beta=beta)
    right_B, wrong_B = -logsigmoid(reward_B), -logsigmoid(-reward_B)
    kept = 1 - 2 * label_smoothing
    return ((1 - label_smoothing) * right_B - label_smoothing * wrong_B) / kept


def hinge_loss(policy_margin_B: Tensor, reference_margin_B: Tensor, *, beta: float) -> Tensor:
    """max(0, 1 - reward margin): SLiC (Zhao et al. 2023) on DPO's margin, as Liu et al. 2023."""
    return (1 - reward_margin(policy_margin_B, reference_margin_B, beta=beta)).clamp(min=0)


def ipo_loss(policy_margin_B: Tensor, reference_margin_B: Tensor, *, tau: float) -> Tensor:
    """(h - 1 / (2 tau))^2 with h the margin over the reference's: Azar et al. 2023, eq. 17."""
    return (policy_margin_B - reference_margin_B - 1 / (2 * tau)).square()


def simpo_loss(
    chosen_mean_B: Tensor, rejected_mean_B: Tensor, *, beta: float, gamma: float
) -> Tensor:
    """-log sigmoid(beta * difference of nats a token - gamma): Meng et al. 2024, eq. 6."""
    return -logsigmoid(beta * (chosen_mean_B - rejected_mean_B) - gamma)


def odds_ratio_loss(chosen_mean_B: Tensor, rejected_mean_B: Tensor) -> Tensor:
    """-log sigmoid(log odds(chosen) / odds(rejected)): Hong et al. 2024, eqs. 4 and 7.

    odds = p / (1 - p), and p is the geometric mean over the answer's tokens.
    """
    return -logsigmoid(_log_odds(chosen_mean_B) - _log_odds(rejected_mean_B))


def _log_odds(mean_B: Tensor) -> Tensor:
    # log(1 - e^x): expm1 keeps the digits near 0, and the bound keeps certainty finite.
    bounded_B = mean_B.clamp(max=-torch.finfo(mean_B.dtype).eps)
    return bounded_B - torch.log(-torch.expm1(bounded_B))


def kto_loss(
    log_ratio_B: Tensor, kl: Tensor, *, desirable: bool, beta: float, weight: float
) -> Tensor:
    """weight * (1 - v), v = sigmoid(±beta * (log ratio - kl)): Ethayarajh et al. 2024.

    Answers are judged one by one, against what the policy has moved by on unrelated ones (`kl`,
    nats, at least 0).
    """
    sign = 1 if desirable else -1
    return weight * (1 - torch.sigmoid(sign * beta * (log_ratio_B - kl)))


def reward_margin(policy_margin_B: Tensor, reference_margin_B: Tensor, *, beta: float) -> Tensor:
    """By how much the implicit reward of chosen exceeds that of rejected, in nats times beta."""
    return beta * (policy_margin_B - reference_margin_B)


def sft_loss(chosen_B: Tensor, chosen_tokens_B: Tensor) -> Tensor:
    """-log p(chosen) / tokens: what Pang et al. 2024 (eq. 2) add to DPO, each pair by itself.

    DPO alone may lower the chosen answer as long as the rejected one falls further; this holds the
    chosen one up, its end-of-turn token with it.
    """
    return -chosen_B / chosen_tokens_B


# ------------------------------------------------------------------------- by name


@dataclass(frozen=True, slots=True)
class Scored:
    """What an objective may look at: B pairs, log-probabilities summed over each answer."""

    chosen_B: Tensor
    rejected_B: Tensor
    chosen_ref_B: Tensor
    rejected_ref_B: Tensor
    chosen_tokens_B: Tensor
    rejected_tokens_B: Tensor
    kl: Tensor
    """KTO's z0; 0 for every other objective."""
    chosen_given_B: Tensor
    """1 where there is a chosen answer; 0 where a rating stands for a pair."""
    rejected_given_B: Tensor

    @property
    def policy_margin(self) -> Tensor:
        """log p(chosen) - log p(rejected): B of them."""
        return self.chosen_B - self.rejected_B

    @property
    def reference_margin(self) -> Tensor:
        """The same of the reference."""
        return self.chosen_ref_B - self.rejected_ref_B

    def by_token(self) -> "Scored":
        """The same with means over tokens in place of sums."""
        return Scored(
            self.chosen_B / self.chosen_tokens_B,
            self.rejected_B / self.rejected_tokens_B,
            self.chosen_ref_B / self.chosen_tokens_B,
            self.rejected_ref_B / self.rejected_tokens_B,
            self.chosen_tokens_B,
            self.rejected_tokens_B,
            self.kl,
            self.chosen_given_B,
            self.rejected_given_B,
        )


def _smoothed(loss: Callable[..., Tensor]) -> "Objective":
    """DPO and its robust form take the same knobs."""
    return lambda of, knobs: loss(
        of.policy_margin,
        of.reference_margin,
        beta=knobs.beta,
        label_smoothing=knobs.label_smoothing,
    )


def _hinge(of: Scored, knobs: TrainConfig) -> Tensor:
    return hinge_loss(of.policy_margin, of.reference_margin, beta=knobs.beta)


def _ipo(of: Scored, knobs: TrainConfig) -> Tensor:
    return ipo_loss(of.policy_margin, of.reference_margin, tau=knobs.beta)


def _simpo(of: Scored, knobs: TrainConfig) -> Tensor:
    mean = of.by_token()
    return simpo_loss(mean.chosen_B, mean.rejected_B, beta=knobs.beta, gamma=knobs.gamma)


def _orpo(of: Scored, knobs: TrainConfig) -> Tensor:
    """Hong et al. 2024, eq. 6: their lambda is our beta."""
    mean = of.by_token()
    supervised_B = sft_loss(of.chosen_B, of.chosen_tokens_B)
    return supervised_B + knobs.beta * odds_ratio_loss(mean.chosen_B, mean.rejected_B)


def _kto(of: Scored, knobs: TrainConfig) -> Tensor:
    """A pair is two answers, one of each kind, and its loss their mean; a rating is one."""
    liked_B = kto_loss(
        of.chosen_B - of.chosen_ref_B,
        of.kl,
        desirable=True,
        beta=knobs.beta,
        weight=knobs.desirable_weight,
    )
    disliked_B = kto_loss(
        of.rejected_B - of.rejected_ref_B,
        of.kl,
        desirable=False,
        beta=knobs.beta,
        weight=knobs.undesirable_weight,
    )
    many_B = of.chosen_given_B + of.rejected_given_B
    return (of.chosen_given_B * liked_B + of.rejected_given_B * disliked_B) / many_B


Objective = Callable[[Scored, TrainConfig], Tensor]

OBJECTIVES: dict[LossName, Objective] = {
    "sigmoid": _smoothed(dpo_loss),
    "robust": _smoothed(robust_dpo_loss),
    "hinge": _hinge,
    "ipo_sum": _ipo,
    "ipo_mean": lambda of, knobs: _ipo(of.by_token(), knobs),
    "sigmoid_norm": lambda of, knobs: _smoothed(dpo_loss)(of.by_token(), knobs),
    "simpo": _simpo,
    "orpo": _orpo,
    "kto": _kto,
}
