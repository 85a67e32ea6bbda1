"""What is wrong with an answer, told from its text alone.

Reads   a text
Gives   `repeats`, `refuses`
Not     whether it is any good: judge/
"""

import re
from collections import Counter

_PHRASE, _TIMES = 4, 3
_REFUSAL = re.compile(
    r"\A\W*(?:(?:i(?:'|’)?m|i am) (?:really |very |so )?sorry,? (?:but|i)|sorry,? (?:but )?i|"  # noqa: RUF001
    r"i (?:can(?:not|'t|’t)|am (?:unable|not able)|won(?:'|’)t)|i(?:'|’)m (?:unable|not able)|"  # noqa: RUF001
    r"as an? (?:ai|artificial|large language|language model)|"
    r"(?:unfortunately|regrettably),? i (?:can(?:not|'t|’t)|am (?:unable|not able)))\b",  # noqa: RUF001
    re.IGNORECASE,
)


def repeats(text: str) -> bool:
    """Whether some run of four words occurs more than three times."""
    words = text.split()
    runs = Counter(tuple(words[i : i + _PHRASE]) for i in range(len(words) - _PHRASE + 1))
    return bool(runs) and max(runs.values()) > _TIMES


def refuses(text: str) -> bool:
    """Whether an answer opens as English refusals do."""
    return _REFUSAL.match(text) is not None
