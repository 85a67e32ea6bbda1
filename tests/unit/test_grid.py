"""A sweep: every combination, each checked before anything runs."""

from pathlib import Path

import pytest

from dpoflow.contracts.errors import ConfigError
from dpoflow_pipelines.backends.laptop import task_names
from dpoflow_pipelines.grid import points_of
from dpoflow_pipelines.run import compile_sweep

SPEC = Path("pipelines/configs/demo.yaml")


def test_every_combination_is_a_point_and_its_spec_has_the_values() -> None:
    points = points_of(
        SPEC, ["train.epochs=2"], ["train.beta=0.05,0.1", "train.loss=sigmoid,hinge,ipo_sum"]
    )

    assert [(point.spec.train.beta, point.spec.train.loss) for point in points] == [
        (0.05, "sigmoid"), (0.05, "hinge"), (0.05, "ipo_sum"),
        (0.1, "sigmoid"), (0.1, "hinge"), (0.1, "ipo_sum"),
    ]  # fmt: skip
    assert {point.spec.train.epochs for point in points} == {2.0}
    assert [point.suffix for point in points] == ["", "-2", "-3", "-4", "-5", "-6"]


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ("train.beta", "takes key=a,b,c"),
        ("train.beta=0.1,,0.2", "takes key=a,b,c"),
        ("data.max_pairs=10,20", "only knobs of training"),
        ("train.init=base,champion", "only knobs of training"),
        ("train.beta=0.1,0.1", "stands there twice"),
        ("train.beta=0.1,-1", "train.beta must be > 0, got -1"),
        ("train.loss=sigmoid,dpo", "train.loss must be one of"),
        (f"train.seed={','.join(map(str, range(65)))}", "65 points, and at most 64"),
    ],
)
def test_what_cannot_be_swept_is_told_with_the_way_out(grid: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        points_of(SPEC, [], [grid])


def test_the_dag_of_a_sweep_makes_the_data_once_and_registers_nothing(tmp_path: Path) -> None:
    compile_sweep(tmp_path / "sweep.yaml", points_of(SPEC, [], ["train.beta=0.05,0.1,0.3"]))

    points = [f"{step}{suffix}" for step in ("train", "evaluate") for suffix in ("", "-2", "-3")]
    once = ["snapshot", "validate", "synthesize", "merge", "conclude"]
    assert sorted(task_names(tmp_path / "sweep.yaml")) == sorted([*once, *points])
