"""The register step as Kubeflow sees it."""

from kfp import dsl

from dpoflow.images import CPU


@dsl.component(base_image=CPU, install_kfp_package=False)
def register(
    config: str,
    state_root: str,
    policy: dsl.Input[dsl.Model],
    decision: dsl.Input[dsl.Artifact],
    evidence: dsl.Output[dsl.Artifact],
) -> str:
    """Record a model version with its evidence; returns `name/version`."""
    from dpoflow.state.step import begin, later

    task = begin("register")

    from dpoflow.contracts.results import RegisterResult
    from dpoflow.contracts.spec import RegistryConfig

    done = task.execute(
        later("dpoflow.register.step:run"),
        RegistryConfig.model_validate_json(config),
        root=state_root,
        inputs={"policy": policy.path, "decision": decision.path},
        outputs={"evidence": evidence.path},
        kind=RegisterResult,
        reuse=False,  # only the registry knows whether the version is still there
    )
    return f"{done.model}/{done.version}"
