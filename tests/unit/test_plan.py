"""What is estimated before a training is what a training then needs."""

import hashlib
import json
import re
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
from dpoflow.validate.split import side_of
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
    for text in ("50 pairs", "about 42 pairs to train on", "L4", "yes", "0.00 to 0.00"):
        assert text in ended.output


def test_pairs_to_train_on_are_those_that_validates_split_leaves(spec: Path) -> None:
    def left(seed: int) -> int:
        asked = (pair.prompt[0].content for pair in tiny_pairs(50))
        ids = (
            hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest() for text in asked
        )
        return sum(side_of(each, seed=seed, heldout_fraction=0.2) == "train" for each in ids)

    def told(seed: int) -> Any:
        asked = ["plan", str(spec), "--json", "--set", f"data.seed={seed}"]
        return json.loads(CliRunner().invoke(app, asked).output)["num_pairs"]

    assert [told(seed) for seed in (1, 2)] == [left(seed) for seed in (1, 2)]
    assert {left(1), left(2)} != {42}


def test_hours_of_a_second_are_no_hours_and_no_price_is_no_column(spec: Path) -> None:
    ended = CliRunner().invoke(app, ["plan", str(spec)])

    assert "under 1 s" in ended.output
    assert "e-0" not in ended.output
    assert "money" not in ended.output.replace("gives money", "")


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        ("data.min_pairs=1000", r"min_pairs asks for 1,000 .* 42 at most.*lower data.min"),
        ("train.max_tokens=37", r"\d+ of the \d+ pairs looked at would not be .* \d+ too_long"),
        ("train.max_tokens=999", "the model reads 256 tokens at most: train.max_tokens 999"),
    ],
)
def test_what_would_end_or_thin_the_training_is_told_before_it(
    spec: Path, sets: str, words: str
) -> None:
    plain = CliRunner().invoke(app, ["plan", str(spec), "--set", "train.max_tokens=256"])
    ended = CliRunner().invoke(app, ["plan", str(spec), "--set", sets])
    told = CliRunner().invoke(app, ["plan", str(spec), "--json", "--set", sets])

    assert "warning" not in plain.output
    assert re.search(f"warning: .*{words}", ended.output), ended.output
    assert re.search(words, json.loads(told.output)["warnings"][0])


def test_prompts_without_room_for_an_answer_are_counted_as_dropped(spec: Path) -> None:
    rows = [{"prompt": "the sea is blue and calm " * (1 + 8 * (n % 2))} for n in range(40)]
    text = "".join(json.dumps(row | {"slice": str(n)}) + "\n" for n, row in enumerate(rows))
    (spec.parent / "pairs.jsonl").write_text(text.replace("the sea", "the  sea"))
    checks = "checks: [{name: long, kind: word_count, half: judge, min: 6, max: 60, falloff: 6}]"
    spec.write_text(
        "name: small\nmodel: model\ntrain: {max_tokens: 60}\n"
        "data: {heldout_fraction: 0.01, sources: [{uri: pairs.jsonl, format: prompts}]}\n"
        "synthesize: {sampling: {max_new_tokens: 20}, judge: {rubric: {" + checks + "}}}\n"
    )

    ended = CliRunner().invoke(app, ["plan", str(spec)])

    assert "20 of the 40 pairs looked at would not be trained on: 20 too_long" in ended.output


def test_a_gpu_that_is_asked_for_and_not_here_is_not_said_to_fit(
    spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = ["plan", str(spec), "--gpu", "L4", "--set", "train.device=cuda"]

    ended = CliRunner().invoke(app, asked)
    told = json.loads(CliRunner().invoke(app, [*asked, "--json"]).output)["machines"]

    assert re.search(r"this machine +\? +not known +\?", ended.output)
    assert "this machine: no GPU, which train.device cuda asks for" in ended.output
    assert [(row["machine"], row["fits"]) for row in told] == [("this machine", None), ("L4", True)]


def test_a_sweep_takes_the_time_of_all_its_points_and_the_memory_of_the_largest(spec: Path) -> None:
    def plan(*words: str) -> Any:
        ended = CliRunner().invoke(app, ["plan", str(spec), "--json", *words])
        assert ended.exit_code == 0, ended.output
        return json.loads(ended.output)

    def hours(told: Any) -> Any:
        return next(row["hours"] for row in told["machines"] if row["machine"] == "T4")

    small, large = (plan("--set", f"train.batch_size={size}") for size in (2, 8))
    together = [2 * (one + other) for one, other in zip(hours(small), hours(large), strict=True)]
    both = plan("--grid", "train.batch_size=2,8", "--grid", "train.beta=0.1,0.2")

    assert [point["sets"] for point in both["points"]] == [
        [f"train.batch_size={size}", f"train.beta={beta}"] for size in (2, 8) for beta in (0.1, 0.2)
    ]
    assert hours(both) == pytest.approx(together)
    assert [point["memory_bytes"] for point in both["points"]] == [
        each["memory_bytes"] for each in (small, small, large, large)
    ]
    shown = CliRunner().invoke(app, ["plan", str(spec), "--grid", "train.batch_size=2,8"])
    assert "2 points, one after another" in shown.output


def test_the_command_tells_programs_the_same(spec: Path) -> None:
    ended = CliRunner().invoke(app, ["plan", str(spec), "--json", "--gpus", "4", "--price", "2"])

    told = json.loads(ended.output)
    assert told["num_pairs"] == 42
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

    assert "no pair that could be trained on (42 pairs" in str(ended.exception)
