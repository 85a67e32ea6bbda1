"""align: from preferences to a registered model version; sweep: the same, trained in several ways.

     snapshot ─ validate ─ synthesize ─ merge ─ train ─ evaluate ─ register      conclude (always)
                                            └ train-2 ─ evaluate-2 …            (a sweep)

One compiled DAG serves every spec: synthesize switched off yields no pair, register always records
a version, and only a verdict of promote gives it the alias challenger. A sweep registers nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

from kfp import dsl
from kfp.dsl import PipelineTask

from dpoflow.evaluate.component import evaluate
from dpoflow.register.component import register
from dpoflow.snapshot.component import snapshot
from dpoflow.synthesize.component import synthesize
from dpoflow.tracking.component import conclude
from dpoflow.train.component import train
from dpoflow.validate.component import merge, validate
from dpoflow_pipelines.placement import place

# kfp runs a pipeline's body where it is defined, so what it calls comes first.


def pin(state_root: str, snapshot_config: str, submitted: str = "") -> PipelineTask:
    """The snapshot, which looks at its sources every time."""
    return place(
        snapshot(config=snapshot_config, state_root=state_root, submitted=submitted), cache=False
    )


def prepare(
    state_root: str, pinned: PipelineTask, validate_config: str, synthesize_config: str
) -> PipelineTask:
    """From what was pinned to what is trained on; returns merge."""
    checked = place(
        validate(
            config=validate_config,
            state_root=state_root,
            data_uri=pinned.outputs["data_uri"],
            data_digest=pinned.outputs["data_digest"],
            model_uri=pinned.outputs["init_uri"],
            model_digest=pinned.outputs["init_digest"],
        )
    )
    made = place(
        synthesize(
            config=synthesize_config,
            state_root=state_root,
            prompts=checked.outputs["prompts"],
            model_uri=pinned.outputs["init_uri"],
            model_digest=pinned.outputs["init_digest"],
            judges_uri=pinned.outputs["judges_uri"],
            judges_digest=pinned.outputs["judges_digest"],
        )
    )
    return place(
        merge(
            config=validate_config,
            state_root=state_root,
            pairs=checked.outputs["pairs"],
            prompts=checked.outputs["prompts"],
            synthetic=made.outputs["pairs"],
        )
    )


def learn(
    state_root: str,
    pinned: PipelineTask,
    merged: PipelineTask,
    train_config: str,
    evaluate_config: str,
    suffix: str = "",
) -> tuple[PipelineTask, PipelineTask]:
    """(train, evaluate)."""
    trained = place(
        train(
            config=train_config,
            state_root=state_root,
            suffix=suffix,
            pairs=merged.outputs["training"],
            init_uri=pinned.outputs["init_uri"],
            init_digest=pinned.outputs["init_digest"],
            reference_uri=pinned.outputs["reference_uri"],
            reference_digest=pinned.outputs["reference_digest"],
        )
    )
    judged = place(
        evaluate(
            config=evaluate_config,
            state_root=state_root,
            suffix=suffix,
            policy=trained.outputs["policy"],
            pairs=merged.outputs["training"],
            heldout=merged.outputs["heldout"],
            model_uri=pinned.outputs["model_uri"],
            model_digest=pinned.outputs["model_digest"],
            judges_uri=pinned.outputs["judges_uri"],
            judges_digest=pinned.outputs["judges_digest"],
            champion_uri=pinned.outputs["champion_uri"],
            champion_digest=pinned.outputs["champion_digest"],
            data_uri=pinned.outputs["data_uri"],
            data_digest=pinned.outputs["data_digest"],
        )
    )
    return trained, judged


def record(
    state_root: str, trained: PipelineTask, judged: PipelineTask, registry_config: str
) -> PipelineTask:
    """register."""
    return place(
        register(
            config=registry_config,
            state_root=state_root,
            policy=trained.outputs["policy"],
            decision=judged.outputs["decision"],
        ),
        cache=False,  # only the registry knows whether the version is still there
    )


@dsl.pipeline(name="dpoflow-align", description="From preferences to a registered model version.")
def align(
    state_root: str,
    snapshot_config: str,
    validate_config: str,
    synthesize_config: str,
    train_config: str,
    evaluate_config: str,
    registry_config: str,
    submitted: str = "",
) -> None:
    """Each `…_config` is the canonical JSON of its own section of the spec.

    `submitted` says whose run it is where nobody waits for it: see `contracts.submitted`.
    """
    ended = place(conclude(state_root=state_root), cache=False)
    with dsl.ExitHandler(ended, name="align"):
        pinned = pin(state_root, snapshot_config, submitted)
        merged = prepare(state_root, pinned, validate_config, synthesize_config)
        trained, judged = learn(state_root, pinned, merged, train_config, evaluate_config)
        record(state_root, trained, judged, registry_config)


def sweep(train_configs: Sequence[str]) -> Callable[..., Any]:
    """A DAG that trains and evaluates once with each of these sections."""

    @dsl.pipeline(name="dpoflow-sweep", description="One data set, several ways to train on it.")
    def pipeline(
        state_root: str,
        snapshot_config: str,
        validate_config: str,
        synthesize_config: str,
        evaluate_config: str,
    ) -> None:
        ended = place(conclude(state_root=state_root), cache=False)
        with dsl.ExitHandler(ended, name="sweep"):
            pinned = pin(state_root, snapshot_config)
            merged = prepare(state_root, pinned, validate_config, synthesize_config)
            for number, train_config in enumerate(train_configs, start=1):
                suffix = "" if number == 1 else f"-{number}"  # as kfp names the tasks
                learn(state_root, pinned, merged, train_config, evaluate_config, suffix)

    made: Callable[..., Any] = pipeline
    return made
