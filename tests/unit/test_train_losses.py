"""The objective against the paper's formula."""

import math

import pytest
import torch

from dpoflow.train.losses import dpo_loss, reward_margin, sft_loss


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("margin", [-40.0, -1.0, 0.0, 1.0, 40.0])
def test_dpo_loss_equals_the_papers_formula_in_float64(margin: float, beta: float) -> None:
    reference, policy = torch.tensor([2.5]).double(), torch.tensor([2.5 + margin]).double()

    expected = math.log1p(math.exp(-beta * margin))  # eq. 7 with math, not torch

    got = dpo_loss(policy, reference, beta=beta).item()
    assert got == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_dpo_loss_stays_finite_where_the_formula_would_overflow() -> None:
    far, zero = torch.tensor([-1e5]), torch.zeros(1)

    assert dpo_loss(far, zero, beta=0.1).item() == pytest.approx(1e4)


def test_the_gradient_is_beta_times_the_chance_of_being_wrong() -> None:
    policy = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)

    dpo_loss(policy, torch.zeros(1).double(), beta=0.2).sum().backward()

    assert policy.grad is not None
    assert policy.grad.item() == pytest.approx(-0.2 / (1 + math.exp(0.6)), rel=1e-12)


def test_a_policy_that_is_its_reference_has_no_reward_margin() -> None:
    margin = torch.tensor([-7.0, 3.0])

    assert reward_margin(margin, margin, beta=0.1).tolist() == [0.0, 0.0]


def test_the_supervised_term_is_nats_a_token_of_each_chosen_answer() -> None:
    chosen = [[0.5, 0.25], [0.125, 0.5, 0.5, 0.5]]  # probabilities of each token
    logps = torch.tensor([sum(map(math.log, tokens)) for tokens in chosen], dtype=torch.float64)

    found = sft_loss(logps, torch.tensor([len(tokens) for tokens in chosen]))

    assert found.tolist() == pytest.approx([1.5 * math.log(2), 1.5 * math.log(2)], rel=1e-12)
