"""The DPO objective (Rafailov et al. 2023, eq. 7) and the supervised term that may go with it.

Reads   summed log-probabilities, and margins of them: log p(chosen) - log p(rejected)
Gives   one loss per pair, in the dtype it was handed
Not     masking, summing, averaging: see policy/logprobs.py, trainer.py
Shapes  B pairs in the batch
"""

from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo_loss(policy_margin_B: Tensor, reference_margin_B: Tensor, *, beta: float) -> Tensor:
    """-log sigmoid(beta * (policy margin - reference margin)), eq. 7."""
    return -logsigmoid(reward_margin(policy_margin_B, reference_margin_B, beta=beta))


def reward_margin(policy_margin_B: Tensor, reference_margin_B: Tensor, *, beta: float) -> Tensor:
    """By how much the implicit reward of chosen exceeds that of rejected, in nats times beta."""
    return beta * (policy_margin_B - reference_margin_B)


def sft_loss(chosen_logps_B: Tensor, chosen_tokens_B: Tensor) -> Tensor:
    """-log p(chosen) / tokens: what Pang et al. 2024 (eq. 2) add to DPO, each pair by itself.

    DPO alone may lower the chosen answer as long as the rejected one falls further; this holds the
    chosen one up, its end-of-turn token with it.
    """
    return -chosen_logps_B / chosen_tokens_B
