"""The page that a reviewer reads: what stands first, and that text stays text."""

import html
import re

import pytest

from dpoflow.contracts.manifest import Manifest
from dpoflow.contracts.results import Decision, Gate, Verdict
from dpoflow.register.description import Places, describe, plain
from dpoflow.registry.lineage import Evidence

PLACES = Places("7", "m-1", "r-1", frozenset({"report.html", "validate.html"}))


def manifest(kind: str, digest: str, **parents: str) -> Manifest:
    return Manifest(kind=kind, digest=digest, files={}, parents=parents, config={}, code="")


def chain() -> Evidence:
    made = [
        manifest("train.policy", "p" * 64, pairs="q" * 64),
        manifest("evaluate.decision", "d" * 64, policy="p" * 64, data="s" * 64),
        manifest("merge.training", "q" * 64, data="s" * 64),
        manifest("snapshot.data", "s" * 64),
    ]
    return Evidence(
        roots={"policy": "p" * 64, "decision": "d" * 64},
        manifests={each.digest: each for each in made},
    )


def page(verdict: Verdict = "promote", *, submitted: bool = True, **gate: object) -> str:
    named = {"name": "win_rate", "asked": "> 0.5", "seen": "0.71", "passed": True} | gate
    document = Decision(
        verdict=verdict,
        sentence="It won on 61 prompts.",
        gates=(Gate.model_validate(named),),
        against={},
        measures={},
        digests={},
    )
    return describe(document, "a" * 64, chain(), PLACES, submitted=submitted)


def test_the_first_lines_are_the_verdict_and_how_to_approve() -> None:
    first, _, second = page().splitlines()[:3]

    assert first == "**promote**: It won on 61 prompts."
    assert "`approval` = `approve: REASON` or `reject: REASON`" in second


def test_what_cannot_be_approved_is_not_said_to_be() -> None:
    assert "approve: REASON" not in page("inconclusive")
    assert "a verdict of inconclusive cannot be approved" in page("inconclusive")
    assert "approve: REASON" not in page(submitted=False)
    assert "names no submission" in page(submitted=False)


def test_a_gate_that_the_spec_loosened_is_told_with_what_is_usual() -> None:
    document = Decision(
        verdict="promote",
        sentence="It won.",
        gates=(),
        against={},
        measures={},
        digests={},
        own_gates={"win_rate": ("0.5", "0.05"), "equal_length": ("0.5", "off")},
    )

    told = describe(document, None, chain(), PLACES, submitted=True)

    assert "`win_rate` is 0.05, usually 0.5; `equal_length` is off, usually 0.5." in told
    assert "sets otherwise" not in page()


def test_every_artifact_down_to_the_sources_is_named_once_by_its_whole_digest() -> None:
    assert re.findall(r"^\| ([a-z.]+)&emsp; \| `(\w{64})`&emsp; \|$", page(), re.MULTILINE) == [
        ("train.policy", "p" * 64),
        ("evaluate.decision", "d" * 64),
        ("merge.training", "q" * 64),
        ("snapshot.data", "s" * 64),
    ]


def test_links_lead_to_the_files_and_to_the_run() -> None:
    assert "(#/experiments/7/models/m-1/artifacts)" in page()
    assert "(#/experiments/7/runs/r-1)" in page()
    named = "`report.html` (the evaluation, answers side by side)"
    assert f"{named}, `validate.html` (the data as it came);" in page()
    assert "merge.html" not in page()  # it is not among the files


@pytest.mark.parametrize(
    "text",
    [
        "a | b",
        "<img src=x onerror=alert(1)>",
        "[click](javascript:alert(1))",
        "**bold** _it_ `code` # head ~~gone~~ \\| &lt;",
    ],
)
def test_text_of_a_gate_shows_as_it_is_and_marks_nothing_up(text: str) -> None:
    shown = plain(text)

    assert html.unescape(shown) == text  # what a browser shows
    assert not set(re.sub(r"&#\d+;", "", shown)) & set("<>|*_[]`#~\\&")


def test_a_gate_over_two_lines_stays_one_row_of_the_table() -> None:
    rows = [line for line in page(seen="0.71\n| forged | row |").splitlines() if "0.71" in line]

    assert len(rows) == 1
    assert rows[0].count("|") == 5
