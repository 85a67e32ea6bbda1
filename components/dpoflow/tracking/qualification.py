"""A judge's qualification, where reviewers will look for it.

Reads   MLFLOW_TRACKING_URI, or the laptop's own store
Gives   `log_qualification`
Not     what is in it (judge/qualify.py)
"""

from pathlib import Path

from dpoflow.contracts.judges import Qualification
from dpoflow.tracking.pipeline_run import PipelineRun, close_run, open_run


def log_qualification(
    home: Path, experiment: str, report: Qualification, spec_json: str
) -> PipelineRun:
    """A run of its own in the experiment: figures as metrics, the whole as an artifact."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, RunTag

    run = open_run(
        home, experiment=experiment, run_name="judge-qualify", spec_json=spec_json, known=None
    )
    client = MlflowClient(run.tracking_uri)
    figures = {
        name: float(value)
        for name, value in report.model_dump().items()
        if isinstance(value, int | float)
    }
    figures |= {"kappa_low": report.kappa_ci[0], "kappa_high": report.kappa_ci[1]}
    client.log_batch(
        run.run_id,
        metrics=[Metric(f"judge/{name}", value, 0, 0) for name, value in figures.items()],
        tags=[RunTag("dpoflow.judge", report.judge), RunTag("dpoflow.step", "judge-qualify")],
    )
    client.log_text(run.run_id, report.model_dump_json(indent=2), "qualification.json")
    close_run(run, "SUCCEEDED", report.model_dump_json())
    return run
