"""`dpoflow label`: people compare two answers in MLflow.

Reads   a file of comparisons: an evaluation's answers.jsonl, preference pairs in any format of
        sources, or rows of prompt, first, second
Gives   `read_comparisons`, `drawn`, `show_plan`, `show_created`, `show_progress`
Not     MLflow (dpoflow.tracking.labels), what people said (data.sources)
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dpoflow.contracts.base import sha256_json
from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.contracts.pairs import Message, PreferencePair, Source, prompt_digest
from dpoflow.sources.files import data_files, read_rows
from dpoflow.sources.formats import registry
from dpoflow.sources.formats.messages import Format, question, slice_of, text
from dpoflow.sources.reasons import REASONS, Quarantine
from dpoflow.tracking.comparisons import Comparison
from dpoflow.tracking.labels import Created, Progress

_HELDOUT = "heldout"


@dataclass(frozen=True)
class Read:
    """What a file holds."""

    comparisons: list[Comparison]
    """Each once, in the file's order."""
    left_out: Counter[str]
    """Why rows make none."""


class _NotAsked(Exception):
    """A row that people should not be asked about."""


def read_comparisons(path: Path) -> Read:
    """Every comparison of a file or folder. DataRejected where there is none."""
    found, left_out = dict[str, Comparison](), Counter[str]()
    for file in data_files(str(path)).files:
        rows = read_rows(file.path, file.name, max_line_mb=16)
        first = list(islice((row for _, row in rows), registry.LOOK_AT))
        form = None if any(map(_is_ours, first)) else registry.recognise(first, file.name)
        for row in chain(first, (row for _, row in rows)):
            try:
                asked = _comparison(row, form)
            except Quarantine as why:
                left_out[REASONS[why.code]] += 1
            except _NotAsked as why:
                left_out[str(why)] += 1
            else:
                left_out["the same comparison again"] += asked.id in found
                found.setdefault(asked.id, asked)
    if not found:
        told = "; ".join(f"{count} rows: {why}" for why, count in left_out.most_common(3))
        raise DataRejected(f"{path} holds no comparison that people could be asked about ({told})")
    return Read(list(found.values()), +left_out)


def drawn(comparisons: Sequence[Comparison], most: int | None) -> list[Comparison]:
    """At most so many, drawn by a hash of their content: a larger number keeps the smaller draw."""
    by_hash = sorted(comparisons, key=lambda each: sha256_json(["label", each.id]))
    return by_hash[:most]


def reviewers_of(given: str | None) -> list[str]:
    """The users of `a,b`, as MLflow spells them."""
    names = [name.strip().lower() for name in (given or "").split(",") if name.strip()]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(f"--reviewers names {twice[0]} twice")
    return names


def _is_ours(row: Any) -> bool:
    if not isinstance(row, dict):
        return False
    return _is_answer(row) or {"prompt", "first", "second"} <= row.keys()


def _is_answer(row: dict[str, Any]) -> bool:
    return {"question", "candidate", "theirs", "against", "prompt_id"} <= row.keys()


def _comparison(row: Any, form: Format | None) -> Comparison:
    if form is not None:
        item = registry.convert(row, form, Source(dataset="", row=""))
        if not isinstance(item, PreferencePair):
            raise _NotAsked("it has one answer, and people compare two")
        asked = Comparison(item.prompt, item.chosen.content, item.rejected.content, item.slice)
    elif isinstance(row, dict) and _is_answer(row):
        asked = _answered(row)
    elif isinstance(row, dict):
        first, second = (text(row.get(name), name) for name in ("first", "second"))
        asked = Comparison(question(row.get("prompt"), "prompt"), first, second, slice_of(row))
    else:
        raise row if isinstance(row, Quarantine) else Quarantine("not_an_object")
    if asked.first.strip() == asked.second.strip():
        raise _NotAsked("both answers are the same")
    if not asked.first.strip() or not asked.second.strip():
        raise _NotAsked("an answer is blank")
    return asked


def _answered(row: dict[str, Any]) -> Comparison:
    """A line of answers.jsonl, which quotes the last turn of its prompt."""
    if row.get("suite", _HELDOUT) != _HELDOUT:
        raise _NotAsked("it is of a benchmark, which must not be trained on")
    prompt = (Message(role="user", content=text(row["question"], "question")),)
    if prompt_digest(prompt) != row["prompt_id"]:
        raise _NotAsked("earlier turns of its prompt are not in the file")
    candidate, theirs = (text(row[name], name) for name in ("candidate", "theirs"))
    return Comparison(prompt, candidate, theirs, slice_of(row))


def show_read(console: Console, read: Read, asked: Sequence[Comparison]) -> None:
    """How many of what the file holds are asked about, and why others are not."""
    console.print(f"{len(asked)} of {len(read.comparisons)} comparisons")
    for why, count in read.left_out.most_common():
        console.print(f"  {count} rows left out: {escape(why)}")


def show_plan(
    console: Console, asked: Sequence[Comparison], experiment: str, name: str, people: Sequence[str]
) -> None:
    """What would be made."""
    for who in people or ("",):
        queue = f"{name}/{who}" if who else name
        left = sum(not each.shown(name, who).turned for each in asked)
        by = f"by {who}" if who else "once, by whoever is put into the queue in MLflow"
        console.print(
            f"would make, in experiment {escape(experiment)}: queue {escape(queue)}, "
            f"{len(asked)} comparisons to be answered {escape(by)} ({left} with the one answer on "
            f"the left, {len(asked) - left} with the other)"
        )


def show_created(
    console: Console, created: Created, experiment: str, name: str, people: Sequence[str]
) -> None:
    """What was made, and where people go."""
    console.print(f"{created.num_traces} new, {created.num_known} were there")
    for queue, address in created.queues.items():
        console.print(f"{escape(queue)}: {escape(address)}", soft_wrap=True)
    who = "Each reviewer needs" if people else "Put reviewers into the queue there; each needs"
    console.print(
        f"{who} EDIT on the experiment {escape(experiment)}. Finished labels are the source "
        f"mlflow-labels://{escape(_quoted(experiment))}/{escape(name)}",
        soft_wrap=True,
    )


def show_progress(console: Console, told: Iterable[Progress]) -> None:
    """A line for each annotator of each queue."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("queue", "annotator", "done", "declined", "open"):
        table.add_column(column, justify="left" if column in ("queue", "annotator") else "right")
    for each in told:
        people = sorted({*each.users, *each.done}) or ["nobody yet"]
        for at, who in enumerate(people):
            shared = (str(each.declined), str(each.open)) if at == 0 else ("", "")
            table.add_row(escape(each.queue), escape(who), str(each.done[who]), *shared)
    console.print(table)


def _quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name, safe="/~")
