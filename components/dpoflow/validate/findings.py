"""What is in the texts of a row that a reader would want to know, or not want to be learnt.

Reads   a canonical row
Gives   `Findings`: name of a finding to what it is and where; `kinds_of`, what to count it as
Not     what becomes of it (row.py); what is wrong with a row whatever it says (checks.py)
"""

import re

from ftfy.badness import is_bad

from dpoflow.contracts.pairs import Item, PreferencePair, Rating
from dpoflow.contracts.spec import Finding, ValidateConfig
from dpoflow.policy.answers import refuses
from dpoflow.texts.language import language_of
from dpoflow.validate.private import personal_in, secrets_in

HIDDEN: frozenset[Finding] = frozenset({"personal", "secret"})
"""Nothing that is written down may show the texts of such a row."""
_REPLACED = "\N{REPLACEMENT CHARACTER}"


class Findings:
    """Looks at one row at a time."""

    def __init__(self, config: ValidateConfig) -> None:
        self._languages, self._region = frozenset(config.languages), config.phone_region

    def of(self, item: Item) -> tuple[dict[Finding, str], str | None]:
        """Finding to what and where, and the language of what is to be learnt."""
        texts = _texts(item)
        found: dict[Finding, str] = {}
        language = language_of(list(texts.values())[1 if len(texts) > 1 else 0])
        if self._languages and language is not None and language not in self._languages:
            found["language"] = language
        wanted = "answer" if isinstance(item, Rating) and item.desirable else "chosen"
        if refuses(texts.get(wanted, "")):
            found["refusal"] = wanted
        damaged = [name for name, text in texts.items() if is_damaged(text)]
        if damaged:
            found["damaged_text"] = ", ".join(damaged)
        for finding, kinds in (
            ("personal", {name: personal_in(text, self._region) for name, text in texts.items()}),
            ("secret", {name: secrets_in(text) for name, text in texts.items()}),
        ):
            told = [f"{kind} in {name}" for name, some in kinds.items() for kind in sorted(some)]
            if told:
                found[finding] = ", ".join(told)  # type: ignore[index]  # one of the two above
        return found, language


def kinds_of(finding: Finding, told: str) -> set[str]:
    """What to count a finding as: `personal: mail`; the same thing in two texts counts once."""
    if finding not in HIDDEN:
        return {f"{finding}: {told}" if finding == "language" else finding}
    return {f"{finding}: {re.sub(' in [a-z]+$', '', each)}" for each in told.split(", ")}


def _texts(item: Item) -> dict[str, str]:
    """By name: the prompt, then what is to be learnt, then what is not."""
    prompt = {"prompt": "\n".join(turn.content for turn in item.prompt)}
    if isinstance(item, PreferencePair):
        return {**prompt, "chosen": item.chosen.content, "rejected": item.rejected.content}
    if isinstance(item, Rating):
        return {**prompt, "answer": item.answer.content}
    return prompt if item.reference is None else {**prompt, "gold": item.reference}


def is_damaged(text: str) -> bool:
    """Whether `text` was decoded in a wrong encoding somewhere on its way."""
    return not text.isascii() and (_REPLACED in text or bool(is_bad(text)))
