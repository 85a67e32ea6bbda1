"""`argilla`: annotated records of Argilla 2, in the three layouts it gives them.

    nested  {"id": "…", "status": "completed", "metadata": {…}, "suggestions": {…}, "vectors": {…},
             "fields": {"instruction": "…", "response1": "…", "response2": "…"},
             "responses": {"preference": [{"value": "response2", "user_id": "…"}]}}
    flat    {"id": "…", "status": "completed", "instruction": "…", "response1": "…",
             "response2": "…", "preference.responses": ["response2"],
             "preference.responses.users": ["…"], "preference.responses.status": ["submitted"]}
    server  {"id": "…", "fields": {…}, "responses": [{"user_id": "…", "status": "submitted",
             "values": {"preference": {"value": "response2"}}}]}

github.com/argilla-io/argilla, argilla/src/argilla: `records.to_list`, `to_json` and
`Dataset.to_disk` (its records.json) write the first, `to_list(flatten=True)` and `to_datasets` the
second; the third is a record of the HTTP API (`UserResponseModel`). Three kinds of question tell of
a preference:

    label      the name of the preferred field
    ranking    [{"value": "response1", "rank": 1}, {"value": "response2", "rank": 2}], 1 the best
    rating     a question FIELD-rating for each answer, as distilabel's PreferenceToArgilla has them

The prompt is the field `instruction` (`Settings.for_ranking`) or `prompt` (the guides), text or a
chat; what else was shown in other fields could be part of it, and is refused. Suggestions are a
model's, never votes. How votes become one pair stands in ballots.py.

The Python client drops ranks (`responses.py`): of a ranking made in Argilla's pages it gives names
alone, in the order of the question's options and not of the preference. Such a list is refused.
Nested responses bear no status either, so that a draft looks like a vote: they are taken where one
person answered and the record is completed, and refused elsewhere.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from dpoflow.contracts.pairs import PreferencePair, Source
from dpoflow.sources.formats.ballots import Ballot, Choice, decided
from dpoflow.sources.formats.messages import (
    Format,
    Row,
    field,
    is_message_list,
    number,
    question,
    text,
)
from dpoflow.sources.reasons import Quarantine

_PROMPTS = ("instruction", "prompt")
_ABOUT = ("id", "_server_id", "status", "inserted_at", "updated_at")
_NESTED = ("fields", "responses", "suggestions", "metadata", "vectors")
_STATUSES = ("submitted", "draft", "discarded")
_RATINGS = ("-rating", "_rating")
_INVALID: Choice = "invalid"
_FLAT = ".responses"
_COLUMNS = ("", ".users", ".status")
_SUGGESTED = (".suggestion", ".suggestion.score", ".suggestion.agent")


class Response(NamedTuple):
    """One annotator's answer to one question."""

    user: str
    value: Any
    finished: bool


class Record(NamedTuple):
    """What either layout tells."""

    fields: Mapping[str, Any]
    responses: dict[str, list[Response]]
    """By question."""
    flat: bool


class Reading(NamedTuple):
    """What tells which of two fields is preferred."""

    questions: tuple[str, ...]
    answers: tuple[str, str]
    ballots: list[Ballot]


def is_flat(row: Row) -> bool:
    """Whether a question's responses stand in columns of their own."""
    return any(key.endswith(_FLAT) and f"{key}.users" in row for key in row)


def fits(row: Row) -> bool:
    """Whether it has fields and responses, or a question's columns."""
    given = row.get("responses")
    listed = isinstance(given, Mapping) or is_message_list(given)
    return (isinstance(row.get("fields"), Mapping) and listed) or is_flat(row)


def convert(row: Row, origin: Source) -> PreferencePair:
    """The row as a pair with every vote."""
    record = _record(row)
    asked, reading = _understood(record)
    return decided(
        row if record.flat else _mapping(row.get("metadata") or {}, "metadata"),
        origin,
        question(record.fields[asked], asked),
        [text(record.fields[each], each) for each in reading.answers],
        reading.ballots,
    )


def also_reads(row: Row) -> Collection[str]:
    """The columns of a flat row that made its pair."""
    try:
        record = _record(row)
        asked, reading = _understood(record)
    except Quarantine:
        return ()
    columns = [f"{key}{_FLAT}{more}" for key in reading.questions for more in _COLUMNS]
    return (asked, *reading.answers, *columns)


def _record(row: Row) -> Record:
    if is_flat(row):
        return _flat(row)
    fields, given = _mapping(field(row, "fields"), "fields"), field(row, "responses")
    if isinstance(given, list):
        return Record(fields, _by_question(given), flat=False)
    given = _mapping(given, "responses")
    users = {user for each in given.values() for user in _users(each)}
    sure = row.get("status") == "completed" and len(users) == 1
    questions = {
        name: list(_listed(each, f"responses.{name}", sure=sure)) for name, each in given.items()
    }
    return Record(fields, questions, flat=False)


def _flat(row: Row) -> Record:
    asked = [key for key in row if key.endswith(_FLAT) and f"{key}.users" in row]
    columns = {f"{key}{more}" for key in asked for more in _COLUMNS}
    about = {"slice", *_ABOUT, *(key for key in row if key.endswith(_SUGGESTED))}
    fields = {key: row[key] for key in row if key not in columns | about}
    questions = {key.removesuffix(_FLAT): list(_columns(row, key)) for key in asked}
    return Record(fields, questions, flat=True)


def _by_question(given: list[object]) -> dict[str, list[Response]]:
    """Responses as the server has them, of one person to every question."""
    people = [_mapping(each, "responses") for each in given]
    values = [_mapping(each.get("values") or {}, "responses.values") for each in people]
    found: dict[str, list[Response]] = {name: [] for each in values for name in each}
    for person, answers in zip(people, values, strict=True):
        user = text(field(person, "user_id"), "responses.user_id")
        finished = _finished(person.get("status"), "responses")
        for name, responses in found.items():
            answer = _mapping(answers.get(name) or {}, f"responses.values.{name}").get("value")
            responses.append(Response(user, answer, finished and answer is not None))
    return found


def _columns(row: Row, key: str) -> Iterator[Response]:
    columns = [row.get(f"{key}{more}") for more in _COLUMNS]
    if columns[0] is None:  # nobody answered
        return
    lists = [each for each in columns if isinstance(each, list)]
    if len(lists) != len(columns) or len({len(each) for each in lists}) > 1:
        raise Quarantine("wrong_type", f"{key}, .users and .status are no lists of one length")
    for value, user, status in zip(*lists, strict=True):
        yield Response(text(user, f"{key}.users"), value, _finished(status, key))


def _listed(given: object, where: str, *, sure: bool) -> Iterator[Response]:
    if given is None:  # as tables write a question that nobody answered
        return
    if not isinstance(given, list):
        raise Quarantine("wrong_type", f"{where} is no list")
    for each in given:
        one = _mapping(each, where)
        status = one.get("status")
        if status is None and not sure:
            raise Quarantine(
                "ambiguous",
                f"{where} tells no status, so a draft looks like a vote; export with to_datasets() "
                "or to_list(flatten=True)",
            )
        user = text(field(one, "user_id"), f"{where}.user_id")
        yield Response(user, one.get("value"), status is None or _finished(status, where))


def _users(given: object) -> list[str]:
    every = given if isinstance(given, list) else []
    told = [each.get("user_id") for each in every if isinstance(each, Mapping)]
    return [user for user in told if isinstance(user, str)]


def _finished(status: object, where: str) -> bool:
    if status not in _STATUSES:
        raise Quarantine("wrong_type", f"the status of {where} is none of {', '.join(_STATUSES)}")
    return status == "submitted"


def _understood(record: Record) -> tuple[str, Reading]:
    """The field that is the prompt, and the one question that tells of a preference."""
    if not any(record.responses.values()):
        raise Quarantine("no_vote", "no responses")
    prompts = [name for name in _PROMPTS if record.fields.get(name) is not None]
    if len(prompts) != 1:
        raise Quarantine(
            "ambiguous", f"the prompt is no one of {' or '.join(_PROMPTS)}; {_names(record)}"
        )
    shown = [
        name
        for name, value in record.fields.items()
        if name not in (*prompts, *_ABOUT) and (isinstance(value, str) or not record.flat)
    ]
    found = [*_rankings(record, shown), *_labels(record, shown), *_ratings(record, shown)]
    if len(found) != 1:
        what = "several questions tell" if found else "no question tells"
        raise Quarantine("ambiguous", f"{what} of a preference; {_names(record)}")
    others = [name for name in shown if name not in found[0].answers]
    if others and not record.flat:  # a flat row's may be metadata
        raise Quarantine(
            "ambiguous", f"{_short(others)} may be part of the prompt; {_names(record)}"
        )
    return prompts[0], found[0]


def _rankings(record: Record, shown: list[str]) -> Iterator[Reading]:
    for name, responses in record.responses.items():
        values = [each.value for each in responses if isinstance(each.value, list)]
        if any(_are_names(value, shown) for value in values):
            raise Quarantine(
                "ambiguous",
                f"{name} lists names without ranks, in the order of its options; take the records "
                "from Argilla's HTTP API, which has the ranks",
            )
        if any(isinstance(one, Mapping) and "rank" in one for value in values for one in value):
            yield _ranking(name, responses, shown)


def _are_names(value: list[Any], shown: list[str]) -> bool:
    return len(value) > 1 and all(isinstance(each, str) and each in shown for each in value)


def _ranking(name: str, responses: list[Response], shown: list[str]) -> Reading:
    orders = [(each, _order(each, name)) for each in responses]
    options = {text(field(one, "value"), name) for _, order in orders for one in order}
    if unknown := sorted(options - set(shown)):
        raise Quarantine("ambiguous", f"{name} ranks {_short(unknown)}: no field has that name")
    if len(options) != 2:
        raise Quarantine("unsupported_content", f"{name} ranks {len(options)} answers, not two")
    first, second = (each for each in shown if each in options)
    ballots = []
    for response, order in orders:
        choice = _INVALID
        if response.finished:
            ranks = {one["value"]: number(field(one, "rank"), f"{name}.rank") for one in order}
            if len(order) != 2 or len(ranks) != 2:
                raise Quarantine("wrong_type", f"{name} does not rank each answer once")
            choice = _lesser(ranks[first], ranks[second])
        ballots.append(Ballot(response.user, choice))
    return Reading((name,), (first, second), ballots)


def _order(response: Response, name: str) -> list[Mapping[str, Any]]:
    if not isinstance(response.value, list):
        if response.finished:
            raise Quarantine("wrong_type", f"{name} is no list of ranks")
        return []
    return [_mapping(one, name) for one in response.value]


def _labels(record: Record, shown: list[str]) -> Iterator[Reading]:
    for name, responses in record.responses.items():
        if not any(isinstance(each.value, str) and each.value in shown for each in responses):
            continue
        if len(shown) != 2:
            raise Quarantine("ambiguous", f"{name} may choose among others; {_names(record)}")
        first, second = shown
        ballots = []
        for each in responses:
            if each.finished and each.value not in (first, second):
                raise Quarantine("wrong_type", f"{name} names neither {first} nor {second}")
            choice: Choice = "first" if each.value == first else "second"
            ballots.append(Ballot(each.user, choice if each.finished else "invalid"))
        yield Reading((name,), (first, second), ballots)


def _ratings(record: Record, shown: list[str]) -> Iterator[Reading]:
    rated = {
        each: f"{each}{end}"
        for each in shown
        for end in _RATINGS
        if f"{each}{end}" in record.responses
    }
    if not rated:
        return
    if len(rated) != 2:
        raise Quarantine("unsupported_content", f"{len(rated)} answers are rated, not two")
    (first, one), (second, other) = rated.items()
    others = {each.user: each for each in record.responses[other]}
    ballots = []
    for mine in record.responses[one]:
        theirs, choice = others.pop(mine.user, None), _INVALID
        if theirs is not None and mine.finished and theirs.finished:
            choice = _lesser(-number(mine.value, one), -number(theirs.value, other))
        ballots.append(Ballot(mine.user, choice))
    ballots += [Ballot(user, _INVALID) for user in others]
    yield Reading((one, other), (first, second), ballots)


def _lesser(first: float, second: float) -> Choice:
    return "tie" if first == second else "first" if first < second else "second"


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise Quarantine("wrong_type", f"{where} is no object")
    return value


def _names(record: Record) -> str:
    return f"fields: {_short(record.fields)}; questions: {_short(record.responses)}"


def _short(names: Collection[str]) -> str:
    some = [name[:40] for name in names][:8]
    return ", ".join([*some, *(["…"] if len(names) > len(some) else [])]) or "none"


FORMAT = Format(
    name="argilla",
    keys="fields and responses, or QUESTION.responses and QUESTION.responses.users",
    reads=frozenset({*_ABOUT, *_NESTED, "slice"}),
    fits=fits,
    convert=convert,
    also_reads=also_reads,
)
