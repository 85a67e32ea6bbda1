"""What each step hands back, the decision, and the summary of a run.

Reads   nothing
Gives   one result a step (small, JSON, no paths of a machine), `Decision`, `RunSummary`
Not     artifacts: those are folders with a manifest (contracts/manifest.py)
"""

from typing import Literal

from pydantic import Field

from dpoflow.contracts.base import Contract
from dpoflow.contracts.judges import Qualification

Verdict = Literal["promote", "reject", "inconclusive"]
Reason = Literal["first", "unknown", "new_pairs", "age", "feedback", "spec"]
"""Why to train: no champion yet, its data cannot be known, or what is new since."""
TaskState = Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "SKIPPED"]
RunState = Literal["RUNNING", "SUCCEEDED", "FAILED"]


class Interval(Contract):
    """A statistic with its interval and the number of independent units behind it."""

    value: float
    low: float
    high: float
    n: int


class Test(Contract):
    """How surprising the data would be if there were no difference; two-sided."""

    p: float
    p_holm: float | None = None
    """For all tests of the decision together."""
    n: int
    """Prompts that tell: neither ties nor prompts on which both do the same."""


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
    champion_uri: str = ""
    """Empty where no version has the alias yet, or none is asked for."""
    champion_digest: str = ""
    num_files: int
    num_bytes: int
    """Of the data; the model's files are not counted."""


class Thumbs(Contract):
    """Answers that were rated by themselves."""

    down: int
    of: int


class DecideResult(Contract):
    """Whether there is something to learn, and why."""

    decision: Literal["train", "skip"]
    sentence: str
    reasons: tuple[Reason, ...] = ()
    """Those that hold; any of them is enough."""
    champion: str | None = None
    """NAME/VERSION that the news are news to; None where there is none yet."""
    age_days: float | None = None
    new_pairs: int
    """Pairs with a preference that the champion's data did not hold, each once."""
    new_ratings: int = 0
    new_prompts: int = 0
    changed: dict[str, tuple[str, str]] = {}
    """Knob to what it was for the champion, and what it is."""
    thumbs: dict[str, Thumbs] = {}
    """`new` feedback, and that in the data of the `champion`."""


class PromoteResult(Contract):
    """One round of the promoter."""

    promoted: tuple[str, ...] = ()
    """NAME/VERSION of each that is champion now."""
    drift: tuple[str, ...] = ()
    """Where the registry names another champion than the log."""


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


class Used(Contract):
    """What work on a step took, attempts that ended in an error included."""

    gpu_seconds: float = 0
    """Of all GPUs together."""
    paid: dict[str, Cost] = {}
    """By model behind an endpoint."""

    @property
    def money(self) -> float:
        """In the currency of the endpoints' prices."""
        return sum(cost.money for cost in self.paid.values())


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
    undecided: bool = False
    """Whether it was missed in a way that more prompts may mend: the interval holds the bound."""
    bound: float | None = None
    """What an end of the interval must not pass; None where no interval is asked for."""


class Opponent(Contract):
    """How the candidate's answers fare beside those of another model to the same prompts."""

    win_rate: Interval | None
    """None without a judge."""
    power: Power | None = None
    """Of the win rate; None without a judge, or where every comparison ended alike."""
    slices: dict[str, Interval] = {}
    """The win rate of each slice of the prompts."""
    at_equal_length: float | None = None
    """What the win rate would be (AlpacaEval 2's regression without difficulties)."""
    at_equal_style: float | None = None
    """The same for length, headers, lists and bold text (Arena-Hard's Bradley-Terry regression);
    of suites."""
    length_ratio: float | None = None
    """Median tokens an answer, the candidate's over the other's; None across tokenizers."""


class SuiteScores(Contract):
    """What a published benchmark's protocol makes of the candidate and of its opponents."""

    kind: str
    num_questions: int
    """That every model answered, and whose answers could be judged."""
    left_out: int = 0
    """Questions that some model's context has no room for."""
    unreadable: int = 0
    """Answers whose judgement could not be read; their questions are in no figure."""
    judged_by: str
    models: dict[str, dict[str, Interval]] = {}
    """By model: `score`, `turn_1`, `turn_2` (1 to 10) of mt_bench; `over_refusal`,
    `unsafe_compliance` (shares) of xstest; the task's own of harness, the main one first."""
    differences: dict[str, dict[str, Interval]] = {}
    """By opponent: the candidate's minus the opponent's, paired by question."""
    by_category: dict[str, dict[str, float]] = {}
    """By model: mean mark, share of full refusals, or main figure, of each category."""
    labels: dict[str, dict[str, dict[str, Interval]]] = {}
    """Of xstest, by model and side (`safe`, `unsafe`): the share of that side's questions that the
    model `complied` with, `refused`, or `partly_refused`; the three sum to 1. `n` is the side's
    questions, so that value * n is their count."""
    by_string_match: dict[str, dict[str, Interval]] = {}
    """The same answers by how they begin, whoever labelled them: by model and side, the share that
    begins like a refusal. It knows no half refusal, and misses those that come later."""
    against: dict[str, Opponent] = {}
    """By opponent, where answers are compared: instructions, and mt_bench with a judge."""


class Preference(Contract):
    """Held-out pairs under the candidate, beside the base: the objective itself on unseen pairs."""

    accuracy: Interval
    """Share of the pairs whose margin is positive."""
    margin: Interval
    """Implicit reward margin, in nats (before beta)."""
    chosen: float
    rejected: float
    """By how much likelier each answer is than under the base: mean log-ratio, in nats."""
    kl: float | None
    """Mean log-ratio of the candidate's own answers, in nats an answer: an estimate of the
    divergence from the base where answers are drawn at temperature 1, a likeness of it else."""
    beta: float | None
    """That the policy was trained with; None where its config names none."""
    brier: float | None
    calibration_error: float | None
    """Of sigmoid(beta * margin) as the probability that people prefer the chosen answer; the second
    is the mean gap over ten bins of equal width. None without beta."""
    slices: dict[str, Interval] = {}
    """The accuracy of each slice."""


class Decision(Contract):
    """Whether the candidate may be shown to a reviewer, and on what evidence."""

    schema_version: int = 2
    verdict: Verdict
    sentence: str
    """One sentence that a reviewer can quote."""
    gates: tuple[Gate, ...]
    against: dict[str, Opponent]
    """The base, and the champion if there is one."""
    preference: Preference | None = None
    """None without held-out pairs."""
    suites: dict[str, SuiteScores] = {}
    tests: dict[str, Test] = {}
    """By what was compared, as `win_rate/base`."""
    measures: dict[str, float]
    """Every other figure a gate or a reader may want."""
    judge: str | None = None
    """What the judge calls itself."""
    qualification: Qualification | None = None
    """Of that judge; None for a rubric, which is what it says, and where nobody held it against
    people's labels."""
    changed: dict[str, tuple[str, str]] = {}
    """What the candidate was made with and the champion was not: (champion's, candidate's)."""
    own_gates: dict[str, tuple[str, str]] = {}
    """Knobs of `evaluate.gates` that the spec sets otherwise than is usual: (usual, here)."""
    digests: dict[str, str]
    """sha256 of each: policy, base, champion, heldout, judges, answers, config, code, image; and
    what the policy was made from, as `policy.pairs`, `policy.reference`."""
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


class TaskCost(Contract):
    """What a task took."""

    gpu_hours: float = 0
    money: float = 0
    """In the currency of the endpoints' prices."""
    requests: int = 0
    tokens: int = 0


class RunCost(Contract):
    """What a run took. A task that another run had done cost this one nothing."""

    gpu_hours: float = 0
    """Seconds of tasks with a GPU, times their GPUs; of a TrainJob what training took, not its
    queueing. An attempt that was killed outright is not in it."""
    money: float = 0
    """Paid to judges, graders and writers behind endpoints, in the currency of their prices."""
    by_task: dict[str, TaskCost] = {}
    """Those that took something."""
    reused: dict[str, TaskCost] = {}
    """What other runs once spent on tasks of this one."""


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
    pipeline: Literal["align", "retrain"] = "align"
    retrain: DecideResult | None = None
    """Of `retrain`: whether it trained. Where it did not, the verdict is `none`."""
    data: dict[str, object] = Field(default_factory=dict)
    train: TrainResult | None = None
    evaluation: dict[str, object] = Field(default_factory=dict)
    registry: RegisterResult | None = None
    points: tuple[PointSummary, ...] = ()
    """Of a sweep; `train` and `evaluation` are then those of the first one."""
    cost: RunCost | None = None
    """None in summaries of earlier releases."""
    mlflow: MlflowSummary | None = None
