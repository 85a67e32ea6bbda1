"""Log-probabilities against a loop that anybody can check, in float64."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.tiny import FAMILIES, Family, tiny_model, tiny_tokenizer
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from dpoflow.contracts.errors import ConfigError
from dpoflow.contracts.pairs import Message
from dpoflow.policy import head as policy_head
from dpoflow.policy.attention import attending, why_concat
from dpoflow.policy.flex import Masks
from dpoflow.policy.layout import Group, LayoutName, lay_out
from dpoflow.policy.logprobs import (
    Scorer,
    answer_nll,
    answer_sums,
    check_head,
    choose_layout,
    pair_logps,
)
from dpoflow.policy.tokenise import EncodedPair
from dpoflow.state.events import Events

GROUPS = (
    Group((5, 9, 300), ((17, 18, 19, 2), (40, 2))),
    Group((7,), ((50, 51, 52, 53, 54, 55, 2), (60, 61, 2))),
    Group((8, 8, 8, 8, 8, 8, 30), ((99, 2), (98, 97, 96, 95, 2))),
)


def by_hand(model: nn.Module, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """One token at a time, one prefix at a time, with math."""
    model, total = model.double(), 0.0
    for end in range(len(answer)):
        prefix = torch.tensor([[*prompt, *answer[:end]]])
        logits = model(input_ids=prefix).logits[0, -1].tolist()
        largest = max(logits)
        norm = largest + math.log(math.fsum(math.exp(logit - largest) for logit in logits))
        total += logits[answer[end]] - norm
    return total


LAYOUTS = pytest.mark.parametrize("layout", ["packed", "shared", "concat"])


def answer_logps(model: nn.Module, groups: Sequence[Group], layout: LayoutName) -> torch.Tensor:
    batch = lay_out(groups, layout)
    with attending(model, layout):
        return answer_sums(Scorer(model)(batch).logps_N, batch)


@LAYOUTS
@pytest.mark.parametrize("family", FAMILIES)
def test_the_summed_log_probability_is_that_of_a_loop_over_tokens(
    family: Family, layout: LayoutName
) -> None:
    got = answer_logps(tiny_model(family), GROUPS, layout).tolist()

    slow = tiny_model(family)
    expected = [by_hand(slow, each.prompt, answer) for each in GROUPS for answer in each.answers]

    assert got == pytest.approx(expected, abs=2e-4)


@LAYOUTS
@pytest.mark.parametrize("family", FAMILIES)
def test_neither_company_nor_slices_change_an_answers_log_probability(
    family: Family, monkeypatch: pytest.MonkeyPatch, layout: LayoutName
) -> None:
    model = tiny_model(family).double()
    alone = torch.cat([answer_logps(model, [group], layout) for group in GROUPS])

    monkeypatch.setattr(policy_head, "SLICE", 1)
    together = answer_logps(model, GROUPS, layout)

    assert together.tolist() == pytest.approx(alone.tolist(), rel=1e-6)


@LAYOUTS
@pytest.mark.parametrize("slice_size", [1 << 22, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_plain_logits(
    family: Family, slice_size: int, monkeypatch: pytest.MonkeyPatch, layout: LayoutName
) -> None:
    monkeypatch.setattr(policy_head, "SLICE", slice_size)
    model, plain = tiny_model(family).double(), tiny_model(family).double()
    weights = torch.tensor([1.0, -2.0, 0.5, 0.0, -1.0, 3.0]).double()

    (answer_logps(model, GROUPS, layout) * weights).sum().backward()
    answers = [(group.prompt, answer) for group in GROUPS for answer in group.answers]
    for weight, (prompt, answer) in zip(weights, answers, strict=True):
        logits = plain(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
        rows = logits[len(prompt) - 1 : -1].log_softmax(dim=-1)
        (rows.gather(1, torch.tensor(answer).unsqueeze(1)).sum() * weight).backward()

    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        gap = (ours.grad - theirs.grad).norm() / theirs.grad.norm().clamp(min=1e-9)
        assert gap < 1e-6, name  # norms and rotations are float32 inside


def test_a_head_with_bias_or_adapters_gives_what_log_softmax_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Adapted(nn.Linear):
        """Anything but nn.Linear itself takes the other way."""

    torch.manual_seed(0)
    hidden, targets = torch.randn(11, 8).double(), torch.randint(0, 30, (11,))
    monkeypatch.setattr(policy_head, "SLICE", 1)
    for kind in (nn.Linear, Adapted):
        layer = kind(8, 30).double()
        ours, theirs = (hidden.clone().requires_grad_() for _ in range(2))

        got = policy_head.token_scores(layer, ours, targets).logps_N
        expected = layer(theirs).log_softmax(dim=1).gather(1, targets.unsqueeze(1)).squeeze(1)

        assert torch.allclose(got, expected)
        wanted = [ours, layer.weight, layer.bias]
        got_grads = torch.autograd.grad(got.pow(2).sum(), wanted)
        grads = torch.autograd.grad(expected.pow(2).sum(), [theirs, layer.weight, layer.bias])
        assert all(map(torch.allclose, got_grads, grads))


@pytest.mark.parametrize("slice_size", [1 << 22, 1])
def test_entropy_and_best_token_are_those_of_the_whole_distribution(
    slice_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_head, "SLICE", slice_size)
    torch.manual_seed(0)
    layer, hidden = nn.Linear(8, 300).double(), 9 * torch.randn(40, 8).double()
    targets = layer(hidden).topk(2).indices[torch.arange(40), torch.arange(40) % 2]

    got = policy_head.token_scores(layer, hidden, targets)

    whole = torch.distributions.Categorical(logits=layer(hidden))
    assert torch.allclose(got.entropy_N, whole.entropy())
    assert got.top_N.tolist() == [True, False] * 20


@pytest.mark.parametrize("frozen", [True, False])
def test_the_backward_pass_of_the_head_is_the_derivative_of_its_forward_pass(
    monkeypatch: pytest.MonkeyPatch, *, frozen: bool
) -> None:
    monkeypatch.setattr(policy_head, "SLICE", 1)
    torch.manual_seed(0)
    layer = nn.Linear(4, 200).double().requires_grad_(not frozen)
    hidden, targets = torch.randn(3, 4).double().requires_grad_(), torch.randint(0, 200, (3,))

    def scored(rows: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return policy_head.token_scores(layer, rows, targets).logps_N

    assert torch.autograd.gradcheck(scored, (hidden, *layer.parameters()))


@pytest.mark.parametrize("part", [1 << 25, 1800, 900])
@pytest.mark.parametrize("right", [True, False], ids=["expected", "surprised"])
def test_gradients_made_on_expectation_are_exact_whether_it_was_right_or_wrong(
    part: int, monkeypatch: pytest.MonkeyPatch, *, right: bool
) -> None:
    """1800: a pair at a time; 900: no pair fits, so nothing is expected."""
    monkeypatch.setattr(policy_head, "PART", part)
    torch.manual_seed(0)
    ours, theirs = (nn.Linear(8, 300).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    rows = [torch.randn(11, 8).double().mul(3).requires_grad_() for _ in range(2)]
    rows[1].data.copy_(rows[0].data)
    targets, lengths = torch.randint(0, 300, (11,)), (2, 3, 5, 1)
    steep = torch.tensor([0.5, -0.25, 2.0, -1.0]).double()

    def slopes(among: slice, sums: torch.Tensor) -> torch.Tensor:
        return steep[among] if right else steep[among] * sums

    expectation = policy_head.Expectation(lengths, 2, slopes)
    got = policy_head.token_scores(ours, rows[0], targets, expectation)
    plain = theirs(rows[1]).log_softmax(dim=1)
    expected = plain.gather(1, targets.unsqueeze(1)).squeeze(1)
    weights = steep.repeat_interleave(torch.tensor(lengths)) / 7
    for logps in (got.logps_N, expected):
        (logps * weights).sum().backward()

    assert torch.allclose(got.logps_N, expected)
    assert torch.allclose(got.entropy_N, -(plain.exp() * plain).sum(dim=1))
    assert got.top_N.tolist() == (plain.argmax(dim=1) == targets).tolist()
    for mine, other in (
        (rows[0], rows[1]),
        *zip(ours.parameters(), theirs.parameters(), strict=True),
    ):
        assert mine.grad is not None
        assert other.grad is not None
        assert torch.allclose(mine.grad, other.grad)


def test_without_figures_log_probabilities_are_the_same_to_the_bit() -> None:
    """Policy and reference must agree on the first batch, and only one of them needs figures."""
    torch.manual_seed(0)
    layer, rows = nn.Linear(8, 300), torch.randn(11, 8).mul(3)
    targets, lengths = torch.randint(0, 300, (11,)), (2, 3, 5, 1)

    told, bare = (
        policy_head.token_scores(
            layer, rows, targets, policy_head.Expectation(lengths, 2, slopes, figures=figures)
        )
        for slopes, figures in ((lambda among, sums: sums, True), (None, False))
    )

    assert torch.equal(told.logps_N, bare.logps_N)
    assert bare.entropy_N.isnan().all()


def test_bfloat16_products_stay_near_float32_and_leave_float32_gradients() -> None:
    exact, model = tiny_model(), tiny_model()
    expected = answer_logps(exact, GROUPS, "packed")
    expected.sum().backward()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = answer_logps(model, GROUPS, "packed")
    got.sum().backward()

    assert got.dtype == torch.float32
    assert got.tolist() == pytest.approx(expected.tolist(), rel=0.02)
    for ours, theirs in zip(model.parameters(), exact.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert ours.grad.dtype == torch.float32
        assert (ours.grad - theirs.grad).norm() < 0.1 * theirs.grad.norm()


@LAYOUTS
@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_a_sliding_window_hides_from_an_answer_what_it_hides_in_a_row_of_its_own(
    family: Family, layout: LayoutName
) -> None:
    model, wide = tiny_model(family, window=4).double(), tiny_model(family).double()

    got = answer_logps(model, GROUPS, layout)

    expected = [by_hand(model, each.prompt, answer) for each in GROUPS for answer in each.answers]
    assert got.tolist() == pytest.approx(expected, abs=1e-5)
    assert (got - answer_logps(wide, GROUPS, layout)).abs().max() > 0.01


def test_models_that_cannot_share_prompts_say_why_and_go_side_by_side() -> None:
    recurrent, unknown, eager = tiny_model("qwen2"), tiny_model("qwen2"), tiny_model("qwen2")
    recurrent.config.layer_types = ["full_attention", "linear_attention"]
    unknown.config.model_type = "novel"
    eager.set_attn_implementation("eager")

    for model, why in ((recurrent, "linear_attention"), (unknown, "novel"), (eager, "eager")):
        assert why in str(why_concat(model))
        assert choose_layout(model, "auto") == "concat"
        with pytest.raises(ConfigError, match=f"train.layout packed.*{why}"):
            choose_layout(model, "packed")
    assert choose_layout(tiny_model("qwen2"), "auto") == "packed"


@pytest.mark.parametrize("layout", ["packed", "shared"])
@pytest.mark.parametrize("window", [None, 4])
def test_the_mask_of_a_gpu_lets_each_token_see_what_a_row_of_its_own_would_show_it(
    layout: LayoutName, window: int | None
) -> None:
    batch = lay_out(GROUPS, layout)
    assert batch.spans is not None
    assert batch.position_ids_RT is not None
    rows, width = batch.input_ids_RT.shape
    sees = Masks(batch.spans, (rows, width)).rule(window, torch.device("cpu"))
    everywhere = torch.arange(width)

    for span in batch.spans:
        prompt = list(range(span.start, span.start + span.prompt))
        begin = prompt[-1] + 1
        for length in span.answers:
            alone = prompt + list(range(begin, begin + length))
            for at, place in enumerate(alone):
                seen = sees(
                    torch.tensor(span.row), torch.tensor(0), torch.tensor(place), everywhere
                )
                first = 0 if window is None else max(0, at - window + 1)
                assert everywhere[seen].tolist() == alone[first : at + 1]
            begin += length


def test_after_scoring_a_model_attends_as_it_did_before() -> None:
    model = tiny_model()
    tokens = torch.arange(3, 40).unsqueeze(0)
    before = model(input_ids=tokens).logits

    answer_logps(model, GROUPS, "packed")

    assert torch.equal(model(input_ids=tokens).logits, before)


def test_pairs_come_back_in_their_order_however_they_are_batched(tmp_path: Path) -> None:
    model, events = tiny_model(), Events(tmp_path / "events.jsonl", "test")
    pairs = [
        EncodedPair(str(n), g.prompt, g.answers[0], g.answers[1]) for n, g in enumerate(GROUPS)
    ]

    results = [
        pair_logps(model, pairs, batch_size=n, dtype=torch.float32, events=events, phase="test")
        for n in (1, 2, 3)
    ]

    expected = [by_hand(tiny_model(), each.prompt, each.chosen) for each in pairs]
    for chosen, _ in results:
        assert chosen == pytest.approx(expected, abs=2e-4)


def test_the_likelihood_of_text_counts_its_tokens_without_the_end_of_turn(tmp_path: Path) -> None:
    tokenizer, events = tiny_tokenizer(), Events(tmp_path / "events.jsonl", "test")
    prompts = [(Message(role="user", content="the sea?"),)] * 2

    got = answer_nll(
        tiny_model(),
        tokenizer,
        prompts,
        ["blue and calm", ""],
        batch_size=2,
        dtype=torch.float32,
        events=events,
        phase="test",
    )

    words = tokenizer("blue and calm")["input_ids"]
    opening = tokenizer(
        "<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n"
        "<|im_start|>user\nthe sea?<|im_end|>\n<|im_start|>assistant\n"
    )["input_ids"]
    assert got[0][0] == pytest.approx(-by_hand(tiny_model(), opening, words), abs=2e-4)
    assert got[0][1] == len(words)
    assert got[1] == (0.0, 0)


def test_a_model_that_caps_its_logits_after_the_head_is_refused() -> None:
    config = Gemma2Config(
        vocab_size=384,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        final_logit_softcapping=0.5,
    )

    with pytest.raises(ConfigError, match="gemma2"):
        check_head(Gemma2ForCausalLM(config))
