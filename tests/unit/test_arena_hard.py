"""Bradley and Terry's strengths and Arena-Hard's figures, against scikit-learn and by hand."""

import json
from collections.abc import Callable
from math import log
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.evaluate.arena_hard import ArenaHardModel, score_arena_hard
from dpoflow.evaluate.bradley_terry import (
    RIDGE,
    Battles,
    bootstrap,
    fit,
    percentile_interval,
    win_rate,
)
from dpoflow_pipelines.cli import app

runner = CliRunner()
Floats = NDArray[np.float64]

# ---------------------------------------------------------------- strengths


def logistic(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logits)))


def drawn_battles(seed: int, num: int = 800, models: int = 5) -> Battles:
    """Some are tied, some weigh 3, and style counts."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, models, num)
    second = (first + rng.integers(1, models, num)) % models
    style, strength = rng.normal(size=(num, 3)), rng.normal(size=models)
    chance = logistic(strength[first] - strength[second] + style @ [0.5, -0.2, 0.0])
    outcome = np.where(rng.random(num) < 0.2, 0.5, rng.random(num) < chance)
    return Battles(first, second, outcome, rng.choice([1.0, 3.0], num), style)


def scikit(battles: Battles, models: int, anchor: int) -> tuple[Floats, Floats]:
    """As Arena-Hard has it: every battle twice, a tie once for each side; weights as copies."""
    weight = np.ones(len(battles.outcome_B)) if battles.weight_B is None else battles.weight_B
    copies = np.repeat(np.arange(len(weight)), weight.astype(int))
    design = np.zeros((len(copies), models))
    design[np.arange(len(copies)), battles.first_B[copies]] = 1
    design[np.arange(len(copies)), battles.second_B[copies]] = -1
    if battles.style_BF is not None:
        design = np.hstack([design, battles.style_BF[copies]])
    outcome = battles.outcome_B[copies]
    label = np.concatenate([outcome == 1, outcome >= 0.5])
    model = LogisticRegression(
        C=np.inf, fit_intercept=False, solver="newton-cg", tol=1e-12, max_iter=1000
    )
    coefficients = model.fit(np.vstack([design, design]), label).coef_[0]
    return coefficients[:models] - coefficients[anchor], coefficients[models:]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("styled", [False, True])
def test_strengths_are_those_of_scikit_learns_logistic_regression(
    seed: int, weighted: bool, styled: bool
) -> None:
    battles = drawn_battles(seed)
    if not weighted:
        battles = battles._replace(weight_B=None)
    if not styled:
        battles = battles._replace(style_BF=None)

    ours = fit(battles, num_models=5, anchor=2)

    strength, style = scikit(battles, 5, 2)
    assert ours.strength_M[2] == 0
    assert ours.strength_M == pytest.approx(strength, abs=1e-6)
    assert ours.style_F == pytest.approx(style, abs=1e-6)


def against(outcomes: list[float]) -> Battles:
    """One model against another."""
    zeros = np.zeros(len(outcomes), dtype=np.intp)
    return Battles(zeros + 1, zeros, np.array(outcomes))


def test_three_of_four_are_log_three() -> None:
    told = fit(against([1, 1, 1, 0]), num_models=2, anchor=0)

    assert told.strength_M.tolist() == pytest.approx([0, log(3)], abs=1e-8)
    assert win_rate(told.strength_M).tolist() == pytest.approx([0.5, 0.75], abs=1e-9)


@pytest.mark.parametrize("outcome", [1.0, 0.0])
def test_a_model_that_wins_everything_ends_where_the_ridge_holds_it(outcome: float) -> None:
    """There 40 / (1 + exp(s)), the pull of 40 battles, is what the ridge pulls back."""
    told = fit(against([outcome] * 40), num_models=2, anchor=0)

    far = brentq(lambda s: 40 / (1 + np.exp(s)) - RIDGE * s, 1, 100, xtol=1e-12)
    assert told.strength_M[1] == pytest.approx(far if outcome else -far, abs=1e-6)
    assert 15 < far < 30
    assert win_rate(told.strength_M[1]) == pytest.approx(outcome, abs=1e-6)


def test_a_style_that_tells_every_winner_breaks_nothing() -> None:
    style = np.linspace(-1, 1, 50)[:, None]
    battles = against([float(each > 0) for each in style[:, 0]])._replace(style_BF=style)

    told = fit(battles, num_models=2, anchor=0)

    assert told.style_F[0] > 100
    assert abs(told.strength_M[1]) < 1


def test_models_that_no_battle_leads_to_have_no_strength() -> None:
    """1 beat 0 through 2; 3 and 4 met each other alone."""
    first, second = np.array([2, 1, 1, 3]), np.array([0, 2, 2, 4])

    told = fit(Battles(first, second, np.array([0.5, 1, 0, 1])), num_models=5, anchor=0)

    assert told.strength_M[:3] == pytest.approx([0, 0, 0], abs=1e-8)
    assert np.isnan(told.strength_M[3:]).all()


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Both battles of a prompt end alike, so that drawing battles would hold it in 82 of 100."""
    rng, held = np.random.default_rng(1), []
    truth = np.linspace(-1, 1, 10)
    first, prompts = np.tile(np.arange(1, 11), 400), np.repeat(np.arange(200), 20)
    for seed in range(25):
        won = np.repeat(rng.random((200, 10)) < logistic(truth), 2, axis=0).ravel()
        battles = Battles(first, np.zeros(4000, dtype=np.intp), won.astype(np.float64))
        drawn = bootstrap(battles, prompts, num_models=11, anchor=0, resamples=200, seed=seed)
        for strength_R, true in zip(drawn.strength_RM[:, 1:].T, truth, strict=True):
            low, high = percentile_interval(strength_R, 0.95)
            held.append(low <= true <= high)

    assert 0.91 <= np.mean(held) <= 0.98


def test_a_seed_says_which_prompts_are_drawn() -> None:
    battles, prompts = drawn_battles(0), np.arange(800) // 8

    def drawn(seed: int) -> Floats:
        found = bootstrap(battles, prompts, num_models=5, anchor=0, resamples=5, seed=seed)
        return found.strength_RM

    assert (drawn(3) == drawn(3)).all()
    assert (drawn(3) != drawn(4)).any()


def test_a_resample_without_a_models_battles_says_nothing_of_it() -> None:
    """The second model has one prompt of four: without it a resample cannot place that model."""
    first, prompts = np.array([1, 1, 1, 2]), np.array([0, 1, 2, 3])
    battles = Battles(first, np.zeros(4, dtype=np.intp), np.array([1, 0, 1, 0.5]))

    drawn = bootstrap(battles, prompts, num_models=3, anchor=0, resamples=400, seed=0)

    missing = np.isnan(drawn.strength_RM[:, 2]).mean()
    assert missing == pytest.approx(0.75**4, abs=0.08)
    assert percentile_interval(drawn.strength_RM[:, 2], 0.95) == pytest.approx((0, 0), abs=1e-6)


# ---------------------------------------------------------------- Arena-Hard's files

SCORES = ["A>>B", "A>B", "A=B", "B>A", "B>>A"]


class Layout(NamedTuple):
    prompt: str
    answered_by: str
    metadata: str
    more: dict[str, str]
    """What judgements have beside the rest."""


V1 = Layout("question_id", "model_id", "conv_metadata", {})
V2 = Layout("uid", "model", "metadata", {"category": "hard_prompt", "baseline": "base"})


def judged(
    prompt: str, *scores: str | None, model: str = "m", layout: Layout = V1, **more: Any
) -> dict[str, Any]:
    games = [{"user_prompt": "…", "judgment": "…", "score": score} for score in scores]
    told = {layout.prompt: prompt, "model": model, "judge": "gpt-4-1106-preview", "games": games}
    return told | layout.more | more


def answered(
    prompt: str, model: str, counts: tuple[int, int, int, int], layout: Layout = V1
) -> dict[str, Any]:
    tokens, headers, lists, bold = counts
    metadata = {
        "token_len": tokens,
        "header_count": {"h1": headers // 2, "h2": headers - headers // 2},
        "list_count": {"ordered": lists, "unordered": 0},
        "bold_count": {"**": bold, "__": 0},
    }
    return {layout.prompt: prompt, layout.answered_by: model, layout.metadata: metadata}


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


Counts = dict[str, list[tuple[int, int, int, int]]]


class Benchmark(NamedTuple):
    """A judge's folder and the answers', each with a file a model, and what is in them."""

    judgements: Path
    answers: Path
    games: dict[str, list[tuple[str, str]]]
    counts: Counts


def benchmark(folder: Path, layout: Layout, seed: int = 0, prompts: int = 120) -> Benchmark:
    """Model m1 writes longer, and what is longer wins more often."""
    rng = np.random.default_rng(seed)
    counts: Counts = {}
    games: dict[str, list[tuple[str, str]]] = {}
    for model in ("base", "m1", "m2"):
        length = rng.integers(50, 900 if model == "m1" else 600, prompts)
        marks = rng.integers(0, 12, (prompts, 3))
        counts[model] = [
            (int(n), int(h), int(i), int(b)) for n, (h, i, b) in zip(length, marks, strict=True)
        ]
    for model in ("m1", "m2"):
        games[model] = []
        for ours, theirs in zip(counts[model], counts["base"], strict=True):
            lead = 2 * (ours[0] - theirs[0]) / (ours[0] + theirs[0]) + rng.normal(size=2)
            first, second = np.digitize(lead, [-1.5, -0.4, 0.4, 1.5])
            games[model].append((SCORES[first], SCORES[4 - second]))
        rows = [
            judged(f"q{at}", *of, model=model, layout=layout) for at, of in enumerate(games[model])
        ]
        written(folder / "model_judgment" / "judge" / f"{model}.jsonl", rows)
    for model, of in counts.items():
        rows = [answered(f"q{at}", model, each, layout) for at, each in enumerate(of)]
        written(folder / "model_answer" / f"{model}.jsonl", rows)
    return Benchmark(folder / "model_judgment" / "judge", folder / "model_answer", games, counts)


def features_of_v1(ours: Floats, theirs: Floats) -> Floats:
    return np.asarray((ours - theirs) / (ours + theirs + 1))


def features_of_v2(ours: Floats, theirs: Floats) -> Floats:
    length = (ours[:1] - theirs[:1]) / (ours[:1] + theirs[:1])
    mine, other = ours[1:] / ours[0], theirs[1:] / theirs[0]
    return np.concatenate([length, (mine - other) / (mine + other + 1)])


def published(
    case: Benchmark, features: Callable[[Floats, Floats], Floats], ddof: int
) -> tuple[Floats, Floats]:
    """The programs' fit of m1 and m2 with style: rows of baseline against model, 3 for strong."""
    sides: list[Floats] = []
    styles: list[Floats] = []
    outcomes: list[float] = []
    for at, (model, games) in enumerate(case.games.items()):
        for prompt, (first, second) in enumerate(games):
            ours, theirs = (np.array(case.counts[of][prompt], float) for of in (model, "base"))
            for score, ours_is in ((first, "B"), (second, "A")):
                copies = 3 if len(score) == 4 else 1
                outcome = 1.0 if score[0] == ours_is and "=" not in score else 0.0
                outcome = 0.5 if "=" in score else outcome
                sides += [np.eye(2)[at]] * copies
                styles += [features(ours, theirs)] * copies
                outcomes += [outcome] * copies
    style = np.array(styles)
    style = (style - style.mean(axis=0)) / style.std(axis=0, ddof=ddof)
    design, won = np.hstack([np.array(sides), style]), np.array(outcomes)
    label = np.concatenate([won == 1, won >= 0.5])
    regression = LogisticRegression(
        C=np.inf, fit_intercept=False, solver="newton-cholesky", tol=1e-12, max_iter=1000
    )
    coefficients = regression.fit(np.vstack([design, design]), label).coef_[0]
    return 100 * logistic(coefficients[:2]), coefficients[2:]


@pytest.mark.parametrize(
    ("layout", "features", "ddof"), [(V1, features_of_v1, 0), (V2, features_of_v2, 1)]
)
def test_style_controlled_rates_are_scikit_learns_of_the_published_features(
    tmp_path: Path, layout: Layout, features: Callable[[Floats, Floats], Floats], ddof: int
) -> None:
    case = benchmark(tmp_path, layout)

    scores = score_arena_hard(case.judgements, case.answers, "base", resamples=50)

    rates, style = published(case, features, ddof)
    by_name = {each.model: each for each in scores.models}
    controlled = [by_name[name].style_controlled for name in ("m1", "m2")]
    assert [each.value for each in controlled if each] == pytest.approx(rates.tolist(), abs=1e-6)
    assert scores.style is not None
    assert list(scores.style.values()) == pytest.approx(style.tolist(), abs=1e-6)
    assert all(each.low <= each.value <= each.high for each in controlled if each)


@pytest.mark.parametrize("layout", [V1, V2])
def test_without_style_a_rate_is_the_weighted_share_won(tmp_path: Path, layout: Layout) -> None:
    case = benchmark(tmp_path, layout)

    scores = score_arena_hard(case.judgements, baseline="base", resamples=50)

    for each in scores.models:
        won = {"A>>B": 3.0, "A>B": 1.0, "A=B": 0.5, "B>A": 0.0, "B>>A": 0.0}
        both = case.games[each.model]
        weight = sum(3 if len(score) == 4 else 1 for games in both for score in games)
        # In the first game the model is B, and its win is A's loss.
        swapped = {score: SCORES[4 - at] for at, score in enumerate(SCORES)}
        share = sum(won[swapped[first]] + won[second] for first, second in both) / weight
        assert each.win_rate is not None
        assert each.win_rate.value == pytest.approx(100 * share, abs=1e-6)
        assert (each.n, each.win_rate.n, each.n_unreadable) == (240, 120, 0)
    rates = [each.win_rate.value for each in scores.models if each.win_rate]
    assert rates == sorted(rates, reverse=True)


def test_two_prompts_by_hand(tmp_path: Path) -> None:
    """Won 3 (B>>A, as B) and 1 (A>B, as A), lost 1 (B>A, as A), tied once: 4.5 of 6."""
    path = written(tmp_path / "j.jsonl", [judged("a", "B>>A", "A>B"), judged("b", "A=B", "B>A")])

    (told,) = score_arena_hard(path, baseline="base").models

    assert told.win_rate is not None
    assert told.win_rate.value == pytest.approx(75, abs=1e-6)
    # Of two prompts a resample has both, or one of them twice: 4 of 4, or 0.5 of 2.
    assert (told.win_rate.low, told.win_rate.high) == pytest.approx((25, 100), abs=1e-6)


@pytest.mark.parametrize(("score", "same"), [("A<<B", "B>>A"), ("B<A", "A>B"), ("B=A", "A=B")])
def test_a_verdict_the_other_way_round_is_the_same(tmp_path: Path, score: str, same: str) -> None:
    rest = judged("b", "A>B", "A>>B", layout=V2)
    told = [
        score_arena_hard(written(tmp_path / f"{at}.jsonl", [judged("a", of, of, layout=V2), rest]))
        for at, of in enumerate((score, same))
    ]

    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("layout", "won", "counted"), [(V1, 2 / 3, (3, 3, 0)), (V2, 0.5, (2, 3, 1))]
)
def test_an_unreadable_verdict_is_counted_and_takes_its_other_along_in_v2(
    tmp_path: Path, layout: Layout, won: float, counted: tuple[int, int, int]
) -> None:
    garbled = judged("c", "A>>>B", None, layout=layout)
    rows = [
        judged("a", "B>A", "B>A", layout=layout),
        judged("b", None, "A>B", layout=layout),
        garbled,
    ]

    (told,) = score_arena_hard(written(tmp_path / "j.jsonl", rows), baseline="base").models

    assert told.win_rate is not None
    assert told.win_rate.value == pytest.approx(100 * won, abs=1e-6)
    assert (told.n, told.n_unreadable, told.n_unpaired) == counted


def test_a_game_that_never_was_is_unreadable(tmp_path: Path) -> None:
    lost = judged("b", layout=V2, games=[None, {"score": "A>B"}])
    path = written(tmp_path / "j.jsonl", [judged("a", "A=B", "A=B", layout=V2), lost])

    (told,) = score_arena_hard(path).models

    assert (told.n, told.n_unreadable, told.n_unpaired) == (2, 1, 1)


def test_a_model_without_any_verdict_is_listed_without_a_rate(tmp_path: Path) -> None:
    rows = [judged("a", "A>B", "A>B"), judged("a", None, None, model="mute")]

    *_, told = score_arena_hard(written(tmp_path / "j.jsonl", rows), baseline="base").models

    assert told == ArenaHardModel(
        model="mute",
        win_rate=None,
        style_controlled=None,
        at_equal_style=None,
        n=0,
        n_unreadable=2,
        n_unpaired=0,
    )


def test_a_model_that_wins_by_length_alone_wins_half_at_equal_style(tmp_path: Path) -> None:
    rng, judgements, answers = np.random.default_rng(0), [], []
    for at in range(1500):
        ours, theirs = int(rng.integers(200, 1200)), int(rng.integers(100, 800))
        chance = logistic(np.array(3 * (ours - theirs) / (ours + theirs + 1)))
        wins = [
            "B>A" if rng.random() < chance else "A>B",
            "A>B" if rng.random() < chance else "B>A",
        ]
        judgements.append(judged(f"q{at}", *wins))
        answers += [
            answered(f"q{at}", "m", (ours, 1, 2, 3)),
            answered(f"q{at}", "base", (theirs, 1, 2, 3)),
        ]

    scores = score_arena_hard(
        written(tmp_path / "j.jsonl", judgements),
        written(tmp_path / "a.jsonl", answers),
        "base",
        resamples=100,
    )

    (told,) = scores.models
    assert told.win_rate
    assert told.style_controlled
    assert told.at_equal_style
    assert told.win_rate.value > 63
    assert told.at_equal_style.low < 50 < told.at_equal_style.high
    assert told.at_equal_style.value == pytest.approx(50, abs=4)
    # One model alone is compared at its own mean style: hardly anything is taken away.
    assert told.style_controlled.value == pytest.approx(told.win_rate.value, abs=3)
    assert scores.style
    assert scores.style["header_count"] == 0  # it never differs


def test_each_category_is_a_benchmark_of_its_own(tmp_path: Path) -> None:
    other = {"category": "creative_writing", "baseline": "poet"}
    rows = [judged("a", "A>B", "A=B", layout=V2), judged("b", "B>A", "A>B", layout=V2, **other)]
    path = written(tmp_path / "j.jsonl", rows)

    with pytest.raises(ConfigError, match="2 categories; name one with --category: creative_wri"):
        score_arena_hard(path)
    with pytest.raises(ConfigError, match="no category math; it has creative_writing, hard_prompt"):
        score_arena_hard(path, category="math")
    told = score_arena_hard(path, category="creative_writing")

    assert (told.baseline, told.category, told.models[0].n) == ("poet", "creative_writing", 2)


def test_the_baseline_is_named_where_judgements_do_not_say_it(tmp_path: Path) -> None:
    silent = written(tmp_path / "v1.jsonl", [judged("a", "A>B", "A>B")])
    told = written(tmp_path / "v2.jsonl", [judged("a", "A>B", "A>B", layout=V2)])

    with pytest.raises(ConfigError, match=r"does not say which .* name it with --baseline"):
        score_arena_hard(silent)
    with pytest.raises(ConfigError, match="judged against base, not x; leave --baseline out"):
        score_arena_hard(told, baseline="x")
    assert score_arena_hard(told).baseline == score_arena_hard(silent, None, "base").baseline


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (
            [{"question_id": "a", "model": "m"}],
            "row 1: 'games' is missing; dpoflow eval arena-hard",
        ),
        ([{"model": "m", "judge": "j", "games": [{"score": None}]}], "'question_id' is missing"),
        ([judged("a")], "games must be a list of one or two"),
        ([judged("a", "A>B", "A>B", "A>B")], "games must be a list of one or two"),
        ([judged("a", games=[{"winner": "A"}])], "'score' is missing"),
        ([judged("a", "A>B", "tie")], "row 1: score 'tie' is neither null nor one of A>>B, B<<A"),
        ([judged("a", games=[{"score": 7}])], "score 7 is neither null nor"),
        ([judged("a", None, None)], "no verdict that could be read"),
        ([judged("a", "A>B")] * 2, "has m on prompt a twice by gpt-4-1106-preview; keep one"),
        ([judged("a", "A>B", model="base")], "judgements of base, the baseline itself"),
        (
            [judged("a", "A>B", baseline="base"), judged("b", "A>B", baseline="c")],
            r"2 baselines \(base, c\)",
        ),
        (
            [judged("a", "A>B", baseline="base"), judged("b", "A>B", layout=V2, category=None)],
            "judgements of v0.1 and of v2.0",
        ),
    ],
)
def test_judgements_that_make_no_sense_are_refused(
    tmp_path: Path, rows: list[dict[str, Any]], told: str
) -> None:
    with pytest.raises(DataRejected, match=told):
        score_arena_hard(written(tmp_path / "j.jsonl", rows), baseline="base")


def test_an_empty_folder_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataRejected, match=r"holds no \.jsonl file; name one"):
        score_arena_hard(tmp_path, baseline="base")
    with pytest.raises(DataRejected, match="holds no row"):
        score_arena_hard(written(tmp_path / "j.jsonl", []), baseline="base")
    with pytest.raises(ConfigError, match=r"gone\.jsonl cannot be read"):
        score_arena_hard(tmp_path / "gone.jsonl", baseline="base")


PLAIN = (10, 0, 0, 0)


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ([answered("a", "m", PLAIN)], "no answer of base to prompt a; give the answers of every"),
        (
            [answered("a", "base", PLAIN), {"question_id": "a", "model_id": "m"}],
            "no token_len, header_count, list_count, bold_count of m's answer to prompt a",
        ),
        ([{"question_id": "a", "model": "m"}], "row 1: 'model_id' is missing"),
        ([answered("a", "m", PLAIN) | {"conv_metadata": {}}], "row 1: 'token_len' is missing"),
        ([answered("a", "m", (-1, 0, 0, 0))], "row 1: token_len is -1"),
    ],
)
def test_answers_that_say_no_style_are_refused(
    tmp_path: Path, answers: list[dict[str, Any]], told: str
) -> None:
    judgements = written(tmp_path / "j.jsonl", [judged("a", "A>B", "A=B")])

    with pytest.raises(DataRejected, match=told):
        score_arena_hard(judgements, written(tmp_path / "a.jsonl", answers), "base")


# ---------------------------------------------------------------- the command


def test_the_command_prints_json_for_programs_and_a_table_for_people(tmp_path: Path) -> None:
    case = benchmark(tmp_path, V2, prompts=30)
    rows = [json.loads(line) for line in (case.judgements / "m1.jsonl").read_text().splitlines()]
    rows[0]["games"][0]["score"] = None
    written(case.judgements / "m1.jsonl", rows)
    command = ["eval", "arena-hard", "--judgements", str(case.judgements)]
    styled = [*command, "--answers", str(case.answers), "--baseline", "base"]

    told = json.loads(runner.invoke(app, [*styled, "--json"], catch_exceptions=False).stdout)
    plain = runner.invoke(app, command, catch_exceptions=False).stdout
    shown = runner.invoke(app, styled, catch_exceptions=False).stdout

    by_name = {each["model"]: each for each in told["models"]}
    assert told["baseline"] == "base"
    assert (by_name["m1"]["n"], by_name["m1"]["n_unreadable"], by_name["m2"]["n"]) == (58, 1, 60)
    for name, each in by_name.items():
        line = next(line for line in shown.splitlines() if name in line.split())
        kinds = ("win_rate", "style_controlled", "at_equal_style")
        assert all(f"{each[kind]['value']:.1f}% (" in line for kind in kinds)
    assert "style" not in plain
    assert "without a verdict" in plain
    assert "token_len" in shown
