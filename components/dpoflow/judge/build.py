"""From a spec's judge to one that can be asked, with its servers, cache and budget open.

Reads   `JudgeConfig`, where answers are kept, what may be spent
Gives   `servers`, `build`, `judge_id`, `ahead_of`
Not     what is done with outcomes
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Literal

from dpoflow.contracts.base import sha256_json
from dpoflow.contracts.judges import (
    BudgetConfig,
    EndpointConfig,
    JudgeConfig,
    LlmJudgeConfig,
    PanelJudgeConfig,
    RubricJudgeConfig,
    models_in,
)
from dpoflow.endpoints.budget import Budget, add
from dpoflow.endpoints.cache import Cache, Reply, Request, Spent
from dpoflow.endpoints.client import Endpoint
from dpoflow.judge import llm, rubric
from dpoflow.judge.llm import LlmJudge
from dpoflow.judge.panel import Panel
from dpoflow.judge.rubric import RubricJudge
from dpoflow.judge.verdict import Judge

Half = Literal["judge", "heldout", "all"]


@dataclass
class Servers:
    """Endpoints that share one cache and one budget; each is opened when first wanted."""

    cache: Cache
    budget: Budget
    answered: Callable[[Request, Reply, float], None]
    stack: AsyncExitStack
    _open: dict[str, Endpoint] = field(default_factory=dict)

    async def open(self, config: EndpointConfig) -> Endpoint:
        """The same endpoint for the same config, so that its limits are shared."""
        name = sha256_json(config)
        if name not in self._open:
            endpoint = Endpoint(config, self.cache, self.budget, answered=self.answered)
            self._open[name] = await self.stack.enter_async_context(endpoint)
        return self._open[name]


@asynccontextmanager
async def servers(
    kept: Path,
    payer: str,
    budget: BudgetConfig | None = None,
    *,
    answered: Callable[[Request, Reply, float], None] = lambda request, reply, seconds: None,
) -> AsyncIterator[Servers]:
    """Endpoints whose answers lie in the file `kept` and count against `payer`'s budget."""
    with Cache(kept, payer) as cache:
        spent = reduce(add, cache.spent().values(), Spent())
        async with AsyncExitStack() as stack:
            yield Servers(cache, Budget(budget, spent), answered, stack)


async def build(config: JudgeConfig, at: Servers, half: Half = "judge") -> Judge:
    """The judge of a spec. `half` is which checks a rubric goes by."""
    match config:
        case RubricJudgeConfig():
            return RubricJudge(config.rubric, half=half)
        case LlmJudgeConfig():
            return LlmJudge(config, await at.open(config.endpoint))
        case PanelJudgeConfig():
            return Panel(
                [(await build(seat.judge, at, half), seat.weight) for seat in config.seats]
            )


def judge_id(config: JudgeConfig, half: Half = "judge") -> str:
    """What a judge of this config calls itself."""
    match config:
        case RubricJudgeConfig():
            return rubric.identify(config.rubric, half)
        case LlmJudgeConfig():
            return llm.identify(config)
        case PanelJudgeConfig():
            seats = [[judge_id(seat.judge, half), seat.weight] for seat in config.seats]
            return f"panel:{sha256_json(seats)[:16]}"


def ahead_of(config: JudgeConfig) -> int:
    """How many comparisons to begin before the first has ended: enough to keep servers busy."""
    return max((4 * each.endpoint.concurrency for each in models_in(config)), default=1)
