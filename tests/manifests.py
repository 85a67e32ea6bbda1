"""What manifests must be like, as questions to all documents of one overlay: each gives its faults.

Schemas say whether the API server would take a document; these, whether it is what we want there.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

Document = dict[str, Any]
Check = Callable[[list[Document]], list[str]]

EVALUATION = "dpoflow-evaluation"
OURS = ("dpoflow", EVALUATION, "dpoflow-mlflow", "dpoflow-serving")
"""The namespaces that are made."""

GIVEN_SECRETS = {
    ("dpoflow-mlflow", "dpoflow-mlflow-server"),
    ("dpoflow-mlflow", "dpoflow-s3"),
    ("dpoflow-mlflow", "dpoflow-promoter"),
    ("dpoflow-mlflow", "dpoflow-postgresql"),
    ("dpoflow-serving", "dpoflow-judge"),
}
"""Made by whoever installs: the README's table of secrets."""

MAKES_CONTAINERS = {
    *("pods", "pods/exec", "pods/attach", "pods/ephemeralcontainers", "replicationcontrollers"),
    *("deployments", "statefulsets", "daemonsets", "replicasets", "jobs.batch", "cronjobs"),
    *("workflows", "cronworkflows", "workflowtemplates", "scheduledworkflows", "trainjobs"),
    *("runs", "jobs.pipelines.kubeflow.org", "notebooks", "serviceaccounts/token"),
}
CHANGES = {"create", "update", "patch", "retry", "enable", "*"}


def at(document: Document) -> str:
    """How a document is named in a fault."""
    return f"{document['kind']} {namespace(document)}/{document['metadata']['name']}"


def namespace(document: Document) -> str:
    """Empty for what belongs to the cluster."""
    return str(document["metadata"].get("namespace", ""))


def of_kind(documents: list[Document], *kinds: str) -> list[Document]:
    return [each for each in documents if each["kind"] in kinds]


def pods(documents: list[Document]) -> Iterator[tuple[Document, Document, dict[str, str]]]:
    """Each document that makes pods, the pods' spec, their labels."""
    for each in of_kind(documents, "Deployment", "StatefulSet", "DaemonSet", "Job"):
        template = each["spec"]["template"]
        yield each, template["spec"], template["metadata"].get("labels", {})
    for each in of_kind(documents, "ClusterTrainingRuntime", "TrainingRuntime"):
        for job in each["spec"]["template"]["spec"]["replicatedJobs"]:
            yield each, job["template"]["spec"]["template"]["spec"], {}


def containers(documents: list[Document]) -> Iterator[tuple[str, Document]]:
    """Name and body of each container, those that begin first included."""
    for document, spec, _ in pods(documents):
        for each in [*spec.get("initContainers", []), *spec["containers"]]:
            yield f"{at(document)} {each['name']}", each


def hardened(documents: list[Document]) -> list[str]:
    """No root, no writing to the root, no powers, no token of the API."""
    faults = []
    for document, spec, _ in pods(documents):
        security = spec.get("securityContext", {})
        wanted = {
            "runAsNonRoot": security.get("runAsNonRoot") is True,
            "runAsUser": security.get("runAsUser", 0) > 0,
            "seccompProfile": security.get("seccompProfile") == {"type": "RuntimeDefault"},
            "automountServiceAccountToken": spec.get("automountServiceAccountToken") is False,
            "host": not any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")),
            "hostPath": not any("hostPath" in volume for volume in spec.get("volumes", [])),
        }
        faults += [f"{at(document)}: {name}" for name, good in wanted.items() if not good]
    for name, each in containers(documents):
        security = each.get("securityContext", {})
        wanted = {
            "allowPrivilegeEscalation": security.get("allowPrivilegeEscalation") is False,
            "readOnlyRootFilesystem": security.get("readOnlyRootFilesystem") is True,
            "capabilities": security.get("capabilities") == {"drop": ["ALL"]},
            "privileged": not security.get("privileged"),
            "runAsUser": security.get("runAsUser", 1) > 0,
        }
        faults += [f"{name}: {what}" for what, good in wanted.items() if not good]
    return faults


def limited(documents: list[Document]) -> list[str]:
    """Processor and memory, asked for and limited."""
    return [
        f"{name}: {kind} {what}"
        for name, each in containers(documents)
        for kind in ("requests", "limits")
        for what in ("cpu", "memory")
        if what not in each.get("resources", {}).get(kind, {})
    ]


def probed(documents: list[Document]) -> list[str]:
    """Whoever listens is asked whether it began, lives and is ready."""
    return [
        f"{name}: {probe}"
        for name, each in containers(documents)
        if each.get("ports")
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
        if probe not in each
    ]


def pinned(documents: list[Document]) -> list[str]:
    """An image is named with a version or a digest, and latest is neither."""
    return [
        f"{name}: {each['image']}"
        for name, each in containers(documents)
        if not re.search(r"(@sha256:[0-9a-f]{64}|:(?!latest$)[\w.-]+)$", each["image"])
    ]


def denied(documents: list[Document]) -> list[str]:
    """In each namespace nothing goes in or out that no policy names, and policies name ports."""
    faults = []
    for name in OURS:
        rules = [each for each in of_kind(documents, "NetworkPolicy") if namespace(each) == name]
        nothing = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
        if nothing not in [each["spec"] for each in rules]:
            faults.append(f"{name}: no default deny")
    for each in of_kind(documents, "NetworkPolicy"):
        spec = each["spec"]
        rules = [*spec.get("ingress", []), *spec.get("egress", [])]
        if any(not rule.get("from") and not rule.get("to") for rule in rules):
            faults.append(f"{at(each)}: open to everybody")
        anywhere = [rule for rule in rules if "0.0.0.0/0" in str(rule) and not rule.get("ports")]
        faults += [f"{at(each)}: every port of every address" for _ in anywhere]
    return faults


def without_values(documents: list[Document]) -> list[str]:
    """Secrets are named, and none is written."""
    faults = [at(each) for each in of_kind(documents, "Secret")]
    telling = re.compile(r"(PASSWORD|TOKEN|SECRET|_KEY|ACCESS_KEY_ID)$")
    for name, each in containers(documents):
        faults += [
            f"{name}: {variable['name']} has a value"
            for variable in each.get("env", [])
            if telling.search(variable["name"]) and "value" in variable
        ]
    for each in of_kind(documents, "ConfigMap"):
        for key, value in each.get("data", {}).items():
            if telling.search(key) or re.search(r"AKIA[0-9A-Z]{16}|PRIVATE KEY|://\w+:\w+@", value):
                faults.append(f"{at(each)}: {key}")
    return faults


def referred(documents: list[Document]) -> list[str]:
    """Whatever is named is there, or is given by whoever installs."""
    there = {(each["kind"], namespace(each), each["metadata"]["name"]) for each in documents}
    there |= {
        ("Secret", namespace(each), each["spec"]["target"]["name"])
        for each in of_kind(documents, "ExternalSecret")
    }
    there |= {("Secret", *each) for each in GIVEN_SECRETS}
    return [
        f"{at(document)}: {kind} {name}"
        for document, kind, where, name in _references(documents)
        if (kind, where, name) not in there
    ]


Reference = tuple[Document, str, str, str]
"""Who names it; kind, namespace and name of what is named."""


def _references(documents: list[Document]) -> Iterator[Reference]:
    for document, spec, _ in pods(documents):
        where = namespace(document)
        for kind, name in [*_of_pod(spec), *_of_containers(spec)]:
            yield document, kind, where, name
    for document in of_kind(documents, "RoleBinding", "ClusterRoleBinding"):
        role = document["roleRef"]
        yield document, role["kind"], namespace(document), role["name"]
        for subject in document["subjects"]:
            if subject["kind"] == "ServiceAccount":
                yield document, "ServiceAccount", subject["namespace"], subject["name"]
    for document in documents:
        if namespace(document):
            yield document, "Namespace", "", namespace(document)


def _of_pod(spec: Document) -> Iterator[tuple[str, str]]:
    if spec.get("serviceAccountName"):
        yield "ServiceAccount", spec["serviceAccountName"]
    for volume in spec.get("volumes", []):
        for source, kind, key in (
            ("secret", "Secret", "secretName"),
            ("configMap", "ConfigMap", "name"),
            ("persistentVolumeClaim", "PersistentVolumeClaim", "claimName"),
        ):
            if source in volume:
                yield kind, volume[source][key]


def _of_containers(spec: Document) -> Iterator[tuple[str, str]]:
    kinds = {"secretKeyRef": "Secret", "configMapKeyRef": "ConfigMap"}
    kinds |= {"secretRef": "Secret", "configMapRef": "ConfigMap"}
    for each in [*spec.get("initContainers", []), *spec["containers"]]:
        named = [variable.get("valueFrom", {}) for variable in each.get("env", [])]
        for source in [*named, *each.get("envFrom", [])]:
            yield from ((kinds[how], what["name"]) for how, what in source.items() if how in kinds)


def selected(documents: list[Document]) -> list[str]:
    """A service, a budget or a policy that names pods by labels finds some."""
    faults = []
    labels = [(namespace(document), each) for document, _, each in pods(documents)]
    for document in of_kind(documents, "Service", "PodDisruptionBudget", "NetworkPolicy"):
        spec = document["spec"]
        wanted = spec.get("podSelector", spec.get("selector", {}))
        wanted = wanted if document["kind"] == "Service" else wanted.get("matchLabels", {})
        if wanted and not any(
            where == namespace(document) and wanted.items() <= each.items()
            for where, each in labels
        ):
            faults.append(f"{at(document)}: selects nothing")
    services = [
        (namespace(e), e["metadata"].get("labels", {})) for e in of_kind(documents, "Service")
    ]
    for document in of_kind(documents, "ServiceMonitor"):
        wanted = document["spec"]["selector"]["matchLabels"]
        if not any(
            where == namespace(document) and wanted.items() <= each.items()
            for where, each in services
        ):
            faults.append(f"{at(document)}: selects nothing")
    return faults


def least(documents: list[Document]) -> list[str]:
    """No role has everything of anything, all secrets, or a way into a running container."""
    faults = [at(each) for each in of_kind(documents, "ClusterRoleBinding", "ClusterRole")]
    for role in of_kind(documents, "Role"):
        for rule in role["rules"]:
            words = [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            if any("*" in word for word in words):
                faults.append(f"{at(role)}: *")
            if "secrets" in rule["resources"]:
                named = rule.get("resourceNames") and set(rule["verbs"]) <= {"get"}
                faults += [] if named else [f"{at(role)}: secrets"]
            if {"pods/exec", "pods/attach", "pods/ephemeralcontainers"} & set(rule["resources"]):
                faults.append(f"{at(role)}: into running containers")
            if {"escalate", "bind", "impersonate"} & set(rule["verbs"]):
                faults.append(f"{at(role)}: {rule['verbs']}")
    return faults


def without_engineers(documents: list[Document]) -> list[str]:
    """Where decisions are signed, no person starts a container or reads a secret."""
    faults = []
    for binding in of_kind(documents, "RoleBinding"):
        people = [each for each in binding["subjects"] if each["kind"] != "ServiceAccount"]
        if namespace(binding) != EVALUATION or not people:
            continue
        for role in of_kind(documents, "Role"):
            if (namespace(role), role["metadata"]["name"]) != (
                EVALUATION,
                binding["roleRef"]["name"],
            ):
                continue
            for rule in role["rules"]:
                made = _resources(rule) & MAKES_CONTAINERS
                if made and CHANGES & set(rule["verbs"]):
                    faults.append(f"{at(role)}: {sorted(made)}")
                if "secrets" in rule["resources"]:
                    faults.append(f"{at(role)}: secrets")
    return faults


def _resources(rule: Document) -> set[str]:
    """Names as MAKES_CONTAINERS has them: `jobs` are batch's or Kubeflow's."""
    plain = set(rule["resources"])
    return plain | {f"{name}.{group}" for name in plain for group in rule["apiGroups"]}


CHECKS: tuple[Check, ...] = (
    *(hardened, limited, probed, pinned, denied, without_values, referred, selected),
    *(least, without_engineers),
)
