"""One step's dealings with judges and writers behind endpoints, from the first word to the bill.

Reads   a spec's judge, the step's state
Gives   `session`: open `Servers`; what is spent is told as an event, and calls to MLflow
Not     what is asked
"""

import functools
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

from dpoflow.contracts.errors import DpoflowError
from dpoflow.contracts.judges import BudgetConfig, JudgeConfig, models_in
from dpoflow.contracts.results import Cost
from dpoflow.judge.build import Half, Servers
from dpoflow.judge.llm import template_of
from dpoflow.judge.template import Template
from dpoflow.judge.trust import check_trust
from dpoflow.state.step import RETRIES, StepState
from dpoflow.tracking.calls import Calls, register_templates


@asynccontextmanager
async def session(
    judge: JudgeConfig,
    state: StepState,
    budget: BudgetConfig,
    *,
    half: Half,
    writers: Iterable[str] = (),
    templates: Iterable[Template] = (),
) -> AsyncIterator[Servers]:
    """Servers for as long as the context lasts. ConfigError for a judge that was found wanting.

    `templates` are what its models are asked beside the judge's own question.
    """
    for sentence in check_trust(judge, writers, half):
        state.events.say(sentence)
    models = list(models_in(judge))
    register_templates((t.id, t.text) for t in (*map(template_of, models), *templates))
    calls = Calls(max((each.traced for each in models), default=0.0))
    async with Servers(
        state.root / "answers.sqlite",
        state.folder.name,
        budget,
        calls,
        tell=functools.partial(state.events.say, passing=True),
        afterwards=f"; a pipeline then begins the step again, up to {RETRIES} times",
    ) as at:
        try:
            yield at
        finally:
            with suppress(DpoflowError):  # a store that is damaged has an error of its own
                state.usage.paid_in_all(
                    {model: Cost(**spent._asdict()) for model, spent in at.spent().items()}
                )
        for model, spent in at.spent().items():
            state.events.say(
                f"{model}: {spent.requests:,} requests, {spent.tokens:,} tokens, "
                f"{spent.money:,.2f} paid",
                passing=True,
            )
    calls.flush()
