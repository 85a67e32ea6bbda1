"""A decoding step with shared keys gives what transformers gives, and copies less."""

import pytest
import torch
from tests.tiny import FAMILIES, Family, tiny_model
from transformers import PreTrainedModel
from transformers.integrations import sdpa_attention

from dpoflow.policy.decoding import decoding

ROWS, LONGEST, NEW = 3, 9, 20


def logits(family: Family, *, ours: bool) -> torch.Tensor:
    """[rows, new tokens, vocabulary] of prompts padded on the left by 4, 1 and 0 tokens."""
    model = tiny_model(family)
    ids = torch.randint(5, 300, (ROWS, LONGEST), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[0] * pad + [1] * (LONGEST - pad) for pad in (4, 1, 0)])

    def answer() -> torch.Tensor:
        said = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=False,
            pad_token_id=2,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return torch.stack(said.logits, dim=1)

    if not ours:
        return answer()
    with decoding(model):
        return answer()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers_own_attention(family: Family) -> None:
    found, expected = logits(family, ours=True), logits(family, ours=False)

    assert found.shape == (ROWS, NEW, 384)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_keys_that_heads_share_are_copied_for_the_prompt_alone(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    repeat, positions = sdpa_attention.repeat_kv, []

    def counted(keys: torch.Tensor, times: int) -> torch.Tensor:
        positions.append(keys.shape[2])
        return repeat(keys, times)

    monkeypatch.setattr(sdpa_attention, "repeat_kv", counted)
    logits(family, ours=True)

    assert positions == [LONGEST] * 4  # keys and values of two layers


def test_a_model_is_left_with_the_attention_it_came_with() -> None:
    def of(model: PreTrainedModel) -> str:
        return str(model.config._attn_implementation)  # noqa: SLF001  # the only place that tells

    model = tiny_model()
    with decoding(model):
        assert of(model) != "sdpa"
    assert of(model) == "sdpa"

    model.set_attn_implementation("eager")
    with decoding(model):
        assert of(model) == "eager"
