"""Which prompts are held out: decided by the prompt alone, so data that is added moves none.

Reads   prompt ids
Gives   `side_of`, `rank`, `normalised`
Not     counting or writing sides: see ledger.py
"""

import hashlib
import unicodedata

from dpoflow.contracts.base import sha256_json
from dpoflow.contracts.pairs import Message, Split


def side_of(prompt_id: str, *, seed: int, heldout_fraction: float) -> Split:
    """`heldout` for the given share of all prompts there could be."""
    drawn = int(rank(prompt_id, seed=seed)[:16], 16) / 2**64  # uniform in [0, 1)
    return "heldout" if drawn < heldout_fraction else "train"


def rank(some_id: str, *, seed: int) -> str:
    """A seeded hash, in hex: an order that is random to the content and the same every time."""
    return hashlib.sha256(f"{seed}:{some_id}".encode()).hexdigest()


def normalised(prompt: tuple[Message, ...]) -> str:
    """sha256 of a prompt without its case, blanks and Unicode spelling: near-copies share it."""
    return sha256_json([[turn.role, _plain(turn.content)] for turn in prompt])


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
