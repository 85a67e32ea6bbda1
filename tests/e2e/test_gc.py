"""What `dpoflow gc` leaves of a home in which three runs were: the chain of what is in use."""

import io
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from mlflow import MlflowClient
from rich.console import Console
from tests.e2e.job import SmallJob, summary
from tests.in_process import tasks_in_this_process
from tests.tiny import tiny_folder

from dpoflow.contracts.spec_file import load_spec
from dpoflow.tracking.settings import local_uri
from dpoflow_pipelines.run import run_spec
from dpoflow_pipelines.runs import in_use

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> SmallJob:
    folder = tmp_path_factory.mktemp("job")
    tiny_folder(folder / "model")
    return SmallJob.write(folder)


SMALL = (
    "train.epochs=1",
    "synthesize.enabled=false",
    "evaluate.sampling.max_new_tokens=4",
    "evaluate.resamples=200",
)


def ran(job: SmallJob, home: Path, seed: int) -> dict[str, Any]:
    """The summary of a small run, in this process: how its tasks end is not what is looked at."""
    sets = (*SMALL, f"train.seed={seed}", f"data.seed={seed}")
    with patch.dict(os.environ), tasks_in_this_process():
        for name in [name for name in os.environ if name.startswith(("MLFLOW_", "DPOFLOW_"))]:
            del os.environ[name]
        run_spec(load_spec(Path(job.spec), list(sets)), home, Console(file=io.StringIO()))
    return summary(home)


@pytest.fixture(scope="module")
def used(job: SmallJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which version 1 is champion, 2 has no alias, and 3 is of the latest run."""
    home = tmp_path_factory.mktemp("home")
    for number, seed in enumerate((1, 2, 3), start=1):
        assert ran(job, home, seed)["registry"]["version"] == number
        client = MlflowClient(local_uri(home))
        if number == 1:
            client.set_registered_model_alias("small", "champion", "1")
        elif "challenger" in client.get_registered_model("small").aliases:
            client.delete_registered_model_alias("small", "challenger")
    return home


def on_disk(home: Path) -> dict[int, int]:
    """Inode to bytes of each file below runs, state and content."""
    stats = [
        path.stat()
        for kind in ("runs", "state", "content")
        for path in (home / kind).rglob("*")
        if path.is_file() and "by-uri" not in path.parts
    ]
    return {stat.st_ino: stat.st_size for stat in stats}


def test_what_the_latest_run_and_an_alias_rest_on_stays_and_the_rest_goes(
    job: SmallJob, used: Path
) -> None:
    before = on_disk(used)

    told = job.call("gc", "--keep", "1", "--home", str(used), "--dry-run")
    assert told.code == 0, told.err
    assert on_disk(used) == before

    done = job.call("gc", "--keep", "1", "--home", str(used))
    assert done.code == 0, done.err
    after = on_disk(used)
    freed = sum(size for inode, size in before.items() if inode not in after)
    assert freed > 0.2 * sum(before.values())
    assert f"freed {freed / 1e6:,.1f} MB" in done.out
    assert done.out == told.out.replace("would delete", "deleted").replace("would free", "freed")

    runs = sorted(path.name for path in (used / "runs").iterdir())
    assert runs == [summary(used)["run_id"]]
    for version in ("small/1", "small/3"):  # champion, and that of the run that stayed
        traced = job.call("trace", version, "--home", str(used))
        assert traced.code == 0, traced.err
    gone = job.call("trace", "small/2", "--home", str(used))
    assert gone.code == 3
    assert "is not under" in gone.err

    tasks = {task["name"]: task["reused"] for task in ran(job, used, 3)["tasks"]}
    assert all(tasks[name] for name in ("validate", "synthesize", "merge", "train", "evaluate"))

    other = job.call("gc", "--keep", "2", "--home", str(used))
    assert "nothing to delete" in other.out


def test_a_gc_that_was_killed_is_finished_by_the_next(job: SmallJob, used: Path) -> None:
    trash = used / ".trash" / "half-deleted"
    trash.mkdir(parents=True)
    (trash / "weights").write_bytes(b"0" * 100)

    assert job.call("gc", "--keep", "9", "--home", str(used)).code == 0

    assert not trash.exists()


def test_nothing_is_deleted_beside_a_run_that_is_at_work(job: SmallJob, used: Path) -> None:
    before = on_disk(used)

    with in_use(used):
        ended = job.call("gc", "--keep", "1", "--home", str(used))

    assert (ended.code, on_disk(used)) == (5, before)
    assert "is at work" in ended.err


def test_no_run_begins_while_a_home_is_cleared(job: SmallJob, used: Path) -> None:
    with in_use(used, alone=True):
        ended = job.run(used)

    assert ended.code == 5
    assert "dpoflow gc is clearing" in ended.err


def test_another_registry_than_that_of_the_runs_is_not_asked_what_may_go(
    job: SmallJob, used: Path
) -> None:
    before = on_disk(used)
    elsewhere = replace(job, environment={"MLFLOW_TRACKING_URI": f"sqlite:///{used}/other.db"})

    ended = elsewhere.call("gc", "--keep", "1", "--home", str(used))

    assert (ended.code, on_disk(used)) == (2, before)
    assert "set MLFLOW_TRACKING_URI" in ended.err
