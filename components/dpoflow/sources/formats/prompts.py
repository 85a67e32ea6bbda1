"""`prompts`: questions that wait for answers.

    {"prompt": "…" or [{"role": "user", "content": "…"}], "gold": "…", "slice": "…"}

Our own layout; `prompt` is as TRL's prompt-only type has it (huggingface.co/docs/trl, "Dataset
formats"). `gold` (optional, blank counts as absent) is a human's answer and becomes the prompt's
reference; `slice` (optional) names the group that reports count it in.
"""

from dpoflow.contracts.pairs import Prompt, Source
from dpoflow.sources.formats import argilla
from dpoflow.sources.formats.messages import Format, Row, field, question, slice_of, text
from dpoflow.sources.reasons import Quarantine

_ANSWERS = ("chosen", "rejected")
_RATED = ("completion", "desirable")
"""Of `unpaired` and of our own ratings."""


def fits(row: Row) -> bool:
    """Whether there is a prompt and nobody answered it."""
    answered = any(name in row for name in (*_ANSWERS, *_RATED)) or argilla.is_flat(row)
    return "prompt" in row and not answered


def convert(row: Row, origin: Source) -> Prompt:
    """The row as a prompt."""
    for name in _ANSWERS:
        if row.get(name) is not None:
            raise Quarantine("unknown_field", f"{name}: this row is a pair, not a prompt")
    gold = row.get("gold")
    return Prompt(
        prompt=question(field(row, "prompt"), "prompt"),
        reference=None if gold is None else text(gold, "gold") if str(gold).strip() else None,
        source=origin,
        slice=slice_of(row),
    )


FORMAT = Format(
    name="prompts",
    keys="prompt (text or messages), perhaps gold and slice",
    reads=frozenset({"prompt", "gold", "slice"}),
    fits=fits,
    convert=convert,
)
