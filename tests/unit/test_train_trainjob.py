"""Training as a TrainJob, against a fake Kubernetes API whose jobs really run."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.kubernetes_api import FakeCluster, TrainJob
from tests.tiny import tiny_pairs
from tests.training import FAST
from tests.training import Job as Tried
from tests.waiting import until

from dpoflow.contracts.errors import ConfigError, DataRejected, ServiceUnavailable
from dpoflow.contracts.spec import TrainConfig
from dpoflow.train import trainjob
from dpoflow.train.outcome import Job


def config(**knobs: Any) -> TrainConfig:
    given = {**FAST.model_dump(), "batch_size": 4, "backend": "trainjob", **knobs}
    job = {"gpus": 0, **given.pop("trainjob")} if "trainjob" in knobs else {"gpus": 0}
    return TrainConfig.model_validate({**given, "trainjob": job})


@pytest.fixture
def tried(tmp_path: Path) -> Tried:
    return Tried(tmp_path, tiny_pairs(24))


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    for name in ("KFP_POD_NAME", "KFP_POD_UID", "DPOFLOW_NAMESPACE", "DPOFLOW_STATE_CLAIM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(trainjob._Cluster, "interval_s", 0.1)  # noqa: SLF001
    with FakeCluster(tmp_path) as fake:
        monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig()))
        yield fake


class Ahead:
    """Stands in for a module's `time`, by so many seconds ahead of what it is."""

    ahead_s = 0.0
    asked_ahead = 0
    """How often it was asked and was ahead."""
    sleep = staticmethod(time.sleep)

    def monotonic(self) -> float:
        self.asked_ahead += self.ahead_s > 0
        return time.monotonic() + self.ahead_s


def meanwhile(deed: Any) -> None:
    threading.Thread(target=deed, daemon=True).start()


def test_a_job_is_created_runs_and_leaves_what_one_process_leaves(
    tried: Tried, cluster: FakeCluster
) -> None:
    alone = tried.run(FAST.model_copy(update={"batch_size": 4}), "alone")

    result = tried.run(config(processes=2), "cluster")

    assert result.last_loss == pytest.approx(alone.last_loss, abs=1e-5)
    (body,) = cluster.created
    assert body["spec"]["trainer"]["numProcPerNode"] == 2
    assert cluster.jobs == {}  # TrainJobs have no time to live: it is removed
    assert any("has its pods" in event.message for event in tried.events("cluster"))
    assert [event.at for event in tried.events("cluster") if event.metrics][-1] == alone.num_steps
    told = json.loads((tried.folder / "state" / "cluster" / "work" / "job.json").read_text())
    assert Path(told["pairs"]).is_relative_to(told["state"])  # all that its pods can see


def test_a_job_that_never_finds_a_place_is_removed_at_its_deadline(
    tried: Tried, cluster: FakeCluster
) -> None:
    cluster.schedules = False

    with pytest.raises(ServiceUnavailable, match=r"found no place in 1 s"):
        tried.run(config(trainjob={"queue_timeout_s": 1}))

    assert cluster.jobs == {}


@pytest.mark.full
def test_waiting_does_not_count_as_running(
    tried: Tried, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer in the queue, by the clock of the one who waits, than it may run."""
    cluster.schedules, waited = False, Ahead()
    monkeypatch.setattr(trainjob, "time", waited)

    def later() -> None:
        cluster.await_job()
        waited.ahead_s = 7200
        until(lambda: waited.asked_ahead >= 2, "the queue was looked at two hours later")
        cluster.schedules = True

    meanwhile(later)
    result = tried.run(config(trainjob={"timeout_s": 3600, "queue_timeout_s": 86_400}))

    assert result.num_steps == 12


def test_a_job_that_runs_too_long_is_ended(tried: Tried, cluster: FakeCluster) -> None:
    with pytest.raises(ServiceUnavailable, match=r"ran longer than 1 s"):
        tried.run(config(epochs=5000.0, trainjob={"timeout_s": 1}))

    assert cluster.jobs == {}


@pytest.mark.full
def test_what_its_process_refuses_is_raised_as_the_same_error(
    tried: Tried, cluster: FakeCluster
) -> None:
    with pytest.raises(DataRejected, match="24 too_long"):
        tried.run(config(max_tokens=8))


@pytest.mark.full
def test_a_preempted_job_is_an_error_with_its_last_lines_and_a_retry_goes_on(
    tried: Tried, cluster: FakeCluster
) -> None:
    knobs = {"epochs": 60.0, "save_steps": 5}
    alone = tried.run(FAST.model_copy(update={"batch_size": 4, **knobs}), "alone")

    def evict() -> None:
        name = cluster.await_job()
        checkpoints = tried.folder / "state" / "cluster" / "work" / "checkpoints"
        while not [*checkpoints.glob("update-*")]:
            time.sleep(0.02)
        with cluster.log(name).open("a") as out:
            out.write("the last thing I said\n")
        cluster.evict(name)

    meanwhile(evict)
    with pytest.raises(ServiceUnavailable, match=r"Failed \(FailedJobs.*the last thing I said"):
        tried.run(config(**knobs), "cluster")
    result = tried.run(config(**knobs), "cluster")

    assert any("continuing after update" in e.message for e in tried.events("cluster"))
    assert result.last_loss == pytest.approx(alone.last_loss, abs=1e-6)
    assert len(cluster.created) == 2


JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/team/trainjobs"


def leftover(tried: Tried, cluster: FakeCluster) -> str:
    """The name of a job that an earlier attempt at the state `cluster` made."""
    state = tried.state("cluster")
    job = Job(
        config=config(),
        pairs=tried.pairs,
        init=tried.model,
        reference=tried.model,
        state=state.folder,
    )
    path = state.work / "job.json"
    path.write_text(job.model_dump_json())
    cluster.answer("POST", JOBS, trainjob.manifest(job, path))
    return trainjob.name_of(job)


@pytest.mark.full
def test_a_job_of_an_earlier_attempt_is_adopted(
    tried: Tried, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The waiting process was killed; the job went on without it."""
    leftover(tried, cluster)
    monkeypatch.setenv("KFP_POD_NAME", "the-second-pod")
    monkeypatch.setenv("KFP_POD_UID", "6f1c")
    owners: list[Any] = []
    cluster.on_delete = lambda name: owners.extend(
        cluster.jobs[name]["metadata"]["ownerReferences"]
    )

    tried.run(config(), "cluster")

    assert len(cluster.created) == 1
    assert [owner["name"] for owner in owners] == ["the-second-pod"], "the first one is gone"
    assert any("of an earlier attempt" in event.message for event in tried.events("cluster"))


@pytest.mark.full
def test_a_job_that_is_going_away_is_not_adopted_but_made_anew(
    tried: Tried, cluster: FakeCluster
) -> None:
    """The waiting process was told to end: it had the job deleted, and was killed."""
    cluster.lingers_s, cluster.schedules = 3.0, False
    name, jobs = leftover(tried, cluster), cluster.jobs
    cluster.answer("DELETE", f"{JOBS}/{name}", None)
    assert "deletionTimestamp" in jobs[name]["metadata"]

    with pytest.raises(ServiceUnavailable, match="found no place in 1 s"):
        tried.run(config(trainjob={"queue_timeout_s": 1}), "cluster")

    assert len(cluster.created) == 2


def test_a_job_that_will_not_go_is_named(
    tried: Tried, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpoflow.train.trainjob._Cluster.patience_s", 0.5)
    cluster.lingers_s, cluster.schedules = 60.0, False
    name = leftover(tried, cluster)
    cluster.answer("DELETE", f"{JOBS}/{name}", None)

    with pytest.raises(ServiceUnavailable, match=r"still there after 0.5 s; look at what holds it"):
        tried.run(config(), "cluster")


def test_a_job_outlives_a_cluster_that_stops_answering(tried: Tried, cluster: FakeCluster) -> None:
    """It may be in the best of health: a retry adopts it."""
    cluster.schedules = False

    def away() -> None:
        cluster.await_job()
        cluster.refuses = lambda method, path: (429, {"message": "too many requests"})

    meanwhile(away)
    with pytest.raises(ServiceUnavailable, match="did not read the TrainJob"):
        tried.run(config(), "cluster")

    assert len(cluster.jobs) == 1
    assert cluster.deleted == []


def test_a_job_that_somebody_deletes_is_an_error(tried: Tried, cluster: FakeCluster) -> None:
    def delete() -> None:
        cluster.drop(cluster.await_job())

    meanwhile(delete)
    with pytest.raises(ServiceUnavailable, match="was deleted by somebody"):
        tried.run(config(epochs=5000.0))


@pytest.mark.full
def test_a_cluster_that_is_away_for_a_moment_is_asked_again(
    tried: Tried, cluster: FakeCluster
) -> None:
    answers = iter([(503, {"message": "etcd leader changed"})] * 3)
    cluster.refuses = lambda method, path: next(answers, None) if method == "GET" else None

    assert tried.run(config()).num_steps == 12


def test_a_right_that_is_missing_is_named(tried: Tried, cluster: FakeCluster) -> None:
    cluster.refuses = lambda method, path: (403, {"message": "forbidden"})

    with pytest.raises(ConfigError, match=r"needs get, create, patch and delete on trainjobs"):
        tried.run(config())


def test_without_a_cluster_it_says_what_is_missing(
    tried: Tried, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tried.folder / "none"))

    with pytest.raises(ConfigError, match="knows no cluster"):
        tried.run(config())


def test_the_manifest_is_one_that_kubeflow_trainer_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPOFLOW_STATE_CLAIM", "dpoflow-state=/state")
    monkeypatch.setenv("KFP_POD_NAME", "align-train-abc")
    monkeypatch.setenv("KFP_POD_UID", "6f1c")
    job = Job(
        config=config(processes=4, trainjob={"nodes": 2, "gpus": 4}),
        **dict.fromkeys(("pairs", "init", "reference"), tmp_path),
        state=tmp_path / ("a" * 64),
    )

    body = trainjob.manifest(job, Path("/state/job.json"))

    assert TrainJob.from_dict(body).to_dict() == body  # it drops what it does not know
    trainer = body["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 4)
    assert trainer["resourcesPerNode"]["limits"] == {"nvidia.com/gpu": "4"}
    (owner,) = body["metadata"]["ownerReferences"]
    assert (owner["name"], owner["uid"]) == ("align-train-abc", "6f1c")
    assert body["metadata"]["name"] == f"dpoflow-{'a' * 16}"
    (patch,) = body["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "dpoflow-state"}
    assert pod["containers"][0]["volumeMounts"] == [{"name": "state", "mountPath": "/state"}]
