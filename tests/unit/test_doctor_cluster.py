"""What the doctor finds on a cluster, and what it says to do; against a fake of its API."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.kubernetes_objects import FakeObjects
from typer.testing import CliRunner

from dpoflow.contracts.spec import Spec
from dpoflow_pipelines.cli import app
from dpoflow_pipelines.doctor import Finding
from dpoflow_pipelines.doctor_cluster import all_findings

SPACE = "/api/v1/namespaces/dpoflow"
CLAIM, SECRET = f"{SPACE}/persistentvolumeclaims/dpoflow-state", f"{SPACE}/secrets/dpoflow-s3"
MLFLOW = "/api/v1/namespaces/dpoflow-mlflow/endpoints/mlflow"
READY = {"subsets": [{"addresses": [{"ip": "10.0.0.1"}]}]}


def secret(*keys: str) -> dict[str, Any]:
    return {"data": dict.fromkeys(keys, base64.b64encode(b"s3cret-value").decode())}


def node(gpus: str, **labels: str) -> dict[str, Any]:
    return {
        "metadata": {"labels": {key.replace("_", "."): value for key, value in labels.items()}},
        "status": {"allocatable": {"nvidia.com/gpu": gpus}},
    }


def claim(phase: str, *modes: str) -> dict[str, Any]:
    spec = {"accessModes": list(modes), "storageClassName": "efs"}
    return {"spec": spec, "status": {"phase": phase}}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeObjects]:
    """One on which everything is as it should be."""
    with FakeObjects(tmp_path) as fake:
        monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig()))
        group = {"preferredVersion": {"version": "v1alpha1"}}
        fake.objects = {
            "/version": {"gitVersion": "v1.34.1"},
            "/apis/argoproj.io": group,
            "/apis/trainer.kubeflow.org": group,
            SPACE: {},
            f"{SPACE}/serviceaccounts/dpoflow-pipeline": {},
            CLAIM: claim("Bound", "ReadWriteMany"),
            "/api/v1/nodes": {"items": [node("0"), node("8")]},
            f"{SPACE}/resourcequotas": {"items": []},
            SECRET: secret("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
            f"{SPACE}/secrets/dpoflow-mlflow": secret(
                "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
            ),
            MLFLOW: READY,
        }
        yield fake


def found(**more: Any) -> list[Finding]:
    given = {"name": "desk", "model": "hf://o/n@r", "data": {"sources": [{"uri": "s3://b/p"}]}}
    return list(all_findings(Spec.model_validate({**given, **more})))


def wrong(**more: Any) -> list[tuple[str, str]]:
    return [(what, seen) for good, what, seen, _ in found(**more) if not good]


def test_a_cluster_that_has_everything_is_fine(cluster: FakeObjects) -> None:
    assert wrong() == []
    assert ("Kubernetes", f"v1.34.1 at {cluster.url}") in [each[1:3] for each in found()]


QUOTA = {
    "status": {
        "hard": {"requests.nvidia.com/gpu": "4"},
        "used": {"requests.nvidia.com/gpu": "4"},
    }
}


@pytest.mark.parametrize(
    ("path", "there", "finding"),
    [
        ("/apis/argoproj.io", 404, ("Argo Workflows", "absent")),
        (SPACE, 404, ("namespace", "no dpoflow")),
        (
            f"{SPACE}/serviceaccounts/dpoflow-pipeline",
            404,
            ("service account", "no dpoflow-pipeline"),
        ),
        (CLAIM, 404, ("state volume", "no dpoflow-state")),
        (
            CLAIM,
            claim("Bound", "ReadWriteOnce"),
            ("state volume", "dpoflow-state Bound, ReadWriteOnce"),
        ),
        (CLAIM, claim("Pending", "ReadWriteMany"), ("storage class", "no efs")),
        (
            "/api/v1/nodes",
            {"items": [node("0")]},
            ("GPUs of train", "0 of 1 nodes have 1 nvidia.com/gpu"),
        ),
        (
            f"{SPACE}/resourcequotas",
            {"items": [QUOTA]},
            ("quota of GPUs", "4 of 4 are used in dpoflow, and a task asks for 1"),
        ),
        (SECRET, 404, ("secret", "no dpoflow-s3")),
        (
            SECRET,
            secret("AWS_ACCESS_KEY_ID"),
            ("secret", "dpoflow-s3 without AWS_SECRET_ACCESS_KEY"),
        ),
        (MLFLOW, 404, ("MLflow", "no service mlflow.dpoflow-mlflow.svc")),
        (MLFLOW, {"subsets": []}, ("MLflow", "mlflow.dpoflow-mlflow.svc: 0 ready")),
    ],
)
def test_what_is_missing_is_found(
    cluster: FakeObjects, path: str, there: Any, finding: tuple[str, str]
) -> None:
    cluster.objects[path] = there

    assert finding in wrong()


def test_a_volume_of_one_node_is_shared_where_there_is_one_node(cluster: FakeObjects) -> None:
    cluster.objects[CLAIM] = claim("Bound", "ReadWriteOnce")
    cluster.objects["/api/v1/nodes"] = {"items": [node("8")]}

    assert wrong() == []


def test_a_claim_is_judged_though_classes_of_storage_are_not_shown(cluster: FakeObjects) -> None:
    cluster.objects[CLAIM] = claim("Bound", "ReadWriteOnce")
    cluster.objects["/apis/storage.k8s.io/v1/storageclasses/efs"] = 403

    assert wrong() == [("state volume", "dpoflow-state Bound, ReadWriteOnce")]


def test_a_claim_that_waits_for_its_first_pod_is_fine(cluster: FakeObjects) -> None:
    cluster.objects[CLAIM] = claim("Pending", "ReadWriteMany")
    kind = {"volumeBindingMode": "WaitForFirstConsumer"}
    cluster.objects["/apis/storage.k8s.io/v1/storageclasses/efs"] = kind

    assert wrong() == []


def test_a_service_is_known_by_its_short_name(cluster: FakeObjects) -> None:
    endpoint = {"base_url": "http://judge.dpoflow-serving:8000/v1", "model": "m"}
    judged = {"judge": {"kind": "llm", "endpoint": endpoint}}
    cluster.objects["/api/v1/namespaces/dpoflow-serving/endpoints/judge"] = READY

    assert wrong(evaluate=judged) == []


def test_what_the_spec_asks_for_is_looked_for(cluster: FakeObjects) -> None:
    del cluster.objects["/apis/trainer.kubeflow.org"]
    kind = "NVIDIA-H100-80GB-HBM3"
    judge = {"base_url": "http://127.0.0.1:9/v1", "model": "m", "api_key_env": "JUDGE_KEY"}

    told = wrong(
        train={"backend": "trainjob"},
        evaluate={"judge": {"kind": "llm", "endpoint": judge}, "signer": "c" * 64},
        placement={"evaluate": {"gpus": 2, "gpu_type": kind}},
    )

    assert told == [
        ("Kubeflow Trainer", "absent"),
        ("GPUs of evaluate", f"0 of 2 nodes have 2 nvidia.com/gpu of {kind}"),
        ("secret", "no dpoflow-judge"),
        ("secret", "no dpoflow-signing-key"),
        ("endpoint", "127.0.0.1 does not answer here (ConnectionError)"),
    ]


def test_what_one_may_not_see_is_said_and_no_fault_and_no_value_is_told(
    cluster: FakeObjects,
) -> None:
    assert "s3cret-value" not in str(found())
    cluster.objects[SECRET] = 403

    assert wrong() == []
    assert any("HTTP 403" in seen for _, what, seen, _ in found() if what == "not seen")


def test_a_cluster_that_is_away_is_one_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeObjects(tmp_path) as gone:
        monkeypatch.setenv("KUBECONFIG", str(gone.kubeconfig()))

    ((good, what, seen, _),) = found()

    assert (good, what) == (False, "cluster")
    assert "does not answer" in seen


def test_the_command_exits_2_where_something_must_be_mended(cluster: FakeObjects) -> None:
    fine = CliRunner().invoke(app, ["doctor", "--cluster"])
    cluster.objects[SECRET] = 404
    broken = CliRunner().invoke(app, ["doctor", "--cluster"], env={"COLUMNS": "300"})

    assert (fine.exit_code, broken.exit_code) == (0, 2)
    assert "no dpoflow-s3" in broken.stdout
