"""The compiled DAG, and the laptop backend that must not believe kfp.local's own report."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from kfp import compiler, dsl

from dpoflow.contracts.errors import DataRejected
from dpoflow.contracts.spec import PipelineName
from dpoflow.state.step import read_records
from dpoflow_pipelines.backends.ir import read_ir
from dpoflow_pipelines.backends.laptop import (
    TaskFailed,
    not_to_run,
    on_laptop,
    task_names,
)
from dpoflow_pipelines.placement import RETRIES, TIMEOUT_S
from dpoflow_pipelines.run import compile_to

GOLDEN = Path(__file__).parents[1] / "golden"
TO_A_VERSION = ["validate", "synthesize", "merge", "train", "evaluate", "register"]
STEPS: dict[PipelineName, list[str]] = {
    "align": ["snapshot", *TO_A_VERSION, "conclude"],
    "retrain": ["snapshot", "decide", *TO_A_VERSION, "conclude"],
    "promote": ["promote"],
}
NAMES = tuple(STEPS)


def documents(path: Path) -> list[Any]:
    return list(read_ir(path))


Compiled = Mapping[PipelineName, Path]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    folder = tmp_path_factory.mktemp("ir")
    for name in NAMES:
        compile_to(folder / f"{name}.yaml", name)
    return {name: folder / f"{name}.yaml" for name in NAMES}


def tasks_of(path: Path) -> dict[str, Any]:
    """Every task of a compiled DAG by its name, also those inside others."""
    spec = documents(path)[0]
    dags = [spec["root"], *(each for each in spec["components"].values() if "dag" in each)]
    return {name: task for each in dags for name, task in each["dag"]["tasks"].items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_compiled_dag_is_the_golden_one(compiled: Compiled, name: PipelineName) -> None:
    golden = documents(GOLDEN / f"{name}.yaml")

    assert documents(compiled[name]) == golden, "see tests/golden/README.md"
    assert documents(compiled[name])[0]["pipelineInfo"]["name"] == f"dpoflow-{name}"


@pytest.mark.parametrize("name", NAMES)
def test_the_dag_has_every_step_in_its_order(compiled: Compiled, name: PipelineName) -> None:
    assert task_names(compiled[name]) == STEPS[name]


@pytest.mark.parametrize("name", NAMES)
def test_every_task_has_a_retry_and_a_deadline(compiled: Compiled, name: PipelineName) -> None:
    platforms = documents(compiled[name])[1]
    deadlines = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]

    for step in STEPS[name]:
        assert tasks_of(compiled[name])[step]["retryPolicy"]["maxRetryCount"] == RETRIES
        assert deadlines[f"exec-{step}"]["activeDeadlineSeconds"] == str(TIMEOUT_S[step])


@pytest.mark.parametrize("name", NAMES)
def test_conditions_are_equal_words_and_nothing_is_installed_at_run_time(
    compiled: Compiled, name: PipelineName
) -> None:
    tasks = tasks_of(compiled[name]).values()
    asked = [each["triggerPolicy"]["condition"] for each in tasks if "triggerPolicy" in each
             and "condition" in each["triggerPolicy"]]  # fmt: skip

    word = "inputs.parameter_values['pipelinechannel--decide-Output'] == 'train'"
    assert asked == ([word] if name == "retrain" else [])
    assert "pip install" not in compiled[name].read_text("utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_only_what_looks_at_the_world_escapes_the_cache(
    compiled: Compiled, name: PipelineName
) -> None:
    tasks = {step: task for step, task in tasks_of(compiled[name]).items() if step in STEPS[name]}
    cached = {step for step, task in tasks.items() if task["cachingOptions"].get("enableCache")}

    looks = {"snapshot", "decide", "register", "conclude", "promote"} & set(STEPS[name])
    assert set(tasks) - cached == looks


def test_what_both_share_is_the_same_in_align_and_retrain(compiled: Compiled) -> None:
    align, retrain = (documents(compiled[name])[0] for name in ("align", "retrain"))

    executors = align["deploymentSpec"]["executors"]
    assert executors.items() <= retrain["deploymentSpec"]["executors"].items()
    named = {f"{each}_config" for each in ("snapshot", "validate", "train", "registry")}
    assert named <= retrain["root"]["inputDefinitions"]["parameters"].keys()


@dsl.component(base_image="dpoflow-python-test", install_kfp_package=False)
def works(word: str) -> float:
    from dpoflow.state.step import begin

    begin("works").simply(lambda **_: "fine")
    return 0.5


@dsl.component(base_image="dpoflow-python-test", install_kfp_package=False)
def skipped(word: str) -> str:
    from dpoflow.state.step import begin

    return begin("skipped").simply(lambda **_: "fine")


@dsl.component(base_image="dpoflow-python-test", install_kfp_package=False)
def refuses(word: str) -> str:
    from pathlib import Path

    from dpoflow.contracts.errors import DataRejected
    from dpoflow.state.step import begin

    def run() -> str:
        with Path(word).open("a") as counter:
            counter.write("x")
        raise DataRejected("nothing in there")

    return begin("refuses").simply(run)


@dsl.pipeline(name="false-green")
def false_green(word: str) -> None:
    first = works(word=word)
    with dsl.If(first.output == 1):  # a float against an int: kfp.local skips both branches
        skipped(word=word)
    with dsl.Else():
        skipped(word=word)


@dsl.pipeline(name="refusing")
def refusing(word: str) -> None:
    refuses(word=word).set_retry(num_retries=2, backoff_duration="1s", backoff_factor=1.0)


@dsl.component(base_image="dpoflow-python-test", install_kfp_package=False)
def decide(said: str, recorded: str, root: str) -> str:
    from dpoflow.contracts.results import DecideResult
    from dpoflow.contracts.spec import DecideConfig
    from dpoflow.state.step import begin

    def run(config: DecideConfig, **_: object) -> DecideResult:
        return DecideResult.model_validate(
            {"decision": recorded, "sentence": "because", "new_pairs": 0}
        )

    begin("decide").execute(
        run, DecideConfig(champion="models:/m@champion"), root=root, kind=DecideResult, reuse=False
    )
    return said


@dsl.component(base_image="dpoflow-python-test", install_kfp_package=False)
def learns(word: str) -> str:
    from dpoflow.state.step import begin

    return begin("learns").simply(lambda **_: "fine")


@dsl.pipeline(name="branching")
def branching(said: str, recorded: str, root: str) -> None:
    decided = decide(said=said, recorded=recorded, root=root)
    with dsl.If(decided.output == "train"):
        learns(word=decided.output)


def run(pipeline: Any, folder: Path, arguments: Mapping[str, str]) -> None:
    ir = folder / "ir.yaml"
    compiler.Compiler().compile(pipeline, str(ir))
    before = dict(os.environ)
    try:
        with on_laptop(folder) as runner:
            runner(ir, arguments, folder, {})
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_a_run_whose_branches_were_skipped_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(TaskFailed, match="skipped"):
        run(false_green, tmp_path, {"word": "a"})

    assert read_records(tmp_path)["works"].state == "SUCCEEDED"


def test_a_failed_task_raises_its_own_error_and_a_retry_that_cannot_help_does_no_work(
    tmp_path: Path,
) -> None:
    counter = tmp_path / "counter"

    with pytest.raises(DataRejected, match="refuses: nothing in there"):
        run(refusing, tmp_path, {"word": str(counter)})

    assert counter.read_text() == "x", "the step works once, though kfp starts the task three times"
    assert "not tried again" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize(("word", "ran"), [("train", {"decide", "learns"}), ("skip", {"decide"})])
def test_a_run_does_what_its_decision_says(tmp_path: Path, word: str, ran: set[str]) -> None:
    run(branching, tmp_path, {"said": word, "recorded": word, "root": str(tmp_path / "root")})

    records = read_records(tmp_path)
    assert {name for name, record in records.items() if record.state == "SUCCEEDED"} == ran
    assert not_to_run(tmp_path / "ir.yaml", records) == {"decide", "learns"} - ran
    assert not_to_run(tmp_path / "ir.yaml", {}) == set(), "nothing is ruled out before it decided"


@pytest.mark.parametrize(
    ("said", "recorded", "why"),
    [
        ("skip", "train", "learns never reported success"),
        ("train", "skip", "learns ran, though the run was to end without"),
    ],
)
def test_a_run_that_does_something_else_than_it_decided_has_failed(
    tmp_path: Path, said: str, recorded: str, why: str
) -> None:
    with pytest.raises(TaskFailed, match=why):
        run(branching, tmp_path, {"said": said, "recorded": recorded, "root": str(tmp_path / "r")})
