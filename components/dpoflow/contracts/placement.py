"""Where the tasks of a DAG run on a cluster, and with what. No step's work depends on any of it.

Reads   nothing
Gives   `PlacementConfig`, the spec's section `placement`; `TaskPlacement`, `KNOWN_TASKS`
Not     Kubeflow's words for it (pipelines' placement.py), a TrainJob's own pods (`train.trainjob`)

An empty section fits the names that infra/cluster installs.
"""

import posixpath
import re
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from dpoflow.contracts.base import Contract
from dpoflow.contracts.judges import ServerUrl, VariableName

Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$")]
"""Of memory, as Kubernetes writes it: 64Gi."""


def _written(value: object) -> object:
    """YAML reads 4 as a number, and Kubernetes takes it either way."""
    return f"{value:g}" if type(value) in (int, float) else value


Processors = Annotated[
    str, BeforeValidator(_written), Field(pattern=r"^([0-9]+(\.[0-9]+)?|[0-9]+m)$")
]
"""As Kubernetes writes them: 8, or 500m for half of one."""

ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
"""Of something in Kubernetes."""

MountPath = Annotated[str, Field(pattern=r"^/[^:\s]+$")]

LabelKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,316}$")]

GPU_TASKS = ("synthesize", "train", "evaluate")
"""Those that hold a model in memory and compute with it."""

_SECRET = re.compile(r"(?i)(key|token|secret|password|passwd|credential)s?$")


class Toleration(Contract):
    """A taint of nodes that does not keep a task's pod away."""

    key: LabelKey | None = None
    """None tolerates every key; then operator must be Exists."""
    operator: Literal["Equal", "Exists"] = "Exists"
    value: str | None = None
    """For operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """None tolerates every effect."""

    @model_validator(mode="after")
    def _value_is_used(self) -> Self:
        if (self.operator == "Equal") is not (self.value is not None):
            raise ValueError("operator Equal takes a value, and Exists takes none")
        if self.key is None and self.operator == "Equal":
            raise ValueError("operator Equal takes a key")
        return self


class Volume(Contract):
    """A volume that is there already, beside that of the state."""

    claim: ObjectName
    """The PersistentVolumeClaim."""
    path: MountPath
    """Where the task sees it."""
    sub_path: str = ""
    """A folder of the volume; empty for all of it."""


class SecretUse(Contract):
    """A Secret of the run's namespace that a task gets: by its name, its values stand nowhere."""

    name: ObjectName
    env: dict[VariableName, str] = {}
    """Environment variable to the Secret's key."""
    path: MountPath | None = None
    """A folder in which each of its keys is a file."""

    @model_validator(mode="after")
    def _is_used(self) -> Self:
        if not self.env and self.path is None:
            raise ValueError(f"secret {self.name} needs env, path, or both: how the task gets it")
        return self


class SecretNames(Contract):
    """Secrets of the run's namespace that the spec itself calls for, each where it is needed."""

    mlflow: ObjectName | None = "dpoflow-mlflow"
    """MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for every task. None: no login."""
    promoter: ObjectName = "dpoflow-promoter"
    """The same two, of the promoter's account: for the pipeline `promote`."""
    storage: ObjectName | None = "dpoflow-s3"
    """AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and each `query_env` for snapshot, the first two for
    evaluate. None: their account has a role of the cloud."""
    keys: ObjectName = "dpoflow-judge"
    """Each `api_key_env` that the spec names, for whoever asks that endpoint."""
    signing: ObjectName = "dpoflow-signing-key"
    """signing.pem, a file for evaluate alone, where `evaluate.signer` asks for a signature."""


class TaskPlacement(Contract):
    """What one task gets. A knob that is left out is `placement.default`'s, else what fits."""

    gpus: int | None = Field(None, ge=0, le=64)
    """Of `placement.gpu_resource`. None: one where the spec has the task compute with a model."""
    gpu_type: str | None = Field(None, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")
    """Value of the node label `placement.gpu_label`, such as NVIDIA-H100-80GB-HBM3."""
    cpu: Processors | None = None
    memory: Quantity | None = None
    shared_memory: Quantity | None = None
    """Size of /dev/shm, which counts as memory. Processes of one task talk through it."""
    node_selector: dict[LabelKey, str] | None = None
    """Labels that the node must have."""
    tolerations: tuple[Toleration, ...] | None = None
    """Beside that of `gpu_resource`, which every task with a GPU has."""
    volumes: tuple[Volume, ...] | None = None
    """Beside the default's."""
    secrets: tuple[SecretUse, ...] | None = None
    """Beside those that the spec calls for by itself: see `SecretNames`."""
    env: dict[VariableName, str] | None = None
    """Settings such as AWS_ENDPOINT_URL or HTTPS_PROXY. Not for secrets."""
    retries: int | None = Field(None, ge=0, le=10)
    """How often it is begun again after an end that another attempt may mend."""
    timeout_s: int | None = Field(None, ge=60)
    """Then its pod is stopped."""

    @field_validator("env")
    @classmethod
    def _holds_no_secret(cls, env: dict[str, str] | None) -> dict[str, str] | None:
        # A compiled DAG is kept, shown and logged. The value is not repeated in the error.
        if secret := next((name for name in env or () if _SECRET.search(name)), None):
            raise ValueError(
                f"env {secret} looks like a secret; put it into a Secret, and name it in secrets"
            )
        return env


class PlacementConfig(Contract):
    """Where tasks run and with what; `dpoflow run` on a laptop takes no notice."""

    # Pydantic keeps `validate` and `register` to itself: those tasks have another name inside.
    model_config = ConfigDict(serialize_by_alias=True)

    namespace: ObjectName = "dpoflow"
    """Where a run's pods are."""
    service_account: ObjectName = "dpoflow-pipeline"
    """Of every task."""
    state_claim: ObjectName = "dpoflow-state"
    """The PersistentVolumeClaim that all tasks share: checkpoints, models, records."""
    state_path: MountPath = "/state"
    mlflow_uri: ServerUrl = "http://mlflow.dpoflow-mlflow.svc:5000"
    """The MLflow server, as pods reach it."""
    secrets: SecretNames = SecretNames()
    images: Literal["digest", "tag"] = "digest"
    """Submit only a DAG whose images are named by their digest, or also by a tag."""
    registry: str | None = Field(None, pattern=r"^[a-z0-9][a-zA-Z0-9._:/-]*[a-zA-Z0-9]$")
    """Put before the names of images that no lock names, such as registry.example/team."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[ObjectName, ...] = ()
    gpu_resource: LabelKey = "nvidia.com/gpu"
    """What a GPU is called as a resource, and as a taint."""
    gpu_label: LabelKey = "nvidia.com/gpu.product"
    """The node label that `gpu_type` is a value of."""
    cache: bool = True
    """Let Kubeflow pass over tasks whose inputs it knows. False after the state was cleared."""
    ttl_s: int = Field(7 * 24 * 3600, ge=0, le=2**31 - 1)
    """Pods of an ended run are gone after so long; what they recorded stays."""
    default: TaskPlacement = TaskPlacement()
    """Of every task that does not say otherwise; no GPUs."""
    snapshot: TaskPlacement = TaskPlacement()
    validate_: TaskPlacement = Field(TaskPlacement(), alias="validate")
    synthesize: TaskPlacement = TaskPlacement()
    merge: TaskPlacement = TaskPlacement()
    train: TaskPlacement = TaskPlacement()
    evaluate: TaskPlacement = TaskPlacement()
    register_: TaskPlacement = Field(TaskPlacement(), alias="register")
    conclude: TaskPlacement = TaskPlacement()
    decide: TaskPlacement = TaskPlacement()
    promote: TaskPlacement = TaskPlacement()

    @model_validator(mode="after")
    def _gpus_are_where_they_are_used(self) -> Self:
        for task in ("default", *KNOWN_TASKS):
            asked = self.of(task) if task != "default" else self.default
            if task not in GPU_TASKS and (asked.gpus or asked.gpu_type):
                raise ValueError(
                    f"{task} computes nothing on a GPU; give gpus and gpu_type to "
                    f"{', '.join(GPU_TASKS)}"
                )
        return self

    @model_validator(mode="after")
    def _volumes_do_not_hide_each_other(self) -> Self:
        for task in KNOWN_TASKS:
            taken = [PurePosixPath(posixpath.normpath(self.state_path))]
            for each in (*(self.default.volumes or ()), *(self.of(task).volumes or ())):
                path = PurePosixPath(posixpath.normpath(each.path))
                if other := next((one for one in taken if _overlap(one, path)), None):
                    raise ValueError(
                        f"{task} would see {each.claim} at {path}, which hides what lies at "
                        f"{other}, or is hidden by it; give it a path of its own"
                    )
                taken.append(path)
        return self

    @model_validator(mode="after")
    def _logins_and_keys_stay_where_they_belong(self) -> Self:
        # A spec also says where data comes from and goes to: what it can read, it can send.
        usual = SecretNames()
        kept = {
            name
            for names in (usual, self.secrets)
            for name in (names.mlflow, names.promoter, names.signing)
        }
        for task in ("default", *KNOWN_TASKS):
            asked = self.of(task) if task != "default" else self.default
            for use in asked.secrets or ():
                if use.name in kept:
                    raise ValueError(
                        f"{task}.secrets names {use.name}, which steps get by themselves where "
                        "they need it, and in no other way; leave it out"
                    )
        return self

    def of(self, task: str) -> TaskPlacement:
        """What the spec says of one task; nothing for a task that has no section."""
        field = _FIELDS.get(task)
        given = getattr(self, field) if field else TaskPlacement()
        assert isinstance(given, TaskPlacement)
        return given


def _overlap(one: PurePosixPath, other: PurePosixPath) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


_FIELDS = {
    field.alias or name: name
    for name, field in PlacementConfig.model_fields.items()
    if field.annotation is TaskPlacement and name != "default"
}
KNOWN_TASKS = tuple(_FIELDS)
"""Tasks that have a section of their own."""
