"""A submission: who asked for a run, told to the team's server by their own credentials.

Reads   a spec, a nonce that stays with the run; MLFLOW_TRACKING_URI
Gives   `open_submission`: the id that the run's version will quote
Not     quoting it (register/step.py), what it is good for (registry/gate)

Without a submission a version says only which service account recorded it, and nobody could tell
whether its reviewer made it themselves.
"""

from collections.abc import Mapping

from dpoflow.contracts.base import sha256_json, sha256_text
from dpoflow.contracts.spec import Spec
from dpoflow.registry.team import GATE, Team

QUOTED = "DPOFLOW_SUBMISSION"
"""The environment variable that tells a run's register step its submission."""
TAG = "gate.submission"


def open_submission(
    team: Team, spec: Spec, nonce: str, *, schedule: str | Mapping[str, str] | None = None
) -> str:
    """The same nonce and spec again are the same submission. ConfigError for who may not submit.

    `schedule` is `{"name": NAME}` where a schedule is made, and the id that this gave where one of
    its runs begins.
    """
    with team.as_role("engineer"):
        told = team.post(
            f"{GATE}/submissions",
            model=spec.registry.model,
            spec_digest=sha256_json(spec),
            sections=section_digests(spec),
            nonce=nonce,
            schedule=schedule,
        )
    return str(told["submission"])


def section_digests(spec: Spec) -> dict[str, str]:
    """sha256 of the canonical JSON of each section, as the steps get them."""
    return {
        name.removesuffix("_config"): sha256_text(text) for name, text in spec.arguments().items()
    }
