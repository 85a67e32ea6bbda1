"""The evaluate step: candidate against base on held-out prompts and pairs, and the decision.

Reads   the candidate (train), the base and reward models (snapshot), held-out prompts and pairs
        (merge)
Gives   decision.json and perhaps its signature, answers.jsonl with every comparison, answers.html
Not     what follows from the verdict: register and the reviewer
"""

import asyncio
import os
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dpoflow.contracts import manifest
from dpoflow.contracts.base import sha256_json
from dpoflow.contracts.errors import ConfigError
from dpoflow.contracts.judges import RubricJudgeConfig
from dpoflow.contracts.pairs import PreferencePair, Prompt, read_parquet, write_jsonl
from dpoflow.contracts.results import EvaluateResult
from dpoflow.contracts.spec import EvaluateConfig
from dpoflow.endpoints.budget import Exhausted
from dpoflow.endpoints.stream import in_order
from dpoflow.evaluate.answered import answered
from dpoflow.evaluate.document import document_of, figures_of
from dpoflow.evaluate.measure import (
    Comparison,
    finished_share,
    length_ratio,
    perplexity,
    points,
    unseen_difference,
)
from dpoflow.evaluate.page import answers_page
from dpoflow.judge.build import ahead_of, build
from dpoflow.judge.rubric import RubricJudge
from dpoflow.judge.session import session
from dpoflow.judge.verdict import Outcome
from dpoflow.policy.answers import repeats
from dpoflow.policy.dtype import choose
from dpoflow.policy.generate import Answer, has_room
from dpoflow.policy.load import load
from dpoflow.policy.logprobs import answer_nll, pair_logps
from dpoflow.policy.tokenise import EncodedPair, encode_pair
from dpoflow.registry.signature import DECISION, check_key, sign
from dpoflow.state.files import write_text
from dpoflow.state.step import StepState

_BATCH = 8


class _Answers(NamedTuple):
    prompts: list[Prompt]
    """Those that leave room for an answer."""
    base: list[Answer]
    candidate: list[Answer]
    base_nll: list[tuple[float, int]]
    """Of the base's own answers, under the base."""
    candidate_nll: list[tuple[float, int]]
    """Of the candidate's answers, under the base."""
    pair_margins: list[float]
    """Implicit reward margin of each held-out pair, in nats (before beta)."""
    left_out: dict[str, float]
    """How many held-out prompts and pairs the model's context has no room for."""


def run(
    config: EvaluateConfig,
    *,
    model: Path,
    policy: Path,
    heldout: Path,
    decision: Path,
    judges: Path | None = None,
    state: StepState,
) -> EvaluateResult:
    """Answer, judge, measure, decide, sign."""
    vouched = check_key(config.signer)
    prompts = _prompts(heldout, config.max_prompts)
    pairs = list(read_parquet(heldout / "pairs.parquet", PreferencePair))
    seen = _ask_both(config, model, policy, prompts, pairs, state)
    compared = asyncio.run(_compare(config, seen, judges, state))
    artifacts = {"base": model, "policy": policy, "heldout": heldout}
    if judges is not None:
        artifacts["judges"] = judges
    write_jsonl(compared, decision / "answers.jsonl")
    digests = _digests(artifacts) | {"answers": manifest.sha256_file(decision / "answers.jsonl")}
    document = document_of(config, compared, _measures(seen), seen.pair_margins, digests)
    write_text(decision / "answers.html", answers_page(document, compared))
    write_text(decision / DECISION, document.model_dump_json(indent=2) + "\n")
    if config.signer is not None:
        sign(decision)
    state.events.say(f"{document.verdict}: {document.sentence}")
    state.events.say(vouched)
    state.events.metrics(0, figures_of(document))
    rate = document.win_rate
    return EvaluateResult(
        verdict=document.verdict,
        sentence=document.sentence,
        win_rate=rate.value if rate else None,
        ci=(rate.low, rate.high) if rate else None,
        decision_digest=sha256_json(document),
    )


def _digests(artifacts: dict[str, Path]) -> dict[str, str]:
    """Of each, and of what the policy was made from."""
    sealed = {name: manifest.read(path) for name, path in artifacts.items()}
    made_from = sealed["policy"].parents
    image = os.environ.get("DPOFLOW_IMAGE_DIGEST")
    return {
        **{name: each.digest for name, each in sealed.items()},
        **{f"policy.{name}": digest for name, digest in made_from.items()},
        **({"image": image} if image else {}),
    }


def _prompts(heldout: Path, limit: int | None) -> list[Prompt]:
    every = sorted(read_parquet(heldout / "prompts.parquet", Prompt), key=lambda p: p.prompt_id)
    return every[:limit]  # ids are hashes, so the first few are a fair draw


def _ask_both(
    config: EvaluateConfig,
    model: Path,
    policy: Path,
    prompts: list[Prompt],
    pairs: list[PreferencePair],
    state: StepState,
) -> _Answers:
    """Everything that needs a model in memory, one model at a time."""
    candidate, words = load(policy)
    dtype = choose("auto", candidate, remember=state.root / "dtype.json")
    kept = [p for p in prompts if has_room(candidate, words, p.prompt, config.sampling)]
    turns = [prompt.prompt for prompt in kept]

    def answers(
        of: Path, with_it: PreTrainedModel, words: PreTrainedTokenizerBase, name: str
    ) -> list[Answer]:
        return answered(
            with_it,
            words,
            turns,
            config,
            digest=manifest.read(of).digest,
            dtype=dtype,
            state=state,
            name=name,
        )

    def margins(of: PreTrainedModel, name: str) -> list[float]:
        chosen, rejected = pair_logps(
            of, encoded, batch_size=_BATCH, dtype=dtype, events=state.events, phase=f"{name} pairs"
        )
        return [c - r for c, r in zip(chosen, rejected, strict=True)]

    encoded = _encoded(words, pairs, candidate)
    left_out = {
        "prompts_left_out": float(len(prompts) - len(kept)),
        "pairs_left_out": float(len(pairs) - len(encoded)),
    }
    if any(left_out.values()):
        state.events.say(
            f"no room in the model's context for {len(prompts) - len(kept)} of {len(prompts)} "
            f"held-out prompts and {len(pairs) - len(encoded)} of {len(pairs)} pairs: left out"
        )
    told = answers(policy, candidate, words, "candidate")
    candidate_margins = margins(candidate, "candidate")
    del candidate
    base, tokenizer = load(model)
    own = answers(model, base, tokenizer, "base")
    base_margins = margins(base, "base")

    def surprise(said: list[Answer], name: str) -> list[tuple[float, int]]:
        return answer_nll(
            base,
            tokenizer,
            turns,
            [answer.text for answer in said],
            batch_size=_BATCH,
            dtype=dtype,
            events=state.events,
            phase=f"{name} perplexity",
        )

    return _Answers(
        prompts=kept,
        base=own,
        candidate=told,
        base_nll=surprise(own, "base"),
        candidate_nll=surprise(told, "candidate"),
        pair_margins=[c - b for c, b in zip(candidate_margins, base_margins, strict=True)],
        left_out=left_out,
    )


def _encoded(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair], model: PreTrainedModel
) -> list[EncodedPair]:
    limit = int(getattr(model.config, "max_position_embeddings", 1 << 20))
    encoded = (encode_pair(tokenizer, pair, limit) for pair in pairs)
    return [pair for pair in encoded if isinstance(pair, EncodedPair)]


async def _compare(
    config: EvaluateConfig, seen: _Answers, judges: Path | None, state: StepState
) -> list[Comparison]:
    """Every prompt's two answers, the candidate's first, as the judge sees them in both orders."""
    compared: list[Comparison] = []
    triples = zip(seen.prompts, seen.candidate, seen.base, strict=True)
    if config.judge is None:
        return [_comparison(config, *triple, None) for triple in triples]
    async with session(config.judge, state, config.budget, half="all") as at:
        judge = await build(config.judge, at, half="all", models=judges)

        async def work(triple: tuple[Prompt, Answer, Answer]) -> Comparison:
            prompt, candidate, base = triple
            try:
                outcome = await judge.decide(prompt.prompt, candidate.text, base.text)
            except Exhausted as spent:
                raise ConfigError(
                    f"evaluate.budget: {spent}, and an evaluation of some prompts would choose "
                    "among them; raise it, or lower evaluate.max_prompts: what was paid is kept"
                ) from None
            return _comparison(config, *triple, outcome)

        async for each in in_order(triples, work, ahead=ahead_of(config.judge)):
            compared.append(each)
            state.events.progress("judging", len(compared), len(seen.prompts), unit="prompts")
    return compared


def _comparison(
    config: EvaluateConfig,
    prompt: Prompt,
    candidate: Answer,
    base: Answer,
    outcome: Outcome | None,
) -> Comparison:
    question = prompt.prompt[-1].content
    rubric = config.judge.rubric if isinstance(config.judge, RubricJudgeConfig) else None

    def scores(answer: Answer) -> dict[str, float]:
        return (
            RubricJudge(rubric, half="all").score(question, answer.text).by_check if rubric else {}
        )

    return Comparison(
        prompt_id=prompt.prompt_id,
        slice=prompt.slice,
        question=question,
        base=base.text,
        candidate=candidate.text,
        outcome=points(outcome) if outcome else None,
        base_scores=scores(base),
        candidate_scores=scores(candidate),
        heldout_difference=unseen_difference(rubric, question, candidate.text, base.text),
    )


def _measures(seen: _Answers) -> dict[str, float]:
    if not seen.prompts:
        return seen.left_out
    base_ppl, candidate_ppl = perplexity(seen.base_nll), perplexity(seen.candidate_nll)
    measures = {
        "base_perplexity": base_ppl,
        "candidate_perplexity": candidate_ppl,
        "perplexity_ratio": candidate_ppl / base_ppl,
        "finished": finished_share(seen.candidate),
        "base_finished": finished_share(seen.base),
        "repeating": sum(repeats(answer.text) for answer in seen.candidate) / len(seen.candidate),
        "length_ratio": length_ratio(seen.candidate, seen.base),
        **seen.left_out,
    }
    # A contract takes no NaN; what is missing here is a gate that was not measured.
    return {name: value for name, value in measures.items() if isfinite(value)}
