"""What each step hands back, the decision, and the summary of a run.

Reads   nothing
Gives   one result a step (small, JSON, no paths of a machine), `Decision`, `RunSummary`
Not     artifacts: those are folders with a manifest (contracts/manifest.py)
"""

from typing import Literal

from pydantic import Field

from dpoflow.contracts.base import Contract

Verdict = Literal["promote", "reject", "inconclusive"]
TaskState = Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "SKIPPED"]
RunState = Literal["RUNNING", "SUCCEEDED", "FAILED"]


class Interval(Contract):
    """A statistic with its interval and the number of independent units behind it."""

    value: float
    low: float
    high: float
    n: int


class Power(Contract):
    """What an evaluation of this size could have shown, 80 times in 100."""

    detectable: float
    """The least true value that would be found to lie above its bound."""
    needed: int | None
    """Prompts that it takes to find the value that was seen; None where it is not above."""


class SnapshotResult(Contract):
    """Everything pinned: where the content lies, and its digests."""

    data_uri: str
    data_digest: str
    model_uri: str
    model_digest: str
    init_uri: str
    init_digest: str
    reference_uri: str
    reference_digest: str
    judges_uri: str = ""
    """Of a folder with the reward models that judge; empty where there is none."""
    judges_digest: str = ""
    num_files: int
    num_bytes: int
    """Of the data; the model's files are not counted."""


class Counts(Contract):
    """A step's rows. `num_in` is `num_kept` + the sum of `quarantined`: checked, not hoped."""

    num_in: int
    num_kept: int
    quarantined: dict[str, int] = {}
    """Reason code to rows."""

    def balances(self) -> bool:
        """Whether every row that came in is accounted for."""
        return self.num_in == self.num_kept + sum(self.quarantined.values())


class ValidateResult(Contract):
    """What validation kept, what it did not and why."""

    counts: Counts
    """Rows of the sources for validate, pairs for merge."""
    num_pairs: int
    """On the training side; held-out ones are counted apart, as prompts are."""
    num_heldout_pairs: int
    num_ratings: int = 0
    """Answers that were rated by themselves, on the training side."""
    num_heldout_ratings: int = 0
    num_prompts: int
    num_heldout_prompts: int
    slices: dict[str, int]
    expectations: dict[str, bool]
    """Great Expectations expectation to whether it held."""
    pairs_digest: str


class LengthBias(Contract):
    """How often the chosen answer of a pair is the longer one."""

    chosen_longer: float
    """Share of the pairs whose answers differ in length; 0.5 is no bias."""
    low: float
    high: float
    """Its 95% interval."""
    n: int
    length_ratio: float
    """Geometric mean of chosen over rejected, in characters."""


class Cost(Contract):
    """What one model behind an endpoint was asked and paid."""

    requests: int
    tokens: int
    money: float


class SynthesizeResult(Contract):
    """What became of the prompts."""

    num_prompts: int
    num_candidates: int
    num_pairs: int
    not_pairs: dict[str, int]
    """Why a prompt gave no pair, to how many."""
    left_out: int = 0
    """Pairs that `balance_length` left out."""
    missing: dict[str, int] = {}
    """Why a candidate could not be had, to how many."""
    set_aside: dict[str, int] = {}
    """Why a candidate was not judged, to how many."""
    outcomes: dict[str, int] = {}
    """Comparisons by what the judge made of them: preferred, tie, inconsistent, invalid."""
    length_bias: LengthBias | None = None
    """Of judged pairs."""
    cost: dict[str, Cost] = {}
    """By model, earlier attempts of this step included."""
    stopped_by: str | None = None
    """The budget that was reached."""


class TrainResult(Contract):
    """What training did and what it left."""

    policy_digest: str
    first_loss: float
    last_loss: float
    num_pairs: int
    """That were learnt from."""
    num_heldout: int = 0
    """That were only watched."""
    num_dropped: int
    num_cut: int = 0
    """Of those learnt or watched, how many were cut to fit."""
    num_steps: int
    best_step: int | None = None
    """The update whose weights the policy has, where training may stop early."""
    accuracy: float
    """Share of the last epoch's pairs whose reward margin was positive."""
    dtype: str
    seconds: float
    alarms: tuple[str, ...] = ()
    """What looked wrong while it trained, with the update it was first seen at."""


class Gate(Contract):
    """One rule of the decision: what was asked, what was seen, whether it holds."""

    name: str
    asked: str
    seen: str
    passed: bool | None
    """None where it could not be measured; that is never a pass."""


class Decision(Contract):
    """Whether the candidate may be shown to a reviewer, and on what evidence."""

    schema_version: int = 1
    verdict: Verdict
    sentence: str
    """One sentence that a reviewer can quote."""
    gates: tuple[Gate, ...]
    win_rate: Interval | None
    power: Power | None = None
    """Of the win rate; None without a judge, or where every comparison ended alike."""
    slices: dict[str, Interval] = {}
    """The win rate of each slice of the prompts."""
    heldout_accuracy: Interval | None
    """Share of held-out pairs whose reward margin is positive."""
    heldout_margin: float | None
    """Mean implicit reward margin of the held-out pairs, in nats (before beta)."""
    measures: dict[str, float]
    """Every other figure a gate or a reader may want."""
    digests: dict[str, str]
    """sha256 of each: policy, base, heldout, judges, answers, config, code, image; and what the
    policy was made from, as `policy.pairs`, `policy.reference`."""
    signer: str | None = None
    """Whose key signs this file; None: nobody vouches for it."""


class EvaluateResult(Contract):
    """The decision in short."""

    verdict: Verdict
    sentence: str
    win_rate: float | None
    ci: tuple[float, float] | None
    decision_digest: str


class RegisterResult(Contract):
    """The model version that was recorded."""

    model: str
    version: int
    alias: Literal["challenger"] | None
    digest: str
    uri: str


class TaskSummary(Contract):
    """One task of the DAG as it went."""

    name: str
    state: TaskState
    seconds: float = 0.0
    reused: bool = False
    """Whether its outputs came from an earlier run of the same inputs."""
    message: str = ""


class MlflowSummary(Contract):
    """Where the run can be read."""

    tracking_uri: str
    run_id: str


class PointSummary(Contract):
    """One point of a sweep."""

    sets: tuple[str, ...]
    """What was changed, as `--set` takes it."""
    train: TrainResult | None = None
    evaluation: dict[str, object] = Field(default_factory=dict)


class RunSummary(Contract):
    """`<home>/summary.json`: the whole run in one page."""

    schema_version: int = 1
    run_id: str
    name: str
    state: RunState
    error: str | None = None
    tasks: tuple[TaskSummary, ...] = ()
    data: dict[str, object] = Field(default_factory=dict)
    train: TrainResult | None = None
    evaluation: dict[str, object] = Field(default_factory=dict)
    registry: RegisterResult | None = None
    points: tuple[PointSummary, ...] = ()
    """Of a sweep; `train` and `evaluation` are then those of the first one."""
    mlflow: MlflowSummary | None = None
