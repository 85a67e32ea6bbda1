"""What is estimated before a training is what a training then needs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_folder, tiny_pairs
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from dpoflow.contracts.spec import LoraConfig, TrainConfig
from dpoflow.policy.attention import arguments, attending
from dpoflow.policy.layout import Group, lay_out
from dpoflow.policy.logprobs import Scorer, answer_sums
from dpoflow.train.estimate import MACHINES, Lengths, estimate
from dpoflow_pipelines.cli import app

SHAPE = {
    "vocab_size": 2000,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
LENGTHS = [Lengths(40 + n, 20 + n, 30 - n) for n in range(4)]


def real() -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    groups = [Group((5,) * one.prompt, ((6,) * one.chosen, (7,) * one.rejected)) for one in LENGTHS]
    return model, lay_out(groups, "packed")


def test_its_operations_are_those_that_torch_counts_but_for_attention() -> None:
    """One epoch of these four pairs, and the pass over the reference."""
    model, batch = real()
    scorer = Scorer(model)
    with attending(model, "packed"), FlopCounterMode(display=False) as learning:
        answer_sums(scorer(batch).logps_N, batch).sum().backward()
    with attending(model, "packed"), FlopCounterMode(display=False) as asking, torch.no_grad():
        scorer(batch)
    seen = learning.get_flop_counts()["Global"]
    asked = asking.get_flop_counts()["Global"]
    seen = {"learning": sum(seen.values()), "asking": sum(asked.values())}

    found = estimate(
        LlamaConfig(**SHAPE), LENGTHS, 4, TrainConfig(batch_size=4, heldout_fraction=0), half=False
    )

    # The head of this test makes its logits twice, which training does not: 2 more of 8.
    again = 2 * 2000 * 128 * sum(one.chosen + one.rejected for one in LENGTHS)
    assert found.flops == pytest.approx(sum(seen.values()) - again, rel=0.1)


def test_what_it_says_is_kept_is_what_autograd_keeps() -> None:
    model, batch = real()
    own, kept = {id(weight) for weight in model.parameters()}, dict[int, Tensor]()

    def keep(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base  # noqa: SLF001
        if id(base) not in own:
            kept[id(base)] = base
        return tensor

    with (
        attending(model, "packed"),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        model.base_model(input_ids=batch.input_ids_RT, use_cache=False, **arguments(batch))
    bytes_kept = sum(each.numel() * each.element_size() for each in kept.values())

    found = estimate(LlamaConfig(**SHAPE), LENGTHS, 4, TrainConfig(batch_size=4), half=False)

    assert found.activations == pytest.approx(bytes_kept, rel=0.05)


def test_every_pass_of_an_objective_is_counted() -> None:
    """By hand, in forward passes of one answer's head: learning is worth three."""

    def passes(**knobs: Any) -> float:
        config = LlamaConfig(**SHAPE)
        asked = TrainConfig(heldout_fraction=0, **knobs)
        # Nothing goes through a trunk of no layers but the head's rows.
        found = estimate(config, LENGTHS, 100, asked)
        one = estimate(config, LENGTHS, 100, TrainConfig(heldout_fraction=0, loss="simpo"))
        return 3 * found.flops / one.flops

    assert passes(loss="simpo") == 3
    assert passes(loss="sigmoid") == 4  # and the reference
    assert passes(loss="kto") == 3 + 1 + 2  # and answers to other prompts, by both
    assert passes(loss="simpo", layout="concat") > 3.5  # the prompt twice


def test_another_reference_lies_beside_the_policy_while_it_is_asked() -> None:
    config = LlamaConfig(**SHAPE)
    adapters = TrainConfig(method="lora", lora=LoraConfig(rank=1), batch_size=1)

    alone = estimate(config, LENGTHS[:1], 100, adapters)
    beside = estimate(config, LENGTHS[:1], 100, adapters, another_reference=True)

    assert beside.memory == pytest.approx(1.1 * 2 * alone.weights)
    assert beside.memory > alone.memory


def test_parameters_are_the_models_and_adapters_those_of_peft() -> None:
    config = LlamaConfig(**SHAPE)
    model, _ = real()

    whole = estimate(config, LENGTHS, 100, TrainConfig())
    adapters = TrainConfig(method="lora", lora=LoraConfig(rank=8))
    some = estimate(config, LENGTHS, 100, adapters)

    assert whole.parameters == whole.trained == sum(w.numel() for w in model.parameters())
    wide, narrow = 128 + 128, 128 + 64
    layer = 2 * wide + 2 * narrow + 3 * (128 + 352)  # q and o, k and v, and the three of the mlp
    assert some.trained == 4 * 8 * layer
    assert some.memory < whole.memory


def test_every_way_to_save_memory_saves_memory() -> None:
    config = LlamaConfig(**SHAPE)

    def memory(devices: int = 1, **knobs: Any) -> float:
        return estimate(config, LENGTHS, 100, TrainConfig(**knobs), devices=devices).memory

    plain = memory()
    assert memory(activation_checkpointing=True) < plain
    assert memory(batch_size=2) < plain
    assert memory(4, backend="torchrun", processes=4, sharding="fsdp") < memory(
        4, backend="torchrun", processes=4
    )
    lora = {"method": "lora", "lora": LoraConfig(rank=4)}
    four = {"method": "lora", "lora": LoraConfig(rank=4, bits=4)}
    assert memory(**four) < memory(**lora) < plain


def test_twice_the_pairs_take_twice_the_hours_and_no_more_memory() -> None:
    config = LlamaConfig(**SHAPE)
    one, two = (estimate(config, LENGTHS, many, TrainConfig()) for many in (1000, 2000))

    assert two.flops == 2 * one.flops
    assert two.memory == one.memory
    low, high = two.hours(MACHINES["A100-80"], 1)
    assert two.hours(MACHINES["A100-80"], 2) == pytest.approx((low / 2, high / 2))
    assert low < high


# ---------------------------------------------------------------- the command


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    tiny_folder(tmp_path / "model")
    rows = [
        {
            "prompt": pair.prompt[0].content,
            "chosen": pair.chosen.content,
            "rejected": pair.rejected.content,
        }
        for pair in tiny_pairs(50)
    ]
    rows.append({"prompt": "only this"})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "align.yaml"
    path.write_text(
        "name: small\nmodel: model\ndata:\n  heldout_fraction: 0.2\n"
        "  sources: [{uri: pairs.jsonl, format: trl}]\n"
    )
    return path


def test_the_command_shows_memory_hours_and_money(spec: Path) -> None:
    ended = CliRunner().invoke(app, ["plan", str(spec), "--gpu", "L4", "--price", "0.7"])

    assert ended.exit_code == 0, ended.output
    for text in ("50 pairs", "about 40 pairs to train on", "L4", "yes", "0.00 to 0.00"):
        assert text in ended.output


def test_the_command_tells_programs_the_same(spec: Path) -> None:
    ended = CliRunner().invoke(app, ["plan", str(spec), "--json", "--gpus", "4", "--price", "2"])

    told = json.loads(ended.output)
    assert told["num_pairs"] == 40
    rows = {row["machine"]: row for row in told["machines"]}
    assert set(rows) == {"this machine", *MACHINES}
    hours = rows["H100"]["hours"]
    assert rows["H100"]["money"] == pytest.approx([8 * each for each in hours])
    assert not (spec.parent / ".dpoflow").exists()  # it spends nothing


def test_a_gpu_that_is_not_in_the_table_is_named_with_those_that_are(spec: Path) -> None:
    ended = CliRunner().invoke(app, ["plan", str(spec), "--gpu", "RTX"])

    assert "--gpu RTX is not known; known: T4, L4" in str(ended.exception)


def test_data_without_a_pair_is_the_datas_fault(spec: Path) -> None:
    ended = CliRunner().invoke(app, ["plan", str(spec), "--set", "train.max_tokens=8"])

    assert "no pair that could be trained on (50 pairs" in str(ended.exception)
