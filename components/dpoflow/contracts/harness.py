"""A task of lm-evaluation-harness, as far as it is data: no code of a task is ever run.

Reads   nothing: the file itself is read by contracts/spec_file.py
Gives   `HarnessTask`
Not     filling in its templates (evaluate/templates.py), asking models (evaluate/harness.py)

Where a task's data lie is the suite's to say, so the keys that name a data set count for nothing,
and neither do those that only tell people something.
"""

import re
from typing import Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from dpoflow.contracts.base import Contract

OutputType = Literal["multiple_choice", "loglikelihood", "generate_until"]
MetricName = Literal["acc", "acc_norm", "acc_bytes", "exact_match"]
FilterName = Literal["regex", "remove_whitespace", "lowercase", "uppercase", "map", "take_first"]

_METRICS: dict[OutputType, tuple[MetricName, ...]] = {
    "multiple_choice": ("acc", "acc_norm", "acc_bytes"),
    "loglikelihood": ("acc",),
    "generate_until": ("exact_match",),
}
_DEFAULTS: dict[OutputType, tuple[MetricName, ...]] = {
    **_METRICS,
    "multiple_choice": ("acc", "acc_norm"),
}
_TAKES: dict[FilterName, frozenset[str]] = {
    "regex": frozenset({"regex_pattern", "group_select", "fallback"}),
    "map": frozenset({"mapping_dict", "default_value"}),
}
_REPLACED = frozenset(
    "dataset_path dataset_name dataset_kwargs training_split validation_split test_split "
    "fewshot_split".split()
)
_TOLD = frozenset(
    "task task_alias tag metadata should_decontaminate doc_to_decontamination_query".split()
)
_REFUSED = {
    "include": "names another file; write that file's keys into this one",
    "group": "names several tasks; give each of them a suite of its own",
    "use_prompt": "fetches a prompt from elsewhere; write it into doc_to_text",
    "doc_to_image": "is for models that see; leave the suite out",
    "doc_to_audio": "is for models that hear; leave the suite out",
} | dict.fromkeys(
    ("process_docs", "process_results", "custom_dataset", "unsafe_code", "class"),
    "runs code, and no code of a task is ever run here; do its work on the data before",
)


class HarnessMetric(Contract):
    """A figure of one question, whose mean is reported; more of it is better."""

    metric: MetricName
    aggregation: Literal["mean"] = "mean"
    higher_is_better: Literal[True] = True
    ignore_case: bool = False
    """This and the following: of exact_match."""
    ignore_punctuation: bool = False
    ignore_numbers: bool = False
    regexes_to_ignore: tuple[str, ...] = ()

    @field_validator("regexes_to_ignore")
    @classmethod
    def _compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            _check_pattern(pattern)
        return patterns

    @property
    def arguments(self) -> dict[str, object]:
        """What lm-eval's function is called with; nothing that is its default."""
        given = self.model_dump(mode="json", exclude={"metric", "aggregation", "higher_is_better"})
        return {name: value for name, value in given.items() if value}


class HarnessFilter(Contract):
    """One thing that is done to a completion before it is looked at."""

    function: FilterName
    regex_pattern: str | None = None
    group_select: int | None = None
    fallback: str | None = None
    mapping_dict: dict[str, str] | None = None
    default_value: str | None = None

    @model_validator(mode="after")
    def _takes_what_it_is_given(self) -> Self:
        if strange := sorted(self.arguments.keys() - _TAKES.get(self.function, frozenset())):
            raise ValueError(f"{strange[0]} is not used by filter {self.function}; leave it out")
        _check_pattern(self.regex_pattern or "")
        return self

    @property
    def arguments(self) -> dict[str, object]:
        """What lm-eval's function is called with."""
        return self.model_dump(mode="json", exclude={"function"}, exclude_none=True)


class HarnessFilters(Contract):
    """Filters one after the other, and what their result is called."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,40}$")
    filter: tuple[HarnessFilter, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _leaves_one(self) -> Self:
        if self.filter[-1].function != "take_first":
            raise ValueError("the last filter must be take_first: one completion is looked at")
        return self


class HarnessGeneration(Contract):
    """How a completion is drawn: greedily."""

    until: tuple[str, ...] | None = None
    """What ends it, beside the model's own end; the delimiter of examples where it is left out."""
    max_gen_toks: int = Field(256, ge=1)
    do_sample: Literal[False] = False
    temperature: float = Field(0.0, ge=0, le=0)

    @field_validator("until", mode="before")
    @classmethod
    def _one_is_a_list(cls, given: object) -> object:
        return (given,) if isinstance(given, str) else given


class HarnessShots(Contract):
    """Worked examples that are put before each question."""

    samples: tuple[dict[str, JsonValue], ...] = ()
    """Rows like those of the data; they must not be among them."""
    sampler: Literal["default", "first_n"] = "default"
    """default draws them anew for each question, first_n takes the first ones."""


class HarnessTask(Contract):
    """What is asked of each row, and how an answer is scored. lm-eval's names and defaults."""

    output_type: OutputType = "generate_until"
    doc_to_text: str
    """The question: a template (Jinja) over the row, or the name of a column. Empty where choices
    are compared by themselves."""
    doc_to_target: str | int
    """What is right, in the same way: a choice or its place, or the text itself."""
    doc_to_choice: str | tuple[str, ...] | None = None
    """Of multiple_choice: what there is to choose from."""
    description: str = ""
    """What stands before everything."""
    gen_prefix: str | None = None
    """How the answer begins."""
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    num_fewshot: int = Field(0, ge=0)
    fewshot_config: HarnessShots | None = None
    metric_list: tuple[HarnessMetric, ...] = ()
    """The first is the one that is held to a margin. Left out: acc and acc_norm of multiple_choice,
    acc of loglikelihood, exact_match of generate_until."""
    filter_list: tuple[HarnessFilters, ...] = ()
    """Of generate_until; of several, the first counts for the margin."""
    generation_kwargs: HarnessGeneration | None = None
    repeats: Literal[1] = 1

    @model_validator(mode="before")
    @classmethod
    def _is_data(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        for key in map(str, given):
            if key in _REFUSED:
                raise ValueError(f"{key} {_REFUSED[key]}")
            if key not in {*cls.model_fields, *_REPLACED, *_TOLD}:
                raise ValueError(
                    f"{key} is no key of a task that is read here; known are "
                    f"{', '.join(cls.model_fields)}"
                )
        return {
            key: value
            for key, value in given.items()
            if key in cls.model_fields and value is not None
        }

    @model_validator(mode="after")
    def _every_key_is_used(self) -> Self:
        chooses, writes = (self.output_type == of for of in ("multiple_choice", "generate_until"))
        if chooses and self.doc_to_choice is None:
            raise ValueError("multiple_choice needs doc_to_choice")
        if not chooses and not self.doc_to_text:
            raise ValueError(f"output_type {self.output_type} needs doc_to_text")
        unused = [
            ("doc_to_choice", self.doc_to_choice is not None and not chooses),
            ("filter_list", bool(self.filter_list) and not writes),
            ("generation_kwargs", self.generation_kwargs is not None and not writes),
        ]
        for key, is_unused in unused:
            if is_unused:
                raise ValueError(f"{key} is not used by output_type {self.output_type}")
        return self

    @model_validator(mode="after")
    def _metrics_fit(self) -> Self:
        known = _METRICS[self.output_type]
        for each in self.metric_list:
            if each.metric not in known:
                raise ValueError(
                    f"metric {each.metric} is not one of output_type {self.output_type}: "
                    f"{', '.join(known)}"
                )
            if each.arguments and each.metric != "exact_match":
                unused = next(iter(each.arguments))
                raise ValueError(f"{unused} is not used by metric {each.metric}")
        for what, names in (
            ("metric_list", [each.metric for each in self.metric_list]),
            ("filter_list", [each.name for each in self.filter_list]),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"{what} names one of {', '.join(names)} twice")
        return self

    @model_validator(mode="after")
    def _examples_are_there(self) -> Self:
        there = len(self.fewshot_config.samples) if self.fewshot_config else 0
        if self.num_fewshot > there:
            raise ValueError(
                f"num_fewshot {self.num_fewshot} needs as many fewshot_config.samples, got {there}:"
                " no other split is pinned; write the examples there, or set num_fewshot: 0"
            )
        return self

    @property
    def metrics(self) -> tuple[HarnessMetric, ...]:
        """What is reported, the main one first."""
        named = _DEFAULTS[self.output_type]
        return self.metric_list or tuple(HarnessMetric(metric=name) for name in named)


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error})") from None
