"""Pairs that people labelled, and what a judge says of them.

Reads   files of labelled pairs, or of verdicts that were recorded elsewhere
Gives   `read_labelled`, `read_verdicts`, `ask`
Not     what the verdicts are worth (qualify.py)

    labelled     LLMBar's dataset.json (input, output_1, output_2, label); JSON lines of the same,
                 or of prompt, first, second, label; preference pairs in any format of sources
    verdicts     LLMBar's result.json; JSON lines of label, forward, swapped

Answers are named as the file numbers them (1 or 2, first or second), also in the swapped order.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dpoflow.contracts.errors import DataRejected
from dpoflow.contracts.judges import BudgetConfig, JudgeConfig
from dpoflow.contracts.pairs import Message, PreferencePair, Source
from dpoflow.endpoints.budget import Exhausted
from dpoflow.endpoints.stream import in_order
from dpoflow.judge.build import Half, Servers, ahead_of, build
from dpoflow.judge.qualify import Item
from dpoflow.judge.verdict import Ballot, Choice, Outcome
from dpoflow.sources.formats import registry
from dpoflow.sources.reasons import REASONS, Quarantine
from dpoflow.sources.whole import read_each, rows_of

Label = Literal["first", "second", "tie"]
_SHOWN_BY = "dpoflow judge qualify"

_NAMES: dict[str, Choice] = {
    **dict.fromkeys(("1", "first", "a", "output_1"), "first"),
    **dict.fromkeys(("2", "second", "b", "output_2"), "second"),
    **dict.fromkeys(("0", "tie", "c"), "tie"),
    **dict.fromkeys(("none", "null", "invalid", "-1"), "invalid"),
}


class Labelled(NamedTuple):
    """Two answers, and which of them people prefer."""

    conversation: tuple[Message, ...]
    first: str
    second: str
    label: Label
    slice: str | None


def read_verdicts(path: Path) -> list[Item]:
    """Recorded verdicts in both orders. Raises DataRejected."""
    return read_each(rows_of(path), _verdict, path, _SHOWN_BY)


def read_labelled(path: Path) -> list[Labelled]:
    """Labelled pairs. Raises DataRejected."""
    return read_each(rows_of(path), _labelled, path, _SHOWN_BY)


def _verdict(row: Any) -> Item:
    if "results" in row:  # LLMBar: of several tries the last one counts
        last = row["results"][-1]
        forward, swapped = (last[f"swap = {turned}"]["winner"] for turned in (False, True))
    else:
        forward, swapped = row["forward"], row["swapped"]
    texts = [row.get(name) for name in ("output_1", "output_2")]
    known = all(isinstance(text, str) for text in texts)
    return Item(
        label=_label(row["label"]),
        forward=_named(forward),
        swapped=_named(swapped),
        slice=_slice(row),
        lengths=(len(texts[0]), len(texts[1])) if known else None,
    )


def _labelled(row: Any) -> Labelled:
    if "chosen" in row:
        return _of_pair(row)
    asked = row["input"] if "input" in row else row["prompt"]
    first, second = (
        row[old] if old in row else row[new]
        for old, new in (("output_1", "first"), ("output_2", "second"))
    )
    if isinstance(asked, str):
        turns: tuple[Message, ...] = (Message(role="user", content=asked),)
    else:
        turns = tuple(Message.model_validate(turn) for turn in asked)
    if not isinstance(first, str) or not isinstance(second, str) or not turns:
        raise TypeError("an answer is not text, or the prompt is empty")
    return Labelled(turns, first, second, _label(row["label"]), _slice(row))


def _of_pair(row: Any) -> Labelled:
    """A pair in any format that sources may have; which answer comes first is drawn by its id."""
    form = registry.recognise([row], "a labelled row")
    try:
        pair = registry.convert(row, form, Source(dataset="labelled", row=""))
    except Quarantine as refusal:
        raise ValueError(f"{refusal.code}: {refusal.detail or REASONS[refusal.code]}") from None
    if not isinstance(pair, PreferencePair):
        raise TypeError("a prompt without two answers")
    if pair.label not in ("preferred", "tie"):
        raise ValueError(f"a pair that is {pair.label}: nobody preferred one of its answers")
    chosen, rejected = pair.chosen.content, pair.rejected.content
    turned = hashlib.sha256(pair.pair_id.encode()).digest()[0] % 2
    label: Label = "tie" if pair.label == "tie" else "second" if turned else "first"
    both = (rejected, chosen) if turned else (chosen, rejected)
    return Labelled(pair.prompt, *both, label, pair.slice)


def _slice(row: Any) -> str | None:
    told = next((row[key] for key in ("slice", "subset", "category") if key in row), None)
    return None if told is None else str(told)


def _named(given: Any) -> Choice:
    name = _NAMES.get(str(given).strip().lower())
    if name is None:
        raise ValueError(f"{given!r} names no answer; 1, 2, tie and invalid do")
    return name


def _label(given: Any) -> Label:
    name = _named(given)
    if name == "invalid":
        raise ValueError(f"label {given!r} says nothing; 1, 2 and tie do")
    return name


def ask(
    config: JudgeConfig,
    labelled: Sequence[Labelled],
    *,
    half: Half = "judge",
    kept: Path,
    payer: str,
    models: Path | None = None,
    budget: BudgetConfig | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> list[Item]:
    """What the judge says of each pair, in both orders. Raises DataRejected at the budget's end."""

    async def run() -> list[Item]:
        items: list[Item] = []
        async with Servers(kept, payer, budget, lambda *_: None, tell=tell) as at:
            judge = await build(config, at, half, models)

            async def work(one: Labelled) -> Item:
                return _item(one, await judge.decide(one.conversation, one.first, one.second))

            async for item in in_order(labelled, work, ahead=ahead_of(config)):
                items.append(item)
                progress(len(items), len(labelled))
        return items

    try:
        return asyncio.run(run())
    except Exhausted as spent:
        raise DataRejected(
            f"{spent}, and a judge is qualified on all {len(labelled)} pairs or on none; raise the "
            "budget, or give a smaller file: what was asked is kept"
        ) from None


def _item(one: Labelled, outcome: Outcome) -> Item:
    return Item(
        label=one.label,
        forward=_most(outcome.ballots, "first_first"),
        swapped=_most(outcome.ballots, "second_first"),
        slice=one.slice,
        lengths=(len(one.first), len(one.second)),
        settled=outcome,
    )


def _most(ballots: Sequence[Ballot], order: str) -> Choice:
    """What most ballots of an order say, where there are several; a draw says nothing."""
    said = Counter(b.verdict.choice for b in ballots if b.order in (order, "unordered"))
    (choice, most), *others = said.most_common()
    return "invalid" if others and others[0][1] == most else choice
