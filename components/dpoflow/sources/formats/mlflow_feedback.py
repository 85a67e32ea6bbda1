"""`mlflow-feedback`: a thumb on the trace of an application, with what the trace holds.

    {"id": "…", "trace": "tr-…", "request": …, "response": …, "thumb": true, "at": 1}

tracking/feedback.py writes these rows; `request` and `response` are what went into the trace's root
span and what came out. Applications lay them out as they like; these are read:

    request    text; messages; an object with messages (OpenAI, Anthropic, LangChain), with input
               that is text or messages (OpenAI Responses), or with one text, whatever its name
               (a traced function)
    response   text; a message; messages, the last of which it is; choices (OpenAI); output (OpenAI
               Responses); content, text or one text part (Anthropic); one text, whatever its name

Where it would be a guess which text is meant, the row is told as ambiguous.
"""

from collections.abc import Mapping
from typing import Any

from dpoflow.contracts.pairs import Message, Rating, Source
from dpoflow.sources.formats.messages import (
    CHAT_ROLES,
    Format,
    Row,
    conversation,
    field,
    is_message_list,
    messages,
    text,
)
from dpoflow.sources.formats.unpaired import thumb
from dpoflow.sources.reasons import Quarantine

_ROLES = {**CHAT_ROLES, "developer": CHAT_ROLES["system"], "human": CHAT_ROLES["user"]}
_ROLES["ai"] = CHAT_ROLES["assistant"]
_OUTPUT_TEXT = ("text", "output_text")


def fits(row: Row) -> bool:
    """Whether it is a row of ours: a trace and a thumb."""
    return isinstance(row.get("trace"), str) and "thumb" in row and "request" in row


def convert(row: Row, origin: Source) -> Rating:
    """The row as a rating."""
    desirable = thumb(field(row, "thumb"), "thumb")
    prompt = conversation(_asked(field(row, "request")))
    answer = _answer(field(row, "response"))
    return Rating(
        prompt=prompt,
        answer=Message(role="assistant", content=text(answer, "response")),
        desirable=desirable,
        source=origin,
    )


def _asked(request: Any) -> tuple[Message, ...]:
    if isinstance(request, str):
        return (Message(role="user", content=text(request, "request")),)
    if is_message_list(request):
        return _turns(request, "request")
    if not isinstance(request, Mapping):
        raise Quarantine("wrong_type", "request is neither text, messages nor an object")
    for name in ("messages", "input"):
        if is_message_list(request.get(name)):
            return (*_instructed(request), *_turns(request[name], f"request.{name}"))
    if isinstance(request.get("input"), str):
        asked = Message(role="user", content=text(request["input"], "request.input"))
        return (*_instructed(request), asked)
    return (Message(role="user", content=_only_text(request, "request")),)


def _instructed(request: Mapping[str, Any]) -> tuple[Message, ...]:
    """A system message that stands beside the messages: Anthropic's, OpenAI Responses'."""
    for name in ("system", "instructions"):
        if isinstance(request.get(name), str):
            return (Message(role="system", content=text(request[name], f"request.{name}")),)
    return ()


def _turns(value: Any, where: str) -> tuple[Message, ...]:
    who = "role" if "role" in value[0] else "type"  # LangChain's messages say `type`
    return messages(value, where, who=who, roles=_ROLES)


def _answer(response: Any) -> str:
    if isinstance(response, str):
        return response
    if isinstance(response, list):
        return _last(response, "response")
    if not isinstance(response, Mapping):
        raise Quarantine("wrong_type", "response is neither text, messages nor an object")
    if isinstance(choices := response.get("choices"), list):
        if len(choices) != 1 or not isinstance(choices[0], Mapping):
            raise Quarantine("ambiguous", f"response.choices has {len(choices)} answers, not one")
        return _of_turn(choices[0].get("message", choices[0]), "response.choices[0]")
    for name in ("messages", "output"):
        if isinstance(response.get(name), list):
            return _last(response[name], f"response.{name}")
    if "content" in response:
        return _of_turn(response, "response")
    return _only_text(response, "response")


def _last(turns: list[Any], where: str) -> str:
    """Of messages, or of what a model put out: reasoning and calls may stand before the answer."""
    if not turns:
        raise Quarantine("missing_field", f"{where} is empty")
    last = turns[-1]
    said_by = last.get("role", last.get("type")) if isinstance(last, Mapping) else None
    if said_by not in ("assistant", "ai"):
        raise Quarantine("last_turn_not_assistant", where)
    return _of_turn(last, f"{where}[{len(turns) - 1}]")


def _of_turn(turn: Any, where: str) -> str:
    if isinstance(turn, str):
        return turn
    if not isinstance(turn, Mapping):
        raise Quarantine("wrong_type", f"{where} is no message")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise Quarantine("unsupported_content", f"{where} calls a tool")
    content = field(turn, "content" if "content" in turn else "text")
    if not isinstance(content, list):
        return text(content, f"{where}.content")
    parts = [part for part in content if isinstance(part, Mapping)]
    if len(content) != 1 or not parts or parts[0].get("type") not in _OUTPUT_TEXT:
        raise Quarantine("unsupported_content", f"{where} has {len(content)} parts, not one text")
    return text(field(parts[0], "text"), f"{where}.content")


def _only_text(value: Mapping[str, Any], where: str) -> str:
    texts = [name for name, inner in value.items() if isinstance(inner, str)]
    if len(texts) != 1:
        some = ", ".join(sorted(str(name)[:40] for name in value)[:8]) or "nothing"
        raise Quarantine("ambiguous", f"{where} has {len(texts)} texts, in {some}")
    return text(value[texts[0]], f"{where}.{texts[0][:40]}")


FORMAT = Format(
    name="mlflow-feedback",
    keys="trace, request, response, thumb, at",
    reads=frozenset({"id", "trace", "request", "response", "thumb", "at"}),
    fits=fits,
    convert=convert,
)
