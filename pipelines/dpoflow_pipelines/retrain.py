"""retrain: `align` where there is something to learn, for a schedule; else it ends without.

snapshot ─ decide ─┬ train: validate ─ synthesize ─ merge ─ train ─ evaluate ─ register
                   └ skip                                                  conclude (always)
"""

from kfp import dsl

from dpoflow.decide.component import decide
from dpoflow.tracking.component import conclude
from dpoflow_pipelines.align import learn, pin, prepare, record
from dpoflow_pipelines.placement import place


@dsl.pipeline(name="dpoflow-retrain", description="Align again, where there is news to learn from.")
def retrain(
    state_root: str,
    snapshot_config: str,
    decide_config: str,
    validate_config: str,
    synthesize_config: str,
    train_config: str,
    evaluate_config: str,
    registry_config: str,
    submitted: str = "",
) -> None:
    """Each `…_config` is the canonical JSON of its own section of the spec; as in `align`."""
    ended = place(conclude(state_root=state_root), cache=False)
    with dsl.ExitHandler(ended, name="retrain"):
        pinned = pin(state_root, snapshot_config, submitted)
        news = place(
            decide(
                config=decide_config,
                state_root=state_root,
                **{
                    name: pinned.outputs[name]
                    for name in (
                        *("data_uri", "data_digest"),
                        *("model_digest", "init_digest", "reference_digest"),
                    )
                },
            ),
            cache=False,
        )
        with dsl.If(news.output == "train", name="train"):
            merged = prepare(state_root, pinned, validate_config, synthesize_config)
            trained, judged = learn(state_root, pinned, merged, train_config, evaluate_config)
            record(state_root, trained, judged, registry_config)
