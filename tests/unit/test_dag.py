"""The compiled DAG, and the laptop backend that must not believe kfp.local's own report."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from kfp import compiler, dsl
from ruamel.yaml import YAML

from dpoflow.contracts.errors import DataRejected
from dpoflow_pipelines.backends.laptop import TaskFailed, read_records, run_on_laptop, task_names
from dpoflow_pipelines.placement import RETRIES, TIMEOUT_S
from dpoflow_pipelines.run import compile_to

GOLDEN = Path(__file__).parents[1] / "golden" / "align.yaml"
STEPS = ["snapshot", "validate", "synthesize", "merge", "train", "evaluate", "register", "conclude"]


def documents(path: Path) -> list[Any]:
    return list(YAML(typ="safe").load_all(path.read_text("utf-8")))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ir") / "align.yaml"
    compile_to(path)
    return path


def test_the_compiled_dag_is_the_golden_one(compiled: Path) -> None:
    assert documents(compiled) == documents(GOLDEN), "see tests/golden/README.md"


def test_the_dag_has_every_step_in_its_order(compiled: Path) -> None:
    assert task_names(compiled) == STEPS


def test_every_task_has_a_retry_and_a_deadline(compiled: Path) -> None:
    spec, platforms = documents(compiled)
    inner = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    tasks = {**spec["root"]["dag"]["tasks"], **inner}
    deadlines = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]

    for name in STEPS:
        assert tasks[name]["retryPolicy"]["maxRetryCount"] == RETRIES
        assert deadlines[f"exec-{name}"]["activeDeadlineSeconds"] == str(TIMEOUT_S[name])


def test_no_condition_compares_numbers_and_nothing_is_installed_at_run_time(compiled: Path) -> None:
    text = compiled.read_text("utf-8")

    assert "condition:" not in text
    assert "pip install" not in text


def test_only_what_looks_at_the_world_escapes_the_cache(compiled: Path) -> None:
    tasks = documents(compiled)[0]["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    cached = {name for name, task in tasks.items() if task["cachingOptions"].get("enableCache")}

    assert set(tasks) - cached == {"snapshot", "register"}


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


def run(pipeline: Any, folder: Path, arguments: Mapping[str, str]) -> None:
    ir = folder / "ir.yaml"
    compiler.Compiler().compile(pipeline, str(ir))
    before = dict(os.environ)
    try:
        run_on_laptop(ir, arguments, run_dir=folder, environment={})
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
