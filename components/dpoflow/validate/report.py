"""What validate tells people: a page of facts, and every row that was not used with its reason.

Reads   a settled ledger
Gives   `write` (report.json, report.html, quarantine.jsonl), `reasons` (for error messages)
Not     deciding what is too much: see step.py
"""

import json
from pathlib import Path
from typing import Any

from dpoflow.contracts.results import Counts
from dpoflow.sources.reasons import REASONS
from dpoflow.validate.figures import PAGE
from dpoflow.validate.ledger import Kind, Ledger, Refused
from dpoflow.validate.page import data_page

REPORT = "report.json"
QUARANTINE = "quarantine.jsonl"
_EXAMPLES = 3
_PAIRS = 8


def write(
    folder: Path,
    ledger: Ledger,
    counts: Counts,
    *kinds: Kind,
    facts: dict[str, Any],
) -> None:
    """All three, about the rows that `counts` are of.

    Every row that came in and is not kept has a line in the list.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / QUARANTINE).open("w", encoding="utf-8") as out:
        for refused in ledger.quarantined():
            out.write(json.dumps(_line(refused), ensure_ascii=False) + "\n")
    page = {
        "schema_version": 1,
        "counts": counts.model_dump(mode="json"),
        "reasons": {code: text for code, text in REASONS.items() if code in counts.quarantined},
        "by_source": ledger.by_source(*kinds),
        "by_slice": ledger.by_slice(),
        "lengths": ledger.length_histogram(),
        "tokens": ledger.token_lengths(),
        "languages": ledger.languages(),
        "findings": ledger.findings(),
        "labels": ledger.labels(),
        **facts,
    }
    text = json.dumps(page, indent=1, ensure_ascii=False)
    (folder / REPORT).write_text(text + "\n", encoding="utf-8")
    shown = data_page(page, ledger.examples(_EXAMPLES), ledger.some_pairs(_PAIRS))
    (folder / PAGE).write_text(shown, encoding="utf-8")


def reasons(ledger: Ledger, counts: Counts) -> str:
    """`identical 3 (first at train.jsonl:17), empty_chosen 1 (first at …)`."""
    return ", ".join(
        f"{code} {count} (first at {ledger.first_of(code)})"
        for code, count in counts.quarantined.items()
    )


def _line(refused: Refused) -> dict[str, str]:
    return {
        "reason": refused.code,
        "dataset": refused.dataset,
        "row": refused.row,
        "detail": refused.detail,
        "excerpt": refused.excerpt,
    }
