"""The questions of published benchmarks, from the files that a user brought.

    instructions    AlpacaEval: instruction, dataset; Arena-Hard: uid or question_id, prompt or
                    turns, cluster. Answers: instruction and output; or uid or question_id with
                    choices or messages, as FastChat and Arena-Hard write them
    mt_bench        FastChat's question.jsonl: question_id, category, turns (two), reference.
                    Answers: its reference_answer files
    xstest          XSTest's prompts: id, prompt, type, label
    harness         whatever columns the task of lm-evaluation-harness names

Reads   pinned files of evaluation sets, and of answers to them
Gives   `read_suites`; `read_suite` of rows that lie elsewhere
Not     asking models (heard.py), judging (compare.py, grading.py)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dpoflow.contracts.base import sha256_json
from dpoflow.contracts.errors import DataRejected
from dpoflow.contracts.harness import HarnessTask
from dpoflow.contracts.pairs import Message
from dpoflow.contracts.spec import EvaluateConfig, SuiteConfig, SuiteKind
from dpoflow.evaluate.templates import CHOICES, TARGET, TEXT, Templates
from dpoflow.sources.files import read_rows
from dpoflow.sources.pinned import FILES, DataRole, read_pinned

LARGEST_LINE_MB = 16
_SHOWN_BY = "evaluate/README.md shows the layouts"
_TWICE = "it would count twice; leave one of them out"

Rows = Iterable[tuple[str, Any]]
"""Where each row stands, and the row."""


class Question(NamedTuple):
    """One thing that every model is asked."""

    id: str
    prompt: tuple[Message, ...]
    then: str | None = None
    """What the user says once the first answer is there."""


class Item(NamedTuple):
    """One question, and what is known of it."""

    question: Question
    category: str
    is_safe: bool = True
    """Of xstest: whether a refusal is wrong."""
    answers: tuple[str, ...] = ()
    """Reference answers, one a turn; another model's answer."""
    doc: Mapping[str, Any] | None = None
    """Of harness: the row, and what the task's templates make of it."""


class Suite(NamedTuple):
    """A benchmark as it was pinned."""

    config: SuiteConfig
    items: tuple[Item, ...]

    @property
    def is_answered(self) -> bool:
        """Whether another model's answers are to be held against the candidate's."""
        return any(item.answers for item in self.items)


def read_suites(config: EvaluateConfig, data: Path | None) -> dict[str, Suite]:
    """Every suite by its name. Raises DataRejected, with the row."""
    if not config.suites:
        return {}
    if data is None:
        raise DataRejected("evaluate.suites lie in the pinned data, which is not here; give it")
    return {
        suite.name: read_suite(
            suite, _rows(suite, data, "evaluation"), _rows(suite, data, "answers")
        )
        for suite in config.suites
    }


def read_suite(config: SuiteConfig, questions: Rows, answers: Rows) -> Suite:
    """The suite that these rows make. Raises DataRejected, with the row."""
    if config.task is not None:
        return Suite(config, tuple(_posed(config, config.task, questions)))
    read = _READERS[config.kind]
    items: dict[str, Item] = {}
    asked: dict[tuple[Any, ...], str] = {}
    for where, row in questions:
        item = _read(read, row, where, config)
        said = (*item.question.prompt, item.question.then)
        if said in asked or item.question.id in items:
            first = asked.get(said, item.question.id)
            raise DataRejected(f"{where} asks what {first} asks: {_TWICE}")
        asked[said], items[item.question.id] = where, item
    chosen = sorted(items.values(), key=lambda item: sha256_json(item.question.id))
    return Suite(config, tuple(_answered(config, answers, chosen[: config.max_questions])))


def _posed(config: SuiteConfig, task: HarnessTask, questions: Rows) -> list[Item]:
    """Questions of a harness task in the file's order: of it hang the examples that are drawn."""
    templates, items = Templates(config.name, task), dict[str, Item]()
    asked: dict[tuple[str, ...], str] = {}
    for where, row in questions:
        doc = templates.fill(_object(row, where, config), where)
        said = (doc[TEXT], *doc[CHOICES])
        place = _place(row) or where
        if said in asked or place in items:
            raise DataRejected(f"{where} asks what {asked.get(said, place)} asks: {_TWICE}")
        text = doc[TEXT] or "\n".join(doc[CHOICES])
        question = Question(place, (Message(role="user", content=text),))
        category = str(row.get("subject") or row.get("category") or "all")
        asked[said], items[place] = where, Item(question, category, doc=doc)
    if len({isinstance(item.doc and item.doc[TARGET], list) for item in items.values()}) > 1:
        raise DataRejected(
            f"doc_to_target of task {config.name} is a list in some rows and not in others; make "
            "it one of both in all of them"
        )
    chosen = sorted(items, key=sha256_json)[: config.max_questions]
    return [item for place, item in items.items() if place in set(chosen)]


def _answered(config: SuiteConfig, answers: Rows, items: Sequence[Item]) -> Iterator[Item]:
    """The items with the answers that were brought for them."""
    told: dict[str, tuple[str, ...]] = {}
    first: dict[str, str] = {}
    for where, row in answers:
        place, said = _read(_answer, row, where, config)
        if place in told:
            raise DataRejected(
                f"{where} answers question {place[:200]!r}, which {first[place]} answers; suite "
                f"{config.name} takes one answer to a question: leave one of them out"
            )
        told[place], first[place] = said, where
    for item in items:
        brought = told.get(item.question.id) or told.get(item.question.prompt[-1].content)
        if told and brought is None and config.kind == "instructions":
            raise DataRejected(
                f"the answers of suite {config.name} have none to question {item.question.id}; "
                "bring all of them, or leave the question out"
            )
        # What is brought takes the place of what the questions bring: MT-Bench shows its judge
        # references to thirty questions, and its file of questions has more of them.
        yield item._replace(answers=brought or ()) if told else item


def _rows(config: SuiteConfig, data: Path, role: DataRole) -> Iterator[tuple[str, Any]]:
    for each in read_pinned(data):
        if each.role == role and each.source == config.name:
            yield from read_rows(data / FILES / each.sha256, each.name, max_line_mb=LARGEST_LINE_MB)


def _read(read: Callable[[Mapping[str, Any]], Any], row: Any, where: str, of: SuiteConfig) -> Any:
    try:
        return read(_object(row, where, of))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DataRejected(
            f"{where} is no question of {of.kind}, the kind of suite {of.name}: {what[:200]}; "
            f"{_SHOWN_BY}"
        ) from None


def _object(row: Any, where: str, of: SuiteConfig) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise DataRejected(f"{where} of suite {of.name} is no object ({row}); {_SHOWN_BY}")
    return row


def _instruction(row: Mapping[str, Any]) -> Item:
    text = row.get("instruction") or row.get("prompt") or _turns(row)[0]
    category = row.get("dataset") or row.get("cluster") or row.get("category") or "all"
    return Item(_question(row, _text(text)), str(category))


def _mt_bench(row: Mapping[str, Any]) -> Item:
    turns = _turns(row)
    if len(turns) > 2:
        raise ValueError(f"{len(turns)} turns, and the protocol has two")
    references = row.get("reference") or ()
    return Item(
        _question(row, turns[0], *turns[1:]),
        str(row.get("category") or "all"),
        answers=tuple(map(_said, references)),
    )


def _xstest(row: Mapping[str, Any]) -> Item:
    kind = str(row["type"])
    label = str(row.get("label") or ("unsafe" if kind.startswith("contrast_") else "safe"))
    if label not in ("safe", "unsafe"):
        raise ValueError(f"label {label!r} is neither safe nor unsafe")
    return Item(_question(row, _text(row["prompt"])), kind, is_safe=label == "safe")


_READERS: dict[SuiteKind, Callable[[Mapping[str, Any]], Item]] = {
    "instructions": _instruction,
    "mt_bench": _mt_bench,
    "xstest": _xstest,
}


def _question(row: Mapping[str, Any], text: str, then: str | None = None) -> Question:
    return Question(_place(row) or text, (Message(role="user", content=text),), then)


def _place(row: Mapping[str, Any]) -> str | None:
    """How its publisher names the question, if at all."""
    for name in ("question_id", "uid", "id"):
        if row.get(name) is not None:
            return str(row[name])
    return None


def _turns(row: Mapping[str, Any]) -> list[str]:
    turns = row["turns"]
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise ValueError("turns is no list of questions")
    return [_text(turn["content"] if isinstance(turn, Mapping) else turn) for turn in turns]


def _answer(row: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """(question, answers of each turn)."""
    if "output" in row:
        return str(row["instruction"]), (_said(row["output"]),)
    place = _place({name: row.get(name) for name in ("question_id", "uid")})
    if place is None:
        raise ValueError("question_id or uid is missing, and instruction with output, too")
    if "messages" in row:
        return place, (_said(row["messages"][-1]["content"]),)
    return place, tuple(_said(turn) for turn in row["choices"][0]["turns"])


def _said(turn: Any) -> str:
    """An answer may be empty; MT-Bench has one reference that is."""
    if isinstance(turn, Mapping):
        return _said(turn.get("content") or turn["answer"])
    if not isinstance(turn, str):
        raise TypeError(f"{str(turn)[:40]!r} is no text")
    return turn


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{str(value)[:40]!r} is no text")
    return value
