"""Single answers of suites: marks of MT-Bench, refusals of XSTest.

Reads   what each model said, the grader of the spec
Gives   `grade`: one `Graded` a question and model; `found`: the same of harness tasks
Not     sums of them (scores.py)
"""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from dpoflow.contracts.base import Contract
from dpoflow.contracts.errors import ConfigError
from dpoflow.contracts.pairs import Message
from dpoflow.contracts.spec import EvaluateConfig
from dpoflow.endpoints.budget import Exhausted
from dpoflow.endpoints.stream import in_order
from dpoflow.evaluate.heard import Heard, answered_by_all
from dpoflow.evaluate.suites import Item, Suite
from dpoflow.evaluate.xstest import string_match
from dpoflow.judge import grade as grading
from dpoflow.judge import parse
from dpoflow.judge.build import ahead_of
from dpoflow.judge.grade import Grader
from dpoflow.judge.session import session
from dpoflow.policy.generate import Answer
from dpoflow.state.step import StepState

_NOTHING_SAID = parse.Mark(1.0, "no answer: nobody was asked")


class Graded(Contract):
    """One model's answers to one question of a suite, and what they were found to be."""

    suite: str
    question_id: str
    category: str
    is_safe: bool
    model: str
    questions: tuple[str, ...]
    """The user's turns."""
    answers: tuple[str, ...]
    marks: tuple[float | None, ...] = ()
    """Of mt_bench, 1 to 10, one an answer; None where the reply could not be read."""
    label: str | None = None
    """Of xstest: 1_full_compliance, 2_full_refusal, 3_partial_refusal; None: not readable."""
    string_match: str | None = None
    """The same by how the answer begins."""
    metrics: dict[str, float] = {}
    """Of harness: the task's figures of this question, the main one first."""
    reasons: tuple[str, ...] = ()


class _Task(NamedTuple):
    suite: Suite
    item: Item
    model: str
    answers: tuple[Answer, ...]


async def grade(
    config: EvaluateConfig,
    suites: Mapping[str, Suite],
    heard: Mapping[str, Heard],
    state: StepState,
) -> list[Graded]:
    """Every answer to a suite whose answers are looked at one by one, in the suites' order."""
    tasks = [task for suite in suites.values() for task in _tasks(suite, heard)]
    if not tasks:
        return []
    graded: list[Graded] = []
    async with _grader(config, state) as grader:

        async def work(task: _Task) -> Graded:
            try:
                return await _graded(task, grader)
            except Exhausted as spent:
                raise ConfigError(
                    f"evaluate.budget: {spent}, and a suite that was marked in part would choose "
                    "among its questions; raise it, or set max_questions: what was paid is kept"
                ) from None

        ahead = ahead_of(config.marked_by) if config.marked_by else 1
        async for each in in_order(tasks, work, ahead=ahead):
            graded.append(each)
            state.events.progress("grading", len(graded), len(tasks), unit="answers")
    return graded


def found(suites: Mapping[str, Suite], heard: Mapping[str, Heard]) -> list[Graded]:
    """What lm-evaluation-harness made of answers, of questions that every model has room for."""
    return [
        Graded(
            suite=name,
            question_id=item.question.id,
            category=item.category,
            is_safe=True,
            model=model,
            questions=(item.question.prompt[-1].content,),
            answers=(of.found[name][item.question.id].said,),
            metrics=of.found[name][item.question.id].metrics,
        )
        for name, suite in suites.items()
        if suite.config.kind == "harness"
        for item in _answered(suite, heard)
        for model, of in heard.items()
    ]


@asynccontextmanager
async def _grader(config: EvaluateConfig, state: StepState) -> AsyncIterator[Grader | None]:
    if config.marked_by is None:
        yield None
        return
    templates = grading.templates()
    async with session(
        config.marked_by, state, config.budget, half="all", templates=templates
    ) as at:
        yield Grader(config.marked_by, await at.open(config.marked_by.endpoint))


def _tasks(suite: Suite, heard: Mapping[str, Heard]) -> Iterator[_Task]:
    if suite.config.kind not in ("mt_bench", "xstest"):
        return
    for item in _answered(suite, heard):
        for name, each in heard.items():
            yield _Task(suite, item, name, each.answers[suite.config.name][item.question.id])


def _answered(suite: Suite, heard: Mapping[str, Heard]) -> Iterator[Item]:
    by_all = set(answered_by_all(heard, suite.config.name))
    return (item for item in suite.items if item.question.id in by_all)


async def _graded(task: _Task, grader: Grader | None) -> Graded:
    item, answers = task.item, [answer.text for answer in task.answers]
    questions = [item.question.prompt[-1].content, item.question.then or ""][: len(answers)]
    told = Graded(
        suite=task.suite.config.name,
        question_id=item.question.id,
        category=item.category,
        is_safe=item.is_safe,
        model=task.model,
        questions=tuple(questions),
        answers=tuple(answers),
    )
    if task.suite.config.kind == "xstest":
        return await _labelled(told, item, grader)
    assert grader is not None, "the spec has no grader for it"
    return await _marked(told, item, grader)


async def _labelled(told: Graded, item: Item, grader: Grader | None) -> Graded:
    begins = string_match(told.answers[0])
    if grader is None:
        return told.model_copy(update={"label": begins, "string_match": begins})
    refusal = await grader.refusal(item.question.prompt, told.answers[0])
    return told.model_copy(
        update={
            "label": refusal.label,
            "string_match": begins,
            "reasons": (refusal.reason,) if refusal.reason else (),
        }
    )


async def _marked(told: Graded, item: Item, grader: Grader) -> Graded:
    marks: list[float | None] = []
    reasons: list[str] = []
    conversation: Sequence[Message] = item.question.prompt
    for turn, answer in enumerate(told.answers):
        reference = item.answers[turn].strip() if turn < len(item.answers) else ""
        if answer.strip():
            mark = await grader.mark(conversation, answer, reference or None)
        else:
            mark = _NOTHING_SAID
        marks.append(mark.score)
        reasons += [mark.reason] if mark.reason else []
        conversation = (
            *conversation,
            Message(role="assistant", content=answer),
            Message(role="user", content=item.question.then or ""),
        )
    return told.model_copy(update={"marks": tuple(marks), "reasons": tuple(reasons)})
