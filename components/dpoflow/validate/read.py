"""From pinned files to canonical rows, counted.

Reads   the folder that snapshot pinned
Gives   `read_into`: every row of every file is in the ledger, as a row or as a refusal; `FileFacts`
Not     what only the whole set shows: see ledger.py
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from dpoflow.contracts.pairs import Source, with_system
from dpoflow.contracts.spec import ValidateConfig
from dpoflow.sources.files import read_rows
from dpoflow.sources.formats import registry
from dpoflow.sources.formats.messages import Format
from dpoflow.sources.json_rows import Raw
from dpoflow.sources.pinned import FILES, Pinned, read_pinned
from dpoflow.sources.reasons import Quarantine
from dpoflow.state.events import Events
from dpoflow.validate import excerpt
from dpoflow.validate.checks import check
from dpoflow.validate.ledger import Ledger

MAX_FIELDS_NAMED = 50


@dataclass
class FileFacts:
    """What the report says of one file."""

    source: str
    file: str
    format: str
    licence: str
    sha256: str
    num_rows: int = 0
    fields_not_used: set[str] = field(default_factory=set)
    """Fields of its rows that the format has no use for."""

    def told(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "fields_not_used": sorted(self.fields_not_used)}


def read_into(
    ledger: Ledger, data: Path, config: ValidateConfig, events: Events
) -> list[FileFacts]:
    """Read every pinned file, in the order of their names."""
    return [_read_file(ledger, data, pinned, config, events) for pinned in read_pinned(data)]


def _read_file(
    ledger: Ledger, data: Path, pinned: Pinned, config: ValidateConfig, events: Events
) -> FileFacts:
    rows = read_rows(
        data / FILES / pinned.sha256,
        pinned.name,
        max_line_mb=config.max_line_mb,
        max_unpacked_gb=config.max_unpacked_gb,
    )
    form, rows = _format_of(pinned, rows)
    facts = FileFacts(pinned.source, pinned.name, form.name, pinned.licence, pinned.sha256)
    for row_id, row in events.track(rows, f"read {excerpt.plain(pinned.name)}"):
        facts.num_rows += 1
        if isinstance(row, dict) and len(facts.fields_not_used) < MAX_FIELDS_NAMED:
            used = form.reads.union(form.also_reads(row))
            facts.fields_not_used |= {excerpt.plain(key) for key in row.keys() - used}
        origin = Source(dataset=pinned.source, row=row_id, licence=pinned.licence)
        _take(ledger, row, form, origin, pinned, max_chars=config.max_chars)
    return facts


def _format_of(
    pinned: Pinned, rows: Iterator[tuple[str, Raw]]
) -> tuple[Format, Iterator[tuple[str, Raw]]]:
    if pinned.format != "auto":
        return registry.FORMATS[pinned.format], rows
    first = list(islice(rows, registry.LOOK_AT))
    return registry.recognise([row for _, row in first], pinned.name), chain(first, rows)


def _take(
    ledger: Ledger, row: Raw, form: Format, origin: Source, pinned: Pinned, *, max_chars: int
) -> None:
    try:
        item = with_system(registry.convert(row, form, origin), pinned.system)
        check(item, max_chars=max_chars)
    except Quarantine as refusal:
        glimpse = "" if isinstance(row, Quarantine) else excerpt.of_row(row)
        ledger.refuse(origin, refusal.code, refusal.detail, glimpse)
    else:
        if pinned.replayed:  # the policy may have learnt from it: it can test nothing any more
            ledger.add(item, origin, origin="replayed", split="train")
        else:
            ledger.add(item, origin)
