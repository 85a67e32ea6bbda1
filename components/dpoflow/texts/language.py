"""Which language a text is in.

Reads   a text
Gives   `language_of`: a code of ISO 639, or None where the text does not tell
Not     which ones are wanted: see findings.py

py3langid tells them apart by the bytes of the text and asks nobody.
"""

import functools
from typing import Any

_MAX_CHARS = 600
_MIN_LETTERS = 20
_LEAST = 0.5
"""A less likely language, among all it knows, is a guess."""
_NONE = ("und", "zxx")
"""Not sure, and no language at all, such as code."""


def language_of(text: str) -> str | None:
    """The language of the beginning of `text`."""
    head = text[:_MAX_CHARS]
    if sum(map(str.isalpha, head)) < _MIN_LETTERS:
        return None
    language, _ = _identifier().classify(head)
    return None if language in _NONE else str(language)


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # half a second

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=_LEAST)
