"""`canonical`: our own pairs and ratings, as contracts.pairs writes them.

    {"schema_version": 1, "pair_id": "…", "prompt": [{"role": "user", "content": "…"}],
     "chosen": {"role": "assistant", "content": "…"}, "rejected": {…}, "source": {…}, …}
    {"schema_version": 1, "rating_id": "…", "prompt": […], "answer": {…}, "desirable": true, …}

Published in contracts/pairs.py. Reads every field of `PreferencePair` and `Rating`; an id that does
not match the content is refused, because somebody edited the row. `split` and `quality` are
computed anew. A row without `source` gets the file it stands in.
"""

from collections.abc import Mapping

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from dpoflow.contracts.pairs import SCHEMA_VERSION, PreferencePair, Rating, Source
from dpoflow.sources.formats.messages import (
    Format,
    Row,
    conversation,
    field,
    is_message_list,
    message,
    messages,
    slice_of,
)
from dpoflow.sources.reasons import Code, Quarantine

_CODES: dict[str, Code] = {
    "missing": "missing_field",
    "extra_forbidden": "unknown_field",
    "value_error": "wrong_id",
}


def fits(row: Row) -> bool:
    """Whether each answer is one message with a role."""
    return is_message_list(row.get("prompt")) and all(
        isinstance(answer, Mapping) and "role" in answer
        for answer in (row.get(name) for name in _answers(row))
    )


def _answers(row: Row) -> tuple[str, ...]:
    return ("answer",) if "desirable" in row else ("chosen", "rejected")


def convert(row: Row, origin: Source) -> PreferencePair | Rating:
    """The row, validated; its own source is kept."""
    version = row.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise Quarantine("wrong_version", f"{str(version)[:20]}, ours is {SCHEMA_VERSION}")
    conversation(messages(field(row, "prompt"), "prompt"))
    for name in _answers(row):
        if message(field(row, name), name).role != "assistant":
            raise Quarantine("last_turn_not_assistant", name)
    given = {key: value for key, value in row.items() if key not in ("split", "quality")}
    given["slice"] = slice_of(row)
    if given.get("source") is None:
        given["source"] = origin
    try:
        model = Rating if "desirable" in row else PreferencePair
        made = model.model_validate(given)
        made.model_dump_json()  # pydantic takes half a surrogate pair in, and fails to write it
    except PydanticSerializationError:
        raise Quarantine("lone_surrogate") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        code = _CODES.get(first["type"], "wrong_type")
        raise Quarantine(code, f"{where}: {first['msg']}".removeprefix(": ")) from None
    return made


FORMAT = Format(
    name="canonical",
    keys="prompt (messages), chosen and rejected (one message each), or answer and desirable",
    reads=frozenset(PreferencePair.model_fields) | frozenset(Rating.model_fields),
    fits=fits,
    convert=convert,
)
