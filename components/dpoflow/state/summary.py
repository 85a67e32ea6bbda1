"""A run in one page: summary.json, from what its tasks recorded.

Reads   records of tasks; the decision among the artifacts of the root
Gives   `summarise`, `NO_VERDICT`
Not     where it is kept (pipelines' run.py on a laptop, tracking/conclude.py on a cluster)
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpoflow.contracts.results import (
    DecideResult,
    Decision,
    MlflowSummary,
    PointSummary,
    RegisterResult,
    RunState,
    RunSummary,
    TaskSummary,
    TrainResult,
)
from dpoflow.contracts.spec import RunnableName
from dpoflow.state.step import TaskRecord, find
from dpoflow.state.usage import cost_of

NO_VERDICT = "none"
"""Of a run that found nothing to learn: there is no candidate."""


def summarise(
    root: Path,
    records: Mapping[str, TaskRecord],
    *,
    run_id: str,
    name: str,
    pipeline: RunnableName,
    tasks: Sequence[str],
    skipped: Collection[str] = (),
    state: RunState,
    error: str | None,
    mlflow: MlflowSummary | None,
    grid: Mapping[str, list[str]] | None = None,
) -> RunSummary:
    """The run in one page. `root` holds its artifacts; `skipped` are tasks that are not to run."""
    results = {name: record.result for name, record in records.items() if record.result}
    data: dict[str, object] = {}
    if "snapshot" in results:
        data["digest"] = results["snapshot"]["data_digest"]
        data["model_digest"] = results["snapshot"]["model_digest"]
    for step in ("validate", "synthesize", "merge"):
        if step in results:
            data[step] = results[step]
    decided = DecideResult.model_validate(results["decide"]) if "decide" in results else None
    evaluation = _evaluation(root, records, "")
    if decided is not None and decided.decision == "skip":
        evaluation = {"verdict": NO_VERDICT, "sentence": decided.sentence}
    return RunSummary(
        run_id=run_id,
        name=name,
        state=state,
        error=error,
        pipeline=pipeline,
        retrain=decided,
        tasks=tuple(_task(task, records.get(task), skipped=task in skipped) for task in tasks),
        data=data,
        train=_trained(results, ""),
        evaluation=evaluation,
        registry=RegisterResult.model_validate(results["register"])
        if "register" in results
        else None,
        points=tuple(
            PointSummary(
                sets=tuple(sets),
                train=_trained(results, suffix),
                evaluation=_evaluation(root, records, suffix),
            )
            for suffix, sets in _by_suffix(grid)
        ),
        cost=cost_of(records.values()),
        mlflow=mlflow,
    )


def _by_suffix(grid: Mapping[str, list[str]] | None) -> Iterator[tuple[str, list[str]]]:
    for name, sets in (grid or {}).items():
        yield "" if name == "-1" else name, sets


def _trained(results: Mapping[str, dict[str, Any]], suffix: str) -> TrainResult | None:
    found = results.get(f"train{suffix}")
    return TrainResult.model_validate(found) if found else None


def _evaluation(root: Path, records: Mapping[str, TaskRecord], suffix: str) -> dict[str, object]:
    record = records.get(f"evaluate{suffix}")
    if record is None or not record.result:
        return {}
    evaluation: dict[str, object] = dict(record.result)
    folder = find(root, record.outputs["decision"])
    if folder is not None:
        decision = Decision.model_validate_json((folder / "decision.json").read_text("utf-8"))
        evaluation["gates"] = [gate.model_dump() for gate in decision.gates]
        evaluation["measures"] = decision.measures
    return evaluation


def _task(name: str, record: TaskRecord | None, *, skipped: bool) -> TaskSummary:
    if record is None:
        return TaskSummary(name=name, state="SKIPPED" if skipped else "PENDING")
    return TaskSummary(
        name=name,
        state=record.state,
        seconds=round(record.ended - record.started, 1) if record.ended else 0.0,
        reused=record.reused,
        message=record.error or "",
    )
