"""What one pair or prompt must be by itself.

Reads   canonical rows
Gives   `check`: raises Quarantine for the first thing that is wrong
Not     the shape of foreign rows (formats/), what only the whole set shows (validate/)
"""

from dpoflow.contracts.pairs import Item, Message, PreferencePair, Rating
from dpoflow.sources.reasons import Quarantine


def check(item: Item, *, max_chars: int) -> None:
    """Blank, identical or overlong texts. Blanks around an answer do not make it another answer."""
    _check_prompt(item.prompt)
    lengths = {"prompt": sum(len(turn.content) for turn in item.prompt)}
    if isinstance(item, PreferencePair):
        chosen, rejected = item.chosen.content, item.rejected.content
        if not chosen.strip():
            raise Quarantine("empty_chosen")
        if not rejected.strip():
            raise Quarantine("empty_rejected")
        if chosen.strip() == rejected.strip():
            raise Quarantine("identical")
        lengths |= {"chosen": len(chosen), "rejected": len(rejected)}
    elif isinstance(item, Rating):
        if not item.answer.content.strip():
            raise Quarantine("empty_answer")
        lengths["answer"] = len(item.answer.content)
    elif item.reference is not None:
        lengths["gold"] = len(item.reference)
    for name, num_chars in lengths.items():
        if num_chars > max_chars:
            raise Quarantine(
                "too_long", f"{name} has {num_chars} characters, data.max_chars is {max_chars}"
            )


def _check_prompt(prompt: tuple[Message, ...]) -> None:
    if not prompt[-1].content.strip():
        raise Quarantine("empty_prompt")
    for at, turn in enumerate(prompt[:-1]):
        if not turn.content.strip():
            raise Quarantine("empty_turn", f"turn {at + 1}, {turn.role}")
