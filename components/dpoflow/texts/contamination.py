"""Whether a text was taken from an evaluation set: the same question, or thirteen words in a row.

Reads   rows of evaluation sets, texts of pairs
Gives   `Evaluations` (what the sets hold), `Overlap` (finds it again)
Not     what is held out of one's own data: see split.py

Thirteen words in a row, case and punctuation aside, as for GPT-3 (Brown et al. 2020, appendix C).
Where words have no blanks between them (Chinese, Japanese, Thai) each character counts as one.
A question that is shorter is found only where it is asked again as a whole. What many sets quote,
such as a licence or a template, is an overlap too: the row is out, and the report says of what.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpoflow.contracts.pairs import Item, PreferencePair, Rating
from dpoflow.texts.plain import plain

GRAM = 13
_ALONE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_ALONE += "\U00020000-\U0003ffff"
"""Thai, Lao, Burmese, Khmer, kana and Han."""
_WORD = re.compile(f"[{_ALONE}]|[^\\W{_ALONE}]+")
_MIX = np.uint64(0x9E3779B97F4A7C15)
_QUESTIONS = frozenset(
    "prompt question questions instruction input query turns goal "
    "ctx premise problem question_stem sentence sentence1".split()
)
"""How fields with questions are called in published sets and in ours."""
_TEXTS = frozenset({"text", "content", "value"})
"""Fields that hold a question where they are the row's own, or in a user's turn."""
_SPEAKERS = ("role", "from")
_ASKS = dict.fromkeys(("user", "human", "prompter"), True) | dict.fromkeys(
    ("assistant", "gpt", "chatgpt", "bot", "model", "system"), False
)
"""Whose turns are questions, by who speaks."""
_BETWEEN = ""
"""Stands between two texts; no word equals it, so that no run of words crosses it."""


def words(text: str) -> list[str]:
    """The words of `text`, plain."""
    return _WORD.findall(plain(text))


@dataclass
class Evaluations:
    """Questions and runs of words to the evaluation set they are of."""

    questions: dict[str, str] = field(default_factory=dict)
    """As words with one blank between them."""
    grams: dict[tuple[str, ...], str] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any], name: str) -> bool:
        """Everything that a row of the set `name` says; False if it asks nothing.

        Whatever its layout: questions are texts under a name that questions have or of a user's
        turn, runs of words are of every text.
        """
        asks = False
        for is_question, text in _texts(row, is_question=False, names=_QUESTIONS | _TEXTS):
            told = words(text)
            if is_question and told:
                self.questions.setdefault(" ".join(told), name)
                asks = True
            for at in range(len(told) - GRAM + 1):
                self.grams.setdefault(tuple(told[at : at + GRAM]), name)
        return asks


def _texts(
    value: object, *, is_question: bool, names: frozenset[str] = _QUESTIONS
) -> Iterator[tuple[bool, str]]:
    """Every text in a row, and whether it asks; `names` are of fields that do."""
    if isinstance(value, str):
        yield is_question, value
    elif isinstance(value, Mapping):
        speakers = [str(value[name]).lower() for name in _SPEAKERS if name in value]
        asks = next((_ASKS[each] for each in speakers if each in _ASKS), None)
        for name, inner in value.items():
            if asks is None:
                yield from _texts(inner, is_question=is_question or name in names)
            elif name not in _SPEAKERS:
                yield from _texts(inner, is_question=asks)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _texts(inner, is_question=is_question)


Said = tuple[Sequence[str], Sequence[str]]
"""What was asked, turn by turn, and what was answered."""


def said_in(item: Item) -> Said:
    """Everything that is read or learnt, but for a system message."""
    return [turn.content for turn in item.prompt if turn.role != "system"], answers_of(item)


def answers_of(item: Item) -> list[str]:
    """Of a pair both, of a rating the one, of a prompt the human's if there is one."""
    if isinstance(item, PreferencePair):
        return [item.chosen.content, item.rejected.content]
    if isinstance(item, Rating):
        return [item.answer.content]
    return [] if item.reference is None else [item.reference]


class Overlap:
    """Finds what `Evaluations` holds, in many texts at once."""

    def __init__(self, held: Evaluations) -> None:
        self._held = held
        hashed = [int(_hashed(gram)[0]) for gram in held.grams]
        self._hashes = np.sort(np.array(hashed, np.uint64))

    def of(self, rows: Sequence[Said]) -> list[str | None]:
        """For each row the first evaluation set that it asks or quotes."""
        asked = [[words(text) for text in turns] for turns, _ in rows]
        found = [self._asked(turns) for turns in asked]
        told = [
            [*turns, *map(words, answers)] for turns, (_, answers) in zip(asked, rows, strict=True)
        ]
        if not len(self._hashes):
            return found
        every = list[str]()
        starts = np.zeros(len(told) + 1, np.int64)
        for at, row in enumerate(told):
            for text in row:
                every += text
                every.append(_BETWEEN)
            starts[at + 1] = len(every)
        for place in self._hits(every):
            row_at = int(np.searchsorted(starts, place, "right")) - 1
            gram = tuple(every[place : place + GRAM])
            if found[row_at] is None and gram in self._held.grams:
                found[row_at] = f"{self._held.grams[gram]}: {' '.join(gram[:6])} …"
        return found

    def _asked(self, row: Iterable[list[str]]) -> str | None:
        for text in row:
            asked = " ".join(text)
            if asked and asked in self._held.questions:
                return f"{self._held.questions[asked]}: the same question"
        return None

    def _hits(self, every: list[str]) -> list[int]:
        """Where runs begin whose hash is that of a gram."""
        hashes = _hashed(every)
        at = np.searchsorted(self._hashes, hashes)
        at[at == len(self._hashes)] = 0
        return np.flatnonzero(self._hashes[at] == hashes).tolist()


def _hashed(every: Sequence[str]) -> NDArray[Any]:
    """The hash of each run of `GRAM` words; good within this process only."""
    if len(every) < GRAM:
        return np.empty(0, np.uint64)
    each = np.fromiter(map(hash, every), np.int64, len(every)).view(np.uint64)
    made = np.zeros(len(every) - GRAM + 1, np.uint64)
    for at in range(GRAM):
        made = made * _MIX + each[at : at + len(made)]
    return made
