"""The synthesize step as Kubeflow sees it."""

from kfp import dsl

from dpoflow.images import GPU


@dsl.component(base_image=GPU, install_kfp_package=False)
def synthesize(
    config: str,
    state_root: str,
    model_uri: str,
    model_digest: str,
    judges_uri: str,
    judges_digest: str,
    prompts: dsl.Input[dsl.Dataset],
    pairs: dsl.Output[dsl.Dataset],
) -> int:
    """Sample candidates, judge them, keep pairs; returns how many."""
    from dpoflow.state.step import begin, later

    task = begin("synthesize")

    from dpoflow.contracts.judges import rewards_in
    from dpoflow.contracts.results import SynthesizeResult
    from dpoflow.contracts.spec import SynthesizeConfig

    knobs = SynthesizeConfig.model_validate_json(config)
    # Another judge's model changes nothing here.
    judges = {"judges": judges_uri} if judges_uri and any(rewards_in(knobs.judge)) else {}
    done = task.execute(
        later("dpoflow.synthesize.step:run"),
        knobs,
        root=state_root,
        inputs={"prompts": prompts.path, "model": model_uri} | judges,
        outputs={"pairs": pairs.path},
        kind=SynthesizeResult,
        by_reference=("pairs",),
    )
    return done.num_pairs
