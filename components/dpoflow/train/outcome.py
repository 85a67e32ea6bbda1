"""What one training is told, and what it leaves for the step that asked for it.

Reads   nothing
Gives   `Job`, `Outcome`, `finished`; `leave_error` and `cause`
Not     training (work.py), starting it (launch.py)

Both are files in the step's state, so that the process that trains may be this one, one that
torchrun started, or a pod on another machine that sees the same folder.
"""

from contextlib import suppress
from pathlib import Path

from dpoflow.contracts.base import Contract
from dpoflow.contracts.errors import BY_NAME, DpoflowError, ServiceUnavailable
from dpoflow.contracts.spec import TrainConfig

SHUTDOWN_S = 600
"""What processes have to end the update at hand and write a checkpoint, once told to stop."""


class Job(Contract):
    """All that a training process needs to know."""

    config: TrainConfig
    pairs: Path
    init: Path
    reference: Path
    state: Path
    """The step's state folder; checkpoints, events and the outcome go there."""

    @property
    def error(self) -> Path:
        """Where the first process that fails says why."""
        return self.state / "work" / "error.txt"

    @property
    def trained(self) -> Path:
        """Holds weights.safetensors and outcome.json: whole, or not there."""
        return self.state / "work" / "trained"


class Outcome(Contract):
    """What came of it, beside the weights."""

    first_loss: float
    last_loss: float
    accuracy: float
    """Share of pairs whose reward margin was positive when they were last seen."""
    num_updates: int
    best_update: int | None
    """The one whose weights these are, where training may stop early."""
    dtype: str
    layout: str
    seconds: float
    pair_ids: tuple[str, ...]
    heldout_ids: tuple[str, ...]
    """Of pairs that were watched and not learnt from."""
    dropped: dict[str, int]
    num_cut: int


def finished(job: Job) -> Outcome | None:
    """The outcome, if the job was done before."""
    path = job.trained / "outcome.json"
    return Outcome.model_validate_json(path.read_text("utf-8")) if path.is_file() else None


def leave_error(job: Job, error: Exception) -> None:
    """For whoever started the process; what the others then run into is not the cause."""
    with suppress(FileExistsError), job.error.open("x", encoding="utf-8") as out:
        out.write(f"{type(error).__name__}: {error}")


def cause(job: Job, otherwise: str) -> DpoflowError:
    """What a process left as the reason, or that one went without a word."""
    try:
        kind, _, text = job.error.read_text("utf-8").partition(": ")
    except FileNotFoundError:
        return ServiceUnavailable(
            f"a training process was lost ({otherwise}); the same command goes on from the last "
            "checkpoint"
        )
    if kind not in BY_NAME:
        return DpoflowError(f"a training process ended with a bug of ours: {kind}: {text}")
    return BY_NAME[kind](text)
