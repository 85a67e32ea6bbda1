"""Texts without what does not count when two are held against each other.

Reads   a text
Gives   `plain`
Not     how alike two texts are: see near.py
"""

import unicodedata


def plain(text: str) -> str:
    """`text` without its case, blanks and Unicode spelling."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
