r"""`hh-rlhf`: two whole transcripts (Bai et al. 2022, github.com/anthropics/hh-rlhf).

    {"chosen": "\n\nHuman: …\n\nAssistant: …", "rejected": "\n\nHuman: …\n\nAssistant: …"}

The prompt is every turn but the last, and must be the same in both, turn by turn. The common
prefix of the two strings is not the prompt: it runs into the answers, or stops inside a turn.
Known in the published files: empty final answers, two turns of one speaker in a row, rows in which
the two conversations differ before the last answer. Blanks around a turn belong to the layout.
"""

import re

from dpoflow.contracts.pairs import Message, PreferencePair, Role, Source
from dpoflow.sources.formats.messages import Format, Row, field, final_answers, pair, text
from dpoflow.sources.reasons import Quarantine

_MARK = re.compile(r"\n\n(Human|Assistant):")
_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


def fits(row: Row) -> bool:
    """Whether both texts carry the transcripts' marks."""
    texts = (row.get("chosen"), row.get("rejected"))
    return all(isinstance(value, str) and _MARK.search(value) for value in texts)


def turns(transcript: str, where: str) -> tuple[Message, ...]:
    """The turns of one transcript."""
    before, *parts = _MARK.split(transcript)
    if before.strip() or not parts:
        raise Quarantine("not_a_transcript", where)
    return tuple(
        Message(role=_ROLES[speaker], content=said.strip())
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    )


def convert(row: Row, origin: Source) -> PreferencePair:
    """The row as a pair."""
    chosen, rejected = (
        turns(text(field(row, name), name), name) for name in ("chosen", "rejected")
    )
    return pair(row, origin, *final_answers(chosen, rejected))


FORMAT = Format(
    name="hh-rlhf",
    keys=r"chosen and rejected (text with \n\nHuman: and \n\nAssistant:)",
    reads=frozenset({"chosen", "rejected", "slice"}),
    fits=fits,
    convert=convert,
)
