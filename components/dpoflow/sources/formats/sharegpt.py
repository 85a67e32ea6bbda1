"""`sharegpt`: ShareGPT ranking, as LLaMA-Factory's data/README.md documents it.

    {"conversations": [{"from": "human", "value": "…"}, …], "system": "…",
     "chosen": {"from": "gpt", "value": "…"}, "rejected": {"from": "gpt", "value": "…"}}

and LLaMA-Factory's second layout (its data/v1_dpo_demo.jsonl), two whole conversations:

    {"chosen_messages": [{"role": "user", "content": [{"type": "text", "value": "…"}]}, …],
     "rejected_messages": [same]}

Roles: human, gpt and system. Tools (`tools`, function_call, observation) and pictures are refused,
not dropped. A `system` field becomes the first turn; beside a system turn it would be one too many.
`loss_weight` is not used: DPO weighs the last answer alone.
"""

from collections.abc import Mapping
from typing import Any

from dpoflow.contracts.pairs import Message, PreferencePair, Role, Source
from dpoflow.sources.formats.messages import (
    Format,
    Row,
    conversation,
    field,
    final_answers,
    is_message_list,
    message,
    messages,
    pair,
    text,
)
from dpoflow.sources.reasons import Quarantine

SPEAKERS: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}
_LAYOUT: dict[str, Any] = {"who": "from", "what": "value", "roles": SPEAKERS}
_MEDIA = ("tools", "images", "videos", "audios")


def fits(row: Row) -> bool:
    """Whether it has the fields of either layout."""
    if is_message_list(row.get("chosen_messages")) or is_message_list(row.get("rejected_messages")):
        return True
    return "conversations" in row and isinstance(row.get("chosen"), Mapping)


def convert(row: Row, origin: Source) -> PreferencePair:
    """The row as a pair."""
    for name in _MEDIA:
        if row.get(name):
            raise Quarantine("unsupported_content", name)
    if "chosen_messages" in row or "rejected_messages" in row:
        chosen, rejected = (
            messages(field(row, name), name) for name in ("chosen_messages", "rejected_messages")
        )
        return pair(row, origin, *final_answers(chosen, rejected))
    prompt = conversation(
        _system(row) + messages(field(row, "conversations"), "conversations", **_LAYOUT)
    )
    answers = (message(field(row, name), name, **_LAYOUT) for name in ("chosen", "rejected"))
    return pair(row, origin, *final_answers(*((*prompt, answer) for answer in answers)))


def _system(row: Row) -> tuple[Message, ...]:
    given = row.get("system")
    return (Message(role="system", content=text(given, "system")),) if given else ()


FORMAT = Format(
    name="sharegpt",
    keys="conversations, chosen, rejected (from, value); or chosen_messages, rejected_messages",
    reads=frozenset(
        {"conversations", "system", "chosen", "rejected", "chosen_messages", "rejected_messages"}
        | {"slice", *_MEDIA}
    ),
    fits=fits,
    convert=convert,
)
