"""Bad input: one line with thing and way out, the right exit code, nothing half-written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.e2e.job import SmallJob
from tests.tiny import tiny_folder

CONFIG, DATA = 2, 3
reaches_the_pipeline = pytest.mark.full
"""The steps' own refusals are unit tests; these run them through the whole command."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_folder(folder)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared, so that MLflow's tables are made once; no case may leave a version in it."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def job(tmp_path: Path, model: Path) -> SmallJob:
    shutil.copytree(model, tmp_path / "model")
    return SmallJob.write(tmp_path)


def refused(job: SmallJob, home: Path, code: int, *words: str, sets: tuple[str, ...] = ()) -> None:
    ended = job.run(home, *sets)

    assert ended.code == code, ended.out + ended.err
    lines = [line for line in ended.err.splitlines() if line.strip()]
    assert len(lines) == 1, ended.err
    for word in words:
        assert word in lines[0]
    assert "Traceback" not in ended.out + ended.err
    left = [
        path for path in home.glob("state/*/outputs/*") if not (path / "manifest.json").exists()
    ]
    assert [path for path in left if any(path.iterdir())] == []
    assert not list(home.glob("mlartifacts/models/*"))


def rewritten(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


@reaches_the_pipeline
def test_a_source_that_is_not_there(job: SmallJob, home: Path) -> None:
    (job.folder / "pairs.jsonl").unlink()

    refused(job, home, CONFIG, "pairs.jsonl")


def test_an_empty_file(job: SmallJob, home: Path) -> None:
    (job.folder / "pairs.jsonl").write_bytes(b"")

    refused(job, home, DATA, "pairs.jsonl", "empty")


@reaches_the_pipeline
def test_a_format_nobody_knows(job: SmallJob, home: Path) -> None:
    (job.folder / "pairs.jsonl").write_text('{"frage": "a", "antwort": "b"}\n')

    refused(job, home, DATA, "frage", "hh-rlhf", "data.sources")


@reaches_the_pipeline
def test_json_that_breaks_off(job: SmallJob, home: Path) -> None:
    rewritten(job.folder / "pairs.jsonl", lambda whole: whole[:-30])

    refused(job, home, DATA, "pairs.jsonl", "line 24")


@reaches_the_pipeline
def test_bytes_that_are_not_utf8(job: SmallJob, home: Path) -> None:
    rewritten(
        job.folder / "pairs.jsonl", lambda whole: whole.replace(b"parcel", b"parc\xff\xfel", 1)
    )

    refused(job, home, DATA, "pairs.jsonl", "UTF-8", "line 1")


@reaches_the_pipeline
def test_a_line_of_50_mb(job: SmallJob, home: Path) -> None:
    row = {"prompt": "q", "chosen": "a" * 50_000_000, "rejected": "b"}
    with (job.folder / "pairs.jsonl").open("a") as out:
        out.write(json.dumps(row) + "\n")

    refused(job, home, DATA, "pairs.jsonl", "line 25", "data.max_line_mb")


def test_a_key_the_spec_does_not_know(job: SmallJob, home: Path) -> None:
    rewritten(Path(job.spec), lambda text: text.replace(b"heldout_fraction", b"held_out_fraction"))

    refused(job, home, CONFIG, "data.held_out_fraction", "data.heldout_fraction", "line 8")


def test_a_value_of_the_wrong_type(job: SmallJob, home: Path) -> None:
    refused(job, home, CONFIG, "train.epochs", "'many'", sets=("train.epochs=many",))


def test_a_beta_that_is_not_positive(job: SmallJob, home: Path) -> None:
    refused(job, home, CONFIG, "train.beta must be > 0, got 0", sets=("train.beta=0",))


def test_a_gpu_that_is_not_there(job: SmallJob, home: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    before = {*home.glob("runs/*")}

    refused(job, home, CONFIG, "train.device cuda", "no GPU", sets=("train.device=cuda",))
    assert {*home.glob("runs/*")} == before  # told before there is a run


def test_a_home_that_cannot_be_written(job: SmallJob, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")

    refused(job, in_the_way / "home", CONFIG, "cannot be written", "--home")


@reaches_the_pipeline
def test_nothing_left_after_validation(job: SmallJob, home: Path) -> None:
    row = json.dumps({"prompt": "q?", "chosen": "same", "rejected": "same"}) + "\n"
    (job.folder / "pairs.jsonl").write_text(row * 9)
    (job.folder / "prompts.jsonl").write_text('{"prompt": ""}\n')

    refused(job, home, DATA, "identical 9", sets=("data.max_quarantined=1",))


@reaches_the_pipeline
def test_fewer_pairs_than_asked_for(job: SmallJob, home: Path) -> None:
    refused(job, home, DATA, "data.min_pairs", sets=("data.min_pairs=1000",))


@reaches_the_pipeline
def test_a_model_without_a_tokenizer(job: SmallJob, home: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (job.folder / "model" / name).unlink()

    refused(job, home, DATA, "model", "tokenizer")


@pytest.mark.parametrize("words", [("run",), ("run", "align.yaml", "--sets", "x=1"), ("rum",)])
def test_a_slip_on_the_command_line_is_the_users_and_not_a_bug_of_ours(
    job: SmallJob, words: tuple[str, ...]
) -> None:
    ended = job.call(*words)

    assert ended.code == CONFIG
    assert "dpoflow --help" in ended.err
    assert "bug" not in ended.err


def test_debug_shows_where(job: SmallJob, home: Path) -> None:
    ended = job.call("run", job.spec, "--set", "train.beta=0", "--debug")

    assert ended.code == CONFIG
    assert "Traceback" in ended.err
