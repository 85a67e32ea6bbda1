"""The train step as Kubeflow sees it."""

from kfp import dsl

from dpoflow.images import GPU


@dsl.component(base_image=GPU, install_kfp_package=False)
def train(
    config: str,
    state_root: str,
    suffix: str,
    init_uri: str,
    init_digest: str,
    reference_uri: str,
    reference_digest: str,
    pairs: dsl.Input[dsl.Dataset],
    policy: dsl.Output[dsl.Model],
    report: dsl.Output[dsl.Artifact],
) -> str:
    """Fine-tune the policy on preference pairs with DPO; returns the policy's digest."""
    from dpoflow.state.step import begin, later

    task = begin("train", suffix)

    from dpoflow.contracts.results import TrainResult
    from dpoflow.contracts.spec import TrainConfig

    done = task.execute(
        later("dpoflow.train.step:run"),
        TrainConfig.model_validate_json(config),
        root=state_root,
        inputs={"pairs": pairs.path, "init": init_uri, "reference": reference_uri},
        outputs={"policy": policy.path, "report": report.path},
        kind=TrainResult,
        by_reference=("policy",),
    )
    return done.policy_digest
