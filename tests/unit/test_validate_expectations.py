"""Great Expectations as we use it: quiet, in chunks, and sees what checks should have seen."""

import os
import socket

import pytest

from dpoflow.contracts.pairs import Message, PreferencePair, Prompt, Quality, Source, json_table
from dpoflow.validate.expectations import Bounds, Observer, broken_limits, suite_of
from dpoflow.validate.limits import Limit


def pair(prompt: str, chosen: str = "good", rejected: str = "bad") -> PreferencePair:
    return PreferencePair(
        prompt=(Message(role="user", content=prompt),),
        chosen=Message(role="assistant", content=chosen),
        rejected=Message(role="assistant", content=rejected),
        source=Source(dataset="d", row="1"),
    )


def observed(pairs: list[PreferencePair], chunk: int = 100, **bounds: int) -> Observer:
    observer = Observer("pairs", suite_of("pairs", Bounds(**{"max_chars": 100, **bounds})))
    for at in range(0, len(pairs), chunk):
        some = [each.model_dump_json() for each in pairs[at : at + chunk]]
        observer.look(json_table(some, PreferencePair))
    return observer


def test_sound_pairs_hold_every_expectation() -> None:
    observer = observed([pair("a"), pair("b")])

    assert len(observer.held) > 10
    assert all(observer.held.values())
    assert observer.broken_by == {}


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_a_broken_pair_is_named_by_its_id_whatever_the_chunk(chunk: int) -> None:
    bad = pair("c", "same", "same ")
    observer = observed([pair("a"), pair("b"), bad, pair("d")], chunk=chunk)

    name = "expect_column_pair_values_to_differ(chosen, rejected)"
    assert [key for key, held in observer.held.items() if not held] == [name]
    assert observer.broken_by == {name: [bad.pair_id]}


@pytest.mark.parametrize(
    ("bad", "column"),
    [
        (pair("x" * 101), "prompt_chars"),
        (pair("q", "x" * 101), "chosen"),
        (pair("q", ""), "chosen"),
    ],
)
def test_lengths_have_bounds(bad: PreferencePair, column: str) -> None:
    (name,) = observed([pair("a"), bad]).broken_by

    assert name.endswith(f"({column})")


def test_tokens_have_bounds_where_the_spec_has_them() -> None:
    long = pair("q").model_copy(
        update={"quality": Quality(chosen_chars=4, rejected_chars=3, chosen_tokens=9)}
    )

    assert observed([pair("a"), long]).broken_by == {}
    assert observed([pair("a"), long], max_answer_tokens=8).broken_by == {
        "expect_column_values_to_be_between(chosen_tokens)": [long.pair_id]
    }


def test_a_conversation_is_as_long_as_all_its_turns() -> None:
    said = ["x" * 40, "y" * 40, "z" * 30]
    turns = tuple(
        Message(role=role, content=text)
        for role, text in zip(("user", "assistant", "user"), said, strict=True)
    )
    long = PreferencePair.model_validate({**pair("q").model_dump(), "prompt": turns, "pair_id": ""})

    assert observed([pair("a"), long, pair("b")]).broken_by == {
        "expect_column_values_to_be_between(prompt_chars)": [long.pair_id]
    }


def test_a_limit_without_anything_to_measure_does_not_hold() -> None:
    limits = [
        Limit("fine", "data.fine", 0.5, "half", low=0.5, high=0.5),
        Limit("unseen", "data.unseen", None, "nothing", low=0),
        Limit("low", "data.low", 0.2, "little", low=0.3),
    ]

    held, broken = broken_limits(limits)

    assert [each.name for each in broken] == ["unseen", "low"]
    assert held["expect_column_values_to_be_between(fine)"]


def test_prompts_have_a_suite_of_their_own() -> None:
    prompt = Prompt(
        prompt=(Message(role="user", content="q"),), source=Source(dataset="d", row="1")
    )
    observer = Observer("prompts", suite_of("prompts", Bounds(max_chars=100)))

    observer.look(json_table([prompt.model_dump_json()], Prompt))

    assert len(observer.held) == 6
    assert all(observer.held.values())


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    tried: list[object] = []

    def connect(_: socket.socket, address: object) -> None:
        tried.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", connect)
    return tried


def test_nothing_is_reported_home_and_nothing_is_printed(
    no_network: list[object], capfd: pytest.CaptureFixture[str]
) -> None:
    observed([pair("a"), pair("b", "same", "same")])

    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"
    assert no_network == []
    assert capfd.readouterr() == ("", "")
