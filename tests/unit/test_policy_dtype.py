"""The type of matrix products is measured once and then kept."""

import json
from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_model

from dpoflow.policy import dtype
from dpoflow.policy.dtype import choose, name_of


@pytest.fixture(autouse=True)
def fresh_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtype, "_probed", {})
    monkeypatch.setattr(dtype, "NARROWEST", 0)


@pytest.mark.parametrize("named", ["float32", "bfloat16"])
def test_a_type_that_is_named_is_taken(named: dtype.DtypeName, tmp_path: Path) -> None:
    assert name_of(choose(named, tiny_model(), remember=tmp_path / "dtype.json")) == named
    assert not (tmp_path / "dtype.json").exists()


def test_a_probe_is_written_down_and_believed_ever_after_for_its_shapes(tmp_path: Path) -> None:
    path = tmp_path / "dtype.json"

    first = choose("auto", tiny_model(), remember=path)

    (name,) = json.loads(path.read_text())
    assert json.loads(path.read_text()) == {name: name_of(first)}
    other = "bfloat16" if first == torch.float32 else "float32"
    path.write_text(json.dumps({name: other}))
    assert name_of(choose("auto", tiny_model(), remember=path)) == other
    choose("auto", tiny_model("gpt2"), remember=path)
    assert len(json.loads(path.read_text())) == 2


def test_a_narrow_model_is_not_probed_and_settles_nothing_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtype, "NARROWEST", 256)

    assert choose("auto", tiny_model(), remember=tmp_path / "dtype.json") == torch.float32
    assert not (tmp_path / "dtype.json").exists()


@pytest.mark.parametrize(
    ("float32_s", "bfloat16_s", "chosen"),
    [(1.0, 0.5, "bfloat16"), (1.0, 0.9, "float32"), (1.0, 1.1, "float32"), (1.2, 1.0, "bfloat16")],
)
def test_bfloat16_must_be_a_fifth_faster(
    monkeypatch: pytest.MonkeyPatch, float32_s: float, bfloat16_s: float, chosen: str
) -> None:
    def seconds(operands: list[tuple[torch.Tensor, torch.Tensor]], device: str) -> float:
        return float32_s if operands[0][0].dtype == torch.float32 else bfloat16_s

    monkeypatch.setattr(dtype, "_seconds", seconds)

    assert name_of(choose("auto", tiny_model())) == chosen


def test_a_narrow_model_is_not_probed_because_its_answer_would_flip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dtype, "NARROWEST", 256)
    monkeypatch.setattr(dtype, "_probe", lambda *_: "bfloat16")

    assert name_of(choose("auto", tiny_model())) == "float32"
