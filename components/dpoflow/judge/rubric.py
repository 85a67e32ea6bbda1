"""A judge that reads a rubric: deterministic, offline, and able to say why.

Reads   a `Rubric` and texts
Gives   `score` for one check, `RubricJudge` for one half of a rubric or all of it
Not     the checks' definitions (contracts/rubric.py), nor swapping a pair's order
"""

import functools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from dpoflow.contracts.base import sha256_json
from dpoflow.contracts.pairs import Message
from dpoflow.contracts.rubric import (
    Check,
    EndsCleanly,
    MaxCount,
    MentionsPrompt,
    MustContain,
    MustNotContain,
    NoRepeats,
    NotRegex,
    OpensWith,
    Prose,
    Regex,
    Rubric,
    WordCount,
)
from dpoflow.judge.verdict import Outcome, Verdict, unordered

# A pattern of a rubric sees no more than this: what it costs can grow with the cube of its text.
TEXT_LIMIT = 2000

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+){0,4}")  # noqa: RUF001 - people type both apostrophes
_NOT_PROSE = re.compile(
    r"^[ \t]*(?:[-*+•–]\s|\d{1,3}[.)]\s|#{1,6}\s|\|)"  # noqa: RUF001 - some bullets are dashes
    r"|^[ \t]*(?:\*\*|__)[^*_\n]{1,80}(?:\*\*|__)|```",
    re.MULTILINE,
)
_CLOSERS = "\"'”’)"  # noqa: RUF001
_SUFFIXES = ("ing", "ed", "es", "s")
_COMMON = frozenset(
    """
    about after again all also although always and any anybody anything are because been before
    being but can cannot could did does doesn't doing don't done each else even ever every few
    for from get gets getting give going got had happen happens has have having haven't her here
    him his how into isn't it's its just know like made make makes many may me mine more most
    much must my need needs never not nothing now off one only other others our out over own
    please put said same says should since some somebody someone something still such sure take
    tell than thank thanks that that's the their them then there these they thing things this
    those though through too under until very want wants was wasn't way well went were what when
    where which while who whole whose why will with without won't would yes yet you your yours
    i'm i've i'd can't what's there's somewhere really actually use used work works day days
    """.split()
)


class Score(NamedTuple):
    """What one answer earned."""

    total: float
    """The weighted mean of `by_check`, cut in proportion when the answer has too few words."""
    by_check: dict[str, float]
    """Each check's mark, 0 to 1."""


class Comparison(NamedTuple):
    """Which of two answers earned more."""

    verdict: Literal["first", "second", "tie"]
    margin: float
    """The first answer's total minus the second's."""


def words(text: str) -> list[str]:
    """The words of a text, lower case; an apostrophe or hyphen stays inside its word."""
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]  # noqa: RUF001


def content_words(text: str) -> set[str]:
    """Stems of the words that carry a text's subject: longer than three letters and not common."""
    return {_stem(word) for word in words(text) if len(word) > 3 and word not in _COMMON}


def _stem(word: str) -> str:
    word = word.removesuffix("'s")
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 4:
            return word.removesuffix(suffix)
    return word.removesuffix("e") if len(word) > 4 else word


def _contains(phrase: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE) is not None


def _beyond(value: float, limit: float, falloff: float) -> float:
    """1 up to the limit, then a straight line to 0 at limit + falloff."""
    return min(1.0, max(0.0, 1.0 - (value - limit) / falloff))


def _runs(said: Sequence[str], length: int) -> list[tuple[str, ...]]:
    return [tuple(said[i : i + length]) for i in range(len(said) - length + 1)]


def _word_count(check: WordCount, prompt: str, answer: str) -> float:
    count = len(words(answer))
    return min(_beyond(count, check.max, check.falloff), _beyond(-count, -check.min, check.falloff))


def _prose(check: Prose, prompt: str, answer: str) -> float:
    return float(_NOT_PROSE.search(answer) is None)


def _must_contain(check: MustContain, prompt: str, answer: str) -> float:
    found = sum(_contains(phrase, answer) for phrase in check.phrases)
    return min(1.0, found / check.at_least)


def _must_not_contain(check: MustNotContain, prompt: str, answer: str) -> float:
    return float(not any(_contains(phrase, answer) for phrase in check.phrases))


def _opens_with(check: OpensWith, prompt: str, answer: str) -> float:
    start = answer.lstrip().replace("’", "'")  # noqa: RUF001
    openings = "|".join(re.escape(phrase) for phrase in check.phrases)
    return float(re.match(rf"(?:{openings})(?!\w)", start, re.IGNORECASE) is not None)


def _regex(check: Regex, prompt: str, answer: str) -> float:
    return float(re.search(check.pattern, answer[:TEXT_LIMIT], re.IGNORECASE) is not None)


def _not_regex(check: NotRegex, prompt: str, answer: str) -> float:
    return float(re.search(check.pattern, answer[:TEXT_LIMIT], re.IGNORECASE) is None)


def _max_count(check: MaxCount, prompt: str, answer: str) -> float:
    return _beyond(answer.lower().count(check.text.lower()), check.at_most, check.falloff)


def _mentions_prompt(check: MentionsPrompt, prompt: str, answer: str) -> float:
    echo = check.longest_copy + 1
    if set(_runs(words(prompt), echo)) & set(_runs(words(answer), echo)):
        return 0.0
    asked = content_words(prompt)
    wanted = min(check.at_least, len(asked))
    return min(1.0, len(asked & content_words(answer)) / wanted) if wanted else 1.0


def _no_repeats(check: NoRepeats, prompt: str, answer: str) -> float:
    most = max(Counter(_runs(words(answer), check.words)).values(), default=0)
    return float(0.5 ** max(0, most - check.at_most))


def _ends_cleanly(check: EndsCleanly, prompt: str, answer: str) -> float:
    return float(answer.rstrip().rstrip(_CLOSERS).endswith((".", "!", "?")))


_SCORERS: dict[type[Any], Callable[[Any, str, str], float]] = {
    WordCount: _word_count,
    Prose: _prose,
    MustContain: _must_contain,
    MustNotContain: _must_not_contain,
    OpensWith: _opens_with,
    Regex: _regex,
    NotRegex: _not_regex,
    MaxCount: _max_count,
    MentionsPrompt: _mentions_prompt,
    NoRepeats: _no_repeats,
    EndsCleanly: _ends_cleanly,
}


def score(check: Check, prompt_text: str, answer: str) -> float:
    """How far `answer` meets one check, 0 to 1. An answer without a word earns nothing."""
    return _SCORERS[type(check)](check, prompt_text, answer) if words(answer) else 0.0


class RubricJudge:
    """Scores answers by one half of a rubric, or by all of it."""

    def __init__(self, rubric: Rubric, half: Literal["judge", "heldout", "all"] = "judge") -> None:
        self.id = identify(rubric, half)
        self.checks = [check for check in rubric.checks if half in ("all", check.half)]
        if not self.checks:
            raise ValueError(
                f"the rubric has no check with half: {half}. Add one, or judge by half: all."
            )
        self.enough_words = rubric.enough_words
        self.tie_margin = rubric.tie_margin

        # Each answer meets all the others: it is marked once.
        self._score = functools.lru_cache(maxsize=512)(self._mark)

    def score(self, prompt: str, answer: str) -> Score:
        """Every check's mark and their weighted mean."""
        return self._score(prompt, answer)

    def _mark(self, prompt: str, answer: str) -> Score:
        by_check = {check.name: score(check, prompt, answer) for check in self.checks}
        weight = sum(check.weight for check in self.checks)
        mean = sum(check.weight * by_check[check.name] for check in self.checks) / weight
        enough = min(1.0, len(words(answer)) / self.enough_words) if self.enough_words else 1.0
        return Score(mean * enough, by_check)

    def compare(self, prompt: str, first: str, second: str) -> Comparison:
        """The better of two answers, or a tie when their totals are within `tie_margin`."""
        margin = self.score(prompt, first).total - self.score(prompt, second).total
        if abs(margin) <= self.tie_margin:
            return Comparison("tie", margin)
        return Comparison("first" if margin > 0 else "second", margin)

    async def decide(self, conversation: Sequence[Message], first: str, second: str) -> Outcome:
        """The same as an outcome: each answer is scored alone, so there is no order to swap."""
        question = conversation[-1].content
        choice, margin = self.compare(question, first, second)
        scores = sorted(
            (self.score(question, first), self.score(question, second)),
            key=lambda score: -score.total,
        )
        told = Verdict(choice=choice, margin=margin, rationale=_rationale(*scores))
        return unordered(self.id, told)


def identify(rubric: Rubric, half: str) -> str:
    """Names a rubric so that a changed check, or another half of them, is another judge."""
    return f"rubric:{half}:{sha256_json(rubric)[:16]}"


def _rationale(better: Score, worse: Score) -> str:
    gaps = {name: better.by_check[name] - worse.by_check[name] for name in better.by_check}
    told = [f"{name} {gap:+.2f}" for name, gap in sorted(gaps.items()) if abs(gap) >= 0.01]
    return f"{better.total:.2f} against {worse.total:.2f}: {', '.join(told)}"
