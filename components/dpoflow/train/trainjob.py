"""Training as a Kubeflow TrainJob (Kubeflow Trainer 2.3, trainer.kubeflow.org/v1alpha1).

Reads   a `Job` in a state folder that the job's pods see under the same path; the cluster from the
        pod's service account or KUBECONFIG; DPOFLOW_STATE_CLAIM, `CLAIM=PATH` of that folder's
        volume; KFP_POD_NAME and KFP_POD_UID of the pod that waits here
Gives   `train_on_cluster`; `manifest` (what is submitted)
Not     training: the pods run work.py, and tell of it through the state folder

The TrainJob's name is a function of the step's state, so a retry adopts the job of an earlier
attempt. It belongs to the pod that waits for it, and goes when that goes. A job that ended without
Complete, for whatever reason, is an error; waiting for a place and running have deadlines of their
own, because a peer that waits is no failure.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Self

from dpoflow.contracts.errors import ConfigError, DpoflowError, ServiceUnavailable
from dpoflow.images import GPU
from dpoflow.state.events import Events
from dpoflow.train.outcome import SHUTDOWN_S, Job, cause
from dpoflow.train.preemption import Preemption

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
CLAIM = "DPOFLOW_STATE_CLAIM"
NAMESPACE = "DPOFLOW_NAMESPACE"
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
NODE = "node"
"""The replicated job, and its container, that Kubeflow's torch runtimes train in."""

LAST_LINES = 20
PATIENCE = 5
"""Failed questions in a row before the cluster is given up."""

State = Literal["queued", "running", "complete", "failed"]


def manifest(job: Job, path: Path) -> dict[str, Any]:
    """The TrainJob whose pods run `path`, as the API takes it."""
    knobs = job.config.trainjob
    resources = {"nvidia.com/gpu": str(knobs.gpus)} if knobs.gpus else {}
    trainer: dict[str, Any] = {
        "image": os.environ.get("DPOFLOW_IMAGE", GPU),
        "command": ["torchrun"],
        "args": [
            *("--shutdown-timeout", str(SHUTDOWN_S), "-m", "dpoflow.train", str(path)),
        ],
        "numNodes": knobs.nodes,
        "numProcPerNode": job.config.processes or knobs.gpus or 1,
    }
    if resources:
        trainer["resourcesPerNode"] = {"limits": resources, "requests": resources}
    spec: dict[str, Any] = {
        "runtimeRef": {"name": knobs.runtime},
        # Of the cluster's own, should this process not live to see the deadlines.
        "activeDeadlineSeconds": knobs.queue_timeout_s + knobs.timeout_s,
        "trainer": trainer,
    }
    if os.environ.get(CLAIM):
        spec["runtimePatches"] = [_with_state(os.environ[CLAIM])]
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {
            "name": name_of(job),
            "labels": {"app.kubernetes.io/managed-by": "dpoflow"},
            "annotations": {"dpoflow/state": job.state.name},
            **_owner(),
        },
        "spec": spec,
    }


def name_of(job: Job) -> str:
    """The same for every attempt at the same step."""
    return f"dpoflow-{job.state.name[:16]}"


def _with_state(claim: str) -> dict[str, Any]:
    """The state's volume, mounted in the training pods where it is mounted here."""
    name, _, where = claim.partition("=")
    if not name or not where.startswith("/"):
        raise ConfigError(f"{CLAIM} {claim} must be CLAIM=PATH, such as dpoflow-state=/state")
    pod = {
        "volumes": [{"name": "state", "persistentVolumeClaim": {"claimName": name}}],
        "containers": [{"name": NODE, "volumeMounts": [{"name": "state", "mountPath": where}]}],
    }
    node = {"name": NODE, "template": {"spec": {"template": {"spec": pod}}}}
    template = {"spec": {"replicatedJobs": [node]}}
    return {"manager": "dpoflow/train", "trainingRuntimeSpec": {"template": template}}


def _owner() -> dict[str, Any]:
    name, uid = os.environ.get("KFP_POD_NAME"), os.environ.get("KFP_POD_UID")
    if not name or not uid:
        return {}
    return {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}]}


def train_on_cluster(job: Job, path: Path, events: Events) -> None:
    """Submit the job, or adopt an earlier attempt's, and wait until it is Complete."""
    with _Cluster() as cluster, Preemption() as preemption:
        _Watch(job, path, cluster, events, preemption).run()


class _Watch:
    """One TrainJob from its submission to its end."""

    def __init__(
        self, job: Job, path: Path, cluster: "_Cluster", events: Events, preemption: Preemption
    ) -> None:
        self._job, self._path, self._events = job, path, events
        self._cluster, self._preemption = cluster, preemption
        self._name = name_of(job)

    def run(self) -> None:
        """Until it is Complete; whatever else happens is raised, and the job removed."""
        self._submit()
        try:
            self._await()
        except BaseException:
            # Where the cluster itself is away the job may be in the best of health: the next
            # attempt adopts it.
            if not self._cluster.away:
                with suppress(DpoflowError):  # what went wrong first is what counts
                    self._cluster.delete(self._name)
            raise
        self._cluster.delete(self._name)  # TrainJobs are not cleaned up by themselves

    def _submit(self) -> None:
        found = self._cluster.read(self._name)
        if found is not None and (
            state_of(found) in ("failed", "complete") or found["metadata"].get("deletionTimestamp")
        ):
            # It failed, its outcome is gone, or it is going away itself: another try.
            self._cluster.delete(self._name)
            found = None
        if found is not None:
            self._cluster.adopt(self._name)
            self._events.say(
                f"going on with TrainJob {self._name} of an earlier attempt", passing=True
            )
        elif self._cluster.create(manifest(self._job, self._path)):
            self._events.say(
                f"TrainJob {self._name} created in {self._cluster.namespace}", passing=True
            )

    def _await(self) -> None:
        knobs, began = self._job.config.trainjob, time.monotonic()
        started: float | None = None
        while True:
            found, now = self._cluster.read(self._name), time.monotonic()
            if found is None:
                raise self._lost("was deleted by somebody while it was needed")
            state = state_of(found)
            if state == "complete":
                return
            if state == "failed":
                raise self._lost(f"ended as {_condition(found, 'Failed')}")
            if state == "running" and started is None:
                started = now
                self._events.say(f"TrainJob {self._name} has its pods", passing=True)
            if started is None and now - began > knobs.queue_timeout_s:
                raise self._lost(
                    f"found no place in {knobs.queue_timeout_s} s (train.trainjob.queue_timeout_s)"
                )
            if started is not None and now - started > knobs.timeout_s:
                raise self._lost(f"ran longer than {knobs.timeout_s} s (train.trainjob.timeout_s)")
            if self._preemption.asked:
                raise self._lost("was cancelled: the task that waits for it was told to end")
            time.sleep(self._cluster.interval_s)

    def _lost(self, what: str) -> DpoflowError:
        lines = self._cluster.last_lines(self._name)
        said = f"; its pods' last lines: {lines}" if lines else ""
        return cause(self._job, f"TrainJob {self._name} {what}{said}")


def state_of(found: dict[str, Any]) -> State:
    """Where a TrainJob is. Conditions say how it ended, its child jobs whether it began."""
    status = found.get("status") or {}
    ended = {each["type"]: each for each in status.get("conditions") or ()}
    for kind, state in (("Failed", "failed"), ("Complete", "complete")):
        if ended.get(kind, {}).get("status") == "True":
            return state  # type: ignore[return-value]  # a literal of the tuple above
    jobs = status.get("jobsStatus") or ()
    began = any(each.get("ready", 0) or each.get("succeeded", 0) for each in jobs)
    return "running" if began else "queued"


def _condition(found: dict[str, Any], kind: str) -> str:
    for each in found["status"]["conditions"]:
        if each["type"] == kind:
            return f"{kind} ({each.get('reason', '')}: {each.get('message', '')})"
    return kind


class _Cluster:
    """The few things that are asked of the Kubernetes API."""

    interval_s = float(os.environ.get("DPOFLOW_TRAINJOB_POLL_S", "5"))
    patience_s = 300.0
    """How long a job that was deleted may take to be gone."""
    away = False
    """Whether the API itself stopped answering."""

    def __enter__(self) -> Self:
        from kubernetes import client

        settings = client.Configuration()
        own = _load(settings)
        self.namespace = os.environ.get(NAMESPACE) or own
        self._client = client.ApiClient(settings)
        self._jobs = client.CustomObjectsApi(self._client)
        self._pods = client.CoreV1Api(self._client)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """What the API refuses is the platform's to allow; that it is away will pass."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ApiException as error:
            text = f"the cluster did not {what} ({error.status} {error.reason})"
            if error.status in (401, 403):
                raise ConfigError(
                    f"{text}; the service account needs get, create, patch and delete on "
                    f"{PLURAL}.{GROUP}, and get and list on pods and their logs"
                ) from None
            if not _passing(error.status):
                raise ConfigError(f"{text}: {str(error.body)[:300]}") from None
            self.away = True
            raise ServiceUnavailable(f"{text}; try again later") from None
        except HTTPError as error:
            self.away = True
            raise ServiceUnavailable(
                f"the cluster did not {what} ({type(error).__name__}); try again later"
            ) from None

    def read(self, name: str) -> dict[str, Any] | None:
        """The TrainJob, or None where there is none."""
        with self._explained("read the TrainJob"):
            found: dict[str, Any] | None = self._ask(
                lambda: self._jobs.get_namespaced_custom_object(*self._where(name))
            )
        return found

    def create(self, body: dict[str, Any]) -> bool:
        """Whether it was created; False where another attempt was quicker."""
        from kubernetes.client import ApiException

        with self._explained("create a TrainJob"):
            try:
                self._jobs.create_namespaced_custom_object(
                    GROUP, VERSION, self.namespace, PLURAL, body
                )
            except ApiException as error:
                if error.status == 409:  # HTTP's Conflict
                    return False
                raise
        return True

    def delete(self, name: str) -> None:
        """Away with it and its pods, and wait until it is: its name will be used again."""
        with self._explained("delete the TrainJob"):
            self._ask(
                lambda: self._jobs.delete_namespaced_custom_object(
                    *self._where(name), propagation_policy="Foreground"
                )
            )
        deadline = time.monotonic() + self.patience_s
        while self.read(name) is not None:
            if time.monotonic() > deadline:
                raise ServiceUnavailable(
                    f"TrainJob {name} was deleted and is still there after {self.patience_s:g} s; "
                    "look at what holds it (kubectl describe), then give the same command again"
                )
            time.sleep(min(1.0, self.interval_s))

    def adopt(self, name: str) -> None:
        """It belongs to this pod from now on: the one that made it is gone, or will be."""
        owner = _owner()
        if owner:
            with self._explained("patch the TrainJob"):
                self._ask(
                    lambda: self._jobs.patch_namespaced_custom_object(
                        *self._where(name), {"metadata": owner}
                    )
                )

    def last_lines(self, name: str) -> str:
        """What its pods printed last; empty where nobody can tell any more."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            pods = self._pods.list_namespaced_pod(
                self.namespace, label_selector=f"jobset.sigs.k8s.io/jobset-name={name}"
            )
            told = [
                f"{pod.metadata.name}: {' | '.join(self._log(pod.metadata.name))}"
                for pod in pods.items
            ]
        except (ApiException, HTTPError, OSError):
            return ""
        return "; ".join(told)

    def _log(self, pod: str) -> list[str]:
        text = self._pods.read_namespaced_pod_log(pod, self.namespace, tail_lines=LAST_LINES)
        return [line.strip() for line in text.splitlines() if line.strip()]

    def _where(self, name: str) -> tuple[str, str, str, str, str]:
        return GROUP, VERSION, self.namespace, PLURAL, name

    def _ask(self, question: Callable[[], Any]) -> Any:
        """The answer, None for what is not there; a cluster may be away for some seconds."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        for attempt in range(1, PATIENCE + 1):
            try:
                return question()
            except ApiException as error:
                if error.status == 404:  # HTTP's Not Found
                    return None
                if not _passing(error.status) or attempt == PATIENCE:
                    raise
            except HTTPError:
                if attempt == PATIENCE:
                    raise
            time.sleep(self.interval_s)
        raise AssertionError("every way out of the loop was taken")


def _passing(status: int) -> bool:
    """Whether an HTTP status is one of a server that is away or busy."""
    return status >= 500 or status in (408, 429)


def _load(settings: Any) -> str:
    """Fill in where the cluster is and who asks; gives the namespace that goes with it."""
    from kubernetes import config

    page = os.environ.get("KUBECONFIG")  # kubernetes itself looks when it is imported
    try:
        if page is None and ACCOUNT.is_file():
            config.load_incluster_config(client_configuration=settings)
            return ACCOUNT.read_text("utf-8").strip()
        config.load_kube_config(page, client_configuration=settings)
        _, current = config.list_kube_config_contexts(page)
    except config.ConfigException:
        raise ConfigError(
            "train.backend trainjob: this process knows no cluster; run it in a pod with a "
            "service account, or set KUBECONFIG"
        ) from None
    return str(current["context"].get("namespace") or "default")
