"""The DPO objective (Rafailov et al. 2023, eq. 7) and nothing else.

Reads   margins of summed log-probabilities, log p(chosen) - log p(rejected), policy and reference
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
