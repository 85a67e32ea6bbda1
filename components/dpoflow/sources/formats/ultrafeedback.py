"""`ultrafeedback`: UltraFeedback, binarized (HuggingFaceH4/ultrafeedback_binarized on the Hub).

    {"prompt": "…", "prompt_id": "…", "chosen": [{"role": "user", …}, {"role": "assistant", …}],
     "rejected": [same], "messages": [same], "score_chosen": 8.0, "score_rejected": 5.5}

chosen and rejected are whole conversations; one of their user turns must be the row's `prompt`. The
scores (1 to 10, GPT-4's) give the margin. Equal scores are a tie: the published files draw chosen
at random there, so such a pair is kept for audit and never trained on.
"""

from dpoflow.contracts.pairs import PreferencePair, Source
from dpoflow.sources.formats.messages import (
    Format,
    Row,
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
    """Whether the prompt is text and the answers are conversations."""
    answers = (row.get("chosen"), row.get("rejected"))
    return isinstance(row.get("prompt"), str) and all(is_message_list(turns) for turns in answers)


def convert(row: Row, origin: Source) -> PreferencePair:
    """The row as a pair, with its margin."""
    asked = text(field(row, "prompt"), "prompt")
    prompt, chosen, rejected = final_answers(
        messages(field(row, "chosen"), "chosen"), messages(field(row, "rejected"), "rejected")
    )
    if asked.strip() not in (turn.content.strip() for turn in prompt if turn.role == "user"):
        raise Quarantine("prompts_differ", "prompt is no user turn of the conversations")
    return pair(row, origin, prompt, chosen, rejected, margin=scored(row))


FORMAT = Format(
    name="ultrafeedback",
    keys="prompt (text), chosen and rejected (conversations), score_chosen, score_rejected",
    reads=frozenset(
        # prompt_id and messages repeat what the others say
        {"prompt", "prompt_id", "chosen", "rejected", "messages", "slice"}
        | {"score_chosen", "score_rejected"}
    ),
    fits=fits,
    convert=convert,
)
