"""What each model says, one model in memory at a time.

Reads   models' folders, questions, held-out pairs
Gives   `hear`: `Heard`, a model's answers, and how likely it finds them and the pairs
Not     what is made of it (measure.py, preference.py), where answers are kept (answered.py)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from dpoflow.contracts.base import sha256_json
from dpoflow.contracts.pairs import Message, PreferencePair
from dpoflow.contracts.spec import EvaluateConfig, SamplingConfig
from dpoflow.evaluate import harness
from dpoflow.evaluate.answered import answered, identity
from dpoflow.evaluate.names import BASE, CANDIDATE, HELDOUT
from dpoflow.evaluate.suites import Question
from dpoflow.policy.dtype import choose
from dpoflow.policy.generate import Answer, has_room
from dpoflow.policy.load import load
from dpoflow.policy.logprobs import answer_nll, pair_logps
from dpoflow.policy.tokenise import EncodedPair, encode_pair
from dpoflow.state.step import StepState

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BATCH = 8

Surprise = tuple[float, int]
"""Negative log-likelihood of an answer in nats, and its tokens."""


class Asked(NamedTuple):
    """A suite as models see it."""

    questions: Sequence[Question]
    sampling: SamplingConfig | None = None
    """The config's, where it has none of its own."""


class Scored(NamedTuple):
    """A held-out pair under one model."""

    chosen: float
    rejected: float
    """Summed log-probabilities, in nats."""
    num_tokens: int
    """Of the chosen answer."""


class Heard(NamedTuple):
    """One model's words. What its context has no room for is in none of them."""

    answers: dict[str, dict[str, tuple[Answer, ...]]]
    """By suite and question: one answer, or two where something was asked then."""
    pairs: dict[str, Scored]
    """By pair."""
    own: dict[str, Surprise]
    """Of its answers to held-out prompts, under itself."""
    others: dict[str, Surprise]
    """Of the candidate's answers to the same, under this model."""
    vocabulary: str
    """Equal where two models count tokens alike."""
    found: dict[str, dict[str, harness.Found]]
    """Of tasks of lm-evaluation-harness, by suite and question."""

    def said(self) -> dict[str, str]:
        """Its answers to held-out prompts."""
        return {at: answers[0].text for at, answers in self.answers[HELDOUT].items()}


def answered_by_all(heard: Mapping[str, Heard], suite: str = HELDOUT) -> list[str]:
    """Questions of the suite that every model has room for, in their order."""
    told: dict[str, Mapping[str, object]] = {
        name: of.found[suite] if suite in of.found else of.answers[suite]
        for name, of in heard.items()
    }
    return [at for at in told[CANDIDATE] if all(at in of for of in told.values())]


def scored_by_both(heard: Mapping[str, Heard]) -> dict[str, tuple[Scored, Scored]]:
    """Pairs that candidate and base have room for, under either."""
    base = heard[BASE].pairs
    return {at: (ours, base[at]) for at, ours in heard[CANDIDATE].pairs.items() if at in base}


class _Model(NamedTuple):
    name: str
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    dtype: torch.dtype
    state: StepState


def hear(
    name: str,
    folder: Path,
    suites: Mapping[str, Asked],
    pairs: Sequence[PreferencePair],
    config: EvaluateConfig,
    state: StepState,
    *,
    others: Mapping[str, str] | None = None,
    tasks: Sequence[harness.Posed] = (),
) -> Heard:
    """Ask the model in `folder` called `name`; it leaves memory with the return.

    `others` are a candidate's answers to held-out prompts, whose likelihood is wanted.
    """
    model, tokenizer = load(folder)
    dtype = choose("auto", model, remember=state.root / "dtype.json")
    loaded = _Model(name, model, tokenizer, dtype, state)
    digest = identity(folder)
    answers = {
        name: _answers(loaded, name, suite, config, digest) for name, suite in suites.items()
    }
    prompts = {question.id: question.prompt for question in suites[HELDOUT].questions}
    own = {at: said[0].text for at, said in answers[HELDOUT].items()}
    return Heard(
        answers=answers,
        pairs=_pairs(loaded, pairs),
        own=_surprise(loaded, prompts, own, f"{name} perplexity"),
        others=_surprise(loaded, prompts, others or {}, f"{name} on candidate"),
        vocabulary=sha256_json(tokenizer.get_vocab()),
        found={task.name: _found(loaded, task, digest) for task in tasks},
    )


def _answers(
    of: _Model, suite: str, asked: Asked, config: EvaluateConfig, digest: str
) -> dict[str, tuple[Answer, ...]]:
    questions, sampling = asked.questions, asked.sampling or config.sampling
    config = config.model_copy(update={"sampling": sampling})

    def ask(prompts: Mapping[str, tuple[Message, ...]], turn: str) -> dict[str, Answer]:
        fits = {
            place: prompt
            for place, prompt in prompts.items()
            if has_room(of.model, of.tokenizer, prompt, sampling)
        }
        told = answered(
            of.model,
            of.tokenizer,
            list(fits.values()),
            config,
            digest=digest,
            dtype=of.dtype,
            state=of.state,
            name=of.name + (f" {suite}" if suite != HELDOUT else "") + turn,
        )
        return dict(zip(fits, told, strict=True))

    first = ask({question.id: question.prompt for question in questions}, "")
    going_on = {
        question.id: (
            *question.prompt,
            Message(role="assistant", content=first[question.id].text),
            Message(role="user", content=question.then),
        )
        for question in questions
        if question.then is not None and question.id in first and first[question.id].text.strip()
    }
    second = ask(going_on, " turn 2") if going_on else {}
    return {
        place: (answer, second[place]) if place in second else (answer,)
        for place, answer in first.items()
    }


def _found(of: _Model, task: harness.Posed, digest: str) -> dict[str, harness.Found]:
    return harness.pose(
        of.model,
        of.tokenizer,
        task,
        digest=digest,
        dtype=of.dtype,
        state=of.state,
        name=f"{of.name} {task.name}",
    )


def _pairs(of: _Model, pairs: Sequence[PreferencePair]) -> dict[str, Scored]:
    limit = int(getattr(of.model.config, "max_position_embeddings", 1 << 20))
    encoded = [encode_pair(of.tokenizer, pair, limit) for pair in pairs]
    fits = [each for each in encoded if isinstance(each, EncodedPair)]
    logps = pair_logps(
        of.model,
        fits,
        batch_size=_BATCH,
        dtype=of.dtype,
        events=of.state.events,
        phase=f"{of.name} pairs",
    )
    return {
        each.pair_id: Scored(chosen, rejected, len(each.chosen))
        for each, chosen, rejected in zip(fits, *logps, strict=True)
    }


def _surprise(
    of: _Model,
    prompts: Mapping[str, tuple[Message, ...]],
    answers: Mapping[str, str],
    phase: str,
) -> dict[str, Surprise]:
    told = answer_nll(
        of.model,
        of.tokenizer,
        [prompts[place] for place in answers],
        list(answers.values()),
        batch_size=_BATCH,
        dtype=of.dtype,
        events=of.state.events,
        phase=phase,
    )
    return dict(zip(answers, told, strict=True))
