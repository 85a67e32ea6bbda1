"""Each objective against its paper's formula, in float64 and with math instead of torch."""

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from pydantic import ValidationError

from dpoflow.contracts.objectives import USES, LossName
from dpoflow.contracts.spec import TrainConfig
from dpoflow.train.losses import OBJECTIVES, Scored, dpo_loss, reward_margin, sft_loss


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


# Three pairs: (log p chosen, rejected, the same of the reference, tokens of chosen, of rejected).
PAIRS = [
    (-12.0, -9.0, -11.5, -10.0, 8, 5),
    (-3.0, -7.0, -3.0, -7.0, 2, 4),
    (-40.0, -90.0, -60.0, -50.0, 30, 31),
]
KL = 0.75


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def dpo(c: float, r: float, cr: float, rr: float, n: int, m: int, k: TrainConfig) -> float:
    x = k.beta * ((c - cr) - (r - rr))
    e = k.label_smoothing
    return -(1 - e) * math.log(sigmoid(x)) - e * math.log(sigmoid(-x))


def robust(c: float, r: float, cr: float, rr: float, n: int, m: int, k: TrainConfig) -> float:
    x, e = k.beta * ((c - cr) - (r - rr)), k.label_smoothing
    return ((1 - e) * -math.log(sigmoid(x)) - e * -math.log(sigmoid(-x))) / (1 - 2 * e)


def hinge(c: float, r: float, cr: float, rr: float, n: int, m: int, k: TrainConfig) -> float:
    return max(0.0, 1 - k.beta * ((c - cr) - (r - rr)))


def ipo_sum(c: float, r: float, cr: float, rr: float, n: int, m: int, k: TrainConfig) -> float:
    return float(((c - cr) - (r - rr) - 1 / (2 * k.beta)) ** 2)


def ipo_mean(c: float, r: float, cr: float, rr: float, n: int, m: int, k: TrainConfig) -> float:
    return float(((c - cr) / n - (r - rr) / m - 1 / (2 * k.beta)) ** 2)


def sigmoid_norm(c: float, r: float, cr: float, rr: float, n: int, m: int, k: TrainConfig) -> float:
    return dpo(c / n, r / m, cr / n, rr / m, 1, 1, k)


def simpo(c: float, r: float, cr: float, rr: float, n: int, m: int, k: TrainConfig) -> float:
    return -math.log(sigmoid(k.beta / n * c - k.beta / m * r - k.gamma))


def orpo(c: float, r: float, cr: float, rr: float, n: int, m: int, k: TrainConfig) -> float:
    p, q = math.exp(c / n), math.exp(r / m)
    log_odds = math.log((p / (1 - p)) / (q / (1 - q)))
    return -c / n + k.beta * -math.log(sigmoid(log_odds))


def kto(c: float, r: float, cr: float, rr: float, n: int, m: int, k: TrainConfig) -> float:
    liked = k.desirable_weight * (1 - sigmoid(k.beta * (c - cr - KL)))
    disliked = k.undesirable_weight * (1 - sigmoid(k.beta * (KL - (r - rr))))
    return (liked + disliked) / 2


FORMULAS: list[tuple[TrainConfig, Callable[..., float]]] = [
    (TrainConfig(loss="sigmoid", beta=0.3), dpo),
    (TrainConfig(loss="sigmoid", beta=0.3, label_smoothing=0.1), dpo),
    (TrainConfig(loss="robust", beta=0.3, label_smoothing=0.1), robust),
    (TrainConfig(loss="hinge", beta=0.05), hinge),
    (TrainConfig(loss="ipo_sum", beta=0.05), ipo_sum),
    (TrainConfig(loss="ipo_mean", beta=0.5), ipo_mean),
    (TrainConfig(loss="sigmoid_norm", beta=2.0), sigmoid_norm),
    (TrainConfig(loss="simpo", beta=2.0, gamma=1.2), simpo),
    (TrainConfig(loss="orpo", beta=0.25), orpo),
    (TrainConfig(loss="kto", beta=0.1, desirable_weight=1.5, undesirable_weight=0.5), kto),
]


def whole(*columns: torch.Tensor, kl: torch.Tensor) -> Scored:
    """Pairs of which both answers are given."""
    given = torch.ones_like(columns[0])
    return Scored(*columns, kl=kl, chosen_given_B=given, rejected_given_B=given)


@pytest.mark.parametrize(("knobs", "formula"), FORMULAS, ids=lambda x: getattr(x, "loss", ""))
def test_an_objective_is_its_papers_formula(
    knobs: TrainConfig, formula: Callable[..., float]
) -> None:
    columns = torch.tensor(PAIRS, dtype=torch.float64).unbind(dim=1)

    got = OBJECTIVES[knobs.loss](whole(*columns, kl=torch.tensor(KL)), knobs)

    assert got.tolist() == pytest.approx([formula(*pair, knobs) for pair in PAIRS], rel=1e-12)


def test_every_objective_has_a_formula_here() -> None:
    assert {knobs.loss for knobs, _ in FORMULAS} == set(OBJECTIVES) == set(get_args(LossName))


def test_odds_stay_finite_for_an_answer_that_is_certain() -> None:
    sure, unsure = torch.zeros(1), torch.full((1,), -50.0)
    one = torch.ones(1)

    got = OBJECTIVES["orpo"](
        whole(sure, unsure, sure, sure, one, one, kl=sure), TrainConfig(loss="orpo")
    )

    assert got.tolist() == pytest.approx([0.0], abs=1e-5)


@pytest.mark.parametrize("knob", USES)
@pytest.mark.parametrize("loss", get_args(LossName))
def test_a_knob_that_the_objective_does_not_use_is_refused(loss: LossName, knob: str) -> None:
    needed = {"label_smoothing": 0.2} if loss == "robust" else {}
    given = {"loss": loss, **needed, knob: 0.2}
    if loss in USES[knob]:
        assert TrainConfig.model_validate(given).loss == loss
        return
    with pytest.raises(ValidationError, match=rf"{knob} 0\.2 is not used by loss {loss}"):
        TrainConfig.model_validate(given)


def test_the_robust_loss_asks_how_many_labels_are_wrong() -> None:
    with pytest.raises(ValidationError, match="robust needs label_smoothing"):
        TrainConfig(loss="robust")
