"""What whoever submits a run tells its first task, which runs somewhere else.

Gives   `Submitted`
Not     the spec's sections, which the DAG hands to each step by themselves
"""

from pydantic import Field

from dpoflow.contracts.base import Contract
from dpoflow.contracts.spec import Spec


class Submitted(Contract):
    """One run, or all the runs of a schedule."""

    name: str = Field(min_length=1)
    """Of the run; of a schedule, where there is one."""
    nonce: str = Field(min_length=1)
    """Of this submission alone: by it a run is found again whose creation was cut off."""
    spec: Spec
    submission: str | None = None
    """Who asked for it, by the team's server; of a schedule: who made the schedule."""
    scheduled: bool = False
    """Whether each run opens a submission of its own, for the schedule that `submission` made."""
