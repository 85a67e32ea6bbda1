"""Rows of a harness task with its templates filled in: by us, and in a sandbox.

lm-evaluation-harness gives templates to a Jinja that can reach anything in the process. Whoever
wrote the spec is not trusted with what is in this one, such as the key that signs decisions; so
nothing of lm-eval's ever sees a template, and a template sees its row and nothing else.

Reads   a task, rows
Gives   `Templates`: a row becomes what lm-eval reads by the names of columns
Not     asking models (harness.py)
"""

import ast
import re
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, StrictUndefined, Template, TemplateError, TemplateSyntaxError
from jinja2.exceptions import SecurityError
from jinja2.meta import find_referenced_templates
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.contracts.harness import HarnessTask

TEXT, TARGET, CHOICES = "dpoflow text", "dpoflow target", "dpoflow choices"
PREFIX, DESCRIPTION = "dpoflow prefix", "dpoflow description"
"""The columns that hold what was filled in."""

_TEMPLATES = ("doc_to_text", "doc_to_target", "doc_to_choice", "description", "gen_prefix")
_BUILT_IN = ("range", "dict", "namespace")
_TROUBLE = (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, MemoryError)
"""What filling in may raise: of Jinja, and of an expression that does not fit the row."""

Row = Mapping[str, Any]


def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    made.globals = {name: made.globals[name] for name in _BUILT_IN}
    made.filters["regex_replace"] = _regex_replace
    return made


def _regex_replace(text: str, pattern: str, repl: str, count: int = 0) -> str:
    """lm-eval's own filter."""
    return re.sub(pattern, repl, text, count=count)


class Templates:
    """The templates of one task."""

    def __init__(self, name: str, task: HarnessTask) -> None:
        self._name, self._task = name, task
        jinja = _environment()
        given = {key: getattr(task, key) for key in _TEMPLATES}
        self._compiled = {
            key: self._compile(jinja, key, text)
            for key, text in given.items()
            if isinstance(text, str)
        }

    def _compile(self, jinja: Environment, key: str, text: str) -> Template:
        try:
            if any(True for _ in find_referenced_templates(jinja.parse(text))):
                raise ConfigError(f"{key} of task {self._name} names another file; write it here")
            return jinja.from_string(text)
        except TemplateSyntaxError as error:
            raise ConfigError(
                f"{key} of task {self._name} is no template, line {error.lineno}: {error}"
            ) from None

    def fill(self, row: Row, where: str) -> dict[str, Any]:
        """The row, and beside it what lm-eval would have made of it."""
        choices = self._choices(row, where)
        return {
            **row,
            TEXT: self._text(row, where),
            CHOICES: choices,
            TARGET: self._target(row, choices, where),
            PREFIX: self._value("gen_prefix", row, where) if self._task.gen_prefix else "",
            DESCRIPTION: self._value("description", row, where),
        }

    def _text(self, row: Row, where: str) -> str:
        if not self._task.doc_to_text:
            return ""
        text = self._value("doc_to_text", row, where)
        if not isinstance(text, str) or not text.strip():
            raise self._misfit("doc_to_text", where, f"{str(text)[:40]!r} is no text")
        if self._task.doc_to_choice is not None and text.isdigit():
            # There it would be the place of a choice, and the choices would be questions.
            raise self._misfit("doc_to_text", where, f"{text} alone is no question")
        return text

    def _choices(self, row: Row, where: str) -> list[str]:
        given = self._task.doc_to_choice
        if given is None:
            return []
        found = self._value("doc_to_choice", row, where) if isinstance(given, str) else [*given]
        if isinstance(found, str):
            found = _literal(found)
        if not isinstance(found, list) or not all(isinstance(one, str) and one for one in found):
            raise self._misfit("doc_to_choice", where, f"{str(found)[:60]} is no list of texts")
        if len(found) < 2:
            raise self._misfit("doc_to_choice", where, "two choices are the least")
        return found

    def _target(self, row: Row, choices: list[str], where: str) -> Any:
        given = self._task.doc_to_target
        target = self._value("doc_to_target", row, where) if isinstance(given, str) else given
        if isinstance(given, str) and given not in row and isinstance(target, str):
            target = _read_back(target, is_place=bool(choices))
        if choices:
            return self._place(target, choices, where)
        if self._task.output_type == "loglikelihood" and not isinstance(target, str):
            raise self._misfit("doc_to_target", where, f"{str(target)[:40]!r} is no text")
        if target in ("", []) or target is None:
            raise self._misfit("doc_to_target", where, "it is empty")
        return target

    def _place(self, target: Any, choices: list[str], where: str) -> int:
        place = choices.index(target) if target in choices else target
        if not isinstance(place, int) or not 0 <= place < len(choices):
            told = f"{str(target)[:40]!r} is none of {len(choices)} choices"
            if isinstance(target, int) and str(target) in choices:  # lm-eval reads it so, too
                told += ": a number that a template writes is a place; name the column alone"
            raise self._misfit("doc_to_target", where, told)
        return int(place)

    def _value(self, key: str, row: Row, where: str) -> Any:
        given = getattr(self._task, key)
        if given in row:
            return row[given]
        if key in ("doc_to_text", "doc_to_target") and not re.search("{[{%]", given):
            raise self._misfit(key, where, f"there is no column {given}; it has {', '.join(row)}")
        try:
            return self._compiled[key].render(row)
        except SecurityError as error:
            raise ConfigError(
                f"{key} of task {self._name} reaches for what no template may touch ({error})"
            ) from None
        except _TROUBLE as error:
            raise self._misfit(key, where, str(error)) from None

    def _misfit(self, key: str, where: str, why: str) -> DataRejected:
        return DataRejected(f"{where} does not fit {key} of task {self._name}: {why[:200]}")


def _read_back(text: str, *, is_place: bool) -> Any:
    """What a template wrote, as lm-eval reads it: a place among choices, a list, or a text."""
    if is_place and text.isdigit():
        return int(text)
    if len(text) >= 2 and text[0] == "[" and text[-1] == "]":
        return _literal(text)
    return text


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return text
