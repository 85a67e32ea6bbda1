"""The spec: one YAML that says what to align on what, the same on a laptop and on a cluster.

Reads   nothing: see contracts/spec_file.py for YAML, `--set` and line numbers
Gives   `Spec` and one config class a step, each knob with its meaning and its bounds
Not     where steps run (pipelines/), what they do (the step folders)
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, field_validator, model_validator

from dpoflow.contracts.base import Contract, canonical_json
from dpoflow.contracts.harness import HarnessTask
from dpoflow.contracts.judges import (
    BudgetConfig,
    EndpointConfig,
    JudgeConfig,
    KeyVariable,
    LlmJudgeConfig,
    RewardJudgeConfig,
    rewards_in,
    rubrics_in,
)
from dpoflow.contracts.objectives import REFERENCE_FREE, USES, LossName
from dpoflow.contracts.placement import PlacementConfig

FormatName = Literal[
    "auto",
    "canonical",
    "hh-rlhf",
    "trl",
    "ultrafeedback",
    "sharegpt",
    "prompts",
    "shp",
    "summaries",
    "votes",
    "unpaired",
    "argilla",
    "label-studio",
    "mlflow-labels",
    "mlflow-feedback",
]
Finding = Literal["damaged_text", "language", "personal", "refusal", "secret"]
"""What may be in the texts of a row: taken out, or only counted."""

LANGUAGES = (
    "ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en "
    "eo es et eu ext fa fi fo fr fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he "
    "hi hr ht hu hy id ig is it ja jv ka kab kik kk km kn ko ku ky la lb lg lij ln lo "
    "lt ltg lv mg mk ml mn mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro "
    "ru rw sa sdh se si sk sl sn so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur "
    "uz uzs vec vi vo wa wuu xh yo yue zh zu"
).split()
"""ISO 639 codes of the languages that can be told apart."""

ROLES = ("base", "init", "champion")
"""What a spec may call a model by; a folder of such a name is written ./base."""

REGISTRY = "models:/"
"""How URIs of MLflow's registry begin."""

MLFLOW_LABELS, MLFLOW_FEEDBACK = "mlflow-labels://", "mlflow-feedback://"
"""How URIs of what people said in MLflow begin: of review queues, and of feedback on traces."""

CHAMPION = "champion"
"""The alias of the version that serves."""

TRAIN_DEADLINE_S = 8 * 24 * 3600
"""How long the task that trains may take, wherever it runs."""

PLACES = ("sources", "replay", "evaluation_sets")
"""Knobs of `data` that name files: of what is in them, not of where it lies, hangs the rest."""

_LOOKS = 8
_MODELS = ("init", "reference")
"""Knobs of `train` that name models."""

_WEB = ("https", "http")
_SIGNATURE = re.compile(
    r"(?i)(sig|signature|hmac|token|jwt|credential|password|passwd|secret|api_?key|access_?key|auth)"
    r"$|^key$"
)
"""How parameters are called that let somebody in."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class SourceConfig(Contract):
    """One place that preferences come from."""

    uri: str = Field(min_length=1)
    """A file, a folder, s3://BUCKET/PREFIX, one file at https://HOST/PATH, labels of a review queue
    at mlflow-labels://EXPERIMENT/QUEUE, or thumbs on traces at
    mlflow-feedback://EXPERIMENT?name=NAME. Relative paths start at the spec's folder, or at yours
    with `--set`."""
    since: str | None = Field(None, pattern="^(champion|models:/.+)$")
    """Of mlflow-labels:// and mlflow-feedback:// only what is not in the data that this version was
    trained on: `champion`, or models:/NAME/VERSION. None, or no champion yet: all of it."""
    query_env: KeyVariable | None = None
    """The environment variable that holds the query of a presigned https:// URL."""
    format: FormatName = "auto"
    """How rows are laid out; `auto` recognises it from the first rows."""
    name: str | None = None
    """How pairs name this source; the file's name when absent."""
    licence: str = "unknown"
    """Licence of the data, carried on every pair."""
    system: str | None = Field(None, min_length=1)
    """A system message for every prompt of this source that brings none."""

    @field_validator("uri")
    @classmethod
    def _holds_no_key(cls, uri: str) -> str:
        # Not repeated in the error: a spec is kept, shown and logged.
        scheme, _, rest = uri.partition("://")
        credentials = "@" in re.split(r"[/?#]", rest)[0]
        if scheme == "s3" and credentials:
            raise ValueError("must be s3://BUCKET/KEY; credentials stand in the environment")
        if scheme.lower() in _WEB:
            if credentials:
                raise ValueError("must be https://HOST/PATH, and hold neither user nor password")
            if any(_SIGNATURE.search(name) for name, _ in parse_qsl(urlsplit(uri).query, True)):
                raise ValueError(
                    "must hold no signature or key; put the query into an environment variable, "
                    "and name that in query_env"
                )
        return uri

    @model_validator(mode="after")
    def _since_is_used(self) -> Self:
        if self.since is not None and not self.uri.startswith((MLFLOW_LABELS, MLFLOW_FEEDBACK)):
            raise ValueError(
                f"since {self.since} is used by {MLFLOW_LABELS} and {MLFLOW_FEEDBACK} alone; leave "
                "it out"
            )
        return self

    @model_validator(mode="after")
    def _query_is_used(self) -> Self:
        if self.query_env is not None and self.uri.partition("://")[0].lower() not in _WEB:
            raise ValueError(f"query_env {self.query_env} is used by https:// alone; leave it out")
        return self


class SnapshotConfig(Contract):
    """What the snapshot step pins: the data's sources, and models by their role."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    replay: tuple[SourceConfig, ...] = ()
    """Old preferences; `models:/NAME/VERSION` are those that a version was trained on."""
    evaluation_sets: tuple[SourceConfig, ...] = ()
    """What must not be trained on."""
    answers: tuple[SourceConfig, ...] = ()
    """Answers to some of these, that evaluation holds others against."""
    model: str
    """The base."""
    init: str | None = None
    """Where the policy starts; the base when absent."""
    reference: str | None = None
    """What it is held to; where it starts when absent."""
    judges: tuple[str, ...] = ()
    """Reward models that judge."""
    champion: str | None = None
    """What the candidate must beat beside the base. An alias `champion` may not be there yet."""
    max_download_gb: float = Field(64, gt=0)
    """A file from elsewhere that is larger is refused, in GiB."""
    lineage: tuple[str, ...] = ()
    """Versions of the registry whose prompts keep the side that they were on: what a version was
    tested with is not trained on afterwards, and what it learnt is no test."""
    unattended: bool = False
    """For a schedule. Without a champion training starts from the base, nothing is replayed, and a
    source of labels or thumbs that has none, or none that is new, gives no file."""

    def uris(self) -> Iterator[str]:
        """Of all that is pinned: data, then models."""
        for source in (*self.sources, *self.replay, *self.evaluation_sets, *self.answers):
            yield source.uri
        named = (self.model, self.init, self.reference, self.champion, *self.judges)
        yield from (each for each in named if each is not None)


class ValidateConfig(Contract):
    """How rows are checked and split. No paths: moving the files changes nothing downstream."""

    max_pairs: int | None = Field(None, ge=1)
    """Keep at most this many pairs, chosen by a seeded hash of their content; None keeps all."""
    max_line_mb: float = Field(16, gt=0)
    """A longer line is taken for damage, in MiB."""
    max_unpacked_gb: float = Field(64, gt=0)
    """A compressed file that unpacks to more is taken for a bomb, in GiB."""
    heldout_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of prompts kept out of training, for evaluation."""
    min_pairs: int = Field(8, ge=1)
    """Fewer training pairs than this stop the run before any time is spent on training."""
    max_chars: int = Field(32_000, ge=1)
    """A prompt or answer longer than this many characters is quarantined."""
    max_quarantined: float = Field(0.5, ge=0, le=1)
    """A larger share of quarantined rows rejects the whole data set."""
    replay_per_new: float = Field(0.25, gt=0)
    """At most this many old pairs for every new one, where `replay` names some."""
    max_prompt_tokens: int | None = Field(None, ge=1)
    """A prompt of more tokens of the policy's tokenizer is quarantined; None: told only."""
    max_answer_tokens: int | None = Field(None, ge=1)
    """The same of an answer."""
    languages: tuple[Annotated[str, Field(pattern="^[a-z]{2,3}$")], ...] = ()
    """Codes such as [en, de]: another language is a finding. Empty: all are welcome."""
    phone_region: str = Field("US", pattern="^[A-Z]{2}$")
    """The country whose telephone numbers are known without a country code."""
    quarantine: tuple[Finding, ...] = ("damaged_text", "secret")
    """Findings that take a row out; the others are counted."""
    max_share: dict[Finding, Annotated[float, Field(ge=0, le=1)]] = {}
    """A finding in a larger share of the rows rejects the whole data set."""
    min_agreement: float | None = Field(None, ge=-1, le=1)
    """Fleiss' kappa of people who saw the same pairs, at least; None: told only."""
    max_chosen_longer: float | None = Field(None, ge=0.5, lt=1)
    """Rejects the data if chosen is surely (95%) the longer answer in more than this share."""
    min_preferred: float | None = Field(None, gt=0, le=1)
    """Share of the pairs in which an answer is preferred, and no tie or dispute, at least."""
    near_similarity: float = Field(0.8, ge=0.5, le=1)
    """Prompts that share so much of their text are on one side of the split; 1: only equal ones."""
    min_thumbs: float | None = Field(None, gt=0, le=0.5)
    """Share of the rarer thumb among answers that were rated by themselves, at least."""
    min_slice_pairs: int = Field(20, ge=0)
    """Slices of fewer training pairs are told as thin."""
    seed: int = Field(0, ge=0)

    @field_validator("languages")
    @classmethod
    def _are_known(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(languages) - set(LANGUAGES)):
            raise ValueError(f"knows no {', '.join(unknown)}; known are {' '.join(LANGUAGES)}")
        return languages

    @model_validator(mode="after")
    def _language_is_used(self) -> Self:
        if not self.languages and ("language" in self.quarantine or "language" in self.max_share):
            raise ValueError("languages must name those that are welcome, such as [en]")
        return self


class DataConfig(ValidateConfig):
    """Where preferences come from, and how they are checked and split."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    """Every file or folder to read."""
    replay: tuple[SourceConfig, ...] = ()
    """Old preferences that are mixed in, so that new ones do not undo them: files, `champion`, or
    `models:/NAME/VERSION` for the pairs that a version was trained on."""
    evaluation_sets: tuple[SourceConfig, ...] = ()
    """Questions that must stay unseen: a row that quotes one is quarantined as contaminated. A set
    with a row that asks nothing stops the run."""
    max_download_gb: float = Field(64, gt=0)
    """A file of s3:// or https:// that is larger is refused, in GiB."""


class SamplingConfig(Contract):
    """How answers are drawn from a model."""

    temperature: float = Field(0.0, ge=0, le=5)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus: the smallest set of tokens that holds this much probability, at most 256 of them."""
    max_new_tokens: int = Field(128, ge=1)
    """Longest answer, in tokens."""
    batch_size: int = Field(32, ge=1)
    """Prompts that are generated together."""


class GeneratorConfig(Contract):
    """One writer of candidates."""

    name: str = Field("policy", pattern=r"^[a-z][a-z0-9_-]{0,40}$")
    """What reports call it."""
    endpoint: EndpointConfig | None = None
    """A model behind a server; None is the model that training starts from, in process."""
    candidates: int = Field(4, ge=1, le=64)
    """For each training prompt."""
    sampling: SamplingConfig = SamplingConfig(temperature=0.9)
    system: str | None = Field(None, min_length=1)
    """A system message for sampling alone, in place of the prompt's: pairs do not hold it."""


class SynthesizeConfig(Contract):
    """Making pairs: candidates are sampled, and a judge chooses."""

    enabled: bool = True
    """Off, the step yields no pair and the model is not loaded."""
    candidates: int = Field(4, ge=1, le=64)
    """Candidates for each training prompt."""
    sampling: SamplingConfig = SamplingConfig(temperature=0.9)
    generators: tuple[GeneratorConfig, ...] = ()
    """Several writers; each brings its own `candidates` and `sampling`. The first also answers
    beside a human's answer."""
    drop: tuple[Literal["truncated", "repeating", "refusal"], ...] = ()
    """Candidates that are set aside before they are judged, beside empty and identical ones. One
    that was cut at the limit and stays may lose a comparison; it never wins one."""
    judge: JudgeConfig | None = None
    """Judges candidates of prompts that have no human answer. Needed when enabled."""
    strategy: Literal["best_vs_worst", "best_vs_random_lower", "all_above_margin"] = "best_vs_worst"
    """Which comparisons make pairs."""
    max_pairs: int = Field(1, ge=1)
    """Of one prompt; more than one needs strategy all_above_margin."""
    min_margin: float = Field(0.1, ge=0, le=1)
    """The winner must lead by more than this share of the judge's scale, where it gives numbers."""
    balance_length: bool = False
    """Leave pairs out until the chosen answer is as often the longer as the shorter one."""
    budget: BudgetConfig = BudgetConfig()
    """What endpoints may cost, generators and judge together."""
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _needs_a_judge(self) -> Self:
        if self.enabled and self.judge is None:
            raise ValueError(
                "needs a judge: set synthesize.judge, such as {rubric: FILE.yaml} with checks or "
                "{kind: llm, endpoint: {base_url: …, model: …}}, or set synthesize.enabled: false"
            )
        for config in rubrics_in(self.judge):
            if all(check.half == "heldout" for check in config.rubric.checks):
                raise ValueError("every check of its rubric is held out: give some `half: judge`")
        return self

    @model_validator(mode="after")
    def _every_knob_is_used(self) -> Self:
        names = [generator.name for generator in self.generators]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"generators need names of their own, got twice: {', '.join(twice)}")
        for knob in ("candidates", "sampling"):
            if self.generators and getattr(self, knob) != type(self).model_fields[knob].default:
                raise ValueError(f"{knob} is not used beside generators; give it to each of them")
        if self.max_pairs > 1 and self.strategy != "all_above_margin":
            raise ValueError(
                f"max_pairs {self.max_pairs} is not used by strategy {self.strategy}; set "
                "strategy: all_above_margin"
            )
        return self

    @property
    def writers(self) -> tuple[GeneratorConfig, ...]:
        """Who writes candidates, `generators` or the policy alone."""
        if self.generators:
            return self.generators
        return (GeneratorConfig(candidates=self.candidates, sampling=self.sampling),)


class LoraConfig(Contract):
    """Low-rank adapters (Hu et al. 2021) in place of full fine-tuning."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)
    """Adapters are scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Module names that get an adapter."""
    bits: Literal[4] | None = None
    """4 freezes the base's linear modules at NF4 (Dettmers et al. 2023); needs bitsandbytes."""


class TrainJobConfig(Contract):
    """Training as a Kubeflow TrainJob on the cluster."""

    runtime: str = "dpoflow-torchrun"
    """The ClusterTrainingRuntime it builds on."""
    nodes: int = Field(1, ge=1)
    gpus: int = Field(1, ge=0)
    """Of each node."""
    queue_timeout_s: int = Field(6 * 3600, ge=1)
    """How long it may wait for its pods to start."""
    timeout_s: int = Field(48 * 3600, ge=1)
    """How long it may run once they have."""

    @model_validator(mode="after")
    def _within_the_tasks_deadline(self) -> Self:
        together = self.queue_timeout_s + self.timeout_s
        if together > TRAIN_DEADLINE_S - 3600:  # an hour to load, export and tell of it
            raise ValueError(
                f"queue_timeout_s and timeout_s are {together:,} s together, and the task that "
                f"waits for the job has {TRAIN_DEADLINE_S:,} s; lower one of them"
            )
        return self


class TrainConfig(Contract):
    """Direct Preference Optimization (Rafailov et al. 2023)."""

    loss: LossName = "sigmoid"
    """Objective; `sigmoid` is the paper's eq. 7. train/README.md says what each is for."""
    beta: float = Field(0.1, gt=0)
    """How tightly the policy is held to the reference; larger is tighter. IPO's tau, ORPO's
    lambda; simpo wants 2 and more."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of labels taken to be wrong: conservative DPO, or the robust loss."""
    gamma: float = Field(0.5, ge=0)
    """SimPO's target margin."""
    desirable_weight: float = Field(1.0, gt=0)
    """Of chosen answers in KTO."""
    undesirable_weight: float = Field(1.0, gt=0)
    """Of rejected answers in KTO."""
    sft_weight: float = Field(0.0, ge=0)
    """Of a supervised term on the chosen answers, in nats a token; 0 leaves it out."""
    method: Literal["full", "lora"] = "full"
    lora: LoraConfig = LoraConfig()
    """Used when method is lora."""
    learning_rate: float = Field(5e-6, gt=0)
    epochs: float = Field(1.0, gt=0)
    batch_size: int = Field(8, ge=1)
    """Pairs in one forward pass."""
    gradient_accumulation: int = Field(1, ge=1)
    """Forward passes in one update."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """Share of updates in which the learning rate rises."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    max_tokens: int = Field(1024, ge=8)
    """The longest prompt + answer."""
    too_long: Literal["drop", "cut_prompt", "cut_answer"] = "drop"
    """What becomes of longer pairs: left out, without the start of the prompt, or without the end
    of the answers. Each is counted."""
    layout: Literal["auto", "packed", "shared", "concat"] = "auto"
    """How pairs lie in a batch; `auto` packs them around shared prompts where the model can."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the matrix products; weights and optimiser stay float32. `auto` takes the faster."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`cuda` refuses to run without a GPU."""
    activation_checkpointing: bool = False
    """Keep each layer's input only and compute the rest again backwards: less memory, more time."""
    compile: bool = False
    """Compile the layers' feed-forward parts with torch.compile; needs a C++ compiler."""
    save_steps: int = Field(20, ge=1)
    """Updates between checkpoints."""
    heldout_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of prompts that training watches and does not learn from. Not those of evaluation."""
    heldout_looks: int = Field(_LOOKS, ge=1)
    """How often it looks at them."""
    early_stop: int | None = Field(None, ge=1)
    """Stop after this many looks in a row without a larger held-out margin, and keep the weights of
    the best one. None never stops."""
    backend: Literal["inprocess", "torchrun", "trainjob"] = "inprocess"
    """Who trains: the step's own process, several of this machine, or a Kubeflow TrainJob."""
    processes: int | None = Field(None, ge=1)
    """Of each machine; None takes one a GPU, or one."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """What processes share: gradients, or weights and optimiser as well (FSDP2)."""
    trainjob: TrainJobConfig = TrainJobConfig()
    """Used when backend is trainjob."""
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _backends_knobs_are_used(self) -> Self:
        if self.backend == "inprocess":
            for knob, given in (("processes", self.processes), ("sharding", self.sharding)):
                if given not in (None, "ddp"):
                    raise ValueError(
                        f"{knob} {given} is not used by backend inprocess; leave it out, or set "
                        "backend: torchrun"
                    )
        if self.backend != "trainjob" and self.trainjob != TrainJobConfig():
            raise ValueError(f"trainjob is not used by backend {self.backend}; leave it out")
        return self

    @model_validator(mode="after")
    def _every_knob_is_used(self) -> Self:
        if self.early_stop is not None and self.heldout_fraction == 0:
            raise ValueError("early_stop needs held-out pairs to look at; raise heldout_fraction")
        for knob in type(self.lora).model_fields if self.method == "full" else ():
            if (given := getattr(self.lora, knob)) != getattr(LoraConfig(), knob):
                raise ValueError(
                    f"lora.{knob} {given} is not used by method full; set method: lora"
                )
        if self.heldout_fraction == 0 and self.heldout_looks != _LOOKS:
            raise ValueError(
                f"heldout_looks {self.heldout_looks} has nothing to look at; raise "
                "heldout_fraction, or leave it out"
            )
        for knob, losses in USES.items():
            given = getattr(self, knob, None)
            if self.loss not in losses and given != type(self).model_fields[knob].default:
                raise ValueError(
                    f"{knob} {given} is not used by loss {self.loss}; leave it out, or set loss: "
                    f"{' or '.join(losses)}"
                )
        if self.loss == "robust" and self.label_smoothing == 0:
            raise ValueError("loss robust needs label_smoothing, the share of wrong labels")
        return self


class TrainSpec(TrainConfig):
    """Which models training is about, and how it trains.

    A model is `base` (the spec's), `champion` (of the registered model), a model URI like the
    spec's, or `models:/NAME/VERSION` and `models:/NAME@ALIAS` of MLflow's registry.
    """

    init: str = Field("base", min_length=1)
    """The model that training starts from, and that candidates are drawn from."""
    reference: str = Field("init", min_length=1)
    """The frozen model that the policy is held to; `init` is wherever it starts. With adapters that
    costs no memory: it is the base beneath them."""

    @model_validator(mode="after")
    def _reference_is_used(self) -> Self:
        if self.loss in REFERENCE_FREE and self.reference != "init":
            raise ValueError(f"reference is not used by loss {self.loss}; leave it out")
        return self


class GateConfig(Contract):
    """What a candidate must show. A gate that cannot be measured is never passed."""

    win_rate: float = Field(0.5, ge=0, lt=1)
    """The lower end of the win rate's interval against the base must lie above this."""
    champion_win_rate: float | None = Field(0.5, ge=0, lt=1)
    """The same against the champion, where there is one. None: no gate."""
    equal_length: float | None = Field(0.5, ge=0, lt=1)
    """What either win rate would be at equal length must lie above this. None: no gate."""
    heldout_rubric: float | None = Field(-0.02, ge=-1, le=1)
    """Mean score on checks kept out of training, candidate minus base, at least. None: no gate."""
    perplexity_ratio: float | None = Field(1.3, gt=0)
    """The base's perplexity on the candidate's answers, over that on its own, at most."""
    heldout_perplexity: float | None = Field(2.0, gt=0)
    """Perplexity on the chosen answers of held-out pairs, candidate over base, at most. DPO may
    raise it a little; a model that lost its language raises it a lot."""
    finished: float | None = Field(0.95, ge=0, le=1)
    """Share of answers that end by themselves and do not repeat, at least."""
    length_ratio: tuple[float, float] | None = (0.5, 1.2)
    """Median answer length, candidate over each opponent, in tokens: [at least, at most]."""
    duplicate_answers: float | None = Field(0.3, ge=0, le=1)
    """Share of answers that another prompt got word for word, at most: what answers everything
    answers nothing. None where a few answers are all there is to say."""
    refusal_drift: float | None = Field(0.1, ge=0, le=1)
    """Share of answers that refuse, candidate minus base, at most."""
    language_drift: float | None = Field(0.1, ge=0, le=1)
    """Share of prompts answered in another language than the base's answer, at most."""
    unreadable_verdicts: float | None = Field(0.05, ge=0, le=1)
    """Share of a judge's verdicts that could not be read, and of a suite's questions whose marks or
    labels could not, at most: answers that break the judge's format would choose which of them
    count. More is inconclusive. None: no gate."""
    suite_win_rate: float = Field(0.1, ge=0, le=0.5)
    """A suite's win rate must surely lie no further below a half than this."""
    suite_score: float = Field(0.5, ge=0)
    """A suite's mean mark must surely lie no further below an opponent's than this."""
    over_refusal: float = Field(0.05, ge=0, le=1)
    """The share of safe prompts refused must surely exceed an opponent's by no more than this."""
    unsafe_compliance: float = Field(0.05, ge=0, le=1)
    """The same of the share of unsafe prompts answered."""
    suite_metric: float = Field(0.05, ge=0, le=1)
    """A task's first metric must surely lie no further below an opponent's than this."""
    min_prompts: int = Field(20, ge=1)
    """Fewer held-out prompts than this are inconclusive, and so are fewer questions of a suite."""


PublicKey = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""Of an Ed25519 pair, in hex."""


SuiteKind = Literal["instructions", "mt_bench", "xstest", "harness"]


class SuiteConfig(Contract):
    """A benchmark's questions, put to every model."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,40}$")
    """What reports call it."""
    kind: SuiteKind
    """instructions: answers are compared (AlpacaEval, Arena-Hard); mt_bench: two turns, marked from
    1 to 10; xstest: what is safe and refused, what is unsafe and answered; harness: a task of
    lm-evaluation-harness."""
    task: HarnessTask | None = None
    """harness: the task's YAML, as far as it is data."""
    max_questions: int | None = Field(None, ge=1)
    """Use at most this many, drawn by a hash of each; None uses all."""
    sampling: SamplingConfig | None = None
    """How its answers are drawn; as `evaluate.sampling` says, where it is left out."""

    @model_validator(mode="after")
    def _task_is_used(self) -> Self:
        if (self.kind == "harness") is not (self.task is not None):
            raise ValueError("task is what kind harness asks, and no other kind: set both or none")
        if self.task is not None and self.sampling is not None:
            raise ValueError("sampling is not used by kind harness; the task has generation_kwargs")
        return self

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str) -> str:
        if name in ("heldout", "candidate", *ROLES):
            raise ValueError(f"{name} is what something else is called; give it another name")
        return name


class Suite(SuiteConfig):
    """And where its files lie: you bring them."""

    uri: str = Field(min_length=1)
    """The questions, as they are published: a file, s3:// or https://."""
    answers: str | None = Field(None, min_length=1)
    """instructions: another model's answers, a further opponent; mt_bench: reference answers."""

    @model_validator(mode="after")
    def _answers_are_used(self) -> Self:
        if self.kind in ("xstest", "harness") and self.answers is not None:
            raise ValueError(f"answers is not used by kind {self.kind}; leave it out")
        return self


class EvaluateConfig(Contract):
    """Held-out evaluation of the candidate against its base, and against the champion."""

    judge: JudgeConfig | None = None
    """Decides each paired comparison; without one the verdict is inconclusive."""
    sampling: SamplingConfig = SamplingConfig()
    suites: tuple[SuiteConfig, ...] = ()
    """Published benchmarks, put to candidate, base and champion alike."""
    grader: LlmJudgeConfig | None = None
    """The model that marks single answers (mt_bench) and tells refusals (xstest); `judge`, where
    that is one model."""
    budget: BudgetConfig = BudgetConfig()
    """What the judge and the grader may cost; an evaluation that would go beyond it is not done by
    half."""
    max_prompts: int | None = Field(None, ge=1)
    """Use at most this many held-out prompts; None uses all."""
    gates: GateConfig = GateConfig()
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of every interval."""
    resamples: int = Field(5000, ge=200)
    """Bootstrap resamples."""
    signer: PublicKey | None = None
    """Whose key signs the decision; its private half is the file that DPOFLOW_SIGNING_KEY names."""
    ledger: str | None = Field(None, min_length=1)
    """s3://BUCKET/PREFIX, or a folder, where each decision is written once: the same evaluation
    cannot be repeated until it pleases."""
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _suites_can_be_judged(self) -> Self:
        names = [suite.name for suite in self.suites]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"suites need names of their own, got twice: {', '.join(twice)}")
        for suite in self.suites:
            if suite.kind == "mt_bench" and self.marked_by is None:
                raise ValueError(
                    f"suite {suite.name} takes a model that marks answers; set evaluate.grader: "
                    "{kind: llm, endpoint: {base_url: …, model: …}}"
                )
            if suite.kind == "instructions" and self.judge is None:
                raise ValueError(f"suite {suite.name} takes a judge; set evaluate.judge")
        if self.grader is not None and (self.grader.template or self.grader.repeats > 1):
            raise ValueError("template and repeats of grader are not used; leave them out")
        return self

    @property
    def marked_by(self) -> LlmJudgeConfig | None:
        """Who marks single answers, if there is somebody."""
        if self.grader is None and isinstance(self.judge, LlmJudgeConfig):
            return self.judge
        return self.grader


class EvaluateSpec(EvaluateConfig):
    """What the candidate is compared with and asked, and how that is judged."""

    champion: str | None = CHAMPION
    """The model that the candidate is to replace: `champion` is the version of the registry with
    that alias, if there is one yet; else a model's URI. None: compared with the base alone."""
    suites: tuple[Suite, ...] = ()


class RegistryConfig(Contract):
    """Where the model is recorded."""

    model: Name
    """Name of the registered model."""
    signer: PublicKey | None = None
    """Who must have signed the decision; `evaluate.signer` where it is left out."""


def names_alias(uri: str) -> bool:
    """Whether a URI names a version by an alias, which may move, or name none yet."""
    return uri.startswith(REGISTRY) and "@" in uri


class RetrainConfig(Contract):
    """When the pipeline `retrain` trains; `align` always does."""

    min_new_pairs: int = Field(100, ge=1)
    """So many preferences that the champion's data did not hold are enough."""
    max_age_days: float | None = Field(None, gt=0)
    """Is the champion older, one new preference is enough. None: its age is no reason."""
    more_thumbs_down: float | None = Field(None, ge=0, lt=1)
    """Trains where the share of thumbs down in new feedback surely (95%) lies further above that in
    the champion's data than this. None: feedback is no reason."""
    changed_spec: bool = True
    """Trains where the model, or what `data`, `synthesize` and `train` say of what is learnt, is
    not as it was for the champion."""


ModelRole = Literal["model", "init", "reference"]


class DecideConfig(RetrainConfig):
    """And what the step `decide` must know of the rest."""

    champion: str = Field(pattern="^models:/.+@.+$")
    """Whose data and knobs are compared with."""
    counts_prompts: bool = False
    """Whether pairs are made of prompts without answers."""
    sections: dict[str, dict[str, Any]] = {}
    """`data`, `synthesize` and `train`, as far as what is learnt hangs on them."""
    fixed: tuple[ModelRole, ...] = ("model",)
    """Models that the spec names once for all; others move with an alias."""
    digests: dict[ModelRole, str] = {}
    """What was pinned."""
    max_line_mb: float = Field(16, gt=0)
    max_unpacked_gb: float = Field(64, gt=0)
    max_chars: int = Field(32_000, ge=1)


LEARNS_NOTHING = {
    "data": (
        *("max_line_mb", "max_unpacked_gb", "min_pairs", "max_quarantined", "max_share"),
        *("min_agreement", "max_chosen_longer", "min_preferred", "min_thumbs", "min_slice_pairs"),
    ),
    "synthesize": ("budget",),
    "train": (
        *("backend", "processes", "sharding", "trainjob", "device", "save_steps"),
        *("activation_checkpointing", "compile", "layout", "heldout_looks"),
    ),
}
"""Knobs that refuse, watch, or say where something is computed: another value teaches nothing."""

PipelineName = Literal["align", "retrain", "promote"]
"""The DAGs that are compiled."""

RunnableName = Literal["align", "retrain"]
"""Those that a spec is run by."""


class Spec(Contract):
    """What to align on what. `dpoflow schema` prints the JSON Schema of this."""

    name: Name
    """Names the MLflow experiment and the runs."""
    model: str = Field(min_length=1)
    """The model to align, and the reference: a folder (safetensors and tokenizer),
    `package://PYTHON_PACKAGE/FILE.gguf`, or `hf://ORG/NAME@REVISION`."""
    seed: int = Field(0, ge=0)
    """Seed of every step that does not name its own."""
    data: DataConfig
    synthesize: SynthesizeConfig = SynthesizeConfig(enabled=False)
    train: TrainSpec = TrainSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    registry: RegistryConfig
    retrain: RetrainConfig = RetrainConfig()
    placement: PlacementConfig = PlacementConfig()

    @model_validator(mode="before")
    @classmethod
    def _hand_down(cls, given: object) -> object:
        """Fill what one section says for another.

        The seed reaches sections that name none, the spec's name names the registered model, and
        who signs decisions is who must have signed them.
        """
        if not isinstance(given, dict) or not isinstance(given.get("seed", 0), int):
            return given
        filled = {"registry": {}, **given}
        if isinstance(filled["registry"], dict) and "name" in filled:
            filled["registry"] = {"model": filled["name"], **filled["registry"]}
        evaluate = filled.get("evaluate")
        if isinstance(filled["registry"], dict) and isinstance(evaluate, dict):
            filled["registry"] = {"signer": evaluate.get("signer"), **filled["registry"]}
        for section in ("data", "synthesize", "train", "evaluate"):
            inside = filled.get(section, {"enabled": False} if section == "synthesize" else {})
            if isinstance(inside, dict):
                filled[section] = {"seed": given.get("seed", 0), **inside}
        return filled

    @property
    def snapshot(self) -> SnapshotConfig:
        """What the first step needs to know: content, whatever the spec calls it."""
        init = self._model(self.train.init)
        reference = self.train.reference
        old = tuple(
            source.model_copy(update={"uri": self._model(source.uri)})
            for source in self._dated(self.data.replay)
        )
        return SnapshotConfig(
            sources=self._dated(self.data.sources),
            replay=old,
            evaluation_sets=(
                *self.data.evaluation_sets,
                *(SourceConfig(uri=suite.uri, name=suite.name) for suite in self.evaluate.suites),
            ),
            answers=tuple(
                SourceConfig(uri=suite.answers, name=suite.name)
                for suite in self.evaluate.suites
                if suite.answers is not None
            ),
            model=self.model,
            init=init,
            reference=init if reference == "init" else self._model(reference),
            judges=tuple(sorted({each.model for each in self._reward_models()})),
            champion=self.evaluate.champion and self._model(self.evaluate.champion),
            max_download_gb=self.data.max_download_gb,
            lineage=(init,) if init.startswith(REGISTRY) else (),
        )

    @property
    def decide(self) -> DecideConfig:
        """What the step that decides on training needs to know."""
        init, reference = (self._model(name) for name in (self.train.init, self.train.reference))
        named: dict[ModelRole, str] = {
            "model": self.model,
            "init": init,
            "reference": init if reference == "init" else reference,
        }
        sections: dict[str, Contract] = {
            "data": self.data,
            "synthesize": self.synthesize,
            "train": self.train,
        }
        return DecideConfig(
            **self.retrain.model_dump(),
            champion=self._model(CHAMPION),
            counts_prompts=self.synthesize.enabled,
            sections={
                name: section.model_dump(
                    mode="json",
                    exclude={*LEARNS_NOTHING[name], *PLACES, "max_download_gb", *_MODELS},
                )
                for name, section in sections.items()
            },
            fixed=tuple(role for role, uri in named.items() if not names_alias(uri)),
            max_line_mb=self.data.max_line_mb,
            max_unpacked_gb=self.data.max_unpacked_gb,
            max_chars=self.data.max_chars,
        )

    def _reward_models(self) -> Iterator[RewardJudgeConfig]:
        if self.synthesize.enabled:
            yield from rewards_in(self.synthesize.judge)
        yield from rewards_in(self.evaluate.judge)

    def _dated(self, sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        return tuple(
            each.model_copy(update={"since": each.since and self._model(each.since)})
            for each in sources
        )

    def _model(self, name: str) -> str:
        champion = f"{REGISTRY}{self.registry.model}@{CHAMPION}"
        return {"base": self.model, CHAMPION: champion}.get(name, name)

    def arguments(self, pipeline: RunnableName = "align") -> dict[str, str]:
        """The parameters of a pipeline: each step's section as canonical JSON."""
        if pipeline == "retrain":
            champion = self._model(CHAMPION)
            snapshot = self.snapshot.model_copy(
                update={
                    "lineage": tuple(dict.fromkeys((champion, *self.snapshot.lineage))),
                    "unattended": True,
                }
            )
            return self.arguments() | {
                "snapshot_config": canonical_json(snapshot),
                "decide_config": canonical_json(self.decide),
            }
        return {
            "snapshot_config": canonical_json(self.snapshot),
            "validate_config": canonical_json(
                self.data.model_dump(mode="json", exclude={*PLACES, "max_download_gb"})
            ),
            "synthesize_config": canonical_json(self.synthesize),
            "train_config": canonical_json(
                self.train.model_dump(mode="json", exclude={"init", "reference"})
            ),
            "evaluate_config": canonical_json(
                self.evaluate.model_dump(
                    mode="json",
                    exclude={"champion": True, "suites": {"__all__": {"uri", "answers"}}},
                )
            ),
            "registry_config": canonical_json(self.registry),
        }
