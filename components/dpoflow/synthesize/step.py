"""The synthesize step: candidates from the policy itself, judged, made into pairs.

Reads   prompts (validate), the pinned model (snapshot)
Gives   pairs.parquet, and candidates.jsonl with every candidate and its score, for audit
Not     which pairs reach training: the merge checks them like any others
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from dpoflow.contracts import manifest
from dpoflow.contracts.base import Contract, canonical_json, sha256_json
from dpoflow.contracts.pairs import (
    PreferencePair,
    Prompt,
    Provenance,
    read_parquet,
    write_jsonl,
    write_parquet,
)
from dpoflow.contracts.results import SynthesizeResult
from dpoflow.contracts.spec import JudgeConfig, SynthesizeConfig
from dpoflow.judge.rubric import RubricJudge
from dpoflow.policy.dtype import choose
from dpoflow.policy.generate import Answer, generate, has_room
from dpoflow.policy.load import load
from dpoflow.state.step import StepState
from dpoflow.synthesize.pairing import pair_by_judge, pair_with_reference


class Candidate(Contract):
    """One sampled answer and what became of it: a line of candidates.jsonl."""

    prompt_id: str
    slice: str
    text: str
    num_tokens: int
    finished: bool
    score: float | None
    """The judge's total, where a judge was asked."""


def run(
    config: SynthesizeConfig, *, prompts: Path, model: Path, pairs: Path, state: StepState
) -> SynthesizeResult:
    """Sample, judge, pair. Switched off, it yields no pair and loads nothing."""
    if not config.enabled:
        write_parquet([], PreferencePair, pairs / "pairs.parquet")
        state.events.say("switched off in the spec: no pair is made")
        return SynthesizeResult(num_prompts=0, num_candidates=0, num_pairs=0, not_pairs={})
    assert config.judge is not None  # the spec refuses this
    asked = [
        prompt
        for prompt in read_parquet(prompts / "prompts.parquet", Prompt)
        if prompt.split == "train" or prompt.reference is not None
    ]
    groups = _sample(config, asked, model, state)
    provenance = Provenance(
        generator=manifest.read(model).digest,
        sampling=canonical_json(config.sampling),
        seed=config.seed,
        judge=judge_id(config.judge),
    )
    judge = RubricJudge(config.judge.rubric, half="judge")
    made, reasons = list[PreferencePair](), Counter[str]()
    for prompt, answers in zip(asked, groups, strict=True):
        if not answers:
            reasons["too_long"] += 1
            continue
        pair = (
            pair_by_judge(prompt, answers, judge, provenance, min_margin=config.min_margin)
            if prompt.reference is None
            else pair_with_reference(prompt, answers, provenance)
        )
        if isinstance(pair, PreferencePair):
            made.append(pair)
        else:
            reasons[pair] += 1
    write_parquet(
        sorted(made, key=lambda pair: pair.pair_id), PreferencePair, pairs / "pairs.parquet"
    )
    num_candidates = write_jsonl(_audit(asked, groups, judge), pairs / "candidates.jsonl")
    assert len(made) + sum(reasons.values()) == len(asked)
    told = ", ".join(f"{number} {reason}" for reason, number in sorted(reasons.items()))
    state.events.say(
        f"{len(made)} pairs from {len(asked)} prompts" + (f" ({told})" if told else "")
    )
    return SynthesizeResult(
        num_prompts=len(asked),
        num_candidates=num_candidates,
        num_pairs=len(made),
        not_pairs=dict(sorted(reasons.items())),
    )


def judge_id(judge: JudgeConfig) -> str:
    """Names a judge so that a changed rubric is another judge."""
    return f"{judge.kind}:{sha256_json(judge.rubric)[:16]}"


def _sample(
    config: SynthesizeConfig, asked: list[Prompt], model: Path, state: StepState
) -> list[list[Answer]]:
    """The candidates of each prompt: one beside a human's answer, else as many as the spec says.

    A prompt that leaves no room for an answer has none.
    """
    if not asked:
        return []
    policy, tokenizer = load(model)
    dtype = choose("auto", policy, remember=state.root / "dtype.json")
    counts = [
        (1 if prompt.reference is not None else config.candidates)
        * has_room(policy, tokenizer, prompt.prompt, config.sampling)
        for prompt in asked
    ]
    turns = [
        prompt.prompt for prompt, count in zip(asked, counts, strict=True) for _ in range(count)
    ]
    state.events.say(f"sampling {len(turns)} candidates for {len(asked)} prompts")
    answers = iter(
        generate(
            policy,
            tokenizer,
            turns,
            config.sampling,
            seed=config.seed,
            dtype=dtype,
            store=state.work / "candidates.jsonl",
            events=state.events,
            phase="sampling",
        )
    )
    return [[next(answers) for _ in range(count)] for count in counts]


def _audit(
    asked: list[Prompt], groups: list[list[Answer]], judge: RubricJudge
) -> Iterator[Candidate]:
    for prompt, answers in zip(asked, groups, strict=True):
        question = prompt.prompt[-1].content
        for answer in answers:
            judged = prompt.reference is None
            yield Candidate(
                prompt_id=prompt.prompt_id,
                slice=prompt.slice,
                text=answer.text,
                num_tokens=answer.num_tokens,
                finished=answer.finished,
                score=judge.score(question, answer.text).total if judged else None,
            )
