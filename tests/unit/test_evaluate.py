"""Measures, intervals, the verdict: against scipy, by hand, and what must never be promoted."""

import asyncio
import json
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import product
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tests.evaluation import RUBRIC

from dpoflow.contracts.pairs import Message
from dpoflow.contracts.results import (
    Decision,
    Gate,
    Interval,
    Opponent,
    Power,
    SuiteScores,
    Verdict,
)
from dpoflow.contracts.rubric import Rubric
from dpoflow.contracts.spec import EvaluateConfig, GateConfig
from dpoflow.evaluate.alpaca import score_alpaca
from dpoflow.evaluate.decide import Evidence, decide
from dpoflow.evaluate.document import Measured, document_of
from dpoflow.evaluate.figures import figures_of
from dpoflow.evaluate.measure import (
    Comparison,
    finished_share,
    length_ratio,
    perplexity,
    points,
)
from dpoflow.evaluate.page import report_page
from dpoflow.evaluate.statistics import bootstrap_mean, difference_of, power_of
from dpoflow.judge.rubric import RubricJudge
from dpoflow.judge.verdict import Verdict as Said
from dpoflow.judge.verdict import settle
from dpoflow.policy.answers import repeats
from dpoflow.policy.generate import Answer

GATES = GateConfig(heldout_rubric=0.0)
WON = Interval(value=0.7, low=0.6, high=0.8, n=60)
FINE: dict[str, Any] = {
    "num_prompts": 60,
    "win_rate": WON,
    "champion_win_rate": WON,
    "equal_length": 0.65,
    "heldout_rubric": Interval(value=0.1, low=0.05, high=0.15, n=60),
    "perplexity_ratio": 1.1,
    "heldout_perplexity_ratio": 1.2,
    "finished": 0.98,
    "length_ratio": 0.9,
    "duplicate_answers": 0.0,
    "refusing": 0.02,
    "base_refusing": 0.01,
    "other_language": 0.0,
    "claim": True,
}
"""Everything that a gate looks at, such that all hold."""
MEASURES = (
    *("perplexity_ratio", "heldout_perplexity_ratio", "finished"),
    *("duplicate_answers", "refusing", "base_refusing", "other_language"),
)


def evidence(power: Power | None = None, **changes: Any) -> Evidence:
    seen = {**FINE, **changes}
    told: dict[str, Any] = {
        "at_equal_length": seen["equal_length"],
        "length_ratio": seen["length_ratio"],
    }
    return Evidence(
        num_prompts=seen["num_prompts"],
        against={
            "base": Opponent(win_rate=seen["win_rate"], power=power, **told),
            "champion": Opponent(win_rate=seen["champion_win_rate"], **told),
        },
        measures={name: seen[name] for name in MEASURES if seen[name] is not None},
        heldout_rubric=seen["heldout_rubric"],
        claims=[Gate(name="data_current", asked="so", seen="?", passed=seen["claim"])],
    )


def verdict(**changes: Any) -> Verdict:
    return decide(GATES, evidence(**changes))[0]


def test_the_bootstrap_interval_is_scipys() -> None:
    values = np.random.default_rng(5).choice([0.0, 0.5, 1.0], size=80, p=[0.2, 0.2, 0.6])

    ours = bootstrap_mean(list(values), confidence=0.95, resamples=20_000, seed=1)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval

    assert ours is not None
    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng, held = np.random.default_rng(11), 0
    for seed in range(400):
        interval = bootstrap_mean(
            list(rng.binomial(1, 0.6, size=100).astype(float)),
            confidence=0.95,
            resamples=400,
            seed=seed,
        )
        assert interval is not None
        held += interval.low <= 0.6 <= interval.high
    # Binomial noise of 400 trials at 0.95 is 0.011; five of them, and the method's own 1 % bias.
    assert 0.89 <= held / 400 <= 1.0


def test_what_no_prompt_of_twenty_tells_apart_is_not_shown_to_be_equal() -> None:
    same = difference_of([False] * 20, [False] * 20, confidence=0.95)
    many = difference_of([False] * 250, [False] * 250, confidence=0.95)

    assert same is not None
    assert many is not None
    # With one pair added to each way: 1.96 * sqrt(2 / 22 / 22).
    assert (same.value, same.high) == (0.0, pytest.approx(1.959964 * (2 / 22 / 22) ** 0.5))
    assert many.high < 0.05 < same.high


@pytest.mark.parametrize("n", [20, 60])
@pytest.mark.parametrize(
    ("both", "ours", "theirs"), [(0.3, 0.1, 0.1), (0.0, 0.02, 0.0), (0.5, 0.2, 0.05)]
)
def test_intervals_of_paired_differences_hold_the_truth(
    n: int, both: float, ours: float, theirs: float
) -> None:
    rng, held = np.random.default_rng(n), 0
    for _ in range(2000):
        drawn = rng.choice(4, size=n, p=[both, ours, theirs, 1 - both - ours - theirs])
        mine, other = np.isin(drawn, (0, 1)), np.isin(drawn, (0, 2))
        seen = difference_of(list(mine), list(other), confidence=0.95)
        assert seen is not None
        held += seen.low <= ours - theirs <= seen.high
    # Three standard errors of 2,000 trials at 0.95 are 0.015; it may hold more, never much less.
    assert held / 2000 >= 0.93


TRUTHS = [(0.5, 0.0), (0.5, 0.3), (0.6, 0.2), (0.7, 0.2), (0.75, 0.3), (0.4, 0.5), (0.8, 0.1)]
"""Win rates, and the share of ties in them."""


def drawn(rng: np.random.Generator, n: int, rate: float, ties: float) -> list[float]:
    """`n` comparisons by a candidate whose true win rate is `rate`, ties half."""
    won = rate - ties / 2
    return list(rng.choice([0.0, 0.5, 1.0], size=n, p=[1 - won - ties, ties, won]))


@pytest.mark.full
@pytest.mark.parametrize("n", [40, 200])
def test_of_ten_thousand_evaluations_94_to_96_in_100_intervals_hold_the_truth(n: int) -> None:
    rng, held = np.random.default_rng(n), 0
    for at in range(10_000):
        rate, ties = TRUTHS[at % len(TRUTHS)]
        seen = bootstrap_mean(drawn(rng, n, rate, ties), confidence=0.95, resamples=2000, seed=at)
        assert seen is not None
        held += seen.low - 1e-9 <= rate <= seen.high + 1e-9
    assert 0.94 <= held / 10_000 <= 0.96


@pytest.mark.full
@pytest.mark.parametrize("n", [40, 200])
def test_of_ten_thousand_candidates_that_are_no_better_at_most_3_in_100_are_promoted(
    n: int,
) -> None:
    rng, promoted = np.random.default_rng(n), 0
    for at in range(10_000):
        values = drawn(rng, n, 0.5, (0.0, 0.1, 0.2, 0.3, 0.5)[at % 5])
        seen = bootstrap_mean(values, confidence=0.95, resamples=2000, seed=at)
        promoted += verdict(win_rate=seen, num_prompts=n) == "promote"
    assert promoted / 10_000 <= 0.03


def test_a_win_rate_that_is_called_detectable_is_found_eight_times_in_ten() -> None:
    rng = np.random.default_rng(3)
    told = power_of([0.0] * 25 + [0.5] * 50 + [1.0] * 25, bound=0.5, confidence=0.95)
    assert told is not None

    found = [
        bootstrap_mean(
            drawn(rng, 100, told.detectable, 0.5), confidence=0.95, resamples=1000, seed=at
        )
        for at in range(2000)
    ]

    # 2,000 trials at 0.8 scatter by 0.009; the normal approximation adds as much.
    share = sum(each is not None and each.low > 0.5 for each in found) / 2000
    assert share == pytest.approx(0.8, abs=0.05)


def test_prompts_that_are_called_enough_find_what_was_seen_eight_times_in_ten() -> None:
    rng = np.random.default_rng(4)
    told = power_of([0.0] * 21 + [0.5] * 50 + [1.0] * 29, bound=0.5, confidence=0.95)
    assert told is not None
    assert told.needed is not None

    found = [
        bootstrap_mean(drawn(rng, told.needed, 0.54, 0.5), confidence=0.95, resamples=1000, seed=at)
        for at in range(1000)
    ]

    share = sum(each is not None and each.low > 0.5 for each in found) / 1000
    assert share == pytest.approx(0.8, abs=0.05)


def compared(slice_of: Callable[[int], str] = lambda at: "all") -> list[Comparison]:
    """Thirty comparisons: the candidate is longer each time, and wins two of three."""
    return [
        Comparison(
            prompt_id=str(at),
            slice=slice_of(at),
            question="q",
            against="base",
            theirs="b" * 40,
            candidate="c" * (45 + at),
            outcome=float(at % 3 != 0),
        )
        for at in range(30)
    ]


def test_the_win_rate_of_each_slice_is_that_of_its_prompts_alone() -> None:
    rows = compared(lambda at: "returns" if at % 3 else "delivery")

    document = document_of(EvaluateConfig(), rows, Measured(), {})

    slices = document.against["base"].slices
    assert {name: (seen.value, seen.n) for name, seen in slices.items()} == {
        "delivery": (0.0, 10),
        "returns": (1.0, 20),
    }
    page = report_page(document, rows)
    assert "<td>delivery</td>" in page
    figures = figures_of(document)
    assert figures["eval/win_rate/returns_low"] == 1.0
    assert figures["eval/win_rate"] == pytest.approx(20 / 30)


def test_the_win_rate_at_equal_length_is_that_of_alpaca_evals_layout(tmp_path: Path) -> None:
    rows = compared()
    layout = [
        {"output_1": each.theirs, "output_2": each.candidate, "preference": 1 + each.outcome}
        for each in rows
        if each.outcome is not None
    ]
    (tmp_path / "annotations.json").write_text(json.dumps(layout))

    document = document_of(EvaluateConfig(), rows, Measured(), {})

    scores = score_alpaca(tmp_path / "annotations.json")
    assert document.against["base"].at_equal_length == pytest.approx(
        scores.length_controlled_winrate / 100
    )


def judged(against: str, won: int, lost: int, unreadable: int) -> list[Comparison]:
    outcomes = [1.0] * won + [0.0] * lost + [None] * unreadable
    return [
        Comparison(prompt_id=str(at), slice="all", question="q", against=against, theirs="b",
                   candidate="c", outcome=outcome)
        for at, outcome in enumerate(outcomes)
    ]  # fmt: skip


def test_a_regression_that_finds_nothing_decides_nothing_at_equal_length() -> None:
    rows = judged("base", won=6, lost=9, unreadable=0)  # 40 %, all of one length

    document = document_of(EvaluateConfig(), rows, Measured(), {})

    assert document.against["base"].at_equal_length == 0.5
    (gate,) = (each for each in document.gates if each.name == "equal_length_base")
    assert (gate.passed, gate.undecided) == (False, True)


def test_gates_that_a_spec_sets_for_itself_stand_in_the_decision_beside_the_usual() -> None:
    config = EvaluateConfig.model_validate({"gates": {"win_rate": 0.05, "equal_length": None}})

    own = document_of(config, compared(), Measured(), {}).own_gates

    assert own == {"win_rate": ("0.5", "0.05"), "equal_length": ("0.5", "off")}
    assert document_of(EvaluateConfig(), compared(), Measured(), {}).own_gates == {}


def decided(judge: dict[str, Any], rows: list[Comparison], **gates: Any) -> Decision:
    """What a judge makes of these, where every other gate holds."""
    config = EvaluateConfig.model_validate(
        {"judge": judge, "gates": {"heldout_rubric": None, "equal_length": None, **gates}}
    )
    measures = {name: FINE[name] for name in MEASURES}
    ratios = {each.against: 0.9 for each in rows}
    return document_of(config, rows, Measured(measures, ratios), {})


LLM = {"kind": "llm", "endpoint": {"base_url": "http://localhost:1/v1", "model": "m"}}


def test_a_candidate_whose_answers_break_the_judges_format_is_not_promoted_on_the_rest() -> None:
    rows = judged("base", won=21, lost=7, unreadable=172)

    document = decided(LLM, rows)

    assert document.against["base"].win_rate is not None
    assert document.against["base"].win_rate.value == 0.75
    assert document.verdict == "inconclusive"
    (missed,) = (gate for gate in document.gates if not gate.passed)
    assert (missed.name, missed.asked) == ("unreadable_verdicts", "at most 0.05")
    assert missed.seen == "0.860, 172 of 200 verdicts"
    told = "not held: unreadable_verdicts (0.860, 172 of 200 verdicts, asked at most 0.05)."
    assert document.sentence.endswith(told)
    page = report_page(document, rows)
    assert "<td>0.860, 172 of 200 verdicts</td>" in page
    assert figures_of(document)["eval/unreadable_verdicts"] == 0.86


@pytest.mark.parametrize(
    ("unreadable", "gates", "expected"),
    [
        (10, {}, "promote"),  # of 200: one in twenty and no more
        (11, {}, "inconclusive"),
        (11, {"unreadable_verdicts": 0.1}, "promote"),
        (172, {"unreadable_verdicts": None}, "promote"),
    ],
)
def test_as_many_verdicts_may_be_unreadable_as_the_spec_says(
    unreadable: int, gates: dict[str, Any], expected: Verdict
) -> None:
    read = 200 - unreadable
    rows = judged("base", won=read * 3 // 4, lost=read - read * 3 // 4, unreadable=unreadable)

    assert decided(LLM, rows, **gates).verdict == expected


@pytest.mark.parametrize("elsewhere", ["base", "champion"])
def test_what_was_read_elsewhere_makes_up_for_no_unreadable_verdict(elsewhere: str) -> None:
    here = "champion" if elsewhere == "base" else "base"
    lost = judged(here, won=21, lost=7, unreadable=12)
    rows = [*judged(elsewhere, won=450, lost=150, unreadable=0), *lost]

    document = decided(LLM, rows)

    name = "unreadable_verdicts" + ("_champion" if here == "champion" else "")
    assert document.verdict == "inconclusive"
    assert [gate.name for gate in document.gates if not gate.passed] == [name]
    assert document.measures[name] == 12 / 40


def test_the_word_of_a_rubric_needs_no_reading_and_no_gate() -> None:
    document = decided(RUBRIC, judged("base", won=21, lost=7, unreadable=0))

    assert document.verdict == "promote"
    assert "unreadable_verdicts" not in {gate.name for gate in document.gates}


def test_comparisons_that_all_end_alike_tell_nothing_of_their_power() -> None:
    assert power_of([1.0] * 30, bound=0.5, confidence=0.95) is None
    assert power_of([1.0], bound=0.5, confidence=0.95) is None


def test_an_undecided_win_rate_says_what_it_would_take() -> None:
    seen = Interval(value=0.55, low=0.44, high=0.66, n=60)
    power = power_of([0.0] * 27 + [1.0] * 33, bound=0.5, confidence=0.95)

    _, sentence, _ = decide(GATES, evidence(power, win_rate=seen))

    # (1.96 + 0.84)² · 0.2517 / 0.05² by hand
    assert "a true win rate of 68%; what was seen takes about 791 prompts to show." in sentence
    assert "takes about" not in decide(GATES, evidence(power))[1]


def test_nothing_measured_has_no_interval() -> None:
    assert bootstrap_mean([], confidence=0.95, resamples=400, seed=0) is None


def test_all_gates_held_is_a_promote() -> None:
    assert verdict() == "promote"


@pytest.mark.parametrize("missing", sorted(FINE.keys() - {"num_prompts"}))
def test_what_was_not_measured_is_inconclusive_and_never_a_promote(missing: str) -> None:
    assert verdict(**{missing: None}) == "inconclusive"


def test_a_suite_of_which_no_question_was_compared_is_not_passed_over() -> None:
    empty = SuiteScores(kind="instructions", num_questions=0, left_out=40, judged_by="j")

    found, _, gates = decide(GATES, evidence()._replace(suites={"arena": empty}))

    assert found == "inconclusive"
    assert {gate.name for gate in gates if gate.passed is None} == {
        "arena_win_rate", "arena_win_rate_champion"
    }  # fmt: skip


@pytest.mark.parametrize("name", MEASURES)
def test_one_nan_closes_the_door(name: str) -> None:
    assert verdict(**{name: float("nan")}) == "inconclusive"


def test_too_few_prompts_are_inconclusive_however_good_they_look() -> None:
    assert verdict(num_prompts=GATES.min_prompts - 1) == "inconclusive"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"win_rate": Interval(value=0.55, low=0.44, high=0.66, n=60)}, "inconclusive"),
        ({"win_rate": Interval(value=0.5, low=0.5, high=0.5, n=60)}, "inconclusive"),
        ({"win_rate": Interval(value=0.3, low=0.2, high=0.4, n=60)}, "reject"),
        ({"heldout_rubric": Interval(value=-0.01, low=-0.1, high=0.08, n=60)}, "reject"),
        ({"champion_win_rate": Interval(value=0.55, low=0.44, high=0.66, n=60)}, "inconclusive"),
        ({"champion_win_rate": Interval(value=0.3, low=0.2, high=0.4, n=60)}, "reject"),
        ({"equal_length": 0.49}, "reject"),
        ({"equal_length": 0.5}, "inconclusive"),  # the regression found nothing
        ({"perplexity_ratio": 1.31}, "reject"),
        ({"heldout_perplexity_ratio": 2.1}, "reject"),
        ({"duplicate_answers": 0.31}, "reject"),
        ({"refusing": 0.12}, "reject"),
        ({"other_language": 0.11}, "reject"),
        ({"claim": False}, "reject"),
        ({"finished": 0.94}, "reject"),
        ({"length_ratio": 0.49}, "reject"),
        ({"length_ratio": 1.21}, "reject"),
    ],
)
def test_each_gate_can_say_no_by_itself(change: dict[str, object], expected: Verdict) -> None:
    assert verdict(**change) == expected


def test_no_combination_with_a_gate_unheld_is_ever_promoted() -> None:
    bad = {
        "num_prompts": 3,
        "win_rate": None,
        "champion_win_rate": Interval(value=0.5, low=0.4, high=0.6, n=60),
        "claim": None,
        "heldout_rubric": None,
        "perplexity_ratio": 9.0,
        "finished": 0.1,
        "length_ratio": 5.0,
    }
    for chosen in product([False, True], repeat=len(bad)):
        changes = {name: bad[name] for name, is_bad in zip(bad, chosen, strict=True) if is_bad}
        assert (verdict(**changes) == "promote") == (not changes)


def test_the_sentence_names_every_gate_that_was_not_held() -> None:
    _, sentence, _ = decide(GATES, evidence(finished=0.5, length_ratio=3.0))

    assert "finished (0.500, asked at least 0.95)" in sentence
    assert "length_ratio (3.000" in sentence
    assert "win_rate (" not in sentence


def test_perplexity_is_exp_of_the_mean_over_tokens_not_over_answers() -> None:
    # Two answers: one token at probability 1/2, three tokens at probability 1/8 each.
    told = [(log(2), 1), (3 * log(8), 3)]

    assert perplexity(told) == pytest.approx(2 ** ((1 + 9) / 4))


def test_identical_answers_are_ties_and_swapping_the_sides_swaps_the_outcome() -> None:
    rubric = Rubric.model_validate(
        {"checks": [{"kind": "word_count", "name": "long", "half": "judge", "min": 5, "max": 90}]}
    )
    judge, long, short = RubricJudge(rubric, half="all"), "one two three four five six", "one"
    asked = [Message(role="user", content="q")]

    def share(first: str, second: str) -> float | None:
        return points(asyncio.run(judge.decide(asked, first, second)))

    assert share(long, long) == 0.5
    assert share(long, short) == 1.0
    assert share(short, long) == 0.0


def test_orders_that_disagree_count_half_and_what_cannot_be_read_counts_nothing() -> None:
    first, unread = Said(choice="first"), Said(choice="invalid")

    assert points(settle("judge", first, first)) == 0.5
    assert points(settle("judge", first, unread)) is None


def answer(text: str, *, finished: bool = True) -> Answer:
    return Answer(text=text, num_tokens=len(text.split()), finished=finished)


def test_an_answer_that_goes_round_in_circles_does_not_count_as_finished() -> None:
    circle = "we are very sorry " * 4

    assert repeats(circle)
    assert not repeats("we are very sorry " * 3)
    told = [answer("fine."), answer("cut off", finished=False), answer(circle), answer(" ")]
    assert finished_share(told) == 0.25


def test_length_is_compared_by_medians() -> None:
    base = [answer("w " * n) for n in (2, 10, 300)]
    candidate = [answer("w " * n) for n in (1, 8, 9)]

    assert length_ratio(candidate, base) == pytest.approx(0.8)


class Elements(HTMLParser):
    """Every element of a page, and every address in one."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.wheres: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = ("src", "href", "xlink:href", "action", "srcset")
        self.wheres += [value or "" for name, value in attrs if name in named]


def test_the_page_escapes_what_models_say_and_asks_the_network_for_nothing() -> None:
    evil = '<script src="https://evil.example/x.js"></script><img src=x onerror=alert(1)>'
    decision = Decision(
        verdict="reject",
        sentence=evil,
        gates=decide(GATES, evidence())[2],
        against={evil: Opponent(win_rate=WON, slices={evil: WON, "$": WON})},
        changed={evil: (evil, evil)},
        measures={evil: 1.0},
        judge=evil,
        digests={},
    )
    row = Comparison(
        prompt_id="0",
        slice=evil,
        question=evil,
        against=evil,
        theirs=evil,
        candidate=evil,
        outcome=1.0,
        reasons=(evil,),
    )

    page = report_page(decision, [row])

    elements = Elements()
    elements.feed(page)
    assert not {"script", "img", "link", "iframe"} & set(elements.tags)
    assert all(where.startswith("#") for where in elements.wheres)
    assert page.count("&lt;script src=") >= 15  # everywhere that somebody's words stand
