"""Review queues of MLflow in which people say which of two answers is better.

Reads   comparisons; MLFLOW_TRACKING_URI
Gives   `create` (experiment, question, traces, queues; each once), `queues_of`, `progress_of`
Not     what people said, as data (feedback.py), files of comparisons (dpoflow_pipelines)

MLflow finishes an item of a queue once, for whoever is first. So each reviewer has a queue
`NAME/reviewer` and traces of their own: everybody is asked about every comparison, in an order of
their own, and does not see what others said. Without reviewers there is one queue NAME, a pool:
each comparison is answered once, by any user who was put into the queue in MLflow.
"""

import base64
import hashlib
import json
import os
import re
import textwrap
import time
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from dpoflow.contracts.errors import ConfigError
from dpoflow.contracts.pairs import Message
from dpoflow.tracking.comparisons import SLICE, Comparison, Shown
from dpoflow.tracking.server import connect, experiment_id, explained, pages, require_users
from dpoflow.tracking.settings import public

if TYPE_CHECKING:
    from mlflow.entities import Span, TraceInfo
    from mlflow.genai.label_schemas import LabelSchema
    from mlflow.genai.review_queues import ReviewQueue

QUESTION = "Which answer is better?"
"""The name of the label schema: what reviewers read, and what MLflow keeps answers under."""

CHOICES = ("left", "right", "equal", "neither")
_INSTRUCTION = (
    "Both answer the same prompt. equal: as good as each other. neither: both are bad. Where a "
    "text is cut at […], View full trace has all of it."
)
_PREVIEW = 1000
"""Characters that MLflow keeps of what the review page shows, of the prompt and of both answers."""

_COLUMNS, _MOST_TICKS = 60, 40
_RUN, _LONG_RUN = re.compile("`+"), re.compile(f"`{{{_MOST_TICKS + 1},}}")
_BATCH, _AT_ONCE = 100, 8


@dataclass(frozen=True)
class Created:
    """What `create` made."""

    queues: dict[str, str]
    """Name to the address where its reviewers begin."""
    num_traces: int
    """New ones."""
    num_known: int
    """Those that were there."""


@dataclass(frozen=True)
class Progress:
    """How far one queue is."""

    queue: str
    users: tuple[str, ...]
    """Who may answer."""
    done: Counter[str]
    """By whom the server saw it finished."""
    declined: int
    open: int


def create(
    comparisons: Sequence[Comparison], experiment: str, name: str, reviewers: Sequence[str]
) -> Created:
    """The queue `name` with every comparison; whatever is there already is left as it is."""
    what = f"the review queue {name}"
    client = connect(what)
    require_users(what)
    from mlflow.genai.review_queues import list_review_queue_items

    with explained(what):
        if client.get_experiment_by_name(experiment) is None:
            client.create_experiment(experiment)
    at = experiment_id(client, experiment, what)
    with explained(what):
        schema = _schema(at, what)
        made = total = 0
        queues = {
            who: _queue(at, _named(name, who), who, schema, what) for who in reviewers or [""]
        }
        for who, queue in queues.items():
            shown = [each.shown(name, who) for each in comparisons]
            there = {each.item_id for each in pages(list_review_queue_items, queue.queue_id)}
            for start in range(0, len(shown), _BATCH):
                made += _add(at, name, who, queue, shown[start : start + _BATCH], there)
            total += len(shown)
    begin = {queue.name: _address(at, str(queue.queue_id)) for queue in queues.values()}
    return Created(begin, made, total - made)


def queues_of(at: str, experiment: str, name: str, what: str) -> "list[tuple[str, ReviewQueue]]":
    """Reviewer and queue, of every queue that `create` made under that name."""
    from mlflow.genai.review_queues import list_review_queues

    with explained(what):
        every = list(pages(list_review_queues, experiment_id=at))
    found = {
        queue.name.removeprefix(name).removeprefix("/"): queue
        for queue in every
        if queue.name == name or queue.name.startswith(f"{name}/")
    }
    if not found:
        others = ", ".join(sorted({queue.name.partition("/")[0] for queue in every})) or "none"
        raise ConfigError(
            f"{what}: no review queue {name} in the experiment {experiment}, or it is hidden from "
            f"this user; there are: {others}"
        )
    return sorted(found.items())


def progress_of(experiment: str, name: str) -> list[Progress]:
    """How far each of the queues is."""
    from mlflow.genai.review_queues import list_review_queue_items

    what = f"the review queue {name}"
    client = connect(what)
    at = experiment_id(client, experiment, what)
    told = []
    for _, queue in queues_of(at, experiment, name, what):
        with explained(what):
            items = list(pages(list_review_queue_items, queue.queue_id))
        states = Counter(str(item.status) for item in items)
        told.append(
            Progress(
                queue.name,
                tuple(queue.users),
                Counter(item.completed_by or "" for item in items if item.status == "complete"),
                states["declined"],
                states["pending"],
            )
        )
    return told


def _address(at: str, queue_id: str) -> str:
    server = public(os.environ["MLFLOW_TRACKING_URI"]).rstrip("/")
    where = f"{server}/#/experiments/{at}/review-queue"
    return f"{where}?selectedQueueId={queue_id}&startReview=true"


def _named(name: str, reviewer: str) -> str:
    return f"{name}/{reviewer}" if reviewer else name


def _schema(at: str, what: str) -> "LabelSchema":
    """The question of the experiment, made once."""
    from mlflow.genai.label_schemas import (
        InputCategorical,
        create_label_schema,
        list_label_schemas,
    )

    for found in pages(list_label_schemas, at):
        if found.name == QUESTION:
            if getattr(found.input, "options", None) != list(CHOICES):
                raise ConfigError(
                    f"{what}: the experiment asks {QUESTION!r} already, with other answers than "
                    f"{', '.join(CHOICES)}; name another experiment"
                )
            return cast("LabelSchema", found)
    return create_label_schema(
        QUESTION,
        type="feedback",
        input=InputCategorical(options=list(CHOICES)),
        instruction=_INSTRUCTION,
        enable_comment=True,
        experiment_id=at,
    )


def _queue(at: str, name: str, reviewer: str, schema: "LabelSchema", what: str) -> "ReviewQueue":
    from mlflow.genai.review_queues import create_review_queue, list_review_queues

    for found in pages(list_review_queues, experiment_id=at):
        if found.name == name:
            if schema.schema_id not in found.schema_ids:
                raise ConfigError(
                    f"{what}: a queue {name} is there already, and asks other questions; choose "
                    "another --name"
                )
            return cast("ReviewQueue", found)
    made = create_review_queue(
        name,
        queue_type="custom",
        users=[reviewer] if reviewer else [],
        schema_ids=[str(schema.schema_id)],
        experiment_id=at,
    )
    return cast("ReviewQueue", made)


def _add(
    at: str,
    name: str,
    reviewer: str,
    queue: "ReviewQueue",
    shown: Sequence[Shown],
    there: Collection[str],
) -> int:
    """Traces, and then items, that are not `there` yet; how many."""
    from mlflow.genai.review_queues import add_items_to_review_queue
    from mlflow.tracing.client import TracingClient

    client = TracingClient()
    by_id = {each.trace_id(at, name, reviewer): each for each in shown}
    new = [(trace_id, each) for trace_id, each in by_id.items() if trace_id not in there]
    if new:
        now = time.time_ns()
        client.log_spans(at, [_span(trace_id, each, now) for trace_id, each in new])
        with ThreadPoolExecutor(_AT_ONCE) as pool:  # each call waits for a password to be checked
            list(pool.map(client.start_trace, (_info(at, *each, now) for each in new)))
        add_items_to_review_queue(queue.queue_id, item_ids=[trace_id for trace_id, _ in new])
    return len(new)


def _info(at: str, trace_id: str, shown: Shown, now: int) -> "TraceInfo":
    from mlflow.entities import TraceInfo, TraceLocation, TraceState

    return TraceInfo(
        trace_id=trace_id,
        trace_location=TraceLocation.from_experiment_id(at),
        request_time=now // 10**6,
        execution_duration=0,
        state=TraceState.OK,
        request_preview=preview_of_prompt(shown.prompt),
        response_preview=preview_of_answers(shown.left, shown.right),
        tags={"mlflow.traceName": "comparison"},
    )


def _span(trace_id: str, shown: Shown, now: int) -> "Span":
    from mlflow.entities import Span

    attributes = {
        "mlflow.traceRequestId": trace_id,
        "mlflow.spanType": "UNKNOWN",
        "mlflow.spanInputs": shown.inputs,
        "mlflow.spanOutputs": shown.outputs,
        SLICE: shown.slice,
    }
    span_id = hashlib.sha256(trace_id.encode()).digest()[:8]
    return Span.from_dict(
        {
            "trace_id": base64.b64encode(bytes.fromhex(trace_id.removeprefix("tr-"))).decode(),
            "span_id": base64.b64encode(span_id).decode(),
            "parent_span_id": None,
            "name": "comparison",
            "start_time_unix_nano": now,
            "end_time_unix_nano": now,
            "events": [],
            "links": [],
            "status": {"code": "STATUS_CODE_OK", "message": ""},
            "attributes": {name: json.dumps(value) for name, value in attributes.items()},
        }
    )


def preview_of_prompt(prompt: Sequence[Message]) -> str:
    """What the review page shows of a prompt; of a long conversation its end."""
    if len(prompt) == 1:
        return _cut(prompt[0].content, _PREVIEW)
    text = "\n\n".join(f"{turn.role}: {turn.content}" for turn in prompt)
    return text if len(text) <= _PREVIEW else "[…]" + text[3 - _PREVIEW :]


def preview_of_answers(left: str, right: str) -> str:
    """Both answers as the review page shows them.

    It renders Markdown. Between fences an answer is shown as it is: none can look like two, or
    fetch a picture.
    """
    answers = [_wrapped(_LONG_RUN.sub(_shortened, each)) for each in (left, right)]
    longest = max((len(run) for each in answers for run in _RUN.findall(each)), default=0)
    fence = "`" * max(3, longest + 1)
    room = _PREVIEW - len(_framed("", "", fence))
    lengths = [len(each) for each in answers]
    shares = [max(room // 2, room - other) for other in reversed(lengths)]
    first, second = (_cut(each, most) for each, most in zip(answers, shares, strict=True))
    return _framed(first, second, fence)


def _wrapped(text: str) -> str:
    """Lines that fit the page, which does not wrap what stands between fences."""
    lines = text.split("\n")
    return "\n".join(textwrap.fill(each, _COLUMNS, replace_whitespace=False) for each in lines)


def _shortened(run: "re.Match[str]") -> str:
    return run[0][:_MOST_TICKS] + "[…]"


def _framed(left: str, right: str, fence: str) -> str:
    return f"**left**\n{fence}\n{left}\n{fence}\n**right**\n{fence}\n{right}\n{fence}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "[…]"
