"""What validate tells people: a page of facts, and every row that was not used with its reason.

Reads   a settled ledger
Gives   `write` (report.json, quarantine.jsonl), `reasons` (for error messages)
Not     deciding what is too much: see step.py
"""

import json
from pathlib import Path
from typing import Any

from dpoflow.contracts.results import Counts
from dpoflow.sources.reasons import REASONS
from dpoflow.validate.ledger import Ledger, Refused

REPORT = "report.json"
QUARANTINE = "quarantine.jsonl"


def write(folder: Path, ledger: Ledger, counts: Counts, *, facts: dict[str, Any]) -> None:
    """Both files. Every row that came in and is not kept has a line in the list."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / QUARANTINE).open("w", encoding="utf-8") as out:
        for refused in ledger.quarantined():
            out.write(json.dumps(_line(refused), ensure_ascii=False) + "\n")
    page = {
        "schema_version": 1,
        "counts": counts.model_dump(mode="json"),
        "reasons": {code: text for code, text in REASONS.items() if code in counts.quarantined},
        "by_source": ledger.by_source(),
        "by_slice": ledger.by_slice(),
        **facts,
    }
    text = json.dumps(page, indent=1, ensure_ascii=False)
    (folder / REPORT).write_text(text + "\n", encoding="utf-8")


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
