"""From candidates to pairs: what must follow the judge, and what must never become a pair."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_folder

from dpoflow.contracts.manifest import seal
from dpoflow.contracts.pairs import (
    Message,
    PreferencePair,
    Prompt,
    Provenance,
    Source,
    Writer,
    write_parquet,
)
from dpoflow.contracts.results import SynthesizeResult
from dpoflow.contracts.rubric import Rubric
from dpoflow.contracts.spec import SynthesizeConfig
from dpoflow.endpoints.budget import Exhausted
from dpoflow.judge.rubric import RubricJudge
from dpoflow.judge.verdict import Choice, Judge, Outcome, Verdict, settle
from dpoflow.policy.generate import Answer
from dpoflow.state.events import read_events
from dpoflow.state.step import StepState
from dpoflow.synthesize.candidates import Candidate, Group
from dpoflow.synthesize.length import balanced, length_bias
from dpoflow.synthesize.pairing import Judged, pair_with_reference, pairs_by_judge
from dpoflow.synthesize.step import run

WRITER = Writer(generator="g", sampling="{}", seed=0)
RUBRIC = {"checks": [{"kind": "prose", "name": "prose", "half": "judge"}]}


def prompt(reference: str | None = None) -> Prompt:
    return Prompt(
        prompt=(Message(role="user", content="Where is my parcel?"),),
        reference=reference,
        source=Source(dataset="test", row="1"),
        slice="delivery",
    )


def likes(phrase: str, *, kind: str = "must_contain") -> RubricJudge:
    check = {"kind": kind, "name": "likes", "half": "judge", "phrases": [phrase]}
    return RubricJudge(Rubric.model_validate({"checks": [check]}))


def said(*texts: str, finished: bool = True) -> list[Candidate]:
    return [Candidate(Answer(text=text, num_tokens=3, finished=finished), WRITER) for text in texts]


def ask(candidates: Sequence[Candidate], judge: Judge, **knobs: Any) -> Judged:
    config = SynthesizeConfig.model_validate({"judge": {"rubric": RUBRIC}, **knobs})
    return asyncio.run(pairs_by_judge(config, prompt(), Group(list(candidates)), judge))


def judged(candidates: Sequence[Candidate], judge: Judge, min_margin: float = 0.1) -> object:
    """The one pair, or why there is none."""
    told = ask(candidates, judge, min_margin=min_margin)
    return told.pairs[0] if told.pairs else told.reason


class Marks:
    """A judge that shows its answers to `says` in both orders, as a comparative judge must."""

    id = "scripted"

    def __init__(self, says: dict[str, float] | Choice) -> None:
        self._says = says

    async def decide(self, conversation: Sequence[Message], first: str, second: str) -> Outcome:
        return settle(self.id, self._one(first, second), self._one(second, first))

    def _one(self, first: str, second: str) -> Verdict:
        if not isinstance(self._says, dict):
            return Verdict(choice=self._says)
        gap = self._says[first] - self._says[second]
        choice: Choice = "tie" if gap == 0 else "first" if gap > 0 else "second"
        return Verdict(choice=choice, margin=gap, rationale=f"{first} against {second}")


def test_inverting_the_judge_inverts_the_pair() -> None:
    answers = said("It is on its way.", "No idea.")

    pair = judged(answers, likes("way"))
    inverted = judged(answers, likes("way", kind="must_not_contain"))

    assert isinstance(pair, PreferencePair)
    assert isinstance(inverted, PreferencePair)
    assert (pair.chosen, pair.rejected) == (inverted.rejected, inverted.chosen)
    assert pair.chosen.content == "It is on its way."


def test_the_order_of_candidates_does_not_decide_who_wins() -> None:
    forward = judged(said("It is on its way.", "No idea."), likes("way"))
    backward = judged(said("No idea.", "It is on its way."), likes("way"))

    assert isinstance(forward, PreferencePair)
    assert isinstance(backward, PreferencePair)
    assert forward.pair_id == backward.pair_id


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        (said("Same.", "Same."), "identical"),
        (said("Neither this.", "Nor that."), "tie"),
        (said("", "  "), "empty"),
        (said("Alone.") + said("cut off", finished=False), "tie"),
        (said("It is on its way. And", "No idea. And", finished=False), "truncated"),
    ],
)
def test_what_the_judge_cannot_tell_apart_never_becomes_a_pair(
    answers: list[Answer], reason: str
) -> None:
    assert judged(answers, likes("way")) == reason


def test_an_answer_that_was_cut_may_lose_without_an_end_and_never_wins() -> None:
    cut = said("No idea. And", finished=False)

    pair = judged(said("It is on its way.") + cut, likes("way"))
    reverse = judged(said("It is on its way.") + cut, likes("idea"))

    assert isinstance(pair, PreferencePair)
    assert (pair.rejected.content, pair.rejected_ended) == ("No idea. And", False)
    assert reverse == "truncated"


def test_a_margin_at_the_threshold_is_not_above_it() -> None:
    answers = said("It is on its way.", "No idea.")

    assert judged(answers, likes("way"), min_margin=1.0) == "below_margin"
    assert isinstance(judged(answers, likes("way"), min_margin=0.99), PreferencePair)


def test_a_humans_answer_is_preferred_to_the_models_own_whatever_a_judge_would_say() -> None:
    (pair,) = pair_with_reference(prompt("A human wrote this."), Group(said("A model did."))).pairs

    assert pair.chosen.content == "A human wrote this."
    assert pair.votes[0].annotator == "human"
    assert pair.slice == "delivery"


def test_a_model_that_already_says_what_the_human_said_gives_no_pair() -> None:
    assert pair_with_reference(prompt("Same."), Group(said(" Same. "))).reason == "identical"


def test_a_pair_says_who_judged_and_by_how_much() -> None:
    pair = judged(said("It is on its way.", "No idea."), likes("way"))

    assert isinstance(pair, PreferencePair)
    assert pair.margin == 1.0
    assert pair.votes[0].annotator == likes("way").id
    assert pair.votes[0].rationale == "1.00 against 0.00: likes +1.00"
    assert pair.provenance is not None
    assert (pair.provenance.chosen, pair.provenance.rejected) == (WRITER, WRITER)
    assert pair.provenance.judge == likes("way").id


@pytest.mark.parametrize(
    ("choice", "reason"),
    [("first", "inconsistent"), ("second", "inconsistent"), ("tie", "tie"), ("invalid", "invalid")],
)
def test_a_judge_that_goes_by_the_order_or_says_nothing_makes_no_pair(
    choice: Choice, reason: str
) -> None:
    told = ask(said("One.", "Two.", "Three."), Marks(choice))

    assert told.pairs == ()
    assert told.reason == reason
    assert {each.outcome.label for each in told.compared} == {reason}
    assert len(told.compared) == 3, "every two candidates were compared, and are kept for audit"


def test_a_pair_of_a_comparative_judge_holds_both_orders_seen_from_its_winner() -> None:
    (pair,) = ask(said("bad", "good"), Marks({"good": 0.9, "bad": 0.2})).pairs

    assert (pair.chosen.content, pair.rejected.content) == ("good", "bad")
    assert sorted((vote.order, vote.verdict) for vote in pair.votes) == [
        ("chosen_first", "chosen"),
        ("rejected_first", "chosen"),
    ]
    assert pair.margin == pytest.approx(0.7)


MARKS = {"a": 0.9, "b": 0.8, "c": 0.48, "d": 0.1}


def texts(told: Judged) -> list[tuple[str, str]]:
    return [(pair.chosen.content, pair.rejected.content) for pair in told.pairs]


def test_each_strategy_makes_the_pairs_of_its_name() -> None:
    answers = said("c", "a", "d", "b")

    def made(**knobs: Any) -> list[tuple[str, str]]:
        return texts(ask(answers, Marks(MARKS), min_margin=0.25, **knobs))

    assert made() == [("a", "d")]
    assert made(strategy="all_above_margin", max_pairs=9) == [  # by hand: gaps above 0.25
        ("a", "d"),
        ("b", "d"),
        ("a", "c"),
        ("c", "d"),
        ("b", "c"),
    ]
    assert made(strategy="all_above_margin", max_pairs=2) == [("a", "d"), ("b", "d")]
    drawn = {made(strategy="best_vs_random_lower", seed=seed)[0] for seed in range(40)}
    assert drawn == {("a", "c"), ("a", "d")}, "a leads b by no more than the margin"


def test_inverting_a_comparative_judge_inverts_every_pair() -> None:
    upside_down = Marks({text: -mark for text, mark in MARKS.items()})
    knobs = {"strategy": "all_above_margin", "max_pairs": 9}

    upright = texts(ask(said(*MARKS), Marks(MARKS), **knobs))
    inverted = texts(ask(said(*MARKS), upside_down, **knobs))

    assert sorted(upright) == sorted((rejected, chosen) for chosen, rejected in inverted)


@pytest.mark.parametrize(
    ("text", "drop", "why"),
    [
        ("I'm sorry, but I can't help with that.", ("refusal",), "refusal"),
        ("As an AI language model, I have no parcel.", ("refusal",), "refusal"),
        ("Sorry for the wait! It ships today.", ("refusal",), None),
        ("I cannotate it.", ("refusal",), None),
        ("so it goes on " * 5, ("repeating",), "repeating"),
        ("I'm sorry, but I can't help with that.", (), None),
    ],
)
def test_what_the_spec_drops_is_set_aside_before_a_judge_sees_it(
    text: str, drop: tuple[str, ...], why: str | None
) -> None:
    told = ask(said("Fine.", text), Marks({"Fine.": 1.0, text: 0.0}), drop=drop)

    assert told.aside == (None, why)
    assert bool(told.pairs) == (why is None)


def test_length_bias_is_told_with_its_interval_and_taken_out_on_request() -> None:
    long = [pair_of("a long answer", "short", margin) for margin in (0.9, 0.5, 0.7)]
    short = [pair_of("brief", "a long answer", 0.3)]

    bias = length_bias([*long, *short])
    assert bias is not None
    assert bias.chosen_longer == 0.75
    # Clopper and Pearson's interval of 3 in 4, from the beta distribution's quantiles.
    assert (bias.low, bias.high) == pytest.approx((0.1941, 0.9937), abs=1e-4)
    assert balanced([*long, *short]) == [long[0], *short], "the largest margin stays"


def test_balancing_counts_judged_pairs_only_and_leaves_a_humans_answers_in() -> None:
    human = [pair_of("brief", "a long answer", 0.1, human=True) for _ in range(3)]
    long = [pair_of("a long answer", "short", 0.9)]

    assert balanced([*human, *long]) == human


def test_a_writer_that_could_not_be_asked_is_the_reason_and_no_identical_answer() -> None:
    config = SynthesizeConfig.model_validate({"judge": {"rubric": RUBRIC}})
    group = Group(said("Alone."), ("over_budget", "over_budget"))

    told = asyncio.run(pairs_by_judge(config, prompt(), group, Marks("first")))

    assert told.reason == "over_budget"


def test_a_budget_that_ends_among_comparisons_keeps_those_that_were_paid() -> None:
    class Spent(Marks):
        async def decide(self, conversation: Sequence[Message], first: str, second: str) -> Outcome:
            if second == "d":
                raise Exhausted("the budget of 3 requests has 0 left")
            return await super().decide(conversation, first, second)

    told = ask(said(*MARKS), Spent(MARKS))

    assert (told.pairs, told.reason, len(told.compared)) == ((), "over_budget", 3)


def pair_of(chosen: str, rejected: str, margin: float, *, human: bool = False) -> PreferencePair:
    asked = Message(role="user", content=f"{chosen} {margin}?")
    return PreferencePair(
        prompt=(asked,),
        chosen=Message(role="assistant", content=chosen),
        rejected=Message(role="assistant", content=rejected),
        margin=margin,
        source=Source(dataset="test", row="1"),
        provenance=Provenance(chosen=None if human else WRITER, rejected=WRITER, judge="j"),
    )


def step(folder: Path, *, prompts: int, **knobs: Any) -> tuple[SynthesizeResult, list[str]]:
    """The whole step with the tiny model: its result, and what it says."""
    model = tiny_folder(folder / "model")
    seal(model, "test.model", parents={}, config={}, code="")
    (folder / "prompts").mkdir()
    rows = [
        Prompt(prompt=(Message(role="user", content=f"Where {row}?"),), source=prompt().source)
        for row in range(prompts)
    ]
    write_parquet(rows, Prompt, folder / "prompts" / "prompts.parquet")
    state = StepState(folder / "state", "synthesize")
    state.start_afresh(["pairs"])
    sampling = {"temperature": 1.0, "max_new_tokens": 8}
    result = run(
        SynthesizeConfig.model_validate(
            {"judge": {"rubric": RUBRIC}, "sampling": sampling, **knobs}
        ),
        prompts=folder / "prompts",
        model=model,
        pairs=state.output("pairs"),
        state=state,
    )
    events, _ = read_events(state.folder / "events.jsonl")
    return result, [event.message for event in events if event.message and not event.passing]


def test_a_step_that_makes_no_pair_ends_with_why_and_where_to_look(tmp_path: Path) -> None:
    result, said = step(tmp_path, prompts=3, candidates=2, min_margin=1.0)

    assert result.num_pairs == 0
    why = ", ".join(f"{many} {reason}" for reason, many in result.not_pairs.items())
    assert said[0] == f"0 pairs from 3 prompts and 6 candidates (no pair: {why})"
    assert said[-1].startswith("no pair was made; each candidate and comparison stands in ")
    assert str(tmp_path / "state" / "outputs" / "pairs") in said[-1]


@pytest.mark.parametrize(
    ("prompts", "words"),
    [(2, "no pair is made of 2 prompts; set synthesize.enabled and"), (0, "no pair is made")],
)
def test_a_step_that_is_off_says_what_it_leaves_undone(
    tmp_path: Path, prompts: int, words: str
) -> None:
    _, (said,) = step(tmp_path, prompts=prompts, enabled=False)

    assert said.startswith(f"switched off in the spec: {words}")
    assert prompts > 0 or said.endswith(words)
