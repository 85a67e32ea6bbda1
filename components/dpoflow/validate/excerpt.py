"""A glimpse of a row for the quarantine list: short, on one line, nothing a terminal would act on.

Reads   any row, however odd
Gives   `of_row`, `of_item`, `plain`, `NOT_SHOWN`
Not     the whole text: that stays in the pinned file, at the row id
"""

import reprlib

from dpoflow.contracts.pairs import Item, PreferencePair, Rating

MAX_CHARS = 200
NOT_SHOWN = "(not shown)"
"""In place of what may hold personal data or a secret."""

_short = reprlib.Repr()
_short.maxstring, _short.maxother, _short.maxlong = 60, 60, 40
_short.maxdict, _short.maxlist, _short.maxlevel = 8, 3, 3


def of_row(row: object) -> str:
    """The first fields of a foreign row; repr() escapes control characters and surrogates."""
    return _short.repr(row)[:MAX_CHARS]


def of_item(item: Item) -> str:
    """What was asked, and the answers if there are any."""
    told = {"asked": item.prompt[-1].content}
    if isinstance(item, PreferencePair):
        told |= {"chosen": item.chosen.content, "rejected": item.rejected.content}
    elif isinstance(item, Rating):
        told |= {"answer": item.answer.content}
    return of_row(told)


def plain(text: str) -> str:
    """`text` with everything unprintable escaped, and cut to size."""
    escaped = (
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in text[:MAX_CHARS]
    )
    return "".join(escaped)[:MAX_CHARS]
