"""`label-studio`: tasks of Label Studio, exported as JSON.

    {"id": 1, "data": {"prompt": "…", "answer1": "…", "answer2": "…"},
     "annotations": [{"completed_by": 7, "was_cancelled": false,
                      "result": [{"from_name": "comparison", "type": "pairwise",
                                  "value": {"selected": "left"}, …}], …}], …}

labelstud.io/guide/task_format for tasks and annotations; the data are those of two templates
(github.com/HumanSignal/label-studio, annotation_templates/generative-ai):

    Human Preference collection   `pairwise`: left is answer1, right is answer2
    LLM Ranker                    `ranker`: {"ranker": {"rank": ["b", "a"]}} or ["b", "a"], the ids
                                  of data.items ({"id", "title", "body"}), the best one first

An export does not hold the template, and a comparison names itself in `to_name`, not the fields it
compares. So only the templates' own names are known: prompt, answer1, answer2 and items. Two other
names are taken where `to_name` does say them, left first. A ranker with buckets sorts, and says
nothing of the order; more than two items would be more than one pair. An order that nobody touched
is exported like one that somebody chose, so shuffle the items.

Each annotation is a vote of `completed_by`; one that was cancelled, or that chose nothing, is kept
as an invalid vote. Drafts and predictions are no votes.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dpoflow.contracts.pairs import PreferencePair, Source
from dpoflow.sources.formats.ballots import Ballot, Choice, decided
from dpoflow.sources.formats.messages import Format, Row, field, question, text
from dpoflow.sources.reasons import Quarantine

_PAIR = ("answer1", "answer2")
_SIDES: dict[str, Choice] = {"left": "first", "right": "second"}
_KINDS = ("pairwise", "ranker")


def fits(row: Row) -> bool:
    """Whether it has data and annotations."""
    return isinstance(row.get("data"), Mapping) and isinstance(row.get("annotations"), list)


def convert(row: Row, origin: Source) -> PreferencePair:
    """The task as a pair with every vote."""
    data = _mapping(field(row, "data"), "data")
    votes = [_voted(each) for each in _every(field(row, "annotations"), "annotations")]
    results = [result for _, result in votes if result is not None]
    if not results:
        raise Quarantine("no_vote", f"{len(votes)} annotations, none of them finished")
    if len(kinds := {result["type"] for result in results}) > 1:
        raise Quarantine("ambiguous", f"annotations are of two types: {', '.join(sorted(kinds))}")
    if data.get("prompt") is None:
        raise Quarantine("ambiguous", f"data has no prompt; {_names(data)}")
    if kinds == {"pairwise"}:
        names = _compared(results, data)
        answers = [text(field(data, name), f"data.{name}") for name in names]
        choices = [_side(result) for _, result in votes]
    else:
        ids, answers = _items(data)
        choices = [_best(result, ids) for _, result in votes]
    ballots = [Ballot(who, each) for (who, _), each in zip(votes, choices, strict=True)]
    return decided(data, origin, question(data["prompt"], "data.prompt"), answers, ballots)


def _voted(annotation: object) -> tuple[str, Mapping[str, Any] | None]:
    """Who annotated, and the one result that prefers something."""
    given = _mapping(annotation, "annotations")
    who = given.get("completed_by")
    if isinstance(who, Mapping):  # as some exports write it, with a name and an address
        who = who.get("id")
    name = _id(who, "annotations.completed_by")
    if given.get("was_cancelled"):
        return name, None
    results = [
        result
        for result in _every(field(given, "result"), "annotations.result")
        if isinstance(result, Mapping) and result.get("type") in _KINDS
    ]
    if len(results) > 1:
        raise Quarantine("ambiguous", f"annotator {name[:40]} made {len(results)} comparisons")
    return name, results[0] if results else None


def _compared(results: Sequence[Mapping[str, Any]], data: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields that are left and right."""
    told = {names for result in results if len(names := _names_in(result.get("to_name"))) == 2}
    if len(told) > 1:
        raise Quarantine("ambiguous", "annotations compare different fields")
    names = next(iter(told), _PAIR)
    extra = [] if told else [each for each in data if re.fullmatch(r"answer\d+", str(each))]
    if any(name not in data for name in names) or set(extra) - set(names):
        raise Quarantine("ambiguous", f"which of the data is left and right; {_names(data)}")
    return names


def _names_in(to_name: object) -> tuple[str, ...]:
    names = to_name.split(",") if isinstance(to_name, str) else to_name
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        return ()
    return tuple(each.strip() for each in names)


def _side(result: Mapping[str, Any] | None) -> Choice:
    if result is None:
        return "invalid"
    selected = _mapping(field(result, "value"), "result.value").get("selected")
    if not isinstance(selected, str) or selected not in _SIDES:
        raise Quarantine("wrong_type", "result.value.selected is neither left nor right")
    return _SIDES[selected]


def _items(data: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Ids and bodies of the two things that were ranked."""
    if not isinstance(data.get("items"), list):
        raise Quarantine("ambiguous", f"data has no list of items; {_names(data)}")
    items = [_mapping(each, "data.items") for each in data["items"]]
    if len(items) != 2:
        raise Quarantine("unsupported_content", f"{len(items)} items are ranked, not two")
    ids = [_id(field(each, "id"), "data.items.id") for each in items]
    return ids, [text(field(each, "body"), "data.items.body") for each in items]


def _best(result: Mapping[str, Any] | None, ids: list[str]) -> Choice:
    if result is None:
        return "invalid"
    order = field(_mapping(field(result, "value"), "result.value"), "ranker")
    if isinstance(order, Mapping):
        if len(order) != 1 or next(iter(order)) != result.get("from_name"):
            raise Quarantine("ambiguous", "the ranker has buckets, which are no order")
        order = next(iter(order.values()))
    ranked = [_id(each, "result.value.ranker") for each in _every(order, "result.value.ranker")]
    if sorted(ranked) != sorted(ids) or len(set(ids)) != 2:
        raise Quarantine("wrong_type", "result.value.ranker does not order the two items")
    return "first" if ranked[0] == ids[0] else "second"


def _id(value: object, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 64:
        return str(value)
    return text(value, where)


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise Quarantine("wrong_type", f"{where} is no object")
    return value


def _every(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise Quarantine("wrong_type", f"{where} is no list")
    return value


def _names(data: Mapping[str, Any]) -> str:
    return "fields: " + (", ".join(str(each)[:40] for each in list(data)[:8]) or "none")


FORMAT = Format(
    name="label-studio",
    keys="data (prompt and answer1, answer2 or items) and annotations",
    # the rest of a task is about the project; predictions and drafts are no votes
    reads=frozenset({"id", "data", "annotations"}),
    fits=fits,
    convert=convert,
)
