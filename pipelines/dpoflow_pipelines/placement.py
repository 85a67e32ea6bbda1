"""Retries, timeouts and resources of every task, in Kubernetes' words.

Reads   the spec's section `placement`, and what else of a spec says what its tasks need
Gives   `place` for each task of a DAG, `placing` around the DAG that is compiled, `placed_for` and
        `wanted` to tell of it; `endpoints_of`, the servers that a task asks
Not     the section's knobs (contracts/placement.py), a TrainJob's own words (train/trainjob.py)

Compiled without a placement, as on a laptop, a DAG has only retries, deadlines and caching.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from kfp import kubernetes
from kfp.dsl import PipelineConfig, PipelineTask
from kfp.dsl.structures import ResourceSpec

from dpoflow.contracts.errors import ConfigError
from dpoflow.contracts.judges import EndpointConfig, JudgeConfig, models_in, rewards_in
from dpoflow.contracts.placement import GPU_TASKS, PlacementConfig, SecretUse, TaskPlacement
from dpoflow.contracts.spec import TRAIN_DEADLINE_S, Spec
from dpoflow.images import GPU
from dpoflow.registry.signature import KEY_FILE
from dpoflow.state.step import RETRIES
from dpoflow.state.surroundings import KFP_RUN_ID, STATE_ROOT
from dpoflow.train.trainjob import CLAIM
from dpoflow_pipelines.backends.laptop import ALWAYS

_HOURS = 3600
TIMEOUT_S = {
    "snapshot": 2 * _HOURS,
    "validate": 2 * _HOURS,
    "synthesize": 12 * _HOURS,
    "merge": 2 * _HOURS,
    "train": TRAIN_DEADLINE_S,
    "evaluate": 12 * _HOURS,
    "register": 2 * _HOURS,
    "conclude": 600,
    "decide": 2 * _HOURS,
    "promote": 4 * _HOURS,
}
FITS = {
    "snapshot": TaskPlacement(cpu="2", memory="16Gi"),
    "validate": TaskPlacement(cpu="4", memory="16Gi"),
    "synthesize": TaskPlacement(cpu="4", memory="32Gi"),
    "merge": TaskPlacement(cpu="4", memory="16Gi"),
    "train": TaskPlacement(cpu="8", memory="64Gi", shared_memory="8Gi"),
    "evaluate": TaskPlacement(cpu="8", memory="64Gi"),
    "register": TaskPlacement(cpu="2", memory="16Gi"),
    "conclude": TaskPlacement(cpu="1", memory="2Gi"),
    "decide": TaskPlacement(cpu="2", memory="8Gi"),
    "promote": TaskPlacement(cpu="2", memory="8Gi"),
}
"""What does for a model of some billion parameters."""
TASK_LABEL = "dpoflow/task"
"""By which a task's pods are found: Kubeflow's names for them do not say whose they are."""
_SIGNING = "/var/run/dpoflow/signing"
"""Where evaluate, and nobody else, finds the key that signs decisions: signing.pem."""


_SHARED = "/dev/shm"  # noqa: S108  # POSIX calls it so


@dataclass(frozen=True)
class Placing:
    """All that a DAG is placed by."""

    config: PlacementConfig
    lock: Mapping[str, str] = field(default_factory=dict)
    """Images by digest: see images_lock.py."""

    def image(self, name: str) -> str:
        """How the cluster pulls an image."""
        prefix = f"{self.config.registry}/" if self.config.registry else ""
        return self.lock.get(name) or f"{prefix}{name}"

    @property
    def pipeline_config(self) -> PipelineConfig:
        """What holds for the whole run."""
        return PipelineConfig(ttl_seconds_after_finished=self.config.ttl_s)


_PLACING: ContextVar[Placing | None] = ContextVar("placing", default=None)


@contextlib.contextmanager
def placing(how: Placing | None) -> Iterator[None]:
    """Tasks that are made inside are placed so."""
    token = _PLACING.set(how)
    try:
        yield
    finally:
        _PLACING.reset(token)


def place(task: PipelineTask, *, cache: bool = True) -> PipelineTask:
    """`task` with its retries, deadline, and where a cluster is meant all that it runs with.

    A retry continues from the step's own state. One that cannot help (a wrong config, rejected
    data) ends at once by itself, so the first wait may be short; see `dpoflow.state.step.begin`.
    """
    step = re.sub(r"-\d+$", "", task.name)  # train-2 is the second train
    how = _PLACING.get()
    given = wanted(how.config, step) if how else TaskPlacement()
    task.set_retry(
        num_retries=RETRIES if given.retries is None else given.retries,
        backoff_duration="1s",
        backoff_factor=2.0,
    )
    task.set_caching_options(cache and (how is None or how.config.cache))
    kubernetes.set_timeout(task, seconds=given.timeout_s or TIMEOUT_S[step])
    if how is not None:
        _on_a_cluster(task, how, given)
    return task


def wanted(config: PlacementConfig, step: str) -> TaskPlacement:
    """The task's own knobs, else the default's, else what fits; secrets and settings add up."""
    layers = [FITS[step], config.default, config.of(step)]
    merged: dict[str, object] = {}
    for layer in layers:
        merged |= {name: value for name, value in layer if value is not None}
    merged["env"] = {name: value for each in layers for name, value in (each.env or {}).items()}
    merged["secrets"] = tuple(use for each in layers for use in each.secrets or ())
    merged["volumes"] = tuple(volume for each in layers for volume in each.volumes or ())
    return TaskPlacement.model_validate(merged)


def _on_a_cluster(task: PipelineTask, how: Placing, given: TaskPlacement) -> None:
    config = how.config
    image = how.image(task.container_spec.image)
    # Fields of container_spec, here and below, and none of kfp's setters: each call of one reads
    # the source of every frame of the stack (kfp 2.17), seconds a DAG where much is imported.
    task.container_spec.image = image
    kubernetes.add_pod_label(task, TASK_LABEL, task.name)
    kubernetes.set_image_pull_policy(task, config.image_pull_policy)
    if config.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(config.image_pull_secrets))
    kubernetes.mount_pvc(task, pvc_name=config.state_claim, mount_path=config.state_path)
    for volume in given.volumes or ():
        kubernetes.mount_pvc(
            task, pvc_name=volume.claim, mount_path=volume.path, sub_path=volume.sub_path
        )
    _tell(task, how, image, given)
    _secrets(task, config, given.secrets or ())
    _resources(task, config, given)


def _tell(task: PipelineTask, how: Placing, image: str, given: TaskPlacement) -> None:
    """Settings. What differs from run to run is no part of them: see state/surroundings.py."""
    config = how.config
    settings = {
        **ALWAYS,
        STATE_ROOT: config.state_path,
        CLAIM: f"{config.state_claim}={config.state_path}",
        "MLFLOW_TRACKING_URI": config.mlflow_uri,
        "DPOFLOW_IMAGE": how.image(GPU),  # a TrainJob's pods run it
        "DPOFLOW_IMAGE_DIGEST": image.partition("@")[2],
        **(given.env or {}),
    }
    if any(use.path == _SIGNING for use in given.secrets or ()):
        settings[KEY_FILE] = f"{_SIGNING}/signing.pem"
    task.container_spec.env = {
        **(task.container_spec.env or {}),
        **{name: value for name, value in settings.items() if value},
    }
    kubernetes.use_field_path_as_env(task, KFP_RUN_ID, "metadata.labels['pipeline/runid']")


def _secrets(task: PipelineTask, config: PlacementConfig, uses: tuple[SecretUse, ...]) -> None:
    """All of them optional: a pod that waits for a Secret says nothing, a step without one does."""
    account = config.secrets.promoter if task.name == "promote" else config.secrets.mlflow
    if account:
        login = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
        _as_env(task, account, {name: name for name in login})
    for use in uses:
        if use.env:
            _as_env(task, use.name, use.env)
        if use.path is not None:
            kubernetes.use_secret_as_volume(
                task, secret_name=use.name, mount_path=use.path, optional=True
            )


def _as_env(task: PipelineTask, secret: str, env: Mapping[str, str]) -> None:
    """`env` is variable to key."""
    kubernetes.use_secret_as_env(
        task,
        secret_name=secret,
        secret_key_to_env={key: variable for variable, key in env.items()},
        optional=True,
    )


def _resources(task: PipelineTask, config: PlacementConfig, given: TaskPlacement) -> None:
    task.container_spec.resources = ResourceSpec(
        cpu_request=given.cpu,
        cpu_limit=given.cpu,
        memory_request=given.memory,
        memory_limit=given.memory,
        accelerator_type=config.gpu_resource if given.gpus else None,
        accelerator_count=str(given.gpus) if given.gpus else None,
    )
    if given.shared_memory:
        kubernetes.empty_dir_mount(
            task, "shm", _SHARED, medium="Memory", size_limit=given.shared_memory
        )
    for key, value in (given.node_selector or {}).items():
        kubernetes.add_node_selector(task, key, value)
    for each in given.tolerations or ():
        kubernetes.add_toleration(task, **each.model_dump(exclude_none=True))
    if given.gpus:
        kubernetes.add_toleration(task, key=config.gpu_resource, operator="Exists")
        if given.gpu_type:
            kubernetes.add_node_selector(task, config.gpu_label, given.gpu_type)


# ---------------------------------------------------------------- what a spec calls for by itself


def placed_for(spec: Spec) -> PlacementConfig:
    """The spec's placement, with the GPUs and secrets that its other sections call for.

    Raises ConfigError where two sections do not go together.
    """
    _check_time(spec)
    found: dict[str, TaskPlacement] = {}
    for task in ("snapshot", "synthesize", "train", "evaluate"):
        given = spec.placement.of(task)
        filled: dict[str, object] = {"secrets": (*secrets_of(spec, task), *(given.secrets or ()))}
        if task in GPU_TASKS and given.gpus is None:
            filled["gpus"] = _gpus_of(spec, task)
        found[task] = given.model_copy(update=filled)
    return spec.placement.model_copy(update=found)


def _check_time(spec: Spec) -> None:
    given, job = spec.placement.train.timeout_s, spec.train.trainjob
    together = job.queue_timeout_s + job.timeout_s + _HOURS
    if spec.train.backend == "trainjob" and given is not None and given < together:
        raise ConfigError(
            f"placement.train.timeout_s is {given:,}, and the TrainJob that it waits for may take "
            f"{together:,} s with an hour to load and export; raise it, or lower "
            "train.trainjob.timeout_s"
        )


def _gpus_of(spec: Spec, task: str) -> int:
    """One where the task itself computes with a model, unless the spec says: on the processor."""
    if task == "synthesize":
        own = any(writer.endpoint is None for writer in spec.synthesize.writers)
        return int(spec.synthesize.enabled and (own or any(rewards_in(spec.synthesize.judge))))
    if task == "train" and (spec.train.backend == "trainjob" or spec.train.device == "cpu"):
        return 0
    return (task == "train" and spec.train.processes) or 1


def secrets_of(spec: Spec, task: str) -> Iterator[SecretUse]:
    """What one task knows and others do not: keys as variables, the signing key as a file."""
    names_of = spec.placement.secrets
    if task in ("snapshot", "evaluate") and names_of.storage:
        names = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
        if task == "snapshot":
            pinned = spec.snapshot
            sources = (*pinned.sources, *pinned.replay, *pinned.evaluation_sets, *pinned.answers)
            names += sorted({each.query_env for each in sources if each.query_env})
        yield SecretUse(name=names_of.storage, env={name: name for name in names})
    keys = sorted(set(_keys_of(spec, task)))
    if keys:
        yield SecretUse(name=names_of.keys, env={name: name for name in keys})
    if task == "evaluate" and spec.evaluate.signer:
        yield SecretUse(name=names_of.signing, path=_SIGNING)


def _keys_of(spec: Spec, task: str) -> Iterator[str]:
    """Variables that hold the keys of endpoints that a task asks."""
    return (each.api_key_env for each in endpoints_of(spec, task) if each.api_key_env)


def endpoints_of(spec: Spec, task: str) -> Iterator[EndpointConfig]:
    """Servers of models that a task asks."""
    asked: list[JudgeConfig | None] = []
    if task == "synthesize" and spec.synthesize.enabled:
        asked = [spec.synthesize.judge]
        yield from (each.endpoint for each in spec.synthesize.writers if each.endpoint)
    if task == "evaluate":
        asked = [spec.evaluate.judge, spec.evaluate.grader]
    for judge in asked:
        yield from (each.endpoint for each in models_in(judge))
