"""The base of every contract: frozen, strict about names, and readable as canonical JSON.

Reads   nothing
Gives   `Contract`, `canonical_json`, `sha256_json`, `sha256_text`
Not     the contracts themselves
"""

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Contract(BaseModel):
    """A value that steps exchange. Unknown keys are refused; instances do not change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def canonical_json(value: Any) -> str:
    """One spelling per value: sorted keys, no spaces, no NaN, non-ASCII kept as it is."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def sha256_json(value: Any) -> str:
    """sha256, in hex, of the canonical JSON of `value`."""
    return sha256_text(canonical_json(value))


def sha256_text(text: str) -> str:
    """sha256, in hex, of `text` in UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
