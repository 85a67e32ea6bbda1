"""What must hold of every DAG before a cluster gets it; each rule is shown one that breaks it."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2 as kubernetes_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from dpoflow.contracts.placement import PlacementConfig
from dpoflow.contracts.spec import PipelineName, Spec
from dpoflow.contracts.spec_file import load_spec
from dpoflow.images import CPU, GPU
from dpoflow_pipelines.backends.ir import read_ir
from dpoflow_pipelines.placement import placed_for
from dpoflow_pipelines.run import compile_to

DEMO = Path(__file__).parents[2] / "pipelines" / "configs" / "demo.yaml"
DAGS: tuple[PipelineName, ...] = ("align", "retrain", "promote")
LOCK = {
    CPU: f"registry.example/team/dpoflow-python-cpu@sha256:{'a' * 64}",
    GPU: f"registry.example/team/dpoflow-python-gpu@sha256:{'b' * 64}",
}
EIGHT_GPUS = [
    *("placement.train.gpus=8", "placement.train.gpu_type=NVIDIA-H100-80GB-HBM3"),
    *("placement.train.shared_memory=64Gi", "placement.evaluate.gpus=2"),
    "placement.default.tolerations=[{key: spot, effect: NoSchedule}]",
    "placement.train.volumes=[{claim: scratch, path: /scratch}]",
    "placement.default.env={AWS_ENDPOINT_URL: https://s3.example}",
    f"evaluate.signer={'c' * 64}",
]
PLACEMENTS = {"demo": [], "eight GPUs": EIGHT_GPUS}


class Ir(NamedTuple):
    """A compiled DAG: its two documents, as YAML reads them."""

    spec: dict[str, Any]
    platforms: dict[str, Any]

    def executors(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = self.spec["deploymentSpec"]["executors"]
        return found

    def pods(self) -> dict[str, dict[str, Any]]:
        kubernetes = self.platforms["platforms"]["kubernetes"]
        found: dict[str, dict[str, Any]] = kubernetes["deploymentSpec"]["executors"]
        return found

    def tasks(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every task of every DAG inside."""
        for dag in (self.spec["root"], *self.spec["components"].values()):
            yield from dag.get("dag", {}).get("tasks", {}).items()

    def runs_code(self, task: Mapping[str, Any]) -> bool:
        return "executorLabel" in self.spec["components"][task["componentRef"]["name"]]

    def step(self, executor: str) -> str:
        return re.sub(r"-\d+$", "", executor.removeprefix("exec-"))


def compiled(folder: Path, dag: PipelineName, placement: PlacementConfig) -> Ir:
    path = folder / "ir.yaml"
    compile_to(path, dag, placement, LOCK)
    return Ir(*read_ir(path))


# ---------------------------------------------------------------- the rules


def parses(ir: Ir, spec: Spec) -> Iterator[str]:
    try:
        json_format.ParseDict(ir.spec, pipeline_spec_pb2.PipelineSpec())
        json_format.ParseDict(ir.platforms, pipeline_spec_pb2.PlatformSpec())
        for pod in ir.pods().values():
            json_format.ParseDict(pod, kubernetes_pb2.KubernetesExecutorConfig())
    except json_format.ParseError as error:
        yield str(error)


def images_by_digest(ir: Ir, spec: Spec) -> Iterator[str]:
    for name, executor in ir.executors().items():
        if not re.search(r"@sha256:[0-9a-f]{64}$", executor["container"]["image"]):
            yield f"{name} {executor['container']['image']}"


def retries_and_deadlines(ir: Ir, spec: Spec) -> Iterator[str]:
    for name, task in ir.tasks():
        if ir.runs_code(task) and "maxRetryCount" not in task.get("retryPolicy", {}):
            yield f"{name} has no retry"
    for name in ir.executors():
        if int(ir.pods().get(name, {}).get("activeDeadlineSeconds", 0)) <= 0:
            yield f"{name} has no deadline"


def conditions_compare_words(ir: Ir, spec: Spec) -> Iterator[str]:
    plain = r"inputs\.parameter_values\['[\w-]+'\] == '[A-Za-z][\w-]*'"
    for name, task in ir.tasks():
        condition = task.get("triggerPolicy", {}).get("condition")
        if condition is not None and not re.fullmatch(plain, condition):
            yield f"{name} if {condition}"


def no_artifact_is_one_of_several(ir: Ir, spec: Spec) -> Iterator[str]:
    for name, component in ir.spec["components"].items():
        outputs = component.get("dag", {}).get("outputs", {}).get("artifacts", {})
        for output, given in outputs.items():
            if len(given.get("artifactSelectors", ())) > 1:
                yield f"{name}.{output}"


def nothing_is_installed(ir: Ir, spec: Spec) -> Iterator[str]:
    for name, executor in ir.executors().items():
        container = executor["container"]
        text = " ".join([*container.get("command", ()), *container.get("args", ())])
        if re.search(r"pip3? install|-m pip|ensurepip|apt-get|conda install", text):
            yield name


SECRET = re.compile(r"(?i)(key|token|secret|password|passwd|credential)s?$")


def no_secret_has_a_value(ir: Ir, spec: Spec) -> Iterator[str]:
    for name, executor in ir.executors().items():
        for each in executor["container"].get("env", ()):
            path = each["value"].startswith("/")  # DPOFLOW_SIGNING_KEY names a file
            if SECRET.search(each["name"]) and not path:
                yield f"{name} {each['name']}"


def gpus_where_meant(ir: Ir, spec: Spec) -> Iterator[str]:
    meant = {"train": 1, "evaluate": 1, "synthesize": 1}
    meant |= {name: n for name in meant if (n := spec.placement.of(name).gpus) is not None}
    for name, executor in ir.executors().items():
        given = executor["container"].get("resources", {}).get("accelerator", {})
        count = int(given.get("resourceCount", 0))
        if count != meant.get(ir.step(name), 0):
            yield f"{name} has {count} GPUs"


def every_pod_has_the_state_and_limits(ir: Ir, spec: Spec) -> Iterator[str]:
    for name, executor in ir.executors().items():
        mounts = {each["mountPath"] for each in ir.pods()[name].get("pvcMount", ())}
        if spec.placement.state_path not in mounts:
            yield f"{name} has no state"
        limits = executor["container"].get("resources", {})
        if not {"resourceCpuLimit", "resourceMemoryLimit"} <= limits.keys():
            yield f"{name} has no limits"


def the_signing_key_is_evaluations_alone(ir: Ir, spec: Spec) -> Iterator[str]:
    for name, pod in ir.pods().items():
        secrets = [*pod.get("secretAsEnv", ()), *pod.get("secretAsVolume", ())]
        holds = spec.placement.secrets.signing in {each["secretName"] for each in secrets}
        if holds is not (ir.step(name) == "evaluate" and spec.evaluate.signer is not None):
            yield name


RULES = [
    *(parses, images_by_digest, retries_and_deadlines, conditions_compare_words),
    *(no_artifact_is_one_of_several, nothing_is_installed, no_secret_has_a_value),
    *(gpus_where_meant, every_pod_has_the_state_and_limits, the_signing_key_is_evaluations_alone),
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[Ir, Spec]]:
    found = {}
    for dag in DAGS:
        for name, sets in PLACEMENTS.items():
            spec = load_spec(DEMO, sets)
            folder = tmp_path_factory.mktemp("ir")
            found[dag, name] = compiled(folder, dag, placed_for(spec)), spec
    return found


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule.__name__))
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("dag", DAGS)
def test_every_dag_keeps_every_rule(
    sound: dict[tuple[str, str], tuple[Ir, Spec]],
    dag: str,
    placement: str,
    rule: Callable[[Ir, Spec], Iterator[str]],
) -> None:
    assert list(rule(*sound[dag, placement])) == []


def _unknown_field(ir: Ir) -> None:
    ir.pods()["exec-train"]["nodeSelektor"] = {}


def _tag(ir: Ir) -> None:
    ir.executors()["exec-train"]["container"]["image"] = GPU


def _no_retry(ir: Ir) -> None:
    del next(task for name, task in ir.tasks() if name == "merge")["retryPolicy"]


def _no_deadline(ir: Ir) -> None:
    del ir.pods()["exec-merge"]["activeDeadlineSeconds"]


def _numeric(ir: Ir) -> None:
    condition = "inputs.parameter_values['pipelinechannel--n'] == 1"
    next(task for name, task in ir.tasks() if name == "train")["triggerPolicy"] = {
        "condition": condition
    }


def _one_of(ir: Ir) -> None:
    selectors = [{"outputArtifactKey": "policy", "producerSubtask": f"train-{n}"} for n in (1, 2)]
    ir.spec["components"]["comp-exit-handler-1"]["dag"]["outputs"] = {
        "artifacts": {"policy": {"artifactSelectors": selectors}}
    }


def _pip(ir: Ir) -> None:
    command = ir.executors()["exec-merge"]["container"]["command"]
    command.insert(0, "python3 -m pip install kfp")


def _secret(ir: Ir) -> None:
    env = ir.executors()["exec-merge"]["container"]["env"]
    env.append({"name": "HF_TOKEN", "value": "hf_abc"})


def _stray_gpu(ir: Ir) -> None:
    resources = ir.executors()["exec-merge"]["container"]["resources"]
    resources["accelerator"] = {"resourceCount": "1", "resourceType": "nvidia.com/gpu"}


def _no_state(ir: Ir) -> None:
    del ir.pods()["exec-merge"]["pvcMount"]


def _key_elsewhere(ir: Ir) -> None:
    ir.pods()["exec-train"]["secretAsVolume"] = [
        {"secretName": "dpoflow-signing-key", "mountPath": "/stolen"}
    ]


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (_unknown_field, parses),
        (_tag, images_by_digest),
        (_no_retry, retries_and_deadlines),
        (_no_deadline, retries_and_deadlines),
        (_numeric, conditions_compare_words),
        (_one_of, no_artifact_is_one_of_several),
        (_pip, nothing_is_installed),
        (_secret, no_secret_has_a_value),
        (_stray_gpu, gpus_where_meant),
        (_no_state, every_pod_has_the_state_and_limits),
        (_key_elsewhere, the_signing_key_is_evaluations_alone),
    ],
    ids=lambda it: str(it.__name__).strip("_"),
)
def test_a_broken_dag_breaks_its_rule(
    sound: dict[tuple[str, str], tuple[Ir, Spec]],
    broken: Callable[[Ir], None],
    rule: Callable[[Ir, Spec], Iterator[str]],
) -> None:
    ir, spec = copy.deepcopy(sound["align", "eight GPUs"])
    broken(ir)

    assert list(rule(ir, spec)) != []


# ---------------------------------------------------------------- what a placement says


def test_a_tasks_own_knob_goes_before_the_defaults_and_that_before_what_fits(
    tmp_path: Path,
) -> None:
    spec = load_spec(DEMO, ["placement.default.memory=48Gi", "placement.train.memory=96Gi"])

    executors = compiled(tmp_path, "align", placed_for(spec)).executors()

    limits = {
        name: executors[f"exec-{name}"]["container"]["resources"]["resourceMemoryLimit"]
        for name in ("train", "merge")
    }
    cpu = executors["exec-train"]["container"]["resources"]["resourceCpuLimit"]
    assert limits == {"train": "96Gi", "merge": "48Gi"}
    assert cpu == "8"


@pytest.mark.parametrize(
    ("sets", "gpus"),
    [
        ([], {"synthesize": 1, "train": 1, "evaluate": 1}),
        (["synthesize.enabled=false"], {"synthesize": 0, "train": 1, "evaluate": 1}),
        (["train.device=cpu"], {"synthesize": 1, "train": 0, "evaluate": 1}),
        (["train.backend=trainjob"], {"synthesize": 1, "train": 0, "evaluate": 1}),
        (["train.backend=torchrun", "train.processes=4"], {"synthesize": 1, "train": 4}),
        (["placement.evaluate.gpus=0"], {"synthesize": 1, "train": 1, "evaluate": 0}),
    ],
)
def test_a_task_has_a_gpu_where_it_computes_with_a_model_itself(
    sets: list[str], gpus: dict[str, int]
) -> None:
    placed = placed_for(load_spec(DEMO, sets))

    assert {task: placed.of(task).gpus for task in gpus} == gpus


def judged_with(key: str) -> dict[str, Any]:
    endpoint = {"base_url": "https://judge.example/v1", "model": "m", "api_key_env": key}
    return {"kind": "llm", "endpoint": endpoint}


def test_keys_of_endpoints_reach_only_the_task_that_asks_them(tmp_path: Path) -> None:
    spec = Spec.model_validate(
        {
            "name": "keys",
            "model": "hf://org/name@main",
            "data": {"sources": [{"uri": "s3://bucket/pairs"}]},
            "synthesize": {"judge": judged_with("MAKER_KEY")},
            "evaluate": {"judge": judged_with("JUDGE_KEY")},
        }
    )

    pods = compiled(tmp_path, "align", placed_for(spec)).pods()

    given = {
        name.removeprefix("exec-"): {
            each["envVar"]
            for secret in pod["secretAsEnv"]
            if secret["secretName"] == "dpoflow-judge"
            for each in secret["keyToEnv"]
        }
        for name, pod in pods.items()
    }
    assert given.pop("synthesize") == {"MAKER_KEY"}
    assert given.pop("evaluate") == {"JUDGE_KEY"}
    assert set().union(*given.values()) == set()
