"""Which prompts are held out: decided by the prompt alone, so that a held-out one stays held out.

Reads   prompts
Gives   `side_of`, `rank`, `root_of`, `normalised`
Not     which prompts hang together: see near.py; writing sides: see ledger.py

A conversation is drawn by how it begins, so all that share a beginning share a side. A cluster of
prompts that are nearly the same is held out as soon as one of them is drawn: data that is added can
move a prompt out of training, and none into it.
"""

import hashlib

from dpoflow.contracts.base import sha256_json
from dpoflow.contracts.pairs import Message, Split
from dpoflow.texts.plain import plain


def side_of(drawn_by: str, *, seed: int, heldout_fraction: float) -> Split:
    """`heldout` for the given share of all ids there could be."""
    drawn = int(rank(drawn_by, seed=seed)[:16], 16) / 2**64  # uniform in [0, 1)
    return "heldout" if drawn < heldout_fraction else "train"


def rank(some_id: str, *, seed: int) -> str:
    """A seeded hash, in hex: an order that is random to the content and the same every time."""
    return hashlib.sha256(f"{seed}:{some_id}".encode()).hexdigest()


def root_of(prompt: tuple[Message, ...]) -> str:
    """sha256 of how the conversation begins: its first turn but a system message, plain."""
    first = next(turn for turn in prompt if turn.role != "system")
    return hashlib.sha256(plain(first.content).encode()).hexdigest()


def normalised(prompt: tuple[Message, ...]) -> str:
    """sha256 of a prompt without its case, blanks and Unicode spelling: near-copies share it."""
    return sha256_json([[turn.role, plain(turn.content)] for turn in prompt])


def asked(prompt: tuple[Message, ...]) -> str:
    """The whole conversation so far as one plain text, without a system message."""
    return plain("\n".join(turn.content for turn in prompt if turn.role != "system"))
