"""A spec as a run of Kubeflow Pipelines: submitted once, watched, stopped.

    HOME/runs/<run>/run.json    what was submitted where, noted before each step that others see

Reads   a spec, a home, a server of Kubeflow Pipelines
Gives   `submit`, `uploaded`, `attach`, `records_of`, `summary_of`, `cancel`, `write_logs`
Not     the API and its patience (kfp_api.py), schedules (schedules.py), printing (on_cluster.py)

The same command again goes on where it was cut off: a run that Kubeflow has taken is found by the
nonce in its parameters, and not made twice.
"""

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from google.protobuf import json_format

from dpoflow.contracts.base import canonical_json, sha256_json
from dpoflow.contracts.errors import BY_NAME, ConfigError, DpoflowError, ServiceUnavailable
from dpoflow.contracts.results import RunSummary, TaskState
from dpoflow.contracts.spec import REGISTRY, PipelineName, RunnableName, Spec
from dpoflow.contracts.submitted import Submitted
from dpoflow.sources import remote, web
from dpoflow.sources.files import local_path
from dpoflow.state.step import TaskRecord
from dpoflow_pipelines.backends.ir import read_ir
from dpoflow_pipelines.backends.kfp_api import KfpApi, NotThere, named
from dpoflow_pipelines.backends.laptop import TaskFailed, task_names
from dpoflow_pipelines.images_lock import is_pinned
from dpoflow_pipelines.placement import TASK_LABEL, endpoints_of, placed_for, wanted
from dpoflow_pipelines.run import compile_to, submit_to_team
from dpoflow_pipelines.runs import IR, Run, claim_run, memory

if TYPE_CHECKING:
    from dpoflow.tracking.pipeline_run import PipelineRun

BACKEND = "cluster"
GONE = "DELETED"
"""In Kubeflow, by somebody: what it did is in the state all the same."""
ENDED = {"SUCCEEDED", "FAILED", "CANCELING", "CANCELED", "SKIPPED", GONE}
"""A run that is being ended begins nothing any more: another one goes on from its state."""
_MODELS = ("hf://", "package://")
_STATES: dict[str, TaskState] = {
    "PENDING": "PENDING",
    "RUNNING": "RUNNING",
    "PAUSED": "RUNNING",
    "CANCELING": "FAILED",
    "SUCCEEDED": "SUCCEEDED",
    "SKIPPED": "SKIPPED",  # by the cache, or by what a retraining decided: Kubeflow tells no more
    "FAILED": "FAILED",
    "CANCELED": "FAILED",
}


class RunFailed(TaskFailed):
    """A run ended on the cluster, and nobody there says whose it is to mend."""


@dataclass(frozen=True)
class OnCluster:
    """A run that Kubeflow has."""

    folder: Path
    run_id: str
    kfp_run_id: str
    link: str
    mlflow: str
    """Where its figures are; empty where nobody here knows."""
    was_there: bool
    """Whether it had been submitted before."""


# ---------------------------------------------------------------- what can be known beforehand


def compiled_for(
    spec: Spec, path: Path, pipeline: PipelineName, images: Mapping[str, str]
) -> list[str]:
    """Compile the DAG for the spec's placement; gives its images. Raises ConfigError."""
    _check_paths(spec)
    _check_addresses(spec)
    draft = path.with_name(f".{path.name}.unchecked")
    try:
        compile_to(draft, pipeline, placed_for(spec), images)
        found = sorted(set(_images(draft)))
        loose = [image for image in found if not is_pinned(image)]
        if loose and spec.placement.images == "digest":
            locked = ", ".join(sorted(images)) or "nothing"
            raise ConfigError(
                f"{', '.join(loose)} is no image with a digest, so what runs could change under "
                f"the run; name a lock of built images with --images (this one has {locked}), or "
                "set placement.images: tag"
            )
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return found


def _images(ir: Path) -> Iterator[str]:
    spec = read_ir(ir)[0]
    for executor in spec["deploymentSpec"]["executors"].values():
        yield str(executor["container"]["image"])


def _check_paths(spec: Spec) -> None:
    """Whether pods can see what the spec names: this machine's files are not among it."""
    placed = placed_for(spec)
    seen = [placed.state_path]
    seen += [volume.path for volume in wanted(placed, "snapshot").volumes or ()]
    for uri in spec.snapshot.uris():
        if uri.startswith((REGISTRY, *_MODELS)) or remote.is_remote(uri):
            continue
        place = os.path.normpath(local_path(uri))  # refuses what no pod can read either
        if not any(Path(place).is_relative_to(path) for path in seen):
            raise ConfigError(
                f"{uri} is a path of this machine, and pods see {', '.join(seen)}; put it there, "
                "on s3:// or https://, or mount its volume with placement.snapshot.volumes"
            )


def _check_addresses(spec: Spec) -> None:
    """Whether a pod means another machine by what the spec calls a server."""
    named = [("placement.mlflow_uri", spec.placement.mlflow_uri)]
    named += [("a source", uri) for uri in spec.snapshot.uris() if web.is_web(uri)]
    for task in ("synthesize", "evaluate"):
        named += [(f"a model of {task}", each.base_url) for each in endpoints_of(spec, task)]
    for what, address in named:
        host = urlsplit(address).hostname or ""
        if web.is_near(host):
            raise ConfigError(
                f"{what} names {host}, which is the pod itself; name the server as pods reach it, "
                "such as http://SERVICE.NAMESPACE:PORT"
            )


# ---------------------------------------------------------------- submit


def submit(
    spec: Spec,
    home: Path,
    api: KfpApi,
    *,
    pipeline: RunnableName = "align",
    images: Mapping[str, str],
) -> OnCluster:
    """Make Kubeflow run `spec`, or find the run of it that is not over yet.

    Raises ConfigError, ServiceUnavailable.
    """
    there = {"cluster": [api.endpoint, spec.placement.namespace]}
    while True:
        with claim_run(home, spec, there, pipeline) as run:
            known = run.memory()
            if known.get("kfp_run_id"):
                state = _state_or_gone(api, known["kfp_run_id"])
                if state == "SUCCEEDED":
                    run.remember(state="SUCCEEDED")
                    continue  # a new run, with the next number
                if state not in ENDED:
                    return _placed(run, api, known, was_there=True)
                _forget(run)  # it failed or was stopped: its state is kept, and a new one goes on
            return _submit(spec, run, api, pipeline, images)


def _state_or_gone(api: KfpApi, kfp_run_id: str) -> str:
    try:
        return state_of(api, kfp_run_id)
    except NotThere:
        return GONE


def _forget(run: Run) -> None:
    run.remember(kfp_run_id="", nonce=secrets.token_hex(16), submitted="")


def _submit(
    spec: Spec, run: Run, api: KfpApi, pipeline: RunnableName, images: Mapping[str, str]
) -> OnCluster:
    ir = run.folder / IR
    compiled_for(spec, ir, pipeline, images)
    where = {"backend": BACKEND, "pipeline": pipeline, "endpoint": api.endpoint}
    run.remember(**where, namespace=spec.placement.namespace)
    if not run.memory().get("nonce"):
        run.remember(nonce=secrets.token_hex(16))
    submitted = run.memory().get("submitted") or canonical_json(_told(spec, run))
    run.remember(submitted=submitted)  # before Kubeflow hears of it: see `_found`
    pipeline_id, version_id = uploaded(api, ir)
    experiment = experiment_of(api, spec.name)
    body = api.models.V2beta1Run(
        display_name=run.run_id,
        experiment_id=experiment,
        pipeline_version_reference=api.models.V2beta1PipelineVersionReference(
            pipeline_id=pipeline_id, pipeline_version_id=version_id
        ),
        runtime_config=runtime_config(api, spec, pipeline, submitted),
        service_account=spec.placement.service_account,
    )

    def create() -> str:
        # An attempt that was cut off may have made it: it is looked for before there is another.
        return _found(api, run.run_id, experiment, submitted) or str(
            api.once("take the run", api.runs.run_service_create_run, run=body).run_id
        )

    kfp_run_id = api.patiently(create)
    run.remember(kfp_run_id=kfp_run_id)
    return _placed(run, api, run.memory(), was_there=False)


def runtime_config(api: KfpApi, spec: Spec, pipeline: RunnableName, submitted: str) -> Any:
    """The parameters of a run or of a schedule's runs."""
    arguments = {
        "state_root": spec.placement.state_path,
        **spec.arguments(pipeline),
        "submitted": submitted,
    }
    return api.models.V2beta1RuntimeConfig(parameters=arguments)


def _told(spec: Spec, run: Run) -> Submitted:
    """What the first task is told, which opens the MLflow run in the pipeline's own name."""
    return Submitted(
        name=run.run_id,
        nonce=run.memory()["nonce"],
        spec=spec,
        submission=submit_to_team(spec, run),
    )


def _found(api: KfpApi, name: str, experiment: str, submitted: str) -> str | None:
    """The run that an earlier attempt of this very submission made."""
    listed = api.all_pages(
        "list runs",
        api.runs.run_service_list_runs,
        "runs",
        experiment_id=experiment,
        filter=named(name),
    )
    for each in listed:
        parameters = each.runtime_config.parameters if each.runtime_config else None
        if (parameters or {}).get("submitted") == submitted:
            return str(each.run_id)
    return None


def experiment_of(api: KfpApi, name: str) -> str:
    """The id of an experiment, made where there is none."""
    there = api.experiments
    listing, make = (
        there.experiment_service_list_experiments,
        there.experiment_service_create_experiment,
    )
    return _named_or_made(api, name, "experiment", listing, make, api.models.V2beta1Experiment)


def _pipeline(api: KfpApi, name: str) -> str:
    """The id of a pipeline, made where there is none."""
    there = api.pipelines
    listing, make = there.pipeline_service_list_pipelines, there.pipeline_service_create_pipeline
    return _named_or_made(api, name, "pipeline", listing, make, api.models.V2beta1Pipeline)


def _named_or_made(
    api: KfpApi,
    name: str,
    kind: str,
    listing: Callable[..., Any],
    make: Callable[..., Any],
    model: type[Any],
) -> str:
    """The id of the first of that name; Kubeflow's API calls both by their kind."""
    within = {"namespace": api.namespace} if api.namespace else {}

    def found_or_made() -> str:
        listed = api.all_pages(f"list {kind}s", listing, f"{kind}s", filter=named(name), **within)
        for each in listed:
            return str(getattr(each, f"{kind}_id"))
        body = model(display_name=name, **within)
        made = api.once(f"make the {kind} {name}", make, **{kind: body})
        return str(getattr(made, f"{kind}_id"))

    return api.patiently(found_or_made)


def uploaded(api: KfpApi, ir: Path) -> tuple[str, str]:
    """Ids of the pipeline and of its version with this content, uploaded where it is not there.

    A version is named by its content. ConfigError where one of that name holds something else.
    """
    name, version_name, documents = version_of(ir)
    pipeline_id = _pipeline(api, name)

    def found_or_made() -> str:
        listed = api.all_pages(
            "list versions of a pipeline",
            api.pipelines.pipeline_service_list_pipeline_versions,
            "pipeline_versions",
            pipeline_id=pipeline_id,
            filter=named(version_name),
        )
        for each in listed:
            if each.pipeline_spec is not None and not _same(each.pipeline_spec, documents):
                raise ConfigError(
                    f"Kubeflow Pipelines has a version {version_name} of {name} with other content "
                    "than its name says; somebody made it by hand: delete it there"
                )
            return str(each.pipeline_version_id)
        made = api.once(
            "take the pipeline",
            api.uploads.upload_pipeline_version,
            str(ir),
            name=version_name,
            pipelineid=pipeline_id,
        )
        return str(made.pipeline_version_id)

    return pipeline_id, api.patiently(found_or_made)


def version_of(ir: Path) -> tuple[str, str, list[dict[str, Any]]]:
    """Name of a compiled DAG, name of its version, and its two documents."""
    documents = read_ir(ir)
    name = str(documents[0]["pipelineInfo"]["name"])
    return name, f"{name}-{sha256_json(documents)[:12]}", documents


def _same(theirs: Any, ours: list[dict[str, Any]]) -> bool:
    """Whether a server's copy of a DAG is ours, however it spells it."""
    from kfp.pipeline_spec import pipeline_spec_pb2 as pb

    wrapped = "pipeline_spec" in theirs  # as servers give those with a platform
    given = [theirs["pipeline_spec"], theirs.get("platform_spec") or {}] if wrapped else [theirs]
    kinds = (pb.PipelineSpec, pb.PlatformSpec)[: len(given)]
    try:
        return all(
            json_format.ParseDict(mine, kind()) == json_format.ParseDict(other, kind())
            for mine, other, kind in zip(ours, given, kinds, strict=False)
        )
    except json_format.ParseError:
        return False


def _placed(run: Run, api: KfpApi, known: Mapping[str, str], *, was_there: bool) -> OnCluster:
    return OnCluster(
        folder=run.folder,
        run_id=run.run_id,
        kfp_run_id=known["kfp_run_id"],
        link=link_of(api.endpoint, known["kfp_run_id"]),
        mlflow=_mlflow_link(known),
        was_there=was_there,
    )


def link_of(endpoint: str, kfp_run_id: str) -> str:
    """The run's page, where Kubeflow's own pages are served at the endpoint."""
    return f"{endpoint}/#/runs/details/{kfp_run_id}"


def _mlflow_link(known: Mapping[str, str]) -> str:
    from dpoflow.tracking.settings import public

    found = _in_mlflow(known)
    if found is None:
        return ""
    place = public(found.tracking_uri).rstrip("/")
    return f"{place}/#/experiments/{found.experiment_id}/runs/{found.run_id}"


def _in_mlflow(known: Mapping[str, str]) -> "PipelineRun | None":
    """The run's figures, where its first task has begun and MLflow can be reached from here."""
    if not os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http"):
        return None
    from dpoflow.tracking.pipeline_run import run_of

    try:
        return run_of(known["kfp_run_id"], json.loads(known["spec"])["name"])
    except ServiceUnavailable:
        return None  # Kubeflow's own words do


# ---------------------------------------------------------------- watch


def attach(folder: Path) -> dict[str, str]:
    """What is known of a submitted run. ConfigError where it has not reached Kubeflow."""
    known = memory(folder)
    if not known.get("kfp_run_id"):
        raise ConfigError(
            f"run {folder.name} was cut off before Kubeflow was heard to take it; submit it again, "
            "which finds it there or makes it"
        )
    return known


def state_of(api: KfpApi, kfp_run_id: str) -> str:
    """Kubeflow's word for it."""
    found = api.ask("tell of the run", api.runs.run_service_get_run, run_id=kfp_run_id)
    return str(found.state or "PENDING")


def look(api: KfpApi, folder: Path) -> tuple[str, list[str], dict[str, TaskRecord], str]:
    """(state, names of tasks, what each does, why it failed) at this moment."""
    found = api.ask(
        "tell of the run", api.runs.run_service_get_run, run_id=attach(folder)["kfp_run_id"]
    )
    names = task_names(folder / IR)
    details = list(found.run_details.task_details or ()) if found.run_details else []
    records = records_of(details, names)
    failed = [record for record in records.values() if record.state == "FAILED"]
    first = min(failed, key=lambda each: each.ended or 0.0) if failed else None
    said = f"{first.name}: {first.error}" if first else found.error.message if found.error else ""
    return str(found.state or "PENDING"), names, records, said or ""


def records_of(details: list[Any], names: list[str]) -> dict[str, TaskRecord]:
    """Tasks as a laptop's runner would tell of them, the last attempt of each."""
    found: dict[str, TaskRecord] = {}
    for each in sorted(
        details, key=lambda one: one.create_time.timestamp() if one.create_time else 0.0
    ):
        name, state = str(each.display_name), _STATES.get(str(each.state))
        if name not in names or state in (None, "PENDING"):
            continue
        began, ended = each.start_time or each.create_time, each.end_time
        over = state in ("SUCCEEDED", "SKIPPED", "FAILED")
        found[name] = TaskRecord(
            name=name,
            state=state,
            started=began.timestamp() if began else time.time(),
            ended=(ended or began).timestamp() if over and (ended or began) else None,
            error_type="ended on the cluster" if state == "FAILED" else None,
            error=_said(each) if state == "FAILED" else None,
        )
    return found


def _said(detail: Any) -> str:
    told = [detail.error, *(past.error for past in detail.state_history or ())]
    texts = [error.message for error in told if error is not None and error.message]
    return str(texts[0]) if texts else f"{str(detail.state).lower()}; its log says why"


def await_end(
    api: KfpApi,
    folder: Path,
    show: Callable[[list[str], dict[str, TaskRecord]], None],
    *,
    pause_s: float,
) -> None:
    """Watch a run to its end. Raises what ended it, as its own kind where that can be known."""
    while True:
        state, names, records, said = look(api, folder)
        show(names, records)
        if state in ENDED:
            break
        time.sleep(pause_s)
    if state == "SUCCEEDED":
        return
    raise _cause(folder, state, said)


def _cause(folder: Path, state: str, said: str) -> DpoflowError:
    """In the step's own words, which the run's last task leaves in MLflow; else in Kubeflow's."""
    if state in ("CANCELING", "CANCELED"):
        return RunFailed("the run was cancelled; the same command continues it")
    name, _, rest = _told_in_mlflow(folder).partition(": ")
    kind, _, text = rest.partition(": ")
    if kind in BY_NAME:
        return BY_NAME[kind](f"{name}: {text}")
    logs = f"dpoflow logs {folder.name} shows what its pods printed"
    return RunFailed(f"{said or f'the run ended as {state}'}; {logs}")


def _told_in_mlflow(folder: Path) -> str:
    from dpoflow.tracking.pipeline_run import message_of

    found = _in_mlflow(memory(folder))
    try:
        return message_of(found.run_id) if found else ""
    except ServiceUnavailable:
        return ""


def summary_of(folder: Path) -> RunSummary | None:
    """What the run's last task left in MLflow; None before, and where that is not reached."""
    from dpoflow.tracking import pipeline_run

    found = _in_mlflow(memory(folder))
    return pipeline_run.summary_of(found) if found else None


# ---------------------------------------------------------------- stop, and read


def cancel(api: KfpApi, folder: Path) -> str:
    """Ask Kubeflow to end a run; gives its state before. One that is over stays as it is."""
    known = attach(folder)
    state = _state_or_gone(api, known["kfp_run_id"])
    if state not in ENDED:
        api.ask("end the run", api.runs.run_service_terminate_run, run_id=known["kfp_run_id"])
    return state


def write_logs(folder: Path, task: str | None, out: IO[str]) -> int:
    """What the pods of a run printed, as far as the cluster still has it; gives how many pods."""
    known = attach(folder)
    from dpoflow_pipelines.backends.kube_api import KubeApi

    kube, which = KubeApi(), f"{TASK_LABEL}={task}" if task else TASK_LABEL
    pods = kube.pods(known["namespace"], f"pipeline/runid={known['kfp_run_id']},{which}")
    for pod in pods:
        about = pod["metadata"]
        for line in kube.log(known["namespace"], about["name"], "main").splitlines():
            out.write(f"{about['labels'][TASK_LABEL]}: {line}\n")
    return len(pods)
