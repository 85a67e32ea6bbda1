"""From a spec's judge to one that can be asked, with its servers, cache and budget open.

Reads   `JudgeConfig`, where answers are kept, what may be spent
Gives   `Servers`, `build`, `judge_id`, `ahead_of`
Not     what is done with outcomes
"""

from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import reduce
from pathlib import Path
from typing import Literal, Self

from dpoflow.contracts.base import sha256_json
from dpoflow.contracts.judges import (
    BudgetConfig,
    EndpointConfig,
    JudgeConfig,
    LlmJudgeConfig,
    PanelJudgeConfig,
    RewardJudgeConfig,
    RubricJudgeConfig,
    models_in,
)
from dpoflow.endpoints.budget import Budget, add
from dpoflow.endpoints.cache import Cache, Reply, Request, Spent
from dpoflow.endpoints.client import Endpoint
from dpoflow.judge import llm, reward, rubric
from dpoflow.judge.llm import LlmJudge
from dpoflow.judge.panel import Panel
from dpoflow.judge.reward import RewardJudge
from dpoflow.judge.rubric import RubricJudge
from dpoflow.judge.verdict import Judge

Half = Literal["judge", "heldout", "all"]
Answered = Callable[[Request, Reply, float], None]
"""Hears of an answer that was paid for just now, and how many seconds it took."""


class Servers:
    """Endpoints that share one store of answers and one budget.

    Nothing is opened before an endpoint is wanted: a rubric needs no database.
    """

    def __init__(
        self,
        kept: Path,
        payer: str,
        budget: BudgetConfig | None,
        answered: Answered,
        *,
        tell: Callable[[str], None] = lambda sentence: None,
        afterwards: str = "",
    ) -> None:
        """`tell` hears of servers that go away; `afterwards` is what giving one up leads to."""
        self._kept, self._payer, self._limits, self._answered = kept, payer, budget, answered
        self._tell, self._afterwards = tell, afterwards
        self._stack = AsyncExitStack()
        self._shared: tuple[Cache, Budget] | None = None
        self._endpoints: dict[str, Endpoint] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def open(self, config: EndpointConfig) -> Endpoint:
        """The same endpoint for the same config, so that its limits are shared."""
        if self._shared is None:
            cache = self._stack.enter_context(Cache(self._kept, self._payer))
            spent = reduce(add, cache.spent().values(), Spent())
            self._shared = cache, Budget(self._limits, spent)
        name = sha256_json(config)
        if name not in self._endpoints:
            endpoint = Endpoint(
                config,
                *self._shared,
                answered=self._answered,
                tell=self._tell,
                afterwards=self._afterwards,
            )
            self._endpoints[name] = await self._stack.enter_async_context(endpoint)
        return self._endpoints[name]

    def spent(self) -> dict[str, Spent]:
        """By model, earlier attempts included."""
        return self._shared[0].spent() if self._shared else {}

    @property
    def stopped_by(self) -> str | None:
        """The budget that was reached, in words."""
        return self._shared[1].exhausted if self._shared else None


async def build(
    config: JudgeConfig, at: Servers, half: Half = "judge", models: Path | None = None
) -> Judge:
    """The judge of a spec.

    `half` is which checks a rubric goes by; `models` is where pinned reward models lie.
    """
    match config:
        case RubricJudgeConfig():
            return RubricJudge(config.rubric, half=half)
        case LlmJudgeConfig():
            return LlmJudge(config, await at.open(config.endpoint))
        case RewardJudgeConfig():
            return RewardJudge(config, models)
        case PanelJudgeConfig():
            return Panel(
                [(await build(seat.judge, at, half, models), seat.weight) for seat in config.seats]
            )


def judge_id(config: JudgeConfig, half: Half = "judge") -> str:
    """What a judge of this config calls itself."""
    match config:
        case RubricJudgeConfig():
            return rubric.identify(config.rubric, half)
        case LlmJudgeConfig():
            return llm.identify(config)
        case RewardJudgeConfig():
            return reward.identify(config)
        case PanelJudgeConfig():
            seats = [[judge_id(seat.judge, half), seat.weight] for seat in config.seats]
            return f"panel:{sha256_json(seats)[:16]}"


def ahead_of(config: JudgeConfig) -> int:
    """How many comparisons to begin before the first has ended: enough to keep servers busy."""
    return max((4 * each.endpoint.concurrency for each in models_in(config)), default=1)
