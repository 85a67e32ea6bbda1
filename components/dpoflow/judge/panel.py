"""Several judges that vote.

Reads   judges and their weights
Gives   `Panel`
Not     what a judge says (rubric.py, llm.py, reward.py), how votes are counted (verdict.py)
"""

import asyncio
from collections.abc import Sequence

from dpoflow.contracts.base import sha256_json
from dpoflow.contracts.pairs import Message
from dpoflow.judge.verdict import Judge, Outcome, counted


class Panel:
    """All of `seats` are asked, each in both orders where the order could matter to it."""

    def __init__(self, seats: Sequence[tuple[Judge, float]]) -> None:
        self._seats = seats
        self.id = f"panel:{sha256_json([[judge.id, weight] for judge, weight in seats])[:16]}"

    async def decide(self, conversation: Sequence[Message], first: str, second: str) -> Outcome:
        """More than half of all weight for one side, or no winner."""
        told = await asyncio.gather(
            *(judge.decide(conversation, first, second) for judge, _ in self._seats)
        )
        weights = (weight for _, weight in self._seats)
        return counted(list(zip(told, weights, strict=True)))
