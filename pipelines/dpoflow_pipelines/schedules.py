"""Schedules: recurring runs of Kubeflow Pipelines, called by their names.

    HOME/schedules/<name>.json    what was asked for, noted before Kubeflow hears of it

Reads   a spec, a home, a server of Kubeflow Pipelines
Gives   `create`, `listed`, `pause`, `resume`, `trigger`, `backfill`, `delete`; `gitops`,
        `check_cron`
Not     what a run of it does (the DAG), who may approve what comes of it (registry/gate)

A recurring run cannot be changed, so an update makes a new one and then deletes the old: between
the two both are there, and steps take turns by the locks of their state.
"""

import datetime as dt
import io
import json
import re
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from dpoflow.contracts.base import canonical_json, sha256_json
from dpoflow.contracts.errors import ConfigError
from dpoflow.contracts.spec import RunnableName, Spec
from dpoflow.contracts.submitted import Submitted
from dpoflow.state import files
from dpoflow_pipelines.backends.cluster import (
    ENDED,
    compiled_for,
    experiment_of,
    runtime_config,
    uploaded,
    version_of,
)
from dpoflow_pipelines.backends.kfp_api import KfpApi, named

if TYPE_CHECKING:
    from dpoflow.registry.team import Team

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?")
_FIELDS = (
    ("second", 0, 59, ""),
    ("minute", 0, 59, ""),
    ("hour", 0, 23, ""),
    ("day of the month", 1, 31, ""),
    ("month", 1, 12, "jan feb mar apr may jun jul aug sep oct nov dec"),
    ("day of the week", 0, 6, "sun mon tue wed thu fri sat"),
)


@dataclass(frozen=True)
class Schedule:
    """One recurring run."""

    name: str
    recurring_run_id: str
    cron: str
    enabled: bool
    version_id: str


def check_cron(text: str) -> str:
    """`text`, if Kubeflow's scheduler takes it: six fields, seconds first. Raises ConfigError."""
    fields = text.split()
    if len(fields) == 5:
        raise ConfigError(
            f"the cron '{text}' has five fields, and Kubeflow's begin with the second; "
            f"write '0 {text}'"
        )
    if len(fields) != len(_FIELDS):
        raise ConfigError(
            f"the cron '{text}' has {len(fields)} fields, and Kubeflow's have six: second minute "
            "hour day-of-month month day-of-week, such as '0 0 2 * * *' for two at night"
        )
    if not fields[0].isdecimal():
        raise ConfigError(
            f"the cron '{text}' begins with '{fields[0]}' as its second, which is many runs a "
            "minute; write one second from 0 to 59"
        )
    for given, (what, low, high, names) in zip(fields, _FIELDS, strict=True):
        if not all(_is_part(part, low, high, names.split()) for part in given.split(",")):
            raise ConfigError(
                f"the cron '{text}' has '{given}' as its {what}, which is {low} to {high}, a range "
                "such as 1-5, a step such as */10, or *"
            )
    return " ".join(fields)


def _is_part(part: str, low: int, high: int, names: list[str]) -> bool:
    span, slash, step = part.partition("/")
    if slash and not (step.isdecimal() and int(step) > 0):
        return False
    if span in ("*", "?"):
        return True
    ends = [
        names.index(end.lower()) + low if end.lower() in names else int(end)
        for end in span.split("-")
        if end.lower() in names or end.isdecimal()
    ]
    whole = len(ends) == len(span.split("-")) <= 2
    return whole and all(low <= end <= high for end in ends) and ends == sorted(ends)


# ---------------------------------------------------------------- make


def create(
    name: str,
    spec: Spec,
    cron: str,
    home: Path,
    api: KfpApi,
    *,
    pipeline: RunnableName,
    images: dict[str, str],
) -> tuple[Schedule, int]:
    """Make the schedule, in the place of those of its name; gives it, and how many went.

    One that was paused stays so. Raises ConfigError, ServiceUnavailable.
    """
    cron = check_cron(cron)
    _check_name(name)
    note = _note(name, spec, cron, home, api)
    with tempfile.TemporaryDirectory() as folder:
        ir = Path(folder) / "dag.yaml"
        compiled_for(spec, ir, pipeline, images)
        pipeline_id, version_id = uploaded(api, ir)
    before = list(_all(api, name))
    paused = any(not _enabled(each) for each in before)
    models = api.models
    body = models.V2beta1RecurringRun(
        display_name=name,
        experiment_id=experiment_of(api, spec.name),
        mode="DISABLE" if paused else "ENABLE",
        max_concurrency="1",
        no_catchup=True,  # a run takes all that is new: two for two missed nights are one too many
        trigger=models.V2beta1Trigger(cron_schedule=models.V2beta1CronSchedule(cron=cron)),
        pipeline_version_reference=models.V2beta1PipelineVersionReference(
            pipeline_id=pipeline_id, pipeline_version_id=version_id
        ),
        runtime_config=runtime_config(api, spec, pipeline, note["submitted"]),
        service_account=spec.placement.service_account,
    )

    def found_or_made() -> Any:
        for each in _all(api, name):
            if _is(each, note["submitted"], cron, version_id):
                return each
        make = api.recurring.recurring_run_service_create_recurring_run
        return api.once("take the schedule", make, recurring_run=body)

    made = api.patiently(found_or_made)
    old = [each for each in _all(api, name) if each.recurring_run_id != made.recurring_run_id]
    for each in old:
        _delete(api, each)
    return _schedule(made), len(old)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"a schedule's name is of small letters, digits and dashes, at most 52, got '{name}'"
        )


def _note(name: str, spec: Spec, cron: str, home: Path, api: KfpApi) -> dict[str, str]:
    """What the runs are told; the same for a command that is given again."""
    path = home / "schedules" / f"{name}.json"
    told_to = _team(spec)
    asked = sha256_json(
        {
            "spec": spec.model_dump(mode="json"),
            "cron": cron,
            "at": api.endpoint,
            "team": [told_to.uri, told_to.user] if told_to else None,
        }
    )
    note = {"asked": asked, "nonce": secrets.token_hex(16)}
    if path.exists():
        known: dict[str, str] = json.loads(path.read_text("utf-8"))
        note = known if known.get("asked") == asked else note
    if "submitted" in note:
        return note
    files.write_text(path, json.dumps(note, indent=1))
    told = Submitted(
        name=name,
        nonce=note["nonce"],
        spec=spec,
        submission=_owned(told_to, name, spec, note["nonce"]),
        scheduled=True,
    )
    note["submitted"] = canonical_json(told)
    files.write_text(path, json.dumps(note, indent=1))
    return note


def _team(spec: Spec) -> "Team | None":
    """The team's server. ConfigError where a spec wants approvals, and none is named."""
    from dpoflow.registry.team import team_server

    team = team_server()
    if team is None and spec.evaluate.signer is not None:
        raise ConfigError(
            "the spec has its decisions signed (evaluate.signer), and MLFLOW_TRACKING_URI names no "
            "team's server that could note whose schedule this is, so nobody could ever approve "
            "what it makes; set it, with your own name and password"
        )
    return team


def _owned(team: "Team | None", name: str, spec: Spec, nonce: str) -> str | None:
    """Told to a team's server whose schedule it is: what its runs make is not theirs to approve."""
    from dpoflow.registry.submission import open_submission

    return open_submission(team, spec, nonce, schedule={"name": name}) if team else None


# ---------------------------------------------------------------- look, and change


def listed(api: KfpApi) -> list[Schedule]:
    """Every schedule that is ours, by name."""
    return sorted((_schedule(each) for each in _all(api, None)), key=lambda each: each.name)


def pause(api: KfpApi, name: str) -> None:
    """No more runs begin; one that goes on does."""
    found = _one(api, name)
    disable = api.recurring.recurring_run_service_disable_recurring_run
    api.ask("pause the schedule", disable, recurring_run_id=found.recurring_run_id)


def resume(api: KfpApi, name: str) -> None:
    """From its next time on; what was missed stays missed: see `backfill`."""
    found = _one(api, name)
    enable = api.recurring.recurring_run_service_enable_recurring_run
    api.ask("resume the schedule", enable, recurring_run_id=found.recurring_run_id)


def delete(api: KfpApi, name: str) -> int:
    """Away with all of that name; gives how many."""
    found = list(_all(api, name))
    if not found:
        _one(api, name)
    for each in found:
        _delete(api, each)
    return len(found)


def trigger(api: KfpApi, name: str) -> str:
    """A run now, of what the schedule runs; gives Kubeflow's id of it."""
    found = _one(api, name)
    called = f"{name}-by-hand-{secrets.token_hex(4)}"
    body = api.models.V2beta1Run(
        display_name=called,
        experiment_id=found.experiment_id,
        pipeline_version_reference=found.pipeline_version_reference,
        runtime_config=found.runtime_config,
        service_account=found.service_account,
    )

    def found_or_made() -> str:
        for each in _runs(api, found.experiment_id, filter=named(called)):
            return str(each.run_id)
        return str(api.once("take the run", api.runs.run_service_create_run, run=body).run_id)

    return api.patiently(found_or_made)


def backfill(api: KfpApi, name: str, since: dt.datetime) -> str | None:
    """A run, if no run of this name goes on, nor succeeded that began since then; else None.

    One, however many were missed: each run takes all the data that there is.
    """
    found = _one(api, name)
    for each in _runs(api, found.experiment_id):
        late = each.created_at is not None and each.created_at >= since
        done = late if str(each.state) == "SUCCEEDED" else str(each.state) not in ENDED
        if done and _schedule_of(each) == name:
            return None
    return trigger(api, name)


def _runs(api: KfpApi, experiment: str, **more: str) -> Iterator[Any]:
    question = api.runs.run_service_list_runs
    return api.all_pages("list runs", question, "runs", experiment_id=experiment, **more)


def _all(api: KfpApi, name: str | None) -> Iterator[Any]:
    """Recurring runs that are ours, all of them or those of one name."""
    within = {"namespace": api.namespace} if api.namespace else {}
    wanted = {"filter": named(name)} if name else {}
    question = api.recurring.recurring_run_service_list_recurring_runs
    for each in api.all_pages("list schedules", question, "recurring_runs", **within, **wanted):
        if _submitted(each):
            yield each


def _one(api: KfpApi, name: str) -> Any:
    for each in _all(api, name):
        return each
    known = ", ".join(each.name for each in listed(api)) or "none"
    raise ConfigError(f"no schedule '{name}'; there are: {known}")


def _delete(api: KfpApi, found: Any) -> None:
    drop = api.recurring.recurring_run_service_delete_recurring_run
    api.ask("delete the schedule", drop, recurring_run_id=found.recurring_run_id)


def _submitted(found: Any) -> str:
    parameters = found.runtime_config.parameters if found.runtime_config else None
    return str((parameters or {}).get("submitted") or "")


def _schedule_of(run: Any) -> str | None:
    """The schedule that a run is of; its name, since all else changes when it is updated."""
    try:
        told = Submitted.model_validate_json(_submitted(run))
    except ValidationError:  # somebody else's
        return None
    return told.name if told.scheduled else None


def _cron(found: Any) -> str:
    cron = found.trigger.cron_schedule if found.trigger else None
    return str(cron.cron) if cron else ""


def _enabled(found: Any) -> bool:
    return str(found.status) == "ENABLED"


def _is(found: Any, submitted: str, cron: str, version_id: str) -> bool:
    version = found.pipeline_version_reference.pipeline_version_id
    same = (_submitted(found), _cron(found), version)
    return same == (submitted, cron, version_id)


def _schedule(found: Any) -> Schedule:
    return Schedule(
        name=str(found.display_name),
        recurring_run_id=str(found.recurring_run_id),
        cron=_cron(found),
        enabled=_enabled(found),
        version_id=str(found.pipeline_version_reference.pipeline_version_id),
    )


# ---------------------------------------------------------------- by git


def gitops(spec: Spec, pipeline: RunnableName, images: dict[str, str]) -> str:
    """The DAG as resources of Kubernetes, for those who apply them from git.

    Kubeflow has no resource for a recurring run: `schedule create` finds this version by its name.
    """
    with tempfile.TemporaryDirectory() as folder:
        ir = Path(folder) / "dag.yaml"
        compiled_for(spec, ir, pipeline, images)
        name, version, (dag, platforms) = version_of(ir)
    about = {"apiVersion": "pipelines.kubeflow.org/v2beta1"}
    place = {"namespace": spec.placement.namespace}
    resources = [
        {
            **about,
            "kind": "Pipeline",
            "metadata": {"name": name, **place},
            "spec": {"displayName": name},
        },
        {
            **about,
            "kind": "PipelineVersion",
            "metadata": {"name": version, **place},
            "spec": {
                "displayName": version,
                "pipelineName": name,
                "pipelineSpec": dag,
                "platformSpec": platforms,
            },
        },
    ]
    out = io.StringIO()
    YAML(typ="safe").dump_all(resources, out)
    return out.getvalue()
