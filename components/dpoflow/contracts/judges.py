"""Who decides which of two answers is better, as a spec says it.

Reads   nothing
Gives   `JudgeConfig` (rubric, llm, reward, panel) and what is in one, `EndpointConfig`,
        `BudgetConfig`, `Qualification`, `reward_folder`
Not     judging (judge/), talking to servers (endpoints/)
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from dpoflow.contracts.base import Contract, sha256_json
from dpoflow.contracts.rubric import Rubric


def _server(url: str) -> str:
    # The value is not repeated: it may hold a password.
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be http://HOST:PORT or https://…, with its path (a model's: /v1)")
    if parts.username or parts.password or parts.query:
        raise ValueError("must hold no user, password or key; a model's is named in api_key_env")
    return url.rstrip("/")


ServerUrl = Annotated[str, AfterValidator(_server)]
"""Of a server, without what lets one in."""


def _variable(name: str) -> str:
    # Not a pattern: the error of a pattern would print the key that somebody put here.
    if not (name.isidentifier() and name.isupper()):
        raise ValueError(
            "must name an environment variable in capitals, such as OPENAI_API_KEY; a key itself "
            "never stands in a spec"
        )
    return name


VariableName = Annotated[str, AfterValidator(_variable)]
"""An environment variable."""

_OURS = ("MLFLOW_", "DPOFLOW_", "AWS_", "KFP_", "KF_")


def _of_a_key(name: str) -> str:
    # Whoever writes a spec says where a key is sent, and these are not theirs to send.
    if name.startswith(_OURS):
        raise ValueError(
            f"{name} belongs to the step itself and is sent nowhere; keep the key in a variable of "
            f"another name than {'…, '.join(_OURS)}…"
        )
    return name


KeyVariable = Annotated[VariableName, AfterValidator(_of_a_key)]
"""An environment variable that holds a key for a server which the spec names."""


class EndpointConfig(Contract):
    """A model behind an OpenAI-compatible server, such as vLLM."""

    base_url: ServerUrl
    """Of the server, with its version: http://localhost:8000/v1."""
    model: str = Field(min_length=1)
    """As the server names it."""
    api_key_env: KeyVariable | None = None
    """The environment variable that holds the key; None sends none."""
    concurrency: int = Field(32, ge=1, le=1024)
    """Requests in flight."""
    requests_per_minute: float | None = Field(None, gt=0)
    tokens_per_minute: float | None = Field(None, gt=0)
    timeout_s: float = Field(120, gt=0)
    """Of one attempt."""
    patience_s: float = Field(900, ge=0)
    """How long one request is tried again, over busy and broken replies, before the step stops."""
    context_tokens: int | None = Field(None, ge=16)
    """What the model reads at most; a request that is longer at four bytes a token is not sent.
    None leaves it to the server."""
    price_input: float = Field(0, ge=0)
    """Of a million tokens read, in your currency."""
    price_output: float = Field(0, ge=0)
    """Of a million tokens written."""


class BudgetConfig(Contract):
    """What one step may spend. At the first limit it stops asking and goes on with what it has."""

    requests: int | None = Field(None, gt=0)
    tokens: int | None = Field(None, gt=0)
    """Read and written together."""
    money: float | None = Field(None, gt=0)
    """In the currency of the endpoints' prices."""


class RubricJudgeConfig(Contract):
    """Checkable constraints: deterministic, offline."""

    kind: Literal["rubric"] = "rubric"
    rubric: Rubric
    """Inline, or the path of a YAML file that holds it."""


class SliceOfJudge(Contract):
    """The same figures on a part of the data."""

    n: int
    both_correct: float
    positional_agreement: float


class Qualification(Contract):
    """What a judge is worth, and whether that is enough."""

    judge: str
    n: int
    accuracy_forward: float
    accuracy_swapped: float
    both_correct: float
    """Share of pairs on which both orders give the label."""
    positional_agreement: float
    """Share of pairs on which both orders say the same."""
    first_position_rate: float | None
    """Of verdicts that name a side, how many name the one shown first; 0.5 is no bias."""
    invalid: float
    """Share of verdicts that could not be read."""
    kappa: float
    kappa_ci: tuple[float, float]
    """95%, bootstrap over pairs."""
    length_flip_rate: float | None
    """Of pairs whose label is the shorter answer, how many both orders give to the longer one."""
    least_kappa: float
    least_agreement: float
    qualified: bool
    sentence: str
    slices: dict[str, SliceOfJudge] = {}


class LlmJudgeConfig(Contract):
    """A model that is asked."""

    kind: Literal["llm"]
    endpoint: EndpointConfig
    asks: Literal["pairwise", "pointwise"] = "pairwise"
    """Which of two is better, in both orders; or a mark from 1 to 10 for each alone."""
    answers: Literal["schema", "json", "letter", "logprobs"] = "schema"
    """How the verdict comes: JSON that the server holds to a schema, JSON asked for in words, one
    letter, or the probabilities of that letter."""
    template: str | None = None
    """The question to the judge: a file with {conversation} and {first}, {second} (pairwise) or
    {answer} (pointwise). None takes our own."""
    max_tokens: int = Field(512, ge=1)
    """Of one verdict, its reason included."""
    temperature: float = Field(0, ge=0, le=2)
    repeats: int = Field(1, ge=1, le=25)
    """How often each is asked; more than half must agree. Needs a temperature above 0."""
    traced: float = Field(0.05, ge=0, le=1)
    """Share of the requests that appear as traces in MLflow."""
    qualification: Qualification | None = None
    """What `dpoflow judge qualify --out FILE` wrote of this judge: the path of that file."""

    @model_validator(mode="after")
    def _knobs_are_used(self) -> Self:
        if self.asks == "pointwise" and self.answers in ("letter", "logprobs"):
            raise ValueError(
                f"answers {self.answers} is not used by asks pointwise; set answers: schema or json"
            )
        if self.repeats > 1 and self.temperature == 0:
            raise ValueError(
                f"repeats {self.repeats} at temperature 0 asks the same again; raise temperature, "
                "or leave repeats out"
            )
        return self


class RewardJudgeConfig(Contract):
    """A model that gives each answer a number: a sequence classifier with one label."""

    kind: Literal["reward"]
    model: str = Field(min_length=1)
    """Its URI, like the spec's model: a folder, hf://ORG/NAME@REVISION, models:/NAME/VERSION."""
    max_tokens: int | None = Field(None, ge=8)
    """A conversation with its answer that is longer is not judged; None takes the model's own
    limit."""
    qualification: Qualification | None = None
    """What `dpoflow judge qualify --out FILE` wrote of this judge: the path of that file."""


def reward_folder(uri: str) -> str:
    """Where the reward model of that URI lies among those that were pinned."""
    return sha256_json(uri)[:16]


def _kind(given: Any) -> str:
    kind = given.get("kind", "rubric") if isinstance(given, dict) else getattr(given, "kind", "")
    return str(kind)


class Seat(Contract):
    """One judge of a panel and its weight."""

    judge: Annotated[
        Annotated[RubricJudgeConfig, Tag("rubric")]
        | Annotated[LlmJudgeConfig, Tag("llm")]
        | Annotated[RewardJudgeConfig, Tag("reward")],
        Discriminator(_kind),
    ]
    weight: float = Field(1, gt=0)

    @model_validator(mode="after")
    def _has_no_report_of_its_own(self) -> Self:
        if getattr(self.judge, "qualification", None) is not None:
            raise ValueError("the qualification of a seat is not used; qualify the whole panel")
        return self


class PanelJudgeConfig(Contract):
    """Several judges that vote. One side wins with more than half of all weight."""

    kind: Literal["panel"]
    seats: tuple[Seat, ...] = Field(min_length=2)
    qualification: Qualification | None = None
    """Of the panel as a whole, as above."""

    @model_validator(mode="after")
    def _seats_differ(self) -> Self:
        judges = [seat.judge for seat in self.seats]
        if any(judge in judges[:at] for at, judge in enumerate(judges)):
            raise ValueError(
                "two seats have the same judge, which says the same twice; use weight, or repeats "
                "at a temperature"
            )
        return self


JudgeConfig = Annotated[
    Annotated[RubricJudgeConfig, Tag("rubric")]
    | Annotated[LlmJudgeConfig, Tag("llm")]
    | Annotated[RewardJudgeConfig, Tag("reward")]
    | Annotated[PanelJudgeConfig, Tag("panel")],
    Discriminator(_kind),
]


def models_in(config: "JudgeConfig | None") -> Iterator[LlmJudgeConfig]:
    """The model judges of a config, those of a panel one by one."""
    yield from (each for each in _single(config) if isinstance(each, LlmJudgeConfig))


def rubrics_in(config: "JudgeConfig | None") -> Iterator[RubricJudgeConfig]:
    """The rubrics of a config."""
    yield from (each for each in _single(config) if isinstance(each, RubricJudgeConfig))


def rewards_in(config: "JudgeConfig | None") -> Iterator[RewardJudgeConfig]:
    """The reward models of a config."""
    yield from (each for each in _single(config) if isinstance(each, RewardJudgeConfig))


def _single(
    config: "JudgeConfig | None",
) -> Iterator[RubricJudgeConfig | LlmJudgeConfig | RewardJudgeConfig]:
    if isinstance(config, PanelJudgeConfig):
        yield from (seat.judge for seat in config.seats)
    elif config is not None:
        yield config
