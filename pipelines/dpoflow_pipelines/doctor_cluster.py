"""`dpoflow doctor --cluster`: whether a cluster can run a spec, and what to do where it cannot.

Reads   a spec's placement, the cluster that kubectl works with, and endpoints that the spec names
Gives   `all_findings`; `plain_spec` for a cluster without a spec
Not     this machine (doctor.py); nothing is changed, and no secret's value is looked at

What pods will reach is asked of Kubernetes where it is a service of the cluster, else from here.
"""

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from dpoflow.contracts.errors import DpoflowError
from dpoflow.contracts.placement import GPU_TASKS, PlacementConfig
from dpoflow.contracts.spec import Spec
from dpoflow_pipelines.backends.kube_api import Forbidden, KubeApi
from dpoflow_pipelines.doctor import Finding
from dpoflow_pipelines.placement import placed_for, wanted
from dpoflow_pipelines.spending import endpoints_of

GROUPS = {
    "Argo Workflows": ("argoproj.io", "install Kubeflow Pipelines 2.17"),
    "Kubeflow Trainer": (
        "trainer.kubeflow.org",
        "install Kubeflow Trainer 2.3, or leave train.backend: trainjob out",
    ),
}
_TIMEOUT_S = 5
_AT_FIRST_POD = "WaitForFirstConsumer"


def plain_spec() -> Spec:
    """What is looked for where nobody names a spec: the names that infra/cluster installs."""
    return Spec.model_validate(
        {
            "name": "any",
            "model": "hf://any/model@main",
            "data": {"sources": [{"uri": "s3://bucket/prefix"}]},
        }
    )


def findings_of_cluster(spec: Spec, kube: KubeApi) -> Iterator[Finding]:
    """Every finding; those that follow from one that is missing are left out."""
    config = placed_for(spec)
    version = kube.get("/version") or {}
    yield True, "Kubernetes", f"{version.get('gitVersion', 'unknown')} at {kube.host}", ""
    needed = {"Argo Workflows"} | (
        {"Kubeflow Trainer"} if spec.train.backend == "trainjob" else set()
    )
    for name, (group, todo) in GROUPS.items():
        found = kube.get(f"/apis/{group}")
        seen = str(found["preferredVersion"]["version"]) if found else "absent"
        yield found is not None or name not in needed, name, seen, todo
    namespace = f"/api/v1/namespaces/{config.namespace}"
    checks: list[Callable[[], Iterator[Finding]]] = [
        lambda: _there(kube, namespace, "namespace", config.namespace),
        lambda: _there(
            kube,
            f"{namespace}/serviceaccounts/{config.service_account}",
            "service account",
            config.service_account,
        ),
        lambda: _state(kube, namespace, config),
        lambda: _gpus(kube, config),
        lambda: _quota(kube, namespace, config),
        lambda: _secrets(kube, namespace, config),
        lambda: _reached(kube, "MLflow", config.mlflow_uri),
        lambda: _judges(kube, spec),
    ]
    for check in checks:
        try:
            yield from check()
        except Forbidden as error:  # what one may not see may still be right
            yield True, "not seen", str(error), ""


def _there(kube: KubeApi, path: str, what: str, name: str) -> Iterator[Finding]:
    found = kube.get(path) is not None
    yield found, what, name if found else f"no {name}", f"make {name}, or set it in placement"


def _state(kube: KubeApi, namespace: str, config: PlacementConfig) -> Iterator[Finding]:
    name = config.state_claim
    claim = kube.get(f"{namespace}/persistentvolumeclaims/{name}")
    if claim is None:
        yield False, "state volume", f"no {name}", "make the claim, or set placement.state_claim"
        return
    modes, phase = claim["spec"].get("accessModes", []), claim.get("status", {}).get("phase", "")
    kind = claim["spec"].get("storageClassName")
    of_kind = None
    if kind and phase != "Bound":  # who runs here may not be shown classes of storage
        of_kind = kube.get(f"/apis/storage.k8s.io/v1/storageclasses/{kind}")
    # Such a volume is made where its first pod is.
    waits = phase == "Pending" and (of_kind or {}).get("volumeBindingMode") == _AT_FIRST_POD
    shared = "ReadWriteMany" in modes or len(_nodes(kube)) == 1
    yield (
        (phase == "Bound" or waits) and shared,
        "state volume",
        f"{name} {phase or 'unknown'}{' until its first pod' * waits}, {', '.join(modes)}",
        "tasks on several nodes share it: a bound claim with ReadWriteMany (NFS, EFS, CephFS, …)",
    )
    if kind and phase != "Bound":
        there = of_kind is not None
        yield there, "storage class", kind if there else f"no {kind}", "install it, or name another"


def _nodes(kube: KubeApi) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (kube.get("/api/v1/nodes") or {}).get("items", [])
    return found


def _gpus(kube: KubeApi, config: PlacementConfig) -> Iterator[Finding]:
    nodes = _nodes(kube)
    for task in GPU_TASKS:
        got = wanted(config, task)
        if not got.gpus:
            continue
        label = {config.gpu_label: got.gpu_type} if got.gpu_type else {}
        labels = label | (got.node_selector or {})
        fit = [node for node in nodes if _has(node, labels, config.gpu_resource, got.gpus)]
        kind = f" of {got.gpu_type}" if got.gpu_type else ""
        yield (
            bool(fit),
            f"GPUs of {task}",
            f"{len(fit)} of {len(nodes)} nodes have {got.gpus} {config.gpu_resource}{kind}",
            (
                f"add such a node with its device plugin, or set placement.{task}.gpus and "
                "gpu_type (nodes that an autoscaler adds are not seen)"
            ),
        )


def _has(node: dict[str, Any], labels: dict[str, str], resource: str, gpus: int) -> bool:
    has = node["metadata"].get("labels", {})
    free = int(node.get("status", {}).get("allocatable", {}).get(resource, 0))
    return free >= gpus and all(has.get(key) == value for key, value in labels.items())


def _quota(kube: KubeApi, namespace: str, config: PlacementConfig) -> Iterator[Finding]:
    most = max((wanted(config, task).gpus or 0) for task in GPU_TASKS)
    resource = f"requests.{config.gpu_resource}"
    for quota in (kube.get(f"{namespace}/resourcequotas") or {}).get("items", []):
        status = quota.get("status", {})
        if resource not in status.get("hard", {}):
            continue
        hard, used = int(status["hard"][resource]), int(status.get("used", {}).get(resource, 0))
        yield (
            hard - used >= most,
            "quota of GPUs",
            f"{used} of {hard} are used in {config.namespace}, and a task asks for {most}",
            "wait for others to end, or have the quota raised",
        )


def _secrets(kube: KubeApi, namespace: str, config: PlacementConfig) -> Iterator[Finding]:
    keys: dict[str, set[str]] = {}
    if config.secrets.mlflow:
        keys[config.secrets.mlflow] = {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}
    for task in ("snapshot", "synthesize", "train", "evaluate"):
        for use in wanted(config, task).secrets or ():
            file = {"signing.pem"} if use.name == config.secrets.signing else set()
            keys.setdefault(use.name, set()).update({*use.env.values(), *file})
    for name, asked in sorted(keys.items()):
        found = kube.get(f"{namespace}/secrets/{name}")
        missing = sorted(asked - set((found or {}).get("data") or {}))
        seen = f"no {name}" if found is None else f"{name} without {', '.join(missing)}"
        good = found is not None and not missing
        yield (
            good,
            "secret",
            name if good else seen,
            f"make it in {config.namespace} with {', '.join(sorted(asked))}",
        )


def _judges(kube: KubeApi, spec: Spec) -> Iterator[Finding]:
    for url in dict.fromkeys(each.base_url for each in endpoints_of(spec)):
        yield from _reached(kube, "endpoint", url)


def _reached(kube: KubeApi, what: str, url: str) -> Iterator[Finding]:
    """A service of the cluster by its endpoints; anything else by asking it from here."""
    host = urlsplit(url).hostname or ""
    parts = host.split(".")
    in_cluster = len(parts) > 2 and parts[2] == "svc"
    found = None
    if in_cluster or len(parts) == 2:  # SERVICE.NAMESPACE, or a name such as example.org
        found = kube.get(f"/api/v1/namespaces/{parts[1]}/endpoints/{parts[0]}")
    if in_cluster or found is not None:
        ready = sum(len(each.get("addresses") or ()) for each in (found or {}).get("subsets") or ())
        seen = f"{host}: {ready} ready" if found else f"no service {host}"
        yield ready > 0, what, seen, f"start it, or name another ({url})"
        return
    import requests

    try:
        status = requests.get(url, timeout=_TIMEOUT_S, allow_redirects=False).status_code
    except requests.RequestException as error:
        seen = f"{host} does not answer here ({type(error).__name__})"
        yield False, what, seen, "see whether pods can reach it; from here nobody can"
        return
    yield status < 500, what, f"{host} answers here (HTTP {status})", "see what it says in its log"


def all_findings(spec: Spec) -> Iterator[Finding]:
    """As `findings_of_cluster`, with a cluster that is away as a finding of its own."""
    try:
        yield from findings_of_cluster(spec, KubeApi())
    except DpoflowError as error:
        yield False, "cluster", str(error), "mend that first"
