"""The synthesize step: candidates from one or several writers, judged, made into pairs.

Reads   prompts (validate), pinned models (snapshot), endpoints that the spec names
Gives   pairs.parquet; candidates.jsonl and comparisons.jsonl, all that was said, for audit
Not     which pairs reach training: the merge checks them like any others
"""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pyarrow.parquet import ParquetFile

from dpoflow.contracts.base import Contract
from dpoflow.contracts.pairs import (
    Label,
    PreferencePair,
    Prompt,
    Vote,
    Writer,
    read_parquet,
    write_jsonl,
    write_parquet,
)
from dpoflow.contracts.results import Cost, SynthesizeResult
from dpoflow.contracts.spec import SynthesizeConfig
from dpoflow.endpoints.stream import in_order
from dpoflow.judge.build import ahead_of, build
from dpoflow.judge.session import session
from dpoflow.judge.verdict import Judge
from dpoflow.state.step import StepState
from dpoflow.synthesize.candidates import Asked, Group, wanted, write_candidates
from dpoflow.synthesize.length import balanced, is_judged, length_bias
from dpoflow.synthesize.pairing import Judged, pair_with_reference, pairs_by_judge, vote


class CandidateLine(Contract):
    """One sampled answer and what became of it: a line of candidates.jsonl."""

    prompt_id: str
    place: int
    """Among the prompt's candidates."""
    slice: str
    writer: Writer
    text: str
    num_tokens: int
    finished: bool
    set_aside: str | None
    """Why it was not judged."""
    lead: float | None
    """Mean lead over the prompt's other candidates, where a judge compared them."""


class ComparisonLine(Contract):
    """One comparison: a line of comparisons.jsonl. `chosen` is the first of the two here."""

    prompt_id: str
    first: int
    second: int
    """Places among the prompt's candidates."""
    label: Label
    margin: float | None
    votes: tuple[Vote, ...]


def run(
    config: SynthesizeConfig,
    *,
    prompts: Path,
    model: Path,
    pairs: Path,
    judges: Path | None = None,
    state: StepState,
) -> SynthesizeResult:
    """Sample, judge, pair. Switched off, it yields no pair and loads nothing."""
    if not config.enabled:
        write_parquet([], PreferencePair, pairs / "pairs.parquet")
        waiting = ParquetFile(prompts / "prompts.parquet").metadata.num_rows
        hint = f" of {waiting:,} prompts; set synthesize.enabled and synthesize.judge to make some"
        state.events.say("switched off in the spec: no pair is made" + hint * bool(waiting))
        return SynthesizeResult(num_prompts=0, num_candidates=0, num_pairs=0, not_pairs={})
    asked = wanted(
        config,
        [
            prompt
            for prompt in read_parquet(prompts / "prompts.parquet", Prompt)
            if prompt.split == "train" or prompt.reference is not None
        ],
    )
    return asyncio.run(_run(config, asked, model, judges, pairs, state))


async def _run(
    config: SynthesizeConfig,
    asked: Sequence[Asked],
    model: Path,
    judges: Path | None,
    pairs: Path,
    state: StepState,
) -> SynthesizeResult:
    assert config.judge is not None  # the spec refuses this
    writers = list(_models(config, model))
    async with session(config.judge, state, config.budget, half="judge", writers=writers) as at:
        judge = await build(config.judge, at, models=judges)
        groups = await write_candidates(config, asked, model, at, state)
        judged = await _judge(config, asked, groups, judge, state)
        cost = {name: Cost(**spent._asdict()) for name, spent in at.spent().items()}
        stopped_by = at.stopped_by
    made = [pair for each in judged for pair in each.pairs]
    left = balanced(made) if config.balance_length else made
    write_parquet(
        sorted(left, key=lambda pair: pair.pair_id), PreferencePair, pairs / "pairs.parquet"
    )
    num_candidates = write_jsonl(_candidates(asked, groups, judged), pairs / "candidates.jsonl")
    write_jsonl(_comparisons(asked, judged), pairs / "comparisons.jsonl")
    result = SynthesizeResult(
        num_prompts=len(asked),
        num_candidates=num_candidates,
        num_pairs=len(left),
        not_pairs=_counts(each.reason for each in judged),
        left_out=len(made) - len(left),
        missing=_counts(why for group in groups for why in group.missing),
        set_aside=_counts(why for each in judged for why in each.aside),
        outcomes=_counts(one.outcome.label for each in judged for one in each.compared),
        length_bias=length_bias([pair for pair in left if is_judged(pair)]),
        cost=cost,
        stopped_by=stopped_by,
    )
    assert sum(bool(each.pairs) for each in judged) + sum(result.not_pairs.values()) == len(asked)
    for sentence in _told(result):
        state.events.say(sentence)
    if asked and not left:
        state.events.say(
            f"no pair was made; each candidate and comparison stands in {pairs}. More candidates, "
            "a higher temperature or a lower min_margin may make some"
        )
    return result


def _models(config: SynthesizeConfig, model: Path) -> Iterator[str]:
    """What the writers of candidates are called; the policy, by its architecture."""
    for writer in config.writers:
        if writer.endpoint is not None:
            yield writer.endpoint.model
        else:
            words = json.loads((model / "config.json").read_text("utf-8"))
            yield str(words.get("model_type", ""))


def _counts(reasons: Iterator[str | None]) -> dict[str, int]:
    return dict(sorted(Counter(reason for reason in reasons if reason is not None).items()))


async def _judge(
    config: SynthesizeConfig,
    asked: Sequence[Asked],
    groups: Sequence[Group],
    judge: Judge,
    state: StepState,
) -> list[Judged]:
    assert config.judge is not None  # the spec refuses this
    judged = list[Judged]()

    async def work(one: tuple[Asked, Group]) -> Judged:
        return await _judge_one(config, one[0].prompt, one[1], judge)

    couples = zip(asked, groups, strict=True)
    async for each in in_order(couples, work, ahead=ahead_of(config.judge)):
        judged.append(each)
        state.events.progress("judging", len(judged), len(asked), unit="prompts")
    return judged


async def _judge_one(
    config: SynthesizeConfig, prompt: Prompt, group: Group, judge: Judge
) -> Judged:
    if prompt.reference is not None:
        return pair_with_reference(prompt, group)
    return await pairs_by_judge(config, prompt, group, judge)


def _told(result: SynthesizeResult) -> Iterator[str]:
    def listed(counts: dict[str, int]) -> str:
        return ", ".join(f"{number:,} {reason}" for reason, number in counts.items())

    none = f" (no pair: {listed(result.not_pairs)})" if result.not_pairs else ""
    yield (
        f"{result.num_pairs:,} pairs from {result.num_prompts:,} prompts and "
        f"{result.num_candidates:,} candidates{none}"
    )
    if result.left_out:
        yield f"left out for balance_length: {result.left_out:,} pairs"
    if result.set_aside:
        yield f"candidates set aside before judging: {listed(result.set_aside)}"
    if result.missing:
        yield f"candidates that could not be had: {listed(result.missing)}"
    if result.outcomes.keys() - {"preferred"}:
        yield f"comparisons: {listed(result.outcomes)}"
    bias = result.length_bias
    if bias:
        yield (
            f"the chosen answer is the longer one in {bias.chosen_longer:.0%} of judged pairs "
            f"[{bias.low:.0%}, {bias.high:.0%}]"
        )
    if result.stopped_by:
        yield f"stopped asking: {result.stopped_by}"


def _candidates(
    asked: Sequence[Asked], groups: Sequence[Group], judged: Sequence[Judged]
) -> Iterator[CandidateLine]:
    for (prompt, _), group, result in zip(asked, groups, judged, strict=True):
        lead = result.leads()
        for place, candidate in enumerate(group.candidates):
            yield CandidateLine(
                prompt_id=prompt.prompt_id,
                place=place,
                slice=prompt.slice,
                writer=candidate.writer,
                text=candidate.answer.text,
                num_tokens=candidate.answer.num_tokens,
                finished=candidate.answer.finished,
                set_aside=result.aside[place],
                lead=lead.get(place),
            )


def _comparisons(asked: Sequence[Asked], judged: Sequence[Judged]) -> Iterator[ComparisonLine]:
    for (prompt, _), result in zip(asked, judged, strict=True):
        for each in result.compared:
            yield ComparisonLine(
                prompt_id=prompt.prompt_id,
                first=each.first,
                second=each.second,
                label=each.outcome.label,
                margin=each.outcome.margin,
                votes=tuple(vote(ballot) for ballot in each.outcome.ballots),
            )
