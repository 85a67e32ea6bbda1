"""The promote step as Kubeflow sees it."""

from kfp import dsl

from dpoflow.images import CPU


@dsl.component(base_image=CPU, install_kfp_package=False)
def promote() -> str:
    """One round of the promoter; returns what became champion, as JSON."""
    from dpoflow.state.step import begin

    task = begin("promote")

    import sys

    from dpoflow.promote.step import run

    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")  # what a task prints is its log

    return task.simply(lambda: run(say).model_dump_json())
