"""Texts without what does not count when two are held against each other.

Reads   a text, or a row with texts in it
Gives   `plain`, `texts_in`
Not     how alike two texts are: see near.py
"""

import unicodedata
from collections.abc import Iterator


def plain(text: str) -> str:
    """`text` without its case, blanks and Unicode spelling."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def texts_in(value: object) -> Iterator[str]:
    """Every text in JSON or a row of Arrow's, names of fields too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield str(name)
            yield from texts_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts_in(inner)
