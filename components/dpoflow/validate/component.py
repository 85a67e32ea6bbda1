"""The validate step as Kubeflow sees it: once over what people gave, once over the merged whole."""

from kfp import dsl

from dpoflow.images import CPU


@dsl.component(base_image=CPU, install_kfp_package=False)
def validate(
    config: str,
    state_root: str,
    data_uri: str,
    data_digest: str,
    model_uri: str,
    model_digest: str,
    pairs: dsl.Output[dsl.Dataset],
    prompts: dsl.Output[dsl.Dataset],
    report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    figures: dsl.Output[dsl.Metrics],
) -> str:
    """Adapt rows to pairs, check them, quarantine with reasons, split by prompt."""
    from dpoflow.state.step import begin, later

    task = begin("validate")

    from pathlib import Path

    from dpoflow.contracts.results import ValidateResult
    from dpoflow.contracts.spec import ValidateConfig
    from dpoflow.pages import show
    from dpoflow.validate.figures import PAGE, figures_of

    done = task.execute(
        later("dpoflow.validate.step:run"),
        ValidateConfig.model_validate_json(config),
        root=state_root,
        inputs={"data": data_uri, "model": model_uri},
        outputs={"pairs": pairs.path, "prompts": prompts.path, "report": report.path},
        kind=ValidateResult,
        by_reference=("pairs", "prompts"),
    )
    show(Path(report.path) / PAGE, figures_of(done), page.path, figures.log_metric)
    return done.pairs_digest


@dsl.component(base_image=CPU, install_kfp_package=False)
def merge(
    config: str,
    state_root: str,
    pairs: dsl.Input[dsl.Dataset],
    prompts: dsl.Input[dsl.Dataset],
    synthetic: dsl.Input[dsl.Dataset],
    training: dsl.Output[dsl.Dataset],
    heldout: dsl.Output[dsl.Dataset],
    report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    figures: dsl.Output[dsl.Metrics],
) -> str:
    """Join human and synthetic pairs; check leakage, length bias and coverage."""
    from dpoflow.state.step import begin, later

    task = begin("merge")

    from pathlib import Path

    from dpoflow.contracts.results import ValidateResult
    from dpoflow.contracts.spec import ValidateConfig
    from dpoflow.pages import show
    from dpoflow.validate.figures import PAGE, figures_of

    done = task.execute(
        later("dpoflow.validate.step:merge"),
        ValidateConfig.model_validate_json(config),
        root=state_root,
        inputs={"pairs": pairs.path, "prompts": prompts.path, "synthetic": synthetic.path},
        outputs={"training": training.path, "heldout": heldout.path, "report": report.path},
        kind=ValidateResult,
        by_reference=("training", "heldout"),
    )
    show(Path(report.path) / PAGE, figures_of(done), page.path, figures.log_metric)
    return done.pairs_digest
