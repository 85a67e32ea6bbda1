"""From pinned files to the ledger, on all processors.

Reads   the folder that snapshot pinned
Gives   `read_into`: every row of every file is in the ledger, as a row or as a refusal; `FileFacts`
Not     looking at a row (row.py), what only the whole set shows (ledger.py)
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dpoflow.contracts.errors import DataRejected
from dpoflow.contracts.spec import ValidateConfig
from dpoflow.sources.json_rows import Raw
from dpoflow.sources.pinned import Pinned, read_pinned
from dpoflow.sources.pinned_rows import format_of, prompts_of, rows_of
from dpoflow.sources.reasons import Quarantine
from dpoflow.state.events import Events
from dpoflow.texts.contamination import Evaluations
from dpoflow.texts.plain import texts_in
from dpoflow.validate import excerpt
from dpoflow.validate.crew import Crew
from dpoflow.validate.ledger import Ledger
from dpoflow.validate.row import Batch, tokenizer_of

MAX_FIELDS_NAMED = 50
_BATCH = 1000
_BATCH_CHARS = 4_000_000


@dataclass
class FileFacts:
    """What the report says of one file."""

    source: str
    file: str
    format: str
    licence: str
    sha256: str
    role: str
    num_rows: int = 0
    fields_not_used: set[str] = field(default_factory=set)
    """Fields of its rows that the format has no use for."""

    def told(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "fields_not_used": sorted(self.fields_not_used)}


def read_into(
    ledger: Ledger, data: Path, model: Path | None, config: ValidateConfig, events: Events
) -> list[FileFacts]:
    """Read every pinned file, in the order of their names; what is evaluation's first."""
    facts, evaluations = list[FileFacts](), Evaluations()
    pinned = read_pinned(data)
    for each in pinned:
        if each.role in ("heldout", "learnt"):
            facts.append(_remember(ledger, data, each, events))
        if each.role == "evaluation":
            facts.append(_learn(evaluations, data, each, config, events))
    with Crew(config, tokenizer_of(model, config), evaluations) as crew:
        for each in pinned:
            if each.role in ("new", "replayed"):
                reader = _FileReader(data, each, config, events)
                for columns in crew.look_at(reader.batches()):
                    ledger.add(columns)
                facts.append(reader.facts)
    return facts


class _FileReader:
    """One file's rows, counted as they pass."""

    def __init__(self, data: Path, pinned: Pinned, config: ValidateConfig, events: Events) -> None:
        self._form, self._rows = format_of(pinned, _rows(data, pinned, config))
        self._pinned, self._events = pinned, events
        self.facts = _facts(pinned, self._form.name)

    def batches(self) -> Iterator[Batch]:
        """Its rows, some at a time."""
        some, size = list[tuple[str, Raw]](), 0
        for row_id, row in self._counted():
            some.append((row_id, row))
            size += _num_chars(row)
            if len(some) == _BATCH or size > _BATCH_CHARS:
                yield Batch(self._pinned, self._form.name, some)
                some, size = [], 0
        if some:
            yield Batch(self._pinned, self._form.name, some)

    def _counted(self) -> Iterator[tuple[str, Raw]]:
        facts, form = self.facts, self._form
        shown = f"read {excerpt.plain(self._pinned.name)}"
        for row_id, row in self._events.track(self._rows, shown):
            facts.num_rows += 1
            if isinstance(row, dict) and len(facts.fields_not_used) < MAX_FIELDS_NAMED:
                used = form.reads.union(form.also_reads(row))
                facts.fields_not_used |= {excerpt.plain(key) for key in row.keys() - used}
            yield row_id, row


def _remember(ledger: Ledger, data: Path, pinned: Pinned, events: Events) -> FileFacts:
    """Take in on which side prompts were before."""
    facts = _facts(pinned, "canonical")
    kept_out = pinned.role == "heldout"
    counted = events.track(prompts_of(data, pinned), f"read {excerpt.plain(pinned.name)}")
    for prompt in counted:
        facts.num_rows += 1
        ledger.remember(prompt, kept_out=kept_out)
    return facts


def _learn(
    evaluations: Evaluations, data: Path, pinned: Pinned, config: ValidateConfig, events: Events
) -> FileFacts:
    """Take an evaluation set in. One that is known in part protects nobody."""
    facts = _facts(pinned, "any")
    shown = f"read {excerpt.plain(pinned.name)}"
    for row_id, row in events.track(_rows(data, pinned, config), shown):
        facts.num_rows += 1
        if isinstance(row, Quarantine) or not evaluations.add(row, pinned.source):
            why = row if isinstance(row, Quarantine) else f"fields: {', '.join(row)}"
            raise DataRejected(
                f"{excerpt.plain(row_id)} of the evaluation set {pinned.source} asks nothing that "
                f"could be found ({excerpt.plain(str(why))}); call the question prompt, or take "
                "the set out of data.evaluation_sets"
            )
    return facts


def _rows(data: Path, pinned: Pinned, config: ValidateConfig) -> Iterator[tuple[str, Raw]]:
    return rows_of(
        data, pinned, max_line_mb=config.max_line_mb, max_unpacked_gb=config.max_unpacked_gb
    )


def _facts(pinned: Pinned, form: str) -> FileFacts:
    return FileFacts(pinned.source, pinned.name, form, pinned.licence, pinned.sha256, pinned.role)


def _num_chars(row: Raw) -> int:
    return sum(map(len, texts_in(row)))
