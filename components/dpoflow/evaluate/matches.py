"""Which answers are held against which: the candidate's beside each opponent's.

Reads   prompts, suites, what each model said (heard.py)
Gives   `matches_of`: one `Match` a prompt and opponent, of MT-Bench one a turn
Not     who wins (compare.py), single answers (grading.py)
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from dpoflow.contracts.pairs import Message, Prompt
from dpoflow.evaluate.heard import Heard, answered_by_all
from dpoflow.evaluate.names import BASE, CANDIDATE, HELDOUT
from dpoflow.evaluate.suites import Item, Suite
from dpoflow.policy.generate import Answer

BROUGHT = "answers"
"""The opponent whose answers came with a suite."""


class Match(NamedTuple):
    """Two answers to one conversation, not yet judged."""

    suite: str
    prompt_id: str
    slice: str
    prompt: tuple[Message, ...]
    against: str
    candidate: str
    theirs: str
    turn: int = 1


def matches_of(
    prompts: Sequence[Prompt],
    suites: Mapping[str, Suite],
    heard: Mapping[str, Heard],
    *,
    is_judged: bool,
) -> list[Match]:
    """Held-out prompts first, the base before other opponents; suites only for a judge to see."""
    told = list(_of_heldout(prompts, heard))
    if is_judged:
        told += (match for name, suite in suites.items() for match in _of_suite(name, suite, heard))
    return told


def _of_heldout(prompts: Sequence[Prompt], heard: Mapping[str, Heard]) -> Iterator[Match]:
    said = {name: each.said() for name, each in heard.items()}
    there = set(answered_by_all(heard))
    for opponent in _opponents(heard):
        for prompt in prompts:
            place = prompt.prompt_id
            if place in there:
                answers = said[CANDIDATE][place], said[opponent][place]
                yield Match(HELDOUT, place, prompt.slice, prompt.prompt, opponent, *answers)


def _opponents(heard: Mapping[str, Heard]) -> list[str]:
    return sorted(heard.keys() - {CANDIDATE}, key=lambda name: (name != BASE, name))


def _of_suite(name: str, suite: Suite, heard: Mapping[str, Heard]) -> Iterator[Match]:
    if suite.config.kind not in _TURNS:
        return
    said = {model: each.answers[name] for model, each in heard.items()}
    by_all = set(answered_by_all(heard, name))
    there = [item for item in suite.items if item.question.id in by_all]
    for opponent in _opponents(heard):
        for item in there:
            answers = (said[each][item.question.id] for each in (CANDIDATE, opponent))
            yield from _TURNS[suite.config.kind](name, item, opponent, *answers)
    if suite.config.kind == "instructions" and suite.is_answered:
        for item in there:
            theirs = (Answer(text=item.answers[0], num_tokens=0, finished=True),)
            yield from _one_turn(name, item, BROUGHT, said[CANDIDATE][item.question.id], theirs)


def _one_turn(
    suite: str, item: Item, opponent: str, ours: Sequence[Answer], theirs: Sequence[Answer]
) -> Iterator[Match]:
    question = item.question
    answers = ours[0].text, theirs[0].text
    yield Match(suite, question.id, item.category, question.prompt, opponent, *answers)


def _two_turns(
    suite: str, item: Item, opponent: str, ours: Sequence[Answer], theirs: Sequence[Answer]
) -> Iterator[Match]:
    """MT-Bench's pairwise form: the second turn is judged with the first in view."""
    question = item.question
    for turn in range(1, min(len(ours), len(theirs)) + 1):
        asked = [question.prompt[-1].content, question.then or ""][:turn]
        prompt = (*_reference(item.answers[:turn]), Message(role="user", content=_NEXT.join(asked)))
        yield Match(
            suite,
            question.id,
            item.category,
            prompt,
            opponent,
            candidate=_NEXT.join(answer.text for answer in ours[:turn]),
            theirs=_NEXT.join(answer.text for answer in theirs[:turn]),
            turn=turn,
        )


_TURNS = {"instructions": _one_turn, "mt_bench": _two_turns}
_NEXT = "\n\n[next turn]\n\n"


def _reference(answers: Sequence[str]) -> Iterator[Message]:
    if any(answer.strip() for answer in answers):
        told = "For whoever compares the answers, a right one is:\n\n" + _NEXT.join(answers)
        yield Message(role="system", content=told)
