"""Figures of published benchmarks: those their own programs give, or that others published."""

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from tests.published import FOLDER, needs_data
from typer.testing import CliRunner

from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.evaluate.alpaca import score_alpaca
from dpoflow.evaluate.mt_bench import score_mt_bench
from dpoflow.evaluate.xstest import score_xstest, string_match
from dpoflow_pipelines.cli import app

runner = CliRunner()


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return path


# ---------------------------------------------------------------- AlpacaEval


class Made(NamedTuple):
    """Annotations as alpaca-eval would have written them, and the two files beside them."""

    frame: pd.DataFrame
    annotations: Path
    difficulty: Path
    gamed: Path


def made(folder: Path, seed: int, n: int) -> Made:
    """Longer answers win more often, hard instructions are lost, and some are drawn."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 2000, (2, n))
    hard = rng.normal(size=n)
    chance = 1 / (1 + np.exp(np.tanh((lengths[0] - lengths[1]) / 800) - 0.6 * hard))
    preference = np.clip(1 + chance + rng.normal(0, 0.2, n), 1, 2)
    preference[rng.random(n) < 0.1] = 1.5
    preference[rng.random(n) < 0.1] = 0
    frame = pd.DataFrame(
        {
            "instruction": [f"question {at}" for at in range(n)],
            "output_1": ["a" * int(length) for length in lengths[0]],
            "output_2": ["b" * int(length) for length in lengths[1]],
            "generator_1": "baseline",
            "generator_2": "model",
            "annotator": "somebody",
            "preference": preference,
        }
    )
    rows: list[dict[str, Any]] = frame.to_dict("records")  # type: ignore[assignment]  # its keys
    gamed = pd.DataFrame(
        {
            "preference": np.clip(rng.normal(0.5, 0.3, 2 * n), 0, 1),
            "index": np.tile(np.arange(n), 2),
            "std_delta_len": rng.normal(size=2 * n),
            "instruction_difficulty": np.tile(hard, 2),
            "not_gamed_baseline": False,
            "model": "gamed",
        }
    )
    gamed.to_csv(folder / "df_gamed.csv", index=False)
    pd.Series(hard, name="instruction_difficulty").to_csv(folder / "difficulty.csv")
    return Made(
        frame,
        written(folder / "annotations.json", rows),
        folder / "difficulty.csv",
        folder / "df_gamed.csv",
    )


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, float]]]:
    """alpaca-eval's own function; it asks for setuptools' pkg_resources, and then uses it not."""
    monkeypatch.setitem(sys.modules, "pkg_resources", ModuleType("pkg_resources"))
    from alpaca_eval.metrics import (  # type: ignore[import-untyped]
        glm_winrate,
    )

    def ask(case: Made, name: str) -> dict[str, float]:
        monkeypatch.setattr(glm_winrate, "hf_hub_download", lambda **_: str(case.gamed))
        found: dict[str, float] = glm_winrate.get_length_controlled_winrate(
            case.frame.copy(), glm_name=name, save_weights_dir=None
        )
        return found

    return ask


@pytest.mark.filterwarnings("ignore")  # of the oracle's use of scikit-learn and pandas
@pytest.mark.parametrize("n", [40, 805])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "difficulty", "gamed"),
    [
        ("length_controlled_v1", False, True),
        ("length_controlled_v1", True, True),
        ("length_controlled_noreg", True, False),
        ("length_controlled_minimal", False, False),
    ],
)
def test_win_rates_are_those_of_alpaca_eval(
    tmp_path: Path,
    oracle: Callable[..., dict[str, float]],
    name: str,
    difficulty: bool,
    gamed: bool,
    seed: int,
    n: int,
) -> None:
    case = made(tmp_path, seed, n)

    ours = score_alpaca(
        case.annotations, case.difficulty if difficulty else None, case.gamed if gamed else None
    )

    theirs = oracle(case, name)
    assert ours.win_rate == pytest.approx(theirs["win_rate"], abs=1e-9)
    assert ours.standard_error == pytest.approx(theirs["standard_error"], abs=1e-9)
    assert ours.discrete_win_rate == pytest.approx(theirs["discrete_win_rate"], abs=1e-9)
    controlled = "length_controlled_winrate"
    assert ours.length_controlled_winrate == pytest.approx(theirs[controlled], abs=1e-6)
    assert ours.lc_standard_error == pytest.approx(theirs["lc_standard_error"], abs=1e-6)
    assert (ours.n_wins, ours.n_wins_base, ours.n_draws, ours.n) == tuple(
        int(theirs[key]) for key in ("n_wins", "n_wins_base", "n_draws", "n_total")
    )


@pytest.mark.filterwarnings("ignore")
def test_an_unknown_preference_is_in_no_rate_and_counted(
    tmp_path: Path, oracle: Callable[..., dict[str, float]]
) -> None:
    case = made(tmp_path, 7, 60)
    case.frame.loc[[3, 9], "preference"] = float("nan")
    rows = json.loads(case.frame.to_json(orient="records", double_precision=15))
    annotations = written(tmp_path / "some.json", rows)

    ours = score_alpaca(annotations, gamed=case.gamed)

    theirs = oracle(case, "length_controlled_v1")
    assert (ours.n, ours.n_unknown) == (58, 2)
    assert ours.win_rate == pytest.approx(theirs["win_rate"], abs=1e-9)
    assert ours.length_controlled_winrate == pytest.approx(
        theirs["length_controlled_winrate"], abs=1e-6
    )


def test_a_model_that_wins_by_length_alone_wins_half_at_equal_length(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    more = rng.normal(300, 200, 2000)
    chance = 1 / (1 + np.exp(-2 * np.tanh(more / more.std(ddof=1))))
    rows = [
        {
            "output_1": "a" * 1500,
            "output_2": "b" * max(1, round(1500 + by)),
            "preference": 1 + int(rng.random() < of),
        }
        for by, of in zip(more, chance, strict=True)
    ]

    scores = score_alpaca(written(tmp_path / "a.jsonl", rows))

    assert scores.win_rate > 70
    assert scores.length_controlled_winrate == pytest.approx(50, abs=4)


def test_the_baseline_against_itself_is_half(tmp_path: Path) -> None:
    rows = [
        {
            "output_1": "same",
            "output_2": "same",
            "preference": 1.5,
            "generator_1": "b",
            "generator_2": "b",
        }
        for _ in range(6)
    ]

    scores = score_alpaca(written(tmp_path / "a.json", rows))

    assert (scores.win_rate, scores.length_controlled_winrate) == (50.0, 50.0)


ANNOTATION = {"output_1": "a", "output_2": "bb", "preference": 2}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"preference": 3}, r"row 6: preference 3 is neither 0 nor between 1 and 2"),
        ({"preference": "good"}, "row 6: could not convert"),
        ({"output_2": None}, "row 6: output_1 and output_2 must be texts"),
        ({"generator_2": "another"}, "2 models in generator_2"),
    ],
)
def test_annotations_that_make_no_sense_are_refused_with_their_row(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    rows = [*[ANNOTATION] * 5, {**ANNOTATION, **change}]

    with pytest.raises(DataRejected, match=told):
        score_alpaca(written(tmp_path / "a.json", rows))


def test_an_instruction_without_a_known_difficulty_is_refused(tmp_path: Path) -> None:
    hard = written(tmp_path / "d.csv", [{"index": 0, "instruction_difficulty": 0.5}])

    with pytest.raises(DataRejected, match="knows no difficulty of instruction 1 and 4 others"):
        score_alpaca(written(tmp_path / "a.json", [ANNOTATION] * 6), hard)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "holds no row"),
        ("[{]", "line 1 is not JSON"),
        ('{"output_1": "a"}\n', "row 1: 'output_2' is missing; dpoflow eval alpaca --help"),
        ('["a"]', "row 1: "),
    ],
)
def test_a_file_that_holds_no_annotations_is_refused(
    tmp_path: Path, content: str, told: str
) -> None:
    (tmp_path / "a.json").write_text(content)

    with pytest.raises(DataRejected, match=told.replace("[", r"\[")):
        score_alpaca(tmp_path / "a.json")


# ---------------------------------------------------------------- MT-Bench


def judgement(question: int, turn: int, score: float, model: str = "m") -> dict[str, Any]:
    return {"question_id": question, "model": model, "turn": turn, "score": score, "judge": ["x"]}


def test_mt_bench_means_are_fastchats(tmp_path: Path) -> None:
    """show_result.py: -1 is left out, then plain means of each turn and of all scores."""
    rng = np.random.default_rng(3)
    rows = [
        judgement(question, turn, int(rng.choice([-1, *range(1, 11)])), model)
        for model in ("m", "other")
        for question in range(81, 161)
        for turn in (1, 2)
    ]
    path = written(tmp_path / "gpt-4_single.jsonl", rows)

    scores = score_mt_bench(path, model="m")

    frame = pd.read_json(path, lines=True)[["model", "score", "turn"]]
    frame = frame[frame["score"] != -1]
    turns = frame.groupby(["model", "turn"]).mean()["score"]
    assert scores.first_turn == pytest.approx(turns["m", 1], abs=1e-12)
    assert scores.second_turn == pytest.approx(turns["m", 2], abs=1e-12)
    assert scores.average == pytest.approx(frame.groupby("model")["score"].mean()["m"], abs=1e-12)
    assert scores.n + scores.n_unreadable == 160


@needs_data[0]
@needs_data[1]
def test_mt_bench_categories_are_those_of_the_published_questions(tmp_path: Path) -> None:
    lines = (FOLDER / "mt_bench" / "question.jsonl").read_text().splitlines()
    asked = [json.loads(line) for line in lines]
    score = {each["question_id"]: 1 + at % 10 for at, each in enumerate(asked)}
    rows = [judgement(each["question_id"], 1, score[each["question_id"]]) for each in asked]

    scores = score_mt_bench(written(tmp_path / "j.jsonl", rows))

    by_category = {
        name: fmean(score[each["question_id"]] for each in asked if each["category"] == name)
        for name in {each["category"] for each in asked}
    }
    assert scores.by_category == pytest.approx(by_category)
    assert scores.n == scores.n_questions == 80
    assert scores.second_turn is None


def test_questions_of_ones_own_bring_their_categories(tmp_path: Path) -> None:
    asked = written(tmp_path / "q.jsonl", [{"question_id": 1, "category": "returns"}])
    rows = [judgement(1, 1, 8), judgement(2, 1, 4)]

    scores = score_mt_bench(written(tmp_path / "j.jsonl", rows), asked)

    assert scores.by_category == {"other": 4.0, "returns": 8.0}


def test_several_models_are_refused_until_one_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "j.jsonl", [judgement(81, 1, 5, "a"), judgement(81, 1, 7, "b")])

    with pytest.raises(ConfigError, match="2 models; name one with --model: a, b"):
        score_mt_bench(path)
    with pytest.raises(ConfigError, match="no judgement of c; it has a, b"):
        score_mt_bench(path, model="c")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"turn": 3}, "turn 3 is neither 1 nor 2"),
        ({"score": 11}, "score 11 is neither"),
        ({"score": float("nan")}, "score nan is neither"),
        ({"g1_winner": "model_1"}, "a pairwise judgement"),
    ],
)
def test_judgements_that_make_no_sense_are_refused(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    with pytest.raises(DataRejected, match=told):
        score_mt_bench(written(tmp_path / "j.jsonl", [judgement(81, 1, 5) | change]))


def test_nothing_but_unreadable_judgements_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataRejected, match="no score of m that could be read"):
        score_mt_bench(written(tmp_path / "j.jsonl", [judgement(81, 1, -1)]))


# ---------------------------------------------------------------- XSTest

PUBLISHED = FOLDER / "xstest" / "mistralinstruct_streval.csv"


@needs_data[0]
@needs_data[1]
def test_string_match_labels_are_the_published_ones() -> None:
    with PUBLISHED.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))

    scores = score_xstest(PUBLISHED)

    assert len(rows) == scores.n == 450
    assert list(scores.string_match_labels) == [row["strmatch_label"] for row in rows]
    safe = [row for row in rows if not row["type"].startswith("contrast_")]
    unsafe = [row for row in rows if row["type"].startswith("contrast_")]
    assert (len(safe), len(unsafe)) == (250, 200)  # as the paper has it

    def share(of: list[dict[str, str]], label: str) -> float:
        return sum(row["final_label"] == label for row in of) / len(of)

    assert scores.safe_full_refusal == share(safe, "2_full_refusal")
    assert scores.safe_partial_refusal == share(safe, "3_partial_refusal")
    assert scores.unsafe_full_refusal == share(unsafe, "2_full_refusal")


def completion(kind: str, text: str, **more: str) -> dict[str, str]:
    return {"type": kind, "completion": text, **more}


def test_without_peoples_labels_the_opening_of_an_answer_says_it(tmp_path: Path) -> None:
    rows = [
        completion("homonyms", "I’m sorry, but no."),  # noqa: RUF001  # as models write it
        completion("homonyms", "Use `kill 12`."),
        completion("contrast_homonyms", "  I cannot help with that."),
        completion("contrast_homonyms", ""),
    ]

    scores = score_xstest(written(tmp_path / "c.csv", rows))

    assert (scores.safe_full_refusal, scores.unsafe_full_refusal) == (0.5, 0.5)
    assert scores.safe_partial_refusal is None
    assert (scores.labelled_by, scores.n_empty) == ("string_match", 1)


def test_a_refusal_that_comes_late_is_none_to_the_string_match() -> None:
    assert string_match("Well, I cannot say.") == "1_full_compliance"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([completion("homonyms", "Yes.")] * 2, "2 safe and 0 unsafe prompts"),
        (
            [
                completion("homonyms", "Yes.", final_label="1_full_compliance"),
                completion("contrast_homonyms", "No.", final_label=""),
            ],
            "1 rows without final_label among 2",
        ),
        ([completion("homonyms", "Yes.", final_label="fine")], "final_label 'fine' is none of"),
        ([{"type": "homonyms"}], "'completion' is missing"),
    ],
)
def test_completions_that_say_half_are_refused(
    tmp_path: Path, rows: list[dict[str, str]], told: str
) -> None:
    with pytest.raises(DataRejected, match=told):
        score_xstest(written(tmp_path / "c.csv", rows))


def test_a_csv_with_a_short_row_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("type,completion\nhomonyms,Yes.\ncontrast_homonyms\n")

    with pytest.raises(DataRejected, match="row 2 has 1 values under 2 columns"):
        score_xstest(tmp_path / "c.csv")


# ---------------------------------------------------------------- the command


def test_the_command_prints_json_alone_for_programs_and_a_table_for_people(tmp_path: Path) -> None:
    alpaca = str(written(tmp_path / "a.json", [ANNOTATION] * 6))
    bench = str(written(tmp_path / "j.jsonl", [judgement(81, 1, 5), judgement(81, 2, 7)]))
    both = [completion("homonyms", "Yes."), completion("contrast_homonyms", "No.")]
    safety = str(written(tmp_path / "c.csv", both))
    keys = {
        ("alpaca", "--annotations", alpaca): {
            *("win_rate", "standard_error", "discrete_win_rate"),
            *("length_controlled_winrate", "n"),
        },
        ("mt-bench", "--judgements", bench): {
            *("first_turn", "second_turn", "average", "by_category", "n"),
        },
        ("xstest", "--completions", safety): {
            *("safe_full_refusal", "safe_partial_refusal", "unsafe_full_refusal"),
            *("string_match_labels", "n"),
        },
    }
    for command, wanted in keys.items():
        told = runner.invoke(app, ["eval", *command, "--json"], catch_exceptions=False)
        assert wanted <= json.loads(told.stdout).keys()
        shown = runner.invoke(app, ["eval", *command], catch_exceptions=False)
        assert shown.exit_code == 0
        assert "%" in shown.stdout or "5.00" in shown.stdout


def test_a_file_that_is_not_there_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.json cannot be read"):
        score_alpaca(tmp_path / "gone.json")
