"""The snapshot step as Kubeflow sees it."""

from typing import NamedTuple

from kfp import dsl

from dpoflow.images import CPU


@dsl.component(base_image=CPU, install_kfp_package=False)
def snapshot(
    config: str, state_root: str, submitted: str, origins: dsl.Output[dsl.Artifact]
) -> NamedTuple(  # type: ignore[valid-type]  # kfp reads the outputs off such a call
    "Pinned",
    [
        ("data_uri", str),
        ("data_digest", str),
        ("model_uri", str),
        ("model_digest", str),
        ("init_uri", str),
        ("init_digest", str),
        ("reference_uri", str),
        ("reference_digest", str),
        ("judges_uri", str),
        ("judges_digest", str),
        ("champion_uri", str),
        ("champion_digest", str),
    ],
):
    """Pin every source and each model by content; strings only, so that later tasks cache right."""
    from typing import NamedTuple

    from dpoflow.state.step import begin, later

    task = begin("snapshot")

    from pathlib import Path

    from dpoflow.contracts.results import SnapshotResult
    from dpoflow.contracts.spec import SnapshotConfig
    from dpoflow.registry.run_start import start_run

    with task.recorded():
        start_run(submitted, Path(state_root))
    knobs = SnapshotConfig.model_validate_json(config)
    done = task.execute(
        later("dpoflow.snapshot.step:run"),
        knobs,
        root=state_root,
        outputs={"origins": origins.path},
        kind=SnapshotResult,
        reuse=False,
    )

    class Pinned(NamedTuple):
        data_uri: str
        data_digest: str
        model_uri: str
        model_digest: str
        init_uri: str
        init_digest: str
        reference_uri: str
        reference_digest: str
        judges_uri: str
        judges_digest: str
        champion_uri: str
        champion_digest: str

    return Pinned(**{name: getattr(done, name) for name in Pinned._fields})
