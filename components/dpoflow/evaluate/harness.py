"""Tasks of lm-evaluation-harness, put to a model that is loaded already: lm-eval's own figures.

    ROOT/harness/KEY.jsonl    replies of one model to a task's requests, in one dtype

Reads   a model, a task whose templates are filled in (templates.py)
Gives   `pose`: what was found of each question; `check_installed`, `version`
Not     rows (suites.py), means and intervals (scores.py)

Requests, filters, scores and the model's forward passes are lm-eval's; its loading of data, its
templates and its loading of code are not used.
"""

import importlib.metadata
import importlib.util
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

from dpoflow.contracts.base import sha256_json
from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.contracts.harness import HarnessTask
from dpoflow.contracts.spec import EvaluateConfig
from dpoflow.evaluate.templates import CHOICES, DESCRIPTION, PREFIX, TARGET, TEXT, Templates
from dpoflow.policy.dtype import name_of
from dpoflow.state.batches import Batches
from dpoflow.state.files import replace

if TYPE_CHECKING:  # seconds of imports, and not installed everywhere
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dpoflow.state.step import StepState

_BATCH = 8
_KEPT_TOGETHER = 64
"""Requests between two writes."""
_SHOTS_SEED = 1234
"""lm-eval's own, so that examples which are drawn are those that it draws."""
_SPLIT = "test"
_NEEDED = ("lm_eval", "sacrebleu", "datasets")
"""What lm-eval imports whatever it is asked for."""

Reply = Any
"""Of a likelihood (log-likelihood, whether it is the greedy choice), else the completion."""


class Posed(NamedTuple):
    """A task and its questions."""

    name: str
    task: HarnessTask
    docs: Mapping[str, Mapping[str, Any]]
    """Filled-in rows, by question."""


class Found(NamedTuple):
    """What became of one question."""

    said: str
    """The completion, or the choice that the model finds likeliest."""
    metrics: dict[str, float]
    """The main one first."""


def check_installed(config: EvaluateConfig) -> None:
    """Whether lm-eval is there, if a suite needs it: told before anything is computed."""
    for suite in config.suites:
        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        if suite.kind == "harness" and missing:
            raise ConfigError(
                f"suite {suite.name} (kind harness) needs the package {missing[0]}; "
                "pip install 'dpoflow[harness]', or leave the suite out"
            )


def version() -> str:
    """Whose figures these are."""
    return f"lm-eval {importlib.metadata.version('lm_eval')}"


def pose(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    posed: Posed,
    *,
    digest: str,
    dtype: "torch.dtype",
    state: "StepState",
    name: str,
) -> dict[str, Found]:
    """What the model called `name` makes of each question that its context has room for.

    `digest` is the model's identity: one that was asked before is not asked again.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of what is meant
    task, lm = _task(posed), _lm(model, tokenizer, dtype)
    requests = {
        place: asked
        for place, asked in _requests(task, posed).items()
        if all(_has_room(lm, each) for each in asked)
    }
    asked = [each for some in requests.values() for each in some]
    for each, reply in zip(asked, _replies(lm, asked, digest, dtype, state, name), strict=True):
        each.resps.append(reply)
    return dict(_found(task, posed, requests, name))


def _task(posed: Posed) -> "ConfigurableTask":
    """As lm-eval would have made it of the YAML, but for what is filled in already."""
    from lm_eval.api.task import ConfigurableTask

    task, generation = posed.task, posed.task.generation_kwargs
    until = generation.until if generation and generation.until is not None else None
    config: dict[str, Any] = {
        "task": posed.name,
        "custom_dataset": lambda: {_SPLIT: _Docs(posed.docs.values())},
        "test_split": _SPLIT,
        "output_type": task.output_type,
        "doc_to_text": TEXT,
        "doc_to_target": TARGET,
        "doc_to_choice": CHOICES if task.doc_to_choice is not None else None,
        "description": DESCRIPTION,
        "gen_prefix": PREFIX if task.gen_prefix else None,
        "target_delimiter": task.target_delimiter,
        "fewshot_delimiter": task.fewshot_delimiter,
        "num_fewshot": task.num_fewshot,
        "fewshot_config": _shots(posed),
        "metric_list": [
            {"metric": each.metric, "aggregation": "mean", "higher_is_better": True}
            | each.arguments
            for each in task.metrics
        ],
    }
    if task.output_type == "generate_until":
        config["generation_kwargs"] = {
            "until": [task.fewshot_delimiter] if until is None else list(until),
            "max_gen_toks": _longest(task),
            "do_sample": False,
            "temperature": 0.0,
        }
    made = ConfigurableTask(config=config)
    made.set_fewshot_seed(_SHOTS_SEED)
    return made


class _Docs(list[Mapping[str, Any]]):
    """Rows as lm-eval takes them from a data set."""

    @property
    def features(self) -> dict[str, None]:
        return dict.fromkeys(self[0])


def _shots(posed: Posed) -> dict[str, Any] | None:
    config = posed.task.fewshot_config
    if config is None or not posed.task.num_fewshot:
        return None
    templates = Templates(posed.name, posed.task)
    filled = [
        templates.fill(row, f"example {at} of fewshot_config")
        for at, row in enumerate(config.samples, start=1)
    ]
    return {"samples": filled, "sampler": config.sampler}


def _longest(task: HarnessTask) -> int:
    return task.generation_kwargs.max_gen_toks if task.generation_kwargs else 256


def _lm(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", dtype: "torch.dtype"
) -> "HFLM":
    from lm_eval.models.huggingface import HFLM

    narrow = None if name_of(dtype) == "float32" else dtype
    return HFLM(
        pretrained=model,
        backend="causal",
        tokenizer=tokenizer,
        batch_size=_BATCH,
        mixed_precision_dtype=narrow,
    )


def _requests(task: "ConfigurableTask", posed: Posed) -> dict[str, list["Instance"]]:
    made: dict[str, list[Instance]] = {}
    for at, (place, doc) in enumerate(posed.docs.items()):
        context = task.fewshot_context(
            doc, num_fewshot=posed.task.num_fewshot, gen_prefix=task.doc_to_prefix(doc)
        )
        of = task.construct_requests(doc=doc, ctx=context, metadata=(posed.name, at, 1))
        made[place] = of if isinstance(of, list) else [of]
    return made


def _has_room(lm: "HFLM", request: "Instance") -> bool:
    """lm-eval would cut the context from the left, and ask something else."""
    context, rest = request.args
    if request.request_type == "generate_until":
        return len(lm.tok_encode(context)) + int(rest["max_gen_toks"]) <= int(lm.max_length)
    return len(lm.tok_encode(context + rest)) - 1 <= int(lm.max_length)  # the last is only scored


def _replies(
    lm: "HFLM",
    requests: Sequence["Instance"],
    digest: str,
    dtype: "torch.dtype",
    state: "StepState",
    name: str,
) -> list[Reply]:
    key = sha256_json(
        {
            "model": digest,
            "requests": [[each.request_type, *each.args] for each in requests],
            "dtype": name_of(dtype),
            "by": version(),
        }
    )
    kept, here = state.root / "harness" / f"{key}.jsonl", state.work / f"{name} harness.jsonl"
    if kept.exists() and not here.exists():
        replace(here, lambda draft: shutil.copyfile(kept, draft))
    parts = [
        requests[start : start + _KEPT_TOGETHER]
        for start in range(0, len(requests), _KEPT_TOGETHER)
    ]
    batches = Batches(here, key, state.events, name)
    done = batches.read([len(part) for part in parts])
    for place in range(len(done), len(parts)):
        done.append(_ask(lm, parts[place]))
        batches.append(place, done[-1])
        num_done = sum(map(len, done))
        state.events.progress(name, num_done, len(requests), unit="requests")
    if not kept.exists():  # whole by now, and whole for whoever looks
        replace(kept, lambda draft: shutil.copyfile(here, draft))
    return [reply for part in done for reply in part]


def _ask(lm: "HFLM", requests: Sequence["Instance"]) -> list[Reply]:
    told: list[Reply] = getattr(lm, requests[0].request_type)(list(requests), disable_tqdm=True)
    for reply in told:
        if not isinstance(reply, str) and not isfinite(reply[0]):
            raise DataRejected(
                f"a model finds an answer {reply[0]} likely: its weights are no numbers, or too "
                "large for their type; train it again with a smaller learning rate"
            )
    return told


def _found(
    task: "ConfigurableTask",
    posed: Posed,
    requests: Mapping[str, Sequence["Instance"]],
    name: str,
) -> Iterator[tuple[str, Found]]:
    filters = _filtered(posed.task, [each for some in requests.values() for each in some])
    for place, asked in requests.items():
        doc = posed.docs[place]
        metrics: dict[str, float] = {}
        for of, ending in filters.items():
            told = task.process_results(doc, [each.filtered_resps[of] for each in asked])
            for metric in posed.task.metrics:
                metrics[f"{metric.metric}{ending}"] = float(told[metric.metric])
        for figure, value in metrics.items():
            if not isfinite(value):
                raise DataRejected(f"{name}: {figure} of question {place} is {value}, no number")
        yield place, Found(_said(doc, asked), metrics)


def _filtered(task: HarnessTask, requests: Sequence["Instance"]) -> dict[str, str]:
    """Filters applied to the requests: how each is called, and how its figures end."""
    from lm_eval.filters import build_filter_ensemble

    steps = {
        each.name: [(step.function, step.arguments) for step in each.filter]
        for each in task.filter_list
    } or {"none": [("take_first", {})]}
    if requests:
        for name, components in steps.items():
            build_filter_ensemble(name, components).apply(list(requests))
    return {name: f"_{name}" if task.filter_list else "" for name in steps}


def _said(doc: Mapping[str, Any], asked: Sequence["Instance"]) -> str:
    first = asked[0]
    if first.request_type == "generate_until":
        return str(first.resps[0])
    if not doc[CHOICES]:
        return str(doc[TARGET]) if first.resps[0][1] else ""
    likely = [each.resps[0][0] for each in asked]
    return str(doc[CHOICES][likely.index(max(likely))])
