"""The decide step as Kubeflow sees it."""

from kfp import dsl

from dpoflow.images import CPU


@dsl.component(base_image=CPU, install_kfp_package=False)
def decide(
    config: str,
    state_root: str,
    data_uri: str,
    data_digest: str,
    model_digest: str,
    init_digest: str,
    reference_digest: str,
) -> str:
    """Whether there is something to learn since the champion: `train` or `skip`."""
    from dpoflow.state.step import begin, later

    task = begin("decide")

    from dpoflow.contracts.results import DecideResult
    from dpoflow.contracts.spec import DecideConfig

    pinned = {"model": model_digest, "init": init_digest, "reference": reference_digest}
    knobs = DecideConfig.model_validate_json(config).model_copy(update={"digests": pinned})
    done = task.execute(
        later("dpoflow.decide.step:run"),
        knobs,
        root=state_root,
        inputs={"data": data_uri},
        kind=DecideResult,
        reuse=False,  # only the registry knows who is champion, and the clock how old it is
    )
    return str(done.decision)  # the only output: kfp.local finds no other in a condition
