"""The spec: what it refuses, and whether its errors say where and what would do."""

from pathlib import Path

import pytest

from dpoflow.contracts.errors import ConfigError
from dpoflow.contracts.spec_file import load_spec

GOOD = """\
name: small
model: ./model
seed: 7
data:
  sources:
    - uri: pairs.jsonl
train:
  beta: 0.2
"""


def written(folder: Path, text: str = GOOD) -> Path:
    path = folder / "align.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def message(folder: Path, text: str = GOOD, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_spec(written(folder, text), overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_paths_in_the_file_start_at_the_files_folder(tmp_path: Path) -> None:
    spec = load_spec(written(tmp_path))

    assert spec.model == str(tmp_path / "model")
    assert spec.data.sources[0].uri == str(tmp_path / "pairs.jsonl")


def test_paths_in_overrides_start_where_the_user_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    spec = load_spec(written(tmp_path), ["data.sources=[{uri: ../mine.jsonl}]", "train.beta=0.05"])

    assert spec.data.sources[0].uri == str(tmp_path / "mine.jsonl")
    assert spec.train.beta == 0.05


def test_the_specs_seed_reaches_every_section_that_names_none(tmp_path: Path) -> None:
    spec = load_spec(written(tmp_path), ["evaluate.seed=9"])

    assert (spec.data.seed, spec.train.seed, spec.synthesize.seed, spec.evaluate.seed) == (
        7,
        7,
        7,
        9,
    )


def test_moving_the_data_changes_only_what_the_snapshot_is_told(tmp_path: Path) -> None:
    here = load_spec(written(tmp_path)).arguments()
    there = load_spec(written(tmp_path), ["data.sources=[{uri: other.jsonl}]"]).arguments()

    assert {key for key in here if here[key] != there[key]} == {"snapshot_config"}


def test_an_unknown_key_is_refused_with_the_nearest_name_and_its_line(tmp_path: Path) -> None:
    told = message(tmp_path, GOOD.replace("  beta:", "  betta:"))

    assert "train.betta" in told
    assert "did you mean train.beta?" in told
    assert "align.yaml, line 8" in told


def test_a_key_in_the_wrong_section_is_told_where_it_belongs(tmp_path: Path) -> None:
    assert "did you mean train.learning_rate?" in message(
        tmp_path, GOOD + "learning_rate: 1.0e-5\n"
    )


def test_a_bad_override_is_blamed_on_the_override_not_on_a_line(tmp_path: Path) -> None:
    told = message(tmp_path, GOOD, "train.beta=-0.1")

    assert "train.beta must be > 0" in told
    assert "got -0.1" in told
    assert "--set train.beta" in told
    assert "line" not in told


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("beta: 0.2", "beta: 0"), "train.beta must be > 0, got 0;"),
        (("beta: 0.2", "beta: high"), "train.beta must be a valid number"),
        (("beta: 0.2", "loss: ipo2"), "train.loss must be one of"),
        (("beta: 0.2", "beta: .nan"), "train.beta"),
        (("name: small", "name: '../up'"), "name must"),
        (("model: ./model", ""), "model is missing"),
        (("    - uri: pairs.jsonl", "    []"), "data.sources"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_given(
    tmp_path: Path, change: tuple[str, str], expected: str
) -> None:
    assert expected in message(tmp_path, GOOD.replace(*change))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a\n- b\n", "a list"),
        ("", "nothing"),
        ("name: a\nname: b\n", "line 2"),
        ("name: [a\n", "not YAML"),
    ],
)
def test_what_is_no_mapping_is_refused_with_what_it_is(
    tmp_path: Path, text: str, expected: str
) -> None:
    assert expected in message(tmp_path, text)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "align.yaml"
    path.write_bytes(b"name: \xff\xfe\n")

    with pytest.raises(ConfigError, match="not UTF-8 at byte 6"):
        load_spec(path)


def test_a_missing_spec_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no spec at .*nothing\.yaml"):
        load_spec(tmp_path / "nothing.yaml")


def test_every_shipped_spec_loads() -> None:
    configs = Path(__file__).parents[2] / "pipelines" / "configs"
    shipped = sorted(configs.glob("*.yaml"))

    assert shipped
    for path in shipped:
        assert load_spec(path).name
