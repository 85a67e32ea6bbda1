"""The start of a run on a cluster: its MLflow run, and who asked for it, for the tasks after.

Reads   `Submitted` as JSON, empty where a laptop's runner has told everything by the environment
Gives   `start_run`
Not     how tasks hear of it (state/surroundings.py), a laptop's run (pipelines/)
"""

import os
from pathlib import Path

from pydantic import ValidationError

from dpoflow.contracts.base import canonical_json, sha256_text
from dpoflow.contracts.errors import ConfigError
from dpoflow.contracts.submitted import Submitted
from dpoflow.registry.submission import QUOTED, open_submission
from dpoflow.registry.team import team_server
from dpoflow.state.surroundings import KFP_RUN_ID, PARENT, RUN_DIR, tell_run, told_of_run
from dpoflow.tracking.pipeline_run import open_run
from dpoflow.tracking.step_run import CLOSES, EXPERIMENT


def start_run(submitted: str, root: Path) -> None:
    """Open what the run needs, once, however often its first task is tried.

    Raises ConfigError, and ServiceUnavailable where MLflow is away.
    """
    if not submitted:
        return
    try:
        told = Submitted.model_validate_json(submitted)
    except ValidationError as error:
        raise ConfigError(
            f"the run was submitted by another version of dpoflow ({error.error_count()} unknown "
            "or missing facts); submit it with the version that its images hold"
        ) from None
    if told.submission and told.scheduled:
        tell_run({QUOTED: _submission(told, told.submission)})
    elif told.submission:
        tell_run({QUOTED: told.submission})
    if os.environ.get("MLFLOW_TRACKING_URI") and not os.environ.get("MLFLOW_RUN_ID"):
        _open(told, root)


def _open(told: Submitted, root: Path) -> None:
    """The parent of all steps' runs: that of an earlier attempt, or a new one.

    This account opens it and not the submitter's, whose runs it may not write to.
    """
    known = told_of_run(Path(os.environ[RUN_DIR])).get(PARENT)
    name = f"{told.name}-{_run_id()[:8]}" if told.scheduled else told.name
    run = open_run(
        root,
        experiment=told.spec.name,
        run_name=name,
        spec_json=canonical_json(told.spec),
        known=known,
        kfp_run_id=_run_id(),
    )
    tell_run({PARENT: run.run_id, EXPERIMENT: run.experiment_id, CLOSES: "yes"})


def _submission(told: Submitted, schedule: str) -> str:
    """One for each run of a schedule, opened in its owner's name by the pipeline's account."""
    team = team_server()
    if team is None:
        raise ConfigError(
            "the schedule was made on a team's server, and MLFLOW_TRACKING_URI of this task names "
            "none; see placement.mlflow_uri"
        )
    # The same run tried again is the same submission.
    nonce = sha256_text(f"{schedule} {_run_id()}")[:32]
    return open_submission(team, told.spec, nonce, schedule=schedule)


def _run_id() -> str:
    return os.environ[KFP_RUN_ID]
