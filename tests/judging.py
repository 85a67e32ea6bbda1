"""Judges and servers for tests: quality is written into each answer, so the truth is known."""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.fakes.openai_server import Action, Say, ScriptedServer
from tests.waiting import AT_MOST_S

from dpoflow.contracts.judges import BudgetConfig, LlmJudgeConfig
from dpoflow.contracts.pairs import Message
from dpoflow.judge.build import Servers, build
from dpoflow.judge.verdict import Judge, Outcome

ASKED = (Message(role="user", content="Where is my parcel?"),)
_SECTION = re.compile(r"Answer [AB]:\n\n<text \w+>\n(.*?)\n</text", re.DOTALL)
_QUALITY = re.compile(r"quality=(-?\d+)")


def answers_in(body: dict[str, Any]) -> list[str]:
    """The two answers, as the judge was shown them."""
    return _SECTION.findall(body["messages"][-1]["content"])


def better(body: dict[str, Any]) -> str:
    """A, B or tie, by the quality that is written into each answer."""
    first, second = (int(_QUALITY.search(text)[1]) for text in answers_in(body))  # type: ignore[index]
    return "tie" if first == second else "A" if first > second else "B"


def honest(body: dict[str, Any], _attempt: int = 0) -> Action:
    """A judge that sees quality and nothing else."""
    return Say(json.dumps({"reason": "by its quality", "verdict": better(body)}))


def dice(body: dict[str, Any]) -> int:
    """A number that belongs to the request, for scripts that must not depend on its turn."""
    return int(hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()[:8], 16)


def config(server: ScriptedServer, **knobs: Any) -> LlmJudgeConfig:
    """A judge at `server`; knobs of the endpoint go under `endpoint`."""
    endpoint = {
        "base_url": server.base_url,
        "model": "judge",
        "timeout_s": AT_MOST_S,
        "patience_s": AT_MOST_S,
        **knobs.pop("endpoint", {}),
    }
    return LlmJudgeConfig.model_validate({"kind": "llm", "endpoint": endpoint, **knobs})


@asynccontextmanager
async def asking(
    judge: LlmJudgeConfig, kept: Path, budget: BudgetConfig | None = None
) -> AsyncIterator[tuple[Judge, Servers]]:
    """The judge, and its servers, for as long as the context lasts."""
    async with Servers(kept, "me", budget, lambda *_: None) as at:
        yield await build(judge, at), at


def decide(
    judge: LlmJudgeConfig, kept: Path, couples: Sequence[tuple[str, str]], **more: Any
) -> list[Outcome]:
    """What the judge makes of each couple of answers."""

    async def run() -> list[Outcome]:
        async with asking(judge, kept, **more) as (asked, _):
            return list(
                await asyncio.gather(*(asked.decide(ASKED, one, two) for one, two in couples))
            )

    return asyncio.run(run())
