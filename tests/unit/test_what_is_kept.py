"""What lies in a home, and in folders beside it, survives the unexpected."""

from pathlib import Path

import pytest
from tests.tiny import pairs_folder, tiny_pairs

from dpoflow.contracts import manifest
from dpoflow.contracts.errors import ConfigError, ServiceUnavailable
from dpoflow.contracts.spec import DataConfig, SourceConfig, Spec
from dpoflow.state.events import Events, read_events
from dpoflow.tracking.settings import public, quoted
from dpoflow_pipelines.runs import claim_run, is_held
from dpoflow_pipelines.steps import run_step

SPEC = Spec.model_validate(
    {"name": "kept", "model": "m", "data": DataConfig(sources=(SourceConfig(uri="x"),))}
)


def outputs(policy: Path, folder: Path) -> list[str]:
    return [f"policy={policy}", f"report={folder / 'report'}"]


def test_events_go_on_after_a_line_that_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    Events(path, "train").say("before")
    with path.open("ab") as out:
        out.write(b'{"time": 1, "st')  # a full disk, or no more power

    Events(path, "train").say("after")

    events, end = read_events(path)
    assert [event.message for event in events] == ["before", "after"]
    assert end == path.stat().st_size


def test_an_output_never_takes_the_place_of_somebody_elses_folder(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    config = tmp_path / "train.yaml"
    config.write_text("beta: 0.1")
    given = pairs_folder(tmp_path / "pairs", tiny_pairs(2))

    with pytest.raises(ConfigError, match=r"--out policy=.*mine: the folder holds other things"):
        run_step(
            "train",
            config,
            [f"{name}={given}" for name in ("pairs", "init", "reference")],
            outputs(mine, tmp_path),
            tmp_path,
        )

    assert (mine / "thesis.txt").read_text() == "years of work"


def test_a_new_run_takes_the_number_after_the_highest(tmp_path: Path) -> None:
    numbers = []
    for _ in range(3):
        with claim_run(tmp_path, SPEC) as run:
            run.remember(state="SUCCEEDED")
            numbers.append(run.run_id[-3:])
            folder = run.folder
    first = folder.with_name(f"{folder.name[:-3]}001")
    first.rename(tmp_path / "elsewhere")
    folder.rename(folder.with_name(f"{folder.name[:-3]}999"))
    for _ in range(2):
        with claim_run(tmp_path, SPEC) as run:
            run.remember(state="SUCCEEDED")
            numbers.append(run.run_id.rpartition("-")[2])

    assert numbers == ["001", "002", "003", "1000", "1001"]


def test_a_run_is_held_while_a_process_is_at_work_on_it_and_no_longer(tmp_path: Path) -> None:
    with claim_run(tmp_path, SPEC) as run:
        assert is_held(run.folder)

    assert not is_held(run.folder)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://me:s3cret@mlflow.corp/base", "https://mlflow.corp/base"),
        ("postgresql+psycopg://me:p@ss@db:5432/mlflow", "postgresql+psycopg://db:5432/mlflow"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_no_password_of_a_tracking_server_is_shown(uri: str, shown: str) -> None:
    assert public(uri) == shown
    assert quoted(f"API request to {uri}/api failed", uri) == f"API request to {shown}/api failed"


def test_a_step_whose_tracking_server_is_gone_says_so_and_shows_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = tmp_path / "train.yaml"
    config.write_text("beta: 0.1")
    given = pairs_folder(tmp_path / "pairs", tiny_pairs(2))
    manifest.seal(given, "test.pairs", parents={}, config={}, code="none")

    with pytest.raises(ServiceUnavailable, match=r"MLflow at http://127\.0\.0\.1:1") as caught:
        run_step(
            "train",
            config,
            [f"{name}={given}" for name in ("pairs", "init", "reference")],
            outputs(tmp_path / "p", tmp_path),
            tmp_path / "home",
        )

    assert "s3cret" not in str(caught.value)
