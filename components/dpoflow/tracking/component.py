"""The end of every run, whatever became of it, as Kubeflow sees it."""

from kfp import dsl

from dpoflow.images import CPU


@dsl.component(base_image=CPU, install_kfp_package=False)
def conclude(state_root: str, status: dsl.PipelineTaskFinalStatus) -> str:
    """Note how the DAG ended on its MLflow run; returns the state."""
    from dpoflow.state.step import begin

    task = begin("conclude")

    from dpoflow.tracking.conclude import run

    return task.simply(run, state=str(status.state), message=str(status.error_message or ""))
