"""Reading turns out of foreign rows, refusing by reason code what would have to be guessed.

Reads   a row's fields: strings, or lists of messages
Gives   `text`, `number`, `one_of`, `message`, `messages`, `conversation`, `question`,
        `final_answers`, `pair`, `scored`
Not     blank, identical or long texts: see ../checks.py
"""

import contextlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dpoflow.contracts.pairs import Item, Label, Message, PreferencePair, Role, Source, Vote
from dpoflow.contracts.spec import FormatName
from dpoflow.sources.reasons import Quarantine

Row = Mapping[str, Any]
CHAT_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
MAX_SLICE_CHARS = 100


@dataclass(frozen=True)
class Format:
    """One layout of preference data."""

    name: FormatName
    keys: str
    """The fields that tell it apart, for people."""
    reads: frozenset[str]
    """Every top-level field that `convert` looks at; others are named in the report."""
    fits: Callable[[Row], bool]
    """Whether a row has this layout, by its fields and their types alone."""
    convert: Callable[[Row, Source], Item]
    """The row as ours; raises Quarantine."""
    also_reads: Callable[[Row], Collection[str]] = lambda row: ()
    """Fields whose names the row itself tells, beside those in `reads`."""


def field(row: Row, name: str) -> Any:
    """A field that must be there."""
    value = row.get(name)
    if value is None:
        raise Quarantine("missing_field", name)
    return value


def text(value: object, where: str) -> str:
    """A string that can be written as UTF-8."""
    if not isinstance(value, str):
        raise Quarantine("wrong_type", f"{where} is {_kind(value)}, not a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Quarantine("lone_surrogate", f"{where}, character {error.start + 1}") from None
    return value


def message(
    value: object,
    where: str,
    *,
    who: str = "role",
    what: str = "content",
    roles: Mapping[str, Role] = CHAT_ROLES,
) -> Message:
    """One turn; `who` and `what` name the fields that hold its speaker and its text."""
    if not isinstance(value, Mapping):
        raise Quarantine("wrong_type", f"{where} is {_kind(value)}, not a message")
    speaker = text(field(value, who), f"{where}.{who}")
    if value.get("tool_calls") or value.get("function_call"):
        raise Quarantine("unsupported_content", f"{where} calls a tool")
    if speaker not in roles:
        raise Quarantine("unknown_role", f"{where}.{who} is {speaker[:40]!r}")
    content = field(value, what)
    if isinstance(content, list):
        content = _only_text(content, f"{where}.{what}")
    return Message(role=roles[speaker], content=text(content, f"{where}.{what}"))


def messages(
    value: object,
    where: str,
    *,
    who: str = "role",
    what: str = "content",
    roles: Mapping[str, Role] = CHAT_ROLES,
) -> tuple[Message, ...]:
    """A list of turns, in order."""
    if not isinstance(value, list):
        raise Quarantine("wrong_type", f"{where} is {_kind(value)}, not a list of messages")
    return tuple(
        message(turn, f"{where}[{at}]", who=who, what=what, roles=roles)
        for at, turn in enumerate(value)
    )


def conversation(turns: Sequence[Message]) -> tuple[Message, ...]:
    """`turns` as a prompt: perhaps a system turn, then turns that alternate and end with a user."""
    if any(turn.role == "system" for turn in turns[1:]):
        raise Quarantine("system_not_first")
    spoken = [turn.role for turn in turns if turn.role != "system"]
    _must_alternate(spoken)
    if not spoken:
        raise Quarantine("empty_prompt", "no user turn")
    if spoken[-1] != "user":
        raise Quarantine("last_turn_not_user")
    return tuple(turns)


def question(value: object, where: str) -> tuple[Message, ...]:
    """A prompt that is text, or a list of turns."""
    if isinstance(value, str):
        return (Message(role="user", content=text(value, where)),)
    return conversation(messages(value, where))


def final_answers(
    chosen: Sequence[Message], rejected: Sequence[Message]
) -> tuple[tuple[Message, ...], str, str]:
    """The shared prompt and the two final answers of two whole conversations."""
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns or turns[-1].role != "assistant":
            raise Quarantine("last_turn_not_assistant", name)
        _must_alternate([turn.role for turn in turns if turn.role != "system"], name)
    prompt = tuple(chosen[:-1])
    if prompt != tuple(rejected[:-1]):
        raise Quarantine("prompts_differ", _where_they_part(prompt, rejected[:-1]))
    return conversation(prompt), chosen[-1].content, rejected[-1].content


def pair(
    row: Row,
    origin: Source,
    prompt: tuple[Message, ...],
    chosen: str,
    rejected: str,
    *,
    margin: float | None = None,
    label: Label | None = None,
    votes: tuple[Vote, ...] = (),
    slice_field: str = "slice",
) -> PreferencePair:
    """A pair out of its parts; without a label equal scores make a tie, kept for audit."""
    return PreferencePair(
        prompt=prompt,
        chosen=Message(role="assistant", content=chosen),
        rejected=Message(role="assistant", content=rejected),
        label=label or ("tie" if margin == 0 else "preferred"),
        margin=margin,
        votes=votes,
        source=origin,
        slice=slice_of(row, slice_field),
    )


def scored(row: Row) -> float | None:
    """score_chosen - score_rejected where the row has both; a negative one is refused."""
    scores = []
    for name in ("score_chosen", "score_rejected"):
        value = row.get(name)
        if value is None:
            return None
        scores.append(number(value, name))
    margin = scores[0] - scores[1]
    if margin < 0 or not math.isfinite(margin):
        raise Quarantine("scores_contradict", f"chosen {scores[0]:g}, rejected {scores[1]:g}")
    return margin


def slice_of(row: Row, named: str = "slice") -> str:
    """The row's slice, in the field so `named`; `all` where it names none."""
    value = row.get(named)
    if value is None or value == "":
        return "all"
    name = text(value, named)
    if len(name) > MAX_SLICE_CHARS:
        raise Quarantine(
            "wrong_type", f"{named} has {len(name)} characters, {MAX_SLICE_CHARS} at most"
        )
    return name


def is_message_list(value: object) -> bool:
    """Whether `value` looks like a list of turns."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _only_text(parts: list[object], where: str) -> str:
    """The text of a message made of one text part, as OpenAI and LLaMA-Factory write them."""
    if len(parts) != 1 or not isinstance(parts[0], Mapping) or parts[0].get("type") != "text":
        raise Quarantine("unsupported_content", f"{where} has {len(parts)} parts, not one text")
    return text(field(parts[0], "text" if "text" in parts[0] else "value"), where)


def one_of(value: object, allowed: tuple[int, ...], where: str) -> int:
    """One of some whole numbers, also as tables write them: 1.0 or "1"."""
    found = value.strip() if isinstance(value, str) else value
    for each in allowed:
        if not isinstance(found, bool) and found in (each, str(each)):
            return each
    names = " or ".join(map(str, allowed))
    raise Quarantine("wrong_type", f"{where} is {_kind(value)}, and takes {names}")


def number(value: object, where: str) -> float:
    """A finite number that is no truth value."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer of hundreds of digits
            if math.isfinite(found := float(value)):
                return found
    raise Quarantine("wrong_type", f"{where} is no finite number")


def _must_alternate(spoken: Sequence[Role], where: str = "") -> None:
    for at, (left, right) in enumerate(pairwise(spoken)):
        if left == right:
            place = f"{where} " if where else ""
            raise Quarantine("roles_do_not_alternate", f"{place}turns {at + 1} and {at + 2}")


def _where_they_part(left: Sequence[Message], right: Sequence[Message]) -> str:
    for at, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return f"from turn {at + 1}"
    return f"{len(left)} and {len(right)} turns before the answer"


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
