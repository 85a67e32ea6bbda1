"""What a folder of pinned data holds: the contract between snapshot and validate.

    sources.json       what each file is called, its format, licence and sha256
    files/<sha256>     the bytes

Reads   such a folder
Gives   `Pinned`, `read_pinned`, `write_pinned`
Not     copying (snapshot/), rows (files.py)
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from dpoflow.contracts.base import Contract, canonical_json
from dpoflow.contracts.errors import DataRejected
from dpoflow.contracts.spec import FormatName

DataRole = Literal["new", "replayed", "known", "evaluation", "answers", "heldout", "learnt"]
"""New preferences, old ones that are mixed in, and old ones that only tell what is new; what must
not be trained on, and answers to that; prompts that an earlier version was tested with, or learnt
from."""

LINEAGE: tuple[DataRole, ...] = ("heldout", "learnt")
"""What is kept of versions before."""

OURS: tuple[DataRole, ...] = ("known", *LINEAGE)
"""Files of our own artifacts, which nobody changes."""

SOURCES = "sources.json"
FILES = "files"


class Pinned(Contract):
    """One pinned file. Nothing here says where it lay: moving the data changes no digest."""

    source: str
    """Name of the source: what pairs call their dataset."""
    name: str
    """Path inside the source."""
    format: FormatName
    licence: str
    system: str | None = None
    """Put before every prompt that brings no system message."""
    sha256: str
    num_bytes: int
    role: DataRole = "new"


_LIST = TypeAdapter(tuple[Pinned, ...])


def write_pinned(entries: Iterable[Pinned], folder: Path) -> None:
    """List `entries` in one order, whatever order they came in."""
    ordered = sorted(entries, key=lambda entry: (entry.role, entry.source, entry.name))
    text = canonical_json(
        [entry.model_dump(mode="json", exclude_defaults=True) for entry in ordered]
    )
    (folder / SOURCES).write_text(text + "\n", encoding="utf-8")


def read_pinned(folder: Path) -> tuple[Pinned, ...]:
    """What `write_pinned` listed, in its order."""
    try:
        return _LIST.validate_json((folder / SOURCES).read_bytes())
    except (OSError, ValidationError) as error:
        raise DataRejected(
            f"{folder / SOURCES} cannot be used ({str(error).splitlines()[0]}); run snapshot again"
        ) from None
