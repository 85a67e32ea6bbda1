"""Every format we read, and which of them some rows are in.

Reads   up to `LOOK_AT` first rows
Gives   `FORMATS`, `recognise`, `convert`
Not     the layouts: one module each, beside this one
"""

from collections.abc import Sequence

from dpoflow.contracts.errors import DataRejected
from dpoflow.contracts.pairs import Item, Source
from dpoflow.contracts.spec import FormatName
from dpoflow.sources.formats import (
    argilla,
    canonical,
    hh_rlhf,
    label_studio,
    mlflow_feedback,
    mlflow_labels,
    prompts,
    sharegpt,
    shp,
    summaries,
    trl,
    ultrafeedback,
    unpaired,
    votes,
)
from dpoflow.sources.formats.messages import Format
from dpoflow.sources.json_rows import Raw
from dpoflow.sources.reasons import Quarantine

FORMATS: dict[FormatName, Format] = {
    module.FORMAT.name: module.FORMAT
    for module in (
        *(canonical, hh_rlhf, trl, ultrafeedback, sharegpt, prompts),
        *(shp, summaries, votes, unpaired, argilla, label_studio, mlflow_labels, mlflow_feedback),
    )
}

LOOK_AT = 20
"""Rows that `recognise` goes by."""


def recognise(rows: Sequence[Raw], where: str) -> Format:
    """The one format that most of the first rows are in.

    A few odd rows are let through here, because converting will quarantine them. Without a clear
    majority nothing is guessed: DataRejected shows what was seen and what is known.
    """
    looked_at = [row for row in rows[:LOOK_AT] if isinstance(row, dict)]
    fitting = {form.name: sum(form.fits(row) for row in looked_at) for form in FORMATS.values()}
    best = [name for name, count in fitting.items() if 2 * count > len(looked_at)]
    if len(best) == 1:
        return FORMATS[best[0]]
    seen = sorted({_printable(key) for row in looked_at for key in row})
    some = [f"{name} {count}" for name, count in fitting.items() if count]
    known = "; ".join(f"{form.name}: {form.keys}" for form in FORMATS.values())
    raise DataRejected(
        f"{where}: the format of its first {len(rows[:LOOK_AT])} rows is "
        f"{'unclear (rows that fit: ' + ', '.join(some) + ')' if some else 'not known'}; "
        f"keys seen: {', '.join(seen[:20]) or 'none'}; "
        f"set data.sources[].format to one of these. {known}"
    )


def convert(row: Raw, form: Format, origin: Source) -> Item:
    """The row in our own terms; raises Quarantine, and nothing else whatever the row holds."""
    if isinstance(row, Quarantine):
        raise row
    return form.convert(row, origin)


def _printable(key: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in key[:40])
