"""Candidates: what each writer says to each prompt.

Reads   prompts, the writers of the spec, the policy's folder, open endpoints
Gives   `Candidate`, `Group` of one prompt, `write_candidates`
Not     which of them are fit to be judged (filters.py), judging them
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from dpoflow.contracts import manifest
from dpoflow.contracts.base import canonical_json, sha256_json
from dpoflow.contracts.pairs import Message, Prompt, Writer
from dpoflow.contracts.spec import GeneratorConfig, SynthesizeConfig
from dpoflow.endpoints.budget import Exhausted
from dpoflow.endpoints.cache import Request
from dpoflow.endpoints.client import Endpoint, Unanswerable
from dpoflow.endpoints.stream import in_order
from dpoflow.judge.build import Servers
from dpoflow.policy.dtype import choose
from dpoflow.policy.generate import Answer, generate, has_room
from dpoflow.policy.load import load
from dpoflow.state.step import StepState

Missing = Literal["too_long", "over_budget"]


class Candidate(NamedTuple):
    """One answer, and what wrote it."""

    answer: Answer
    writer: Writer


class Group(NamedTuple):
    """The candidates of one prompt, and why others of it are missing."""

    candidates: list[Candidate]
    missing: tuple[Missing, ...] = ()


class Asked(NamedTuple):
    """One prompt, and how many candidates of each writer it is to have."""

    prompt: Prompt
    counts: tuple[int, ...]


def wanted(config: SynthesizeConfig, prompts: Sequence[Prompt]) -> list[Asked]:
    """Beside a human's answer one of the first writer, else all that the spec asks for."""
    every = tuple(writer.candidates for writer in config.writers)
    beside = (1, *(0 for _ in every[1:]))
    return [Asked(prompt, beside if prompt.reference is not None else every) for prompt in prompts]


async def write_candidates(
    config: SynthesizeConfig, asked: Sequence[Asked], model: Path, at: Servers, state: StepState
) -> list[Group]:
    """The candidates of each prompt."""
    columns: list[list[Group]] = []
    for place, writer in enumerate(config.writers):
        turns = [with_system(writer, each.prompt.prompt) for each in asked]
        counts = [each.counts[place] for each in asked]
        if writer.endpoint is None:
            columns.append(_policy(config, writer, turns, counts, model, state))
        else:
            columns.append(await _endpoint(config, writer, turns, counts, at, state))
    return [_joined(told) for told in zip(*columns, strict=True)]


def with_system(writer: GeneratorConfig, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """What the writer sees: its own system message in place of the prompt's."""
    if writer.system is None:
        return prompt
    rest = prompt[1:] if prompt[0].role == "system" else prompt
    return (Message(role="system", content=writer.system), *rest)


def _joined(columns: Sequence[Group]) -> Group:
    """What all writers said, and did not."""
    return Group(
        [candidate for column in columns for candidate in column.candidates],
        tuple(why for column in columns for why in column.missing),
    )


def _describe(writer: GeneratorConfig) -> str:
    own = {} if writer.system is None else {"system": writer.system}
    return canonical_json(writer.sampling.model_dump(mode="json", exclude={"batch_size"}) | own)


def _policy(
    config: SynthesizeConfig,
    writer: GeneratorConfig,
    turns: Sequence[tuple[Message, ...]],
    counts: Sequence[int],
    model: Path,
    state: StepState,
) -> list[Group]:
    """Samples of the policy itself, in process."""
    if not any(counts):
        return [Group([]) for _ in counts]
    policy, tokenizer = load(model)
    dtype = choose("auto", policy, remember=state.root / "dtype.json")
    fits = [has_room(policy, tokenizer, prompt, writer.sampling) for prompt in turns]
    numbers = [count * fit for count, fit in zip(counts, fits, strict=True)]
    repeated = [
        prompt for prompt, number in zip(turns, numbers, strict=True) for _ in range(number)
    ]
    state.events.say(f"{writer.name}: sampling {len(repeated)} candidates", passing=True)
    answers = iter(
        generate(
            policy,
            tokenizer,
            repeated,
            writer.sampling,
            seed=config.seed,
            dtype=dtype,
            store=state.work / f"candidates-{writer.name}.jsonl",
            events=state.events,
            phase=f"sampling {writer.name}",
        )
    )
    by = Writer(generator=manifest.read(model).digest, sampling=_describe(writer), seed=config.seed)

    def told(count: int, number: int) -> Group:
        missing: list[Missing] = ["too_long"] * (count - number)
        made = [Candidate(next(answers), by) for _ in range(number)]
        return Group(made, tuple(missing))

    return [told(count, number) for count, number in zip(counts, numbers, strict=True)]


async def _endpoint(
    config: SynthesizeConfig,
    writer: GeneratorConfig,
    turns: Sequence[tuple[Message, ...]],
    counts: Sequence[int],
    at: Servers,
    state: StepState,
) -> list[Group]:
    """Samples of a model behind a server."""
    assert writer.endpoint is not None
    endpoint = await at.open(writer.endpoint)
    by = Writer(generator=writer.endpoint.model, sampling=_describe(writer), seed=config.seed)

    async def work(asked: tuple[tuple[Message, ...], int]) -> Group:
        prompt, count = asked
        told = await asyncio.gather(
            *(_ask(endpoint, request_of(writer, prompt, config.seed, n)) for n in range(count))
        )
        answers = [each for each in told if isinstance(each, Answer)]
        missing = tuple(each for each in told if not isinstance(each, Answer))
        return Group([Candidate(answer, by) for answer in answers], missing)

    columns: list[Group] = []
    pairs = zip(turns, counts, strict=True)
    phase = f"sampling {writer.name}"
    async for column in in_order(pairs, work, ahead=2 * writer.endpoint.concurrency):
        columns.append(column)
        state.events.progress(phase, len(columns), len(turns), unit="prompts")
    return columns


def request_of(
    writer: GeneratorConfig, prompt: Sequence[Message], seed: int, repeat: int
) -> Request:
    """What is asked for sample number `repeat` of a prompt."""
    assert writer.endpoint is not None
    sampling = writer.sampling
    return Request(
        base_url=writer.endpoint.base_url,
        model=writer.endpoint.model,
        messages=tuple(turn.model_dump() for turn in prompt),
        parameters={
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            # Servers that can repeat themselves do, and two samples of a prompt differ.
            "seed": int(sha256_json([seed, repeat])[:8], 16) >> 1,
        },
        template="as it stands",
        repeat=repeat,
    )


async def _ask(endpoint: Endpoint, request: Request) -> Answer | Missing:
    try:
        reply = await endpoint.ask(request)
    except Unanswerable:
        return "too_long"
    except Exhausted:
        return "over_budget"
    return Answer(
        text=reply.text,
        num_tokens=reply.tokens_written,
        finished=reply.finish_reason == "stop",
    )
