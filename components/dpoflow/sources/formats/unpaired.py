"""`unpaired`: one answer with a thumb up or down, as users give them.

    TRL            {"prompt": "…" or [{…}], "completion": "…" or [{…}], "label": true}
    LLaMA-Factory  {"messages": [{"role": "user", …}, {"role": "assistant", …}], "label": true}

huggingface.co/docs/trl/dataset_formats ("Unpaired preference") and hiyouga/LLaMA-Factory,
data/README.md (KTO, with `messages`, `conversations` or `kto_tag`). A thumb is true or false, also
as tables write them (1, 0, "true", "false"); anything in between is refused, because where up
begins would be a guess. `slice` (optional) names the group that reports count it in.
"""

from dpoflow.contracts.pairs import Message, Rating, Source
from dpoflow.sources.formats.messages import (
    Format,
    Row,
    conversation,
    field,
    is_message_list,
    messages,
    slice_of,
    text,
)
from dpoflow.sources.formats.sharegpt import SPEAKERS
from dpoflow.sources.reasons import Quarantine

_THUMBS = ("label", "kto_tag")
_THREADS = ("messages", "conversations")
_SAID = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}


def fits(row: Row) -> bool:
    """Whether there is a thumb, and one conversation or a prompt with one answer."""
    thumbs = [name for name in _THUMBS if name in row]
    asked = "prompt" in row and "completion" in row
    threads = [name for name in _THREADS if is_message_list(row.get(name))]
    return len(thumbs) == 1 and asked + len(threads) == 1


def convert(row: Row, origin: Source) -> Rating:
    """The row as a rating."""
    name = next((name for name in _THUMBS if row.get(name) is not None), _THUMBS[0])
    desirable = thumb(field(row, name), name)
    turns = _asked(row) if "completion" in row else _thread(row)
    if not turns or turns[-1].role != "assistant":
        raise Quarantine("last_turn_not_assistant")
    return Rating(
        prompt=conversation(turns[:-1]),
        answer=turns[-1],
        desirable=desirable,
        source=origin,
        slice=slice_of(row),
    )


def thumb(value: object, name: str) -> bool:
    """Up or down, also as tables write it."""
    said = value.strip().lower() if isinstance(value, str) else value
    if isinstance(said, bool | int | float | str) and said in _SAID:
        return _SAID[said]
    raise Quarantine("wrong_type", f"{name} is no thumb: true or false")


def _asked(row: Row) -> tuple[Message, ...]:
    asked, answer = field(row, "prompt"), field(row, "completion")
    before = (
        (Message(role="user", content=text(asked, "prompt")),)
        if isinstance(asked, str)
        else messages(asked, "prompt")
    )
    if isinstance(answer, str):
        return *before, Message(role="assistant", content=text(answer, "completion"))
    after = messages(answer, "completion")
    if len(after) != 1:
        raise Quarantine("unsupported_content", f"completion has {len(after)} turns, not one")
    return *before, *after


def _thread(row: Row) -> tuple[Message, ...]:
    name = next((name for name in _THREADS if row.get(name) is not None), _THREADS[0])
    turns = field(row, name)
    if is_message_list(turns) and "from" in turns[0]:
        return messages(turns, name, who="from", what="value", roles=SPEAKERS)
    return messages(turns, name)


FORMAT = Format(
    name="unpaired",
    keys="label (true, false), with messages, or with prompt and completion",
    reads=frozenset({"prompt", "completion", "slice", *_THUMBS, *_THREADS}),
    fits=fits,
    convert=convert,
)
