"""The evaluate step as Kubeflow sees it."""

from kfp import dsl

from dpoflow.images import GPU


@dsl.component(base_image=GPU, install_kfp_package=False)
def evaluate(
    config: str,
    state_root: str,
    suffix: str,
    model_uri: str,
    model_digest: str,
    judges_uri: str,
    judges_digest: str,
    champion_uri: str,
    champion_digest: str,
    data_uri: str,
    data_digest: str,
    policy: dsl.Input[dsl.Model],
    pairs: dsl.Input[dsl.Dataset],
    heldout: dsl.Input[dsl.Dataset],
    decision: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    figures: dsl.Output[dsl.Metrics],
) -> str:
    """Compare the candidate with base and champion on held-out prompts; returns the verdict."""
    from dpoflow.state.step import begin, later

    task = begin("evaluate", suffix)

    from pathlib import Path

    from dpoflow.contracts.judges import rewards_in
    from dpoflow.contracts.results import EvaluateResult
    from dpoflow.contracts.spec import EvaluateConfig
    from dpoflow.evaluate.figures import PAGE, figures_of, read_decision
    from dpoflow.pages import show

    knobs = EvaluateConfig.model_validate_json(config)
    inputs = {
        "model": model_uri,
        "policy": policy.path,
        "pairs": pairs.path,
        "heldout": heldout.path,
    }
    if judges_uri and any(rewards_in(knobs.judge)):  # another judge's model changes nothing here
        inputs["judges"] = judges_uri
    if knobs.suites:  # their questions lie there; other data change nothing here
        inputs["data"] = data_uri
    if champion_uri:
        inputs["champion"] = champion_uri
    done = task.execute(
        later("dpoflow.evaluate.step:run"),
        knobs,
        root=state_root,
        inputs=inputs,
        outputs={"decision": decision.path},
        kind=EvaluateResult,
    )
    told = Path(decision.path)
    show(told / PAGE, figures_of(read_decision(told)), page.path, figures.log_metric)
    return done.verdict
