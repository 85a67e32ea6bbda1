"""`dpoflow run --pipeline retrain` on this machine: it trains, and it has nothing to learn."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.job import SmallJob, summary
from tests.tiny import tiny_folder

pytestmark = pytest.mark.full

CHEAP = ("synthesize.enabled=false", "train.epochs=1", "retrain.min_new_pairs=5")
TRAINS = ["validate", "synthesize", "merge", "train", "evaluate", "register"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> SmallJob:
    folder = tmp_path_factory.mktemp("job")
    tiny_folder(folder / "model")
    return replace(SmallJob.write(folder), patience_s=900)


def retrain(job: SmallJob, home: Path, *sets: str, require: tuple[str, ...] = ()) -> str:
    overrides = [part for text in (*CHEAP, *sets) for part in ("--set", text)]
    ended = job.call("run", job.spec, "--pipeline", "retrain", "--home", str(home), *require,
                     *overrides)  # fmt: skip
    assert ended.code == 0, ended.out + ended.err
    return ended.out


def states(home: Path) -> dict[str, str]:
    return {task["name"]: task["state"] for task in summary(home)["tasks"]}


def first_night(home: Path) -> dict[str, Any]:
    """The summary of the run that registered a version."""
    told = [json.loads(path.read_text("utf-8")) for path in home.glob("runs/*/summary.json")]
    (found,) = (each for each in told if each["registry"])
    return dict(found)


@pytest.fixture(scope="module")
def home(job: SmallJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After the first night, whose version somebody made champion."""
    home = tmp_path_factory.mktemp("home")
    out = retrain(job, home)
    assert "trained: no version of small is champion yet" in out
    told = summary(home)
    assert (told["pipeline"], told["retrain"]["reasons"]) == ("retrain", ["first"])
    assert set(states(home).values()) == {"SUCCEEDED"}
    from mlflow import MlflowClient

    client = MlflowClient(told["mlflow"]["tracking_uri"])
    client.set_registered_model_alias("small", "champion", str(told["registry"]["version"]))
    return home


def test_a_night_without_news_is_green_in_seconds_and_says_why_everywhere(
    job: SmallJob, home: Path
) -> None:
    from mlflow import MlflowClient

    asked = ("retrain.max_age_days=30",)
    out = retrain(job, home, *asked, require=("--require", "promote"))

    told, why = summary(home), "0 new pairs since small/1, 5 are asked; the champion is 0 days old"
    assert f"nothing to learn: {why}, 30 allowed" in " ".join(out.split())
    assert told["retrain"]["decision"] == "skip"
    assert (told["state"], told["evaluation"]["verdict"]) == ("SUCCEEDED", "none")
    assert told["evaluation"]["sentence"].startswith(why)
    expected = dict.fromkeys(TRAINS, "SKIPPED")
    assert states(home) == expected | dict.fromkeys(("snapshot", "decide", "conclude"), "SUCCEEDED")
    shown = job.call("status", "--home", str(home)).out
    assert why in " ".join(shown.split())
    assert "SKIPPED" in shown
    assert "PENDING" not in shown
    run = MlflowClient(told["mlflow"]["tracking_uri"]).get_run(told["mlflow"]["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["dpoflow.retrain"] == "skip"
    assert run.data.tags["dpoflow.retrain.why"].startswith(why)
    assert run.data.metrics["retrain/new_pairs"] == 0


def test_a_changed_knob_and_a_lost_memory_are_told_before_anything_is_trained(
    job: SmallJob, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step alone, on what the first night pinned."""
    from dpoflow.contracts.spec_file import load_spec
    from dpoflow.decide.step import run
    from dpoflow.state.step import StepState, find

    told = first_night(home)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", told["mlflow"]["tracking_uri"])
    data = find(home, told["data"]["digest"])
    assert data is not None
    folder = home / "state" / "by-hand"
    (folder / "work").mkdir(parents=True)
    state = StepState(folder, "decide")

    def decided(*sets: str) -> tuple[str, list[str], dict[str, tuple[str, str]]]:
        config = load_spec(Path(job.spec), [*CHEAP, *sets]).decide
        pinned = {"model": told["data"]["model_digest"], "init": told["data"]["model_digest"]}
        found = run(config.model_copy(update={"digests": pinned}), data=data, state=state)
        return found.decision, list(found.reasons), dict(found.changed)

    assert decided() == ("skip", [], {})
    assert decided("train.beta=0.7", "train.save_steps=9") == (
        *("train", ["spec"]),
        {"train.beta": ("0.1", "0.7")},
    )
    assert decided("retrain.changed_spec=false", "train.beta=0.7")[0] == "skip"
    index = home / "index" / told["data"]["digest"]
    kept = index.read_text()
    index.unlink()
    try:
        assert decided()[:2] == ("train", ["unknown"])
    finally:
        index.write_text(kept)


def test_what_cannot_be_run_is_said_before_anything_runs(job: SmallJob, tmp_path: Path) -> None:
    wrong = job.call("run", job.spec, "--pipeline", "promote", "--home", str(tmp_path))
    grid = job.call("run", job.spec, "--pipeline", "retrain", "--grid", "train.beta=0.1,0.2")
    number = job.call("run", job.spec, "--dry-run", "--set", "retrain.min_new_pairs=0")
    dry = job.call("run", job.spec, "--pipeline", "retrain", "--dry-run")

    assert (wrong.code, grid.code, number.code, dry.code) == (2, 2, 2, 0)
    assert "--pipeline takes align or retrain, got 'promote'" in wrong.err
    assert "--grid goes with --pipeline align" in grid.err
    assert "retrain.min_new_pairs" in number.err
    assert "at 100 new pairs" in " ".join(dry.out.split())
    assert not any(tmp_path.iterdir())
