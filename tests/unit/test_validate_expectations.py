"""Great Expectations as we use it: quiet, in chunks, and sees what checks should have seen."""

import os
import socket
from typing import Any

import pytest

from dpoflow.contracts.pairs import Message, PreferencePair, Prompt, Source
from dpoflow.validate.expectations import Observer


def pair(prompt: str, chosen: str = "good", rejected: str = "bad") -> PreferencePair:
    return PreferencePair(
        prompt=(Message(role="user", content=prompt),),
        chosen=Message(role="assistant", content=chosen),
        rejected=Message(role="assistant", content=rejected),
        source=Source(dataset="d", row="1"),
    )


def observed(pairs: list[PreferencePair], **knobs: Any) -> Observer:
    observer = Observer("pairs", **{"max_chars": 100, **knobs})
    assert list(observer.watch(iter(pairs))) == pairs
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


def test_prompts_have_a_suite_of_their_own() -> None:
    prompt = Prompt(
        prompt=(Message(role="user", content="q"),), source=Source(dataset="d", row="1")
    )
    observer = Observer("prompts", max_chars=100)

    assert list(observer.watch(iter([prompt]))) == [prompt]
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
