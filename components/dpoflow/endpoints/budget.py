"""A hard limit on what may be spent: no request is sent that might go beyond it.

Reads   what was spent before, an upper bound of each request
Gives   `Budget` (`hold` before a request, settle after it), `Exhausted`, `add`
Not     counting what was paid (cache.py)

Held sums are upper bounds, so a request that does not fit waits until those before it have settled
at what they really cost. The first that does not fit even then ends the spending: which one that is
depends on the answers alone, not on the order in which they happen to arrive.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from dpoflow.contracts.judges import BudgetConfig
from dpoflow.endpoints.cache import Spent


class Exhausted(Exception):  # not an error: the step goes on with what it has
    """The budget is spent."""


class Budget:
    """Requests, tokens and money: each held at its upper bound, settled at what it was."""

    def __init__(self, config: BudgetConfig | None, spent: Spent | None = None) -> None:
        self._limits = (config or BudgetConfig()).model_dump()
        self.spent, self._held = spent or Spent(), Spent()
        self._in_line, self._changed = asyncio.Lock(), asyncio.Condition()
        self.exhausted: str | None = None
        """The limit that was reached, in words."""

    @asynccontextmanager
    async def hold(self, cost: Spent) -> AsyncIterator[Callable[[Spent], None]]:
        """Inside, `cost` is set aside; call what it gives with what was really paid.

        Raises Exhausted.
        """
        paid = Spent()

        def settle(really: Spent) -> None:
            nonlocal paid
            paid = really

        async with self._in_line:  # first come, first served
            await self._until_it_fits(cost)
            self._held = add(self._held, cost)
        try:
            yield settle
        finally:
            self._held = add(self._held, cost, -1)
            self.spent = add(self.spent, paid)
            async with self._changed:
                self._changed.notify_all()

    async def _until_it_fits(self, cost: Spent) -> None:
        while True:
            if self.exhausted:
                raise Exhausted(self.exhausted)
            over = self._over(add(add(self.spent, self._held), cost))
            if over is None:
                return
            if self._held.requests == 0:
                self.exhausted = over
                continue
            async with self._changed:
                await self._changed.wait()

    def _over(self, wanted: Spent) -> str | None:
        for name, limit in self._limits.items():
            # Sums of money round differently in another order: a millionth is nobody's.
            if limit is not None and getattr(wanted, name) > limit + 1e-6:
                spent = getattr(self.spent, name)
                return f"the budget of {limit:,} {name} has {max(0, limit - spent):,g} left"
        return None


def add(one: Spent, other: Spent, sign: int = 1) -> Spent:
    """Each part of `one` plus (or, with -1, minus) that of `other`."""
    return Spent(
        one.requests + sign * other.requests,
        one.tokens + sign * other.tokens,
        one.money + sign * other.money,
    )
