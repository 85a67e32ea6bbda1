"""A rubric: a house style written as checks that code can decide.

Reads   the `checks:` list of a YAML file
Gives   `Rubric` and one model per kind of check, told apart by `kind`
Not     scoring: see judge/rubric.py
"""

import re
from collections.abc import Iterator
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser as regex_parser  # type: ignore[attr-defined]
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from dpoflow.contracts.base import Contract

_REPEATS = {op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT}


def _repeat_bodies(parsed: Any, *, inside: bool = False) -> Iterator[Any]:
    """Every alternation or repeat that stands inside an unbounded repeat."""
    for code, value in parsed:
        unbounded = code in _REPEATS and value[1] is op.MAXREPEAT
        if inside and (unbounded or code is op.BRANCH):
            yield code
        parts = value if isinstance(value, tuple | list) else [value]
        nested = [p for part in parts for p in (part if isinstance(part, list) else [part])]
        for part in nested:
            if isinstance(part, regex_parser.SubPattern):
                yield from _repeat_bodies(part, inside=inside or unbounded)


def _sound_pattern(pattern: str) -> str:
    try:
        parsed = regex_parser.parse(pattern, re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"not a regular expression: {pattern!r} ({error})") from error
    if any(_repeat_bodies(parsed)):
        raise ValueError(
            f"a repeat or an alternative inside an open-ended repeat can take forever: "
            f"{pattern!r}. Bound the outer repeat, as in (a|b){{1,5}}, or split the check in two"
        )
    if re.search(pattern, "", re.IGNORECASE):
        raise ValueError(f"the pattern matches an empty text, so it decides nothing: {pattern!r}")
    return pattern


def _has_words(phrase: str) -> str:
    if not phrase.strip():
        raise ValueError("a phrase must not be blank")
    return phrase


Pattern = Annotated[str, AfterValidator(_sound_pattern)]
Phrases = Annotated[list[Annotated[str, AfterValidator(_has_words)]], Field(min_length=1)]


class _Check(Contract):
    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """What reports call the check; lower case, unique in its rubric."""
    weight: float = Field(1.0, gt=0)
    """Its share of the total, relative to the other checks in use."""
    half: Literal["judge", "heldout"]
    """`judge` decides pairs; `heldout` is seen by the evaluation alone."""


class WordCount(_Check):
    """Full marks from `min` to `max` words, then a straight line down to zero."""

    kind: Literal["word_count"]
    min: int = Field(1, ge=0)
    """Fewest words that earn full marks."""
    max: int = Field(ge=1)
    """Most words that earn full marks."""
    falloff: int = Field(20, ge=1)
    """How many words outside the range cost the whole mark."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min must be <= max, got {self.min} > {self.max}")
        return self


class Prose(_Check):
    """No bullets, numbered lists, headings, tables or code: sentences only."""

    kind: Literal["prose"]


class MustContain(_Check):
    """Whole words or phrases of which some must occur, in any case."""

    kind: Literal["must_contain"]
    phrases: Phrases
    """Any of these count."""
    at_least: int = Field(1, ge=1)
    """How many different ones earn full marks; fewer earn their fraction."""

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.at_least > len(self.phrases):
            raise ValueError(
                f"at_least is {self.at_least}, but only {len(self.phrases)} phrases are listed"
            )
        return self


class MustNotContain(_Check):
    """Whole words or phrases that must not occur, in any case."""

    kind: Literal["must_not_contain"]
    phrases: Phrases
    """One of these costs the whole mark."""


class OpensWith(_Check):
    """The first words must be one of these, in any case."""

    kind: Literal["opens_with"]
    phrases: Phrases
    """Openings that earn the mark."""


class Regex(_Check):
    """A pattern that must be found, in any case."""

    kind: Literal["regex"]
    pattern: Pattern
    """A Python regular expression, searched for anywhere in the answer."""


class NotRegex(_Check):
    """A pattern that must not be found, in any case."""

    kind: Literal["not_regex"]
    pattern: Pattern
    """A Python regular expression; finding it costs the whole mark."""


class MaxCount(_Check):
    """A character or phrase that may occur only so often."""

    kind: Literal["max_count"]
    text: str = Field(min_length=1)
    """What is counted, in any case, without overlaps."""
    at_most: int = Field(ge=0)
    """How many earn full marks."""
    falloff: int = Field(1, ge=1)
    """How many more cost the whole mark."""


class MentionsPrompt(_Check):
    """The answer speaks of what was asked, in its own sentences."""

    kind: Literal["mentions_prompt"]
    at_least: int = Field(2, ge=1)
    """How many of the question's content words earn full marks; a shorter question needs fewer."""
    longest_copy: int = Field(8, ge=3)
    """A longer run of words copied from the question is an echo and earns nothing."""


class NoRepeats(_Check):
    """The answer does not go round in circles."""

    kind: Literal["no_repeats"]
    words: int = Field(4, ge=2)
    """How many words in a row count as a phrase."""
    at_most: int = Field(1, ge=1)
    """How often one phrase may occur; each further time halves the mark."""


class EndsCleanly(_Check):
    """The last character closes a sentence."""

    kind: Literal["ends_cleanly"]


Check = Annotated[
    WordCount
    | Prose
    | MustContain
    | MustNotContain
    | OpensWith
    | Regex
    | NotRegex
    | MaxCount
    | MentionsPrompt
    | NoRepeats
    | EndsCleanly,
    Field(discriminator="kind"),
]


class Rubric(Contract):
    """Checks with weights, in two halves: one makes pairs, the other is held out."""

    checks: list[Check] = Field(min_length=1)
    """What an answer is held to."""
    enough_words: int = Field(0, ge=0)
    """A shorter answer keeps only its share of the total, so that saying nothing cannot win."""
    tie_margin: float = Field(0.02, ge=0, lt=1)
    """Two totals this close are a tie."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [check.name for check in self.checks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"check names must be unique, got twice: {', '.join(twice)}")
        return self
