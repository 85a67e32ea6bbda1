"""promote: one round of the promoter, for teams that schedule it beside `retrain`."""

from kfp import dsl

from dpoflow.promote.component import promote as step
from dpoflow_pipelines.placement import place


@dsl.pipeline(name="dpoflow-promote", description="What reviewers approved becomes champion.")
def promote() -> None:
    """No parameters: what is due stands on the server that MLFLOW_TRACKING_URI names."""
    place(step(), cache=False)
