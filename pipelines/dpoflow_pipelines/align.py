"""align: from preferences to a registered model version.

     snapshot ─ validate ─ synthesize ─ merge ─ train ─ evaluate ─ register      conclude (always)

One compiled DAG serves every spec: synthesize switched off yields no pair, register always records
a version, and only a verdict of promote gives it the alias challenger.
"""

from kfp import dsl

from dpoflow.evaluate.component import evaluate
from dpoflow.register.component import register
from dpoflow.snapshot.component import snapshot
from dpoflow.synthesize.component import synthesize
from dpoflow.tracking.component import conclude
from dpoflow.train.component import train
from dpoflow.validate.component import merge, validate
from dpoflow_pipelines.placement import place


@dsl.pipeline(name="dpoflow-align", description="From preferences to a registered model version.")
def align(
    state_root: str,
    snapshot_config: str,
    validate_config: str,
    synthesize_config: str,
    train_config: str,
    evaluate_config: str,
    registry_config: str,
) -> None:
    """Each `…_config` is the canonical JSON of its own section of the spec."""
    ended = place(conclude(state_root=state_root))
    with dsl.ExitHandler(ended, name="align"):
        pinned = place(snapshot(config=snapshot_config, state_root=state_root), cache=False)
        checked = place(
            validate(
                config=validate_config,
                state_root=state_root,
                data_uri=pinned.outputs["data_uri"],
                data_digest=pinned.outputs["data_digest"],
            )
        )
        made = place(
            synthesize(
                config=synthesize_config,
                state_root=state_root,
                prompts=checked.outputs["prompts"],
                model_uri=pinned.outputs["init_uri"],
                model_digest=pinned.outputs["init_digest"],
            )
        )
        merged = place(
            merge(
                config=validate_config,
                state_root=state_root,
                pairs=checked.outputs["pairs"],
                prompts=checked.outputs["prompts"],
                synthetic=made.outputs["pairs"],
            )
        )
        trained = place(
            train(
                config=train_config,
                state_root=state_root,
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
                policy=trained.outputs["policy"],
                heldout=merged.outputs["heldout"],
                model_uri=pinned.outputs["model_uri"],
                model_digest=pinned.outputs["model_digest"],
            )
        )
        place(
            register(
                config=registry_config,
                state_root=state_root,
                policy=trained.outputs["policy"],
                decision=judged.outputs["decision"],
            )
        )
