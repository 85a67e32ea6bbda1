"""`trl`: the four preference layouts of TRL (huggingface.co/docs/trl/dataset_formats).

    standard        {"prompt": "…", "chosen": "…", "rejected": "…"}
    conversational  {"prompt": [{"role": …, "content": …}], "chosen": [{…}], "rejected": [{…}]}

and each of the two without `prompt` (implicit): chosen and rejected then begin with it.
`score_chosen` and `score_rejected`, where present, give the margin.

An implicit prompt of messages is every turn but the last. An implicit prompt of text is what both
texts begin with, cut back to the last blank, so that no word is split; TRL does the same but for
the cut. A text prompt becomes one user turn. Answers of several turns are refused: which of them
was preferred is not said.
"""

from itertools import takewhile

from dpoflow.contracts.pairs import Message, PreferencePair, Source
from dpoflow.sources.formats import hh_rlhf
from dpoflow.sources.formats.messages import (
    Format,
    Row,
    conversation,
    field,
    final_answers,
    is_message_list,
    messages,
    pair,
    scored,
    text,
)
from dpoflow.sources.reasons import Quarantine


def fits(row: Row) -> bool:
    """Whether chosen, rejected and the prompt, if any, are all text or all lists of messages."""
    given = [row.get("chosen"), row.get("rejected")]
    given += [row["prompt"]] if row.get("prompt") is not None else []
    all_text = all(isinstance(value, str) for value in given)
    return (all_text or all(is_message_list(value) for value in given)) and not hh_rlhf.fits(row)


def convert(row: Row, origin: Source) -> PreferencePair:
    """The row as a pair, by which of the four layouts it has."""
    chosen, rejected = field(row, "chosen"), field(row, "rejected")
    if isinstance(chosen, str) or isinstance(rejected, str):
        parts = _standard(row.get("prompt"), text(chosen, "chosen"), text(rejected, "rejected"))
    else:
        parts = _conversational(
            row.get("prompt"), messages(chosen, "chosen"), messages(rejected, "rejected")
        )
    return pair(row, origin, *parts, margin=scored(row))


def _standard(prompt: object, chosen: str, rejected: str) -> tuple[tuple[Message, ...], str, str]:
    if prompt is None:
        asked = shared_prompt(chosen, rejected)
        chosen, rejected = chosen[len(asked) :].lstrip(), rejected[len(asked) :].lstrip()
    else:
        asked = text(prompt, "prompt")
    return (Message(role="user", content=asked),), chosen, rejected


def shared_prompt(chosen: str, rejected: str) -> str:
    """What both texts begin with, cut back to the last blank; the blank itself is left off."""
    both = zip(chosen, rejected, strict=False)
    end = sum(1 for _ in takewhile(lambda two: two[0] == two[1], both))
    inside_word = any(text[end : end + 1].strip() for text in (chosen, rejected))
    if inside_word:
        while end and not chosen[end - 1].isspace():
            end -= 1
    prompt = chosen[:end].rstrip()
    if not prompt:
        raise Quarantine("no_common_prompt")
    return prompt


def _conversational(
    prompt: object, chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], str, str]:
    if prompt is None:
        return final_answers(chosen, rejected)
    asked = messages(prompt, "prompt")
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if len(answer) > 1:
            raise Quarantine("unsupported_content", f"{name} has {len(answer)} turns, not one")
    conversation(asked)
    return final_answers(asked + chosen, asked + rejected)


FORMAT = Format(
    name="trl",
    keys="chosen, rejected and perhaps prompt (all text, or all lists of messages)",
    reads=frozenset({"prompt", "chosen", "rejected", "score_chosen", "score_rejected", "slice"}),
    fits=fits,
    convert=convert,
)
