"""From candidates to pairs: what must follow the judge, and what must never become a pair."""

import pytest

from dpoflow.contracts.pairs import Message, PreferencePair, Prompt, Provenance, Source
from dpoflow.contracts.rubric import Rubric
from dpoflow.judge.rubric import RubricJudge
from dpoflow.policy.generate import Answer
from dpoflow.synthesize.pairing import pair_by_judge, pair_with_reference

PROVENANCE = Provenance(generator="g", sampling="{}", seed=0, judge="rubric:test")


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


def said(*texts: str, finished: bool = True) -> list[Answer]:
    return [Answer(text=text, num_tokens=3, finished=finished) for text in texts]


def judged(answers: list[Answer], judge: RubricJudge, min_margin: float = 0.1) -> object:
    return pair_by_judge(prompt(), answers, judge, PROVENANCE, min_margin=min_margin)


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
    assert reverse == "tie"


def test_a_margin_at_the_threshold_is_not_above_it() -> None:
    answers = said("It is on its way.", "No idea.")

    assert judged(answers, likes("way"), min_margin=1.0) == "below_margin"
    assert isinstance(judged(answers, likes("way"), min_margin=0.99), PreferencePair)


def test_a_humans_answer_is_preferred_to_the_models_own_whatever_a_judge_would_say() -> None:
    pair = pair_with_reference(prompt("A human wrote this."), said("A model did."), PROVENANCE)

    assert isinstance(pair, PreferencePair)
    assert pair.chosen.content == "A human wrote this."
    assert pair.votes[0].annotator == "human"
    assert pair.slice == "delivery"


def test_a_model_that_already_says_what_the_human_said_gives_no_pair() -> None:
    assert pair_with_reference(prompt("Same."), said(" Same. "), PROVENANCE) == "identical"


def test_a_pair_says_who_judged_and_by_how_much() -> None:
    pair = judged(said("It is on its way.", "No idea."), likes("way"))

    assert isinstance(pair, PreferencePair)
    assert pair.margin == 1.0
    assert pair.votes[0].annotator == "rubric:test"
    assert pair.votes[0].rationale == "1.00 against 0.00: likes +1.00"
    assert pair.provenance == PROVENANCE
