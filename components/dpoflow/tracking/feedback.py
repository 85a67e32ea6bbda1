"""What people said in MLflow, as files of a source: labels of review queues, thumbs on traces.

    mlflow-labels://EXPERIMENT/QUEUE          queues that `dpoflow label create` made
    mlflow-feedback://EXPERIMENT?name=NAME    feedback of that name on an application's traces

Reads   MLFLOW_TRACKING_URI; earlier files of the same source, where only what is new is wanted
Gives   `Store` (one file of JSON lines, as it was when it was listed), `is_feedback`, `name_of`
Not     prompts and answers out of foreign traces (sources/formats/mlflow_feedback.py), votes
        (sources/formats/mlflow_labels.py)

Who gave a label is whoever the server saw finish the item: MLflow takes the source of an assessment
from the client, and lets everybody who may label write any. A label counts where both agree.
"""

import contextlib
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

from dpoflow.contracts.base import canonical_json, sha256_json
from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.contracts.spec import MLFLOW_FEEDBACK, MLFLOW_LABELS
from dpoflow.sources.downloads import CHUNK, Body, Listed, RemoteFile, Seal
from dpoflow.tracking.comparisons import Comparison, Shown, read_shown
from dpoflow.tracking.labels import QUESTION, queues_of
from dpoflow.tracking.server import connect, experiment_id, explained, pages, require_users

if TYPE_CHECKING:
    from mlflow.entities import Assessment, Trace
    from mlflow.genai.review_queues import ReviewQueueItem
    from mlflow.tracing.client import TracingClient

Row = dict[str, Any]


class NothingNew(DataRejected):
    """People said nothing yet, or nothing since. A schedule goes on without, others do not."""


_BATCH = 100


@dataclass(frozen=True)
class Place:
    """What a URI names."""

    uri: str
    experiment: str
    name: str
    """Of the queue, or of the feedback."""

    @property
    def labels(self) -> bool:
        """Whether it is a queue."""
        return self.uri.startswith(MLFLOW_LABELS)


@dataclass
class Found:
    """Rows, and what is to be said of what makes none."""

    rows: list[Row] = field(default_factory=list)
    told: list[str] = field(default_factory=list)


def is_feedback(uri: str) -> bool:
    """Whether `uri` names something that people said in MLflow."""
    return uri.startswith((MLFLOW_LABELS, MLFLOW_FEEDBACK))


def name_of(uri: str) -> str:
    """What the source is called that has no name of its own."""
    place = place_of(uri)
    return f"{place.experiment}/{place.name}"


def place_of(uri: str) -> Place:
    """The parts of a URI; experiments may have slashes in their names, queues do not."""
    rest, _, query = uri.partition("://")[2].partition("?")
    asked = parse_qsl(query, keep_blank_values=True)
    experiment, name = unquote(rest), ""
    if uri.startswith(MLFLOW_LABELS) and not query:
        above, _, last = rest.rpartition("/")
        experiment, name = unquote(above), unquote(last)
    elif uri.startswith(MLFLOW_FEEDBACK) and len(asked) == 1 and asked[0][0] == "name":
        name = asked[0][1]
    if not experiment or not name or any(sign in name for sign in "`'\"\\"):
        form = "EXPERIMENT/QUEUE" if uri.startswith(MLFLOW_LABELS) else "EXPERIMENT?name=NAME"
        raise ConfigError(
            f"data.sources[].uri {uri} is not {uri.partition('://')[0]}://{form}; percent-encode "
            "what is no letter, digit or one of - . _ ~ / in a name"
        )
    return Place(uri, experiment, name)


def look(uri: str) -> None:
    """Whether what `uri` names is there; reads none of it."""
    place = place_of(uri)
    client = connect(uri)
    at = experiment_id(client, place.experiment, uri)
    if place.labels:
        require_users(uri)
        queues_of(at, place.experiment, place.name, uri)


class Store:
    """MLflow as a store of one file for each source. See sources/downloads.py."""

    def __init__(self, known: Sequence[Path] = ()) -> None:
        """`known`: files of the same source; rows that are in them, or older, are left out."""
        self._known = known
        self._files: dict[str, bytes] = {}

    def objects(self, uri: str) -> Listed:
        """What people said up to now, as one file. NothingNew where that is nothing."""
        place = place_of(uri)
        found = _labels(place) if place.labels else _thumbs(place)
        rows = sorted(_news(found.rows, self._known), key=lambda row: row["id"])
        if not rows:
            why = _nothing(place, found, since=bool(self._known))
            raise NothingNew(why)
        told = list(found.told)
        if self._known and len(rows) < len(found.rows):
            told.append(f"{len(found.rows) - len(rows)} of {len(found.rows)} were known before")
        lines = (canonical_json(row) + "\n" for row in rows)
        content = "".join(lines).encode("utf-8", "surrogatepass")
        version = hashlib.sha256(content).hexdigest()
        self._files[version] = content
        file = RemoteFile(uri, f"{place.name}.jsonl", len(content), version, self)
        return Listed([file], [], told)

    @contextlib.contextmanager
    def open(self, wanted: RemoteFile, start: int) -> Iterator[Body]:
        """The file as it was listed."""
        content = self._files[wanted.version]
        chunks = (content[at : at + CHUNK] for at in range(start, len(content), CHUNK))
        yield Body(start, chunks)

    def confirm(self, wanted: RemoteFile) -> Seal:
        """It cannot have changed: what is said later is in a later listing."""
        digest = bytes.fromhex(wanted.version)
        return Seal(f"sha256 {wanted.version[:12]}", {"sha256": digest})


def _news(rows: Iterable[Row], known: Sequence[Path]) -> Iterator[Row]:
    """Rows that arrived after all that `known` files hold, or that say something else there."""
    if not known:
        yield from rows
        return
    before, last = defaultdict[str, list[Row]](list), 0
    for row in (row for path in known for row in _read(path)):
        before[row["id"]].append(row)
        last = max(last, row["at"])
    for row in rows:
        if row not in before[row["id"]] if row["id"] in before else row["at"] > last:
            yield row


def _read(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8", errors="surrogatepass") as lines:
        for line in lines:
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("at"), int):
                yield row


def _nothing(place: Place, found: Found, *, since: bool) -> str:
    what = "label is finished" if place.labels else f"feedback called {place.name} was given"
    more = "".join(f"; {each}" for each in found.told)
    if since and found.rows:
        return (
            f"{place.uri}: nothing is new since the champion's data ({len(found.rows)} were known)"
            f"{more}; wait, or leave data.sources[].since out to take all of it"
        )
    if since:
        return (
            f"{place.uri}: none that the champion's data hold is there any more, and no other"
            f"{more}; wait, or leave the source out"
        )
    return f"{place.uri}: no {what} yet{more}; run again when there is one"


# ------------------------------------------------------------------------------- labels


@dataclass(frozen=True)
class _Label:
    """One finished item."""

    shown: Shown
    annotator: str | None
    """None where the server did not see anybody, or somebody else than the label says."""
    why: str
    """Why there is no annotator."""
    choice: str | None
    reason: str | None
    at: int


def _labels(place: Place) -> Found:
    from mlflow.genai.review_queues import list_review_queue_items

    client = connect(place.uri)
    require_users(place.uri)
    at = experiment_id(client, place.experiment, place.uri)
    found, labels = Found(), list[tuple[str, _Label]]()
    declined = pending = 0
    for reviewer, queue in queues_of(at, place.experiment, place.name, place.uri):
        with explained(place.uri):
            items = list(pages(list_review_queue_items, queue.queue_id))
            finished = {item.item_id: item for item in items if item.status == "complete"}
            traces = _traces(list(finished))
        declined += sum(item.status == "declined" for item in items)
        pending += sum(item.status == "pending" for item in items)
        for trace_id, item in sorted(finished.items()):
            label = _label(traces.get(trace_id), item, (at, place.name, reviewer))
            if isinstance(label, dict):
                found.rows.append(label)
            else:
                labels.append((trace_id, label))
    found.rows += _votes(labels)
    if declined or pending:
        found.told.append(f"{place.name}: {declined} declined, {pending} open")
    return found


def _label(
    trace: "Trace | None", item: "ReviewQueueItem", where: tuple[str, str, str]
) -> "_Label | Row":
    """What was finished; a row that says what is wrong with it where its texts are not known."""
    at = _stamp(item.completed_time_ms)
    shown = None
    if trace is not None:
        shown = read_shown(*_spoken(trace, None), _attributes(trace))
    if trace is None or shown is None or shown.trace_id(*where) != item.item_id:
        why = "gone" if trace is None else "no comparison" if shown is None else "changed"
        return {"id": item.item_id, "at": at, "votes": [], "unusable": why}
    by = item.completed_by
    given = [each for each in trace.info.assessments if _is_answer(each)]
    own = [each for each in given if by and _who(each) == by]
    last = max(own or given, key=lambda each: each.last_update_time_ms or 0, default=None)
    why = ""
    choice = str(last.feedback.value) if last is not None and last.feedback else None
    if last is not None and not own:
        why = f"finished by {by or 'nobody'}, labelled as {_who(last) or 'nobody'}"
    return _Label(
        shown=shown,
        annotator=None if why else by,
        why=why,
        choice=choice,
        reason=last.rationale if last is not None else None,
        at=max(at, _stamp(last.last_update_time_ms if last is not None else 0)),
    )


def _votes(labels: Iterable[tuple[str, _Label]]) -> Iterator[Row]:
    """One row a comparison with all its votes; a label without its annotator is a row alone."""
    rows = dict[str, Row]()
    for trace_id, label in labels:
        asked = label.shown.comparison
        key = asked.id if label.annotator else f"{asked.id}:{trace_id}"
        row = rows.setdefault(key, _row(key, asked))
        row["votes"].append(_vote(label))
        row["at"] = max(row["at"], label.at)
    for row in rows.values():
        row["votes"].sort(key=lambda vote: (vote["annotator"] or "", vote["at"]))
        row["votes"] = _last_of_each(row["votes"])
        yield row


def _row(key: str, asked: Comparison) -> Row:
    return {
        "id": key,
        "messages": [turn.model_dump() for turn in asked.prompt],
        "first": asked.first,
        "second": asked.second,
        "slice": asked.slice,
        "votes": [],
        "at": 0,
    }


def _vote(label: _Label) -> Row:
    sides = {"left": "first", "right": "second"}
    if label.shown.turned:
        sides = {"left": "second", "right": "first"}
    vote: Row = {
        "annotator": label.annotator,
        "choice": sides.get(label.choice or "", label.choice),
        "left": sides["left"],
        "at": label.at,
    }
    if label.reason:
        vote["reason"] = label.reason
    if label.why:
        vote["why"] = label.why
    return vote


def _last_of_each(votes: Sequence[Row]) -> list[Row]:
    """Somebody in the pool and with a queue of their own is asked twice, and counts once."""
    named = {vote["annotator"]: vote for vote in votes if vote["annotator"] is not None}
    return [vote for vote in votes if vote["annotator"] is None] + list(named.values())


def _is_answer(given: "Assessment") -> bool:
    return given.name == QUESTION and given.feedback is not None and given.valid is not False


def _who(given: "Assessment") -> str:
    return (given.source.source_id or "").strip().lower()


def _stamp(milliseconds: int | None) -> int:
    """Never in the future: a clock that is ahead must not make what comes later look known."""
    return min(milliseconds or 0, int(time.time() * 1000))


# ------------------------------------------------------------------------------- thumbs


def _thumbs(place: Place) -> Found:
    client = connect(place.uri)
    at = experiment_id(client, place.experiment, place.uri)
    with explained(place.uri):
        infos = list(
            pages(
                client.search_traces,
                locations=[at],
                filter_string=f"feedback.`{place.name}` IS NOT NULL",
                include_spans=False,
            )
        )
    given = {each.info.trace_id: _given(each.info.assessments, place.name) for each in infos}
    found, ids = Found(), sorted(trace_id for trace_id, some in given.items() if some)
    for start in range(0, len(ids), _BATCH):
        batch = ids[start : start + _BATCH]
        with explained(place.uri):
            traces = _traces(batch)
        for trace_id in batch:
            found.rows += [_thumb(trace_id, traces.get(trace_id), each) for each in given[trace_id]]
    machines = sum(
        each.name == place.name and each.valid is not False and not _human(each)
        for trace in infos
        for each in trace.info.assessments
    )
    if machines:
        found.told.append(
            f"{place.name}: {machines} were given by judges or code, and are left out"
        )
    return found


def _given(assessments: Iterable["Assessment"], name: str) -> "list[Assessment]":
    """The last word of each person on a trace."""
    last = dict[tuple[str, str | None], Any]()
    for each in sorted(assessments, key=lambda each: each.last_update_time_ms or 0):
        valid = each.feedback is not None and each.valid is not False
        if each.name == name and valid and _human(each):
            last[_who(each), each.span_id] = each
    return list(last.values())


def _human(given: "Assessment") -> bool:
    return str(given.source.source_type) == "HUMAN"


def _thumb(trace_id: str, trace: "Trace | None", given: "Assessment") -> Row:
    request, response = (None, None) if trace is None else _spoken(trace, given.span_id)
    return {
        "id": sha256_json([trace_id, given.span_id, given.name, _who(given)]),
        "trace": trace_id,
        "request": request,
        "response": response,
        "thumb": given.feedback.value if given.feedback else None,
        "at": _stamp(given.last_update_time_ms),
    }


# ------------------------------------------------------------------------------- traces


def _traces(ids: Sequence[str]) -> "dict[str, Trace]":
    from mlflow.tracing.client import TracingClient

    client, found = TracingClient(), dict[str, Any]()
    for start in range(0, len(ids), _BATCH):
        batch = _those_that_are_there(client, list(ids[start : start + _BATCH]))
        found |= {trace.info.trace_id: trace for trace in batch}
    return found


def _those_that_are_there(client: "TracingClient", ids: list[str]) -> "list[Trace]":
    """A server with users denies the whole batch where one of its traces was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return client.batch_get_traces(ids)
    except MlflowException as error:
        if error.error_code not in ("PERMISSION_DENIED", "RESOURCE_DOES_NOT_EXIST"):
            raise
    half = len(ids) // 2
    parts = (ids[:half], ids[half:]) if half else ()
    return [trace for part in parts for trace in _those_that_are_there(client, part)]


def _span(trace: "Trace", span_id: str | None) -> Any:
    """The span that somebody meant; the root where they meant none, or one that is gone."""
    spans = trace.data.spans
    named = next((each for each in spans if span_id and each.span_id == span_id), None)
    return named or next((each for each in spans if each.parent_id is None), None)


def _spoken(trace: "Trace", span_id: str | None) -> tuple[Any, Any]:
    """What went into a span, and what came out."""
    span = _span(trace, span_id)
    return (None, None) if span is None else (span.inputs, span.outputs)


def _attributes(trace: "Trace") -> Mapping[str, Any]:
    span = _span(trace, None)
    return {} if span is None else dict(span.attributes)
