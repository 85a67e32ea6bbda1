"""Everybody's answers as one table, a prompt a row, for people who compare runs in MLflow.

Reads   comparisons, single answers to suites
Gives   `answers_table`: its columns
Not     writing it (tables.py), whole answers (answers.jsonl, suites.jsonl)
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from dpoflow.evaluate.grading import Graded
from dpoflow.evaluate.measure import Comparison
from dpoflow.evaluate.names import CANDIDATE
from dpoflow.evaluate.suite_page import ended, found

TABLE = "eval_results_table.json"
"""The name that MLflow's own evaluation gives such a table."""


class _Asked(NamedTuple):
    suite: str
    id: str


def answers_table(
    compared: Iterable[Comparison], graded: Iterable[Graded]
) -> dict[str, Sequence[str]]:
    """Column to texts: the prompt, each model's answer, and what was found.

    The same columns in every evaluation of the same models and kinds of suites; a cell is empty
    where a model has no such answer.
    """
    rows: dict[_Asked, dict[str, str]] = {}
    for each in compared:
        row = rows.setdefault(_Asked(each.suite, each.prompt_id), {})
        row |= {"suite": each.suite, "slice": each.slice, "prompt": each.question}
        row |= {CANDIDATE: each.candidate, each.against: each.theirs}
        told = {f"against {each.against}": ended(each)}
        if each.reasons:
            told[f"reasons against {each.against}"] = "\n".join(each.reasons)
        for name, text in told.items():
            row[name] = (
                text if each.turn == 1 else f"{row.get(name, '')}\n[turn {each.turn}] {text}"
            )
    for of in graded:
        row = rows.setdefault(_Asked(of.suite, of.question_id), {})
        row |= {"suite": of.suite, "slice": of.category, "prompt": _turns(of.questions)}
        row |= {of.model: _turns(of.answers), f"{of.model} found": found(of)}
    return {name: [row.get(name, "") for row in rows.values()] for name in _columns(rows)}


def _columns(rows: Mapping[_Asked, Mapping[str, str]]) -> list[str]:
    """What is asked, then what is answered, then what was found."""
    every = dict.fromkeys(name for row in rows.values() for name in row)

    def place(name: str) -> int:
        return (" found" in name or "against " in name) + name.startswith("reasons ")

    return sorted(every, key=place)


def _turns(said: Sequence[str]) -> str:
    if len(said) < 2:
        return "".join(said)
    return "\n\n".join(f"[turn {at}] {text}" for at, text in enumerate(said, 1))
