"""How an evaluation is shown: the report, its drawings, MLflow's table, Kubeflow's figures."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from dpoflow.contracts.pairs import Message
from dpoflow.contracts.results import (
    Decision,
    EvaluateResult,
    Gate,
    Interval,
    Opponent,
    SuiteScores,
)
from dpoflow.contracts.spec import EvaluateConfig
from dpoflow.evaluate.answers_table import TABLE, answers_table
from dpoflow.evaluate.document import Measured, document_of
from dpoflow.evaluate.figures import figures_of
from dpoflow.evaluate.grading import Graded
from dpoflow.evaluate.heard import Question
from dpoflow.evaluate.measure import Comparison
from dpoflow.evaluate.page import report_page
from dpoflow.evaluate.scores import scores_of
from dpoflow.evaluate.suites import Item, Suite
from dpoflow.pages import show
from dpoflow.state.step import StepState
from dpoflow.tables import write_table
from dpoflow.tracking.step_run import metric_name, step_run

CONFIG = EvaluateConfig.model_validate(
    {
        "suites": [{"name": "mt-bench", "kind": "mt_bench"}, {"name": "xstest", "kind": "xstest"}],
        "grader": {"kind": "llm", "endpoint": {"base_url": "http://127.0.0.1:9", "model": "judge"}},
        "resamples": 400,
        "gates": {"min_prompts": 8},
    }
)
MODELS = ("candidate", "base", "champion")
EVIL = '<script src="https://evil.example/x.js"></script><img src=x onerror=alert(1)> & $x_1$'
MARKS = {"candidate": (8, 6), "base": (5, 3), "champion": (9, 7)}
COMPLIED, REFUSED, PARTLY = "1_full_compliance", "2_full_refusal", "3_partial_refusal"


def marked(said: str = "text", category: str | None = None) -> list[Graded]:
    """Eight questions of MT-Bench in two categories; on the last one the candidate got 1 and 1."""
    return [
        Graded(
            suite="mt-bench",
            question_id=str(at),
            category=category or ("maths", "writing")[at % 2],
            is_safe=True,
            model=model,
            questions=(f"{said} first {at}", f"{said} then {at}"),
            answers=(f"{said} {model} one {at}", f"{said} {model} two {at}"),
            marks=(1.0, 1.0) if at == 7 and model == "candidate" else MARKS[model],
            reasons=(f"{said} because {model} {at}",),
        )
        for at in range(8)
        for model in MODELS
    ]


def labelled(said: str = "text") -> list[Graded]:
    """Ten safe questions, the candidate refused three and one by half; ten unsafe, it did two."""

    def label(at: int, model: str) -> str:
        if at < 10:
            ours = REFUSED if at < 3 else PARTLY if at == 3 else COMPLIED
            return ours if model == "candidate" else COMPLIED
        return COMPLIED if model == "candidate" and at < 12 else REFUSED

    return [
        Graded(
            suite="xstest",
            question_id=str(at),
            category="homonyms" if at < 10 else "contrast_homonyms",
            is_safe=at < 10,
            model=model,
            questions=(f"{said} ask {at}",),
            answers=(f"{said} {model} says {at}",),
            label=label(at, model),
            string_match=REFUSED if label(at, model) == REFUSED and at else COMPLIED,
            reasons=(f"{said} because {model} {at}",),
        )
        for at in range(20)
        for model in MODELS
    ]


def comparisons(said: str = "text", suite: str = "heldout", lost: int = 3) -> list[Comparison]:
    """Twelve with each opponent."""
    return [
        Comparison(
            suite=suite,
            prompt_id=f"{at:02}",
            slice=("returns", "delivery")[at % 2],
            question=f"{said} question {at}",
            against=against,
            theirs=f"{said} {against} {at}",
            candidate=f"{said} candidate {at}",
            outcome=float(at >= lost),
            reasons=(f"{said} reason {at}",),
        )
        for against in ("base", "champion")
        for at in range(12)
    ]


def suite(number: int, graded: list[Graded]) -> SuiteScores:
    items = {
        each.question_id: Item(
            Question(each.question_id, (Message(role="user", content=each.questions[0]),)),
            each.category,
            each.is_safe,
        )
        for each in graded
    }
    return scores_of(
        CONFIG, Suite(CONFIG.suites[number], tuple(items.values())), graded, len(items)
    )


HARNESS = SuiteScores(
    kind="harness",
    num_questions=500,
    judged_by="exact match",
    models={
        "candidate": {"acc_norm": Interval(value=0.52, low=0.48, high=0.56, n=500)},
        "base": {
            "acc_norm": Interval(value=0.5, low=0.46, high=0.54, n=500),
            "word_perplexity": Interval(value=12.5, low=12, high=13, n=500),
        },
    },
    differences={"base": {"acc_norm": Interval(value=0.02, low=-0.01, high=0.05, n=500)}},
)


def decision(said: str = "text", **changes: Any) -> Decision:
    """Of every kind of suite."""
    compared = comparisons(said) + comparisons(said, "arena", lost=5)
    suites = {
        "mt-bench": suite(0, marked(said)),
        "xstest": suite(1, labelled(said)),
        "harness": HARNESS,
        "arena": SuiteScores(kind="instructions", num_questions=12, judged_by="judge"),
    }
    document = document_of(CONFIG, compared, Measured(suites=suites), {"policy": "a" * 64})
    return document.model_copy(update=changes)


def page(said: str = "text", **changes: Any) -> str:
    compared = comparisons(said) + comparisons(said, "arena", lost=5)
    return report_page(decision(said, **changes), compared, marked(said) + labelled(said))


class Seen(HTMLParser):
    """What a browser makes of a page."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self._in_style = self._in_cell = False
        self.feed(markup)
        self.text = " ".join(self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self._in_style = tag == "style"
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._in_style:
            return
        self.words += data.replace("\u00a0", " ").split()
        if self._in_cell:
            self.rows[-1][-1] += data.replace("\u00a0", " ") + " "

    def row(self, *begin: str) -> list[str]:
        """The cells after those that the row begins with."""
        found = [
            row for row in self.rows if [cell.strip() for cell in row[: len(begin)]] == [*begin]
        ]
        assert found, begin
        return [" ".join(cell.split()) for cell in found[0][len(begin) :]]


# ------------------------------------------------------------------ the report


def test_hostile_words_are_text_wherever_they_stand() -> None:
    interval = Interval(value=0.5, low=0.4, high=0.6, n=9)
    evil_suite = SuiteScores(
        kind=EVIL,
        num_questions=1,
        judged_by=EVIL,
        models={EVIL: {EVIL: interval, "b": interval}},
        differences={EVIL: {EVIL: interval}},
        by_category={EVIL: {EVIL: 0.5, "b": 0.2}},
        labels={EVIL: {"safe": {EVIL: interval}}},
        against={EVIL: Opponent(win_rate=interval, slices={EVIL: interval, "b": interval})},
    )
    gate = Gate(name=EVIL, asked=EVIL, seen=EVIL, passed=False)
    graded = [each.model_copy(update={"category": EVIL}) for each in marked(EVIL) + labelled(EVIL)]
    compared = [
        each.model_copy(update={"against": EVIL, "slice": EVIL, "suite": where})
        for where in ("heldout", EVIL)
        for each in comparisons(EVIL)
    ]
    told = decision(
        EVIL,
        sentence=EVIL,
        gates=(gate,),
        suites={EVIL: evil_suite, "mt-bench": suite(0, marked(EVIL, EVIL)), "xstest": HARNESS},
        against={EVIL: Opponent(win_rate=interval, slices={EVIL: interval, "b": interval})},
        changed={EVIL: (EVIL, EVIL)},
        measures={EVIL: 1.0},
        digests={EVIL: EVIL},
        judge=EVIL,
        signer=EVIL,
    )

    seen = Seen(report_page(told, compared, graded))

    assert not {"script", "img", "iframe", "link", "object", "embed", "base"} & set(seen.tags)
    assert seen.tags.count("meta") == 1
    assert not [name for name, _ in seen.attributes if name.startswith("on")]
    assert seen.text.count("onerror=alert(1)>") > 60


def test_the_report_asks_the_network_for_nothing() -> None:
    markup = page()
    seen = Seen(markup)

    places = {"src", "href", "xlink:href", "action", "srcset", "data", "poster", "formaction"}
    assert {value[0] for name, value in seen.attributes if name in places} == {"#"}
    assert not {"script", "link", "img", "iframe"} & set(seen.tags)
    assert "@import" not in markup
    assert set(re.findall(r"url\(([^)]{0,1})", markup)) <= {"#"}
    anchors = {value[1:] for name, value in seen.attributes if name == "href"}
    assert anchors <= {value for name, value in seen.attributes if name == "id"}


def test_equal_numbers_are_equal_bytes() -> None:
    assert page() == page()


def test_what_was_missed_stands_first_and_what_was_held_is_folded_away() -> None:
    held = Gate(name="finished", asked="at least 0.95", seen="0.98", passed=True)
    gates = (
        held,
        Gate(name="unknown", asked="so", seen="not measured", passed=None),
        Gate(name="unsure", asked="so", seen="so so", passed=False, undecided=True),
        Gate(name="missed", asked="so", seen="no", passed=False),
    )

    some, every = page(gates=gates), page(gates=(held,))

    order = [some.index(f"<td>{name}</td>") for name in ("missed", "unsure", "unknown", "finished")]
    assert order == sorted(order)
    assert Seen(some).row("unsure", "so", "so so") == ["undecided"]
    assert "<details><summary>1 of 4 gates held" in some
    assert "<details open><summary>1 of 1 gates held" in every


def test_marks_are_shown_by_turn_and_by_category_for_each_model() -> None:
    seen = Seen(page())

    # Seven questions at 8 and 6, one at 1 and 1; the base always 5 and 3.
    candidate, base, champion, *_ = seen.row("score")
    assert candidate.startswith(f"{(7 * 7 + 1) / 8:.3f} [")
    assert base == "4.000 [4.000, 4.000], n 8"
    assert champion.startswith("8.000")
    assert seen.row("turn 1")[0].startswith(f"{(7 * 8 + 1) / 8:.3f} [")
    assert seen.row("maths") == ["7.000", "4.000", "8.000"]
    assert seen.row("writing") == ["5.500", "4.000", "8.000"]


def test_refusals_are_shown_two_ways_with_counts_and_intervals() -> None:
    seen = Seen(page())

    complied, refused, partly, begins = seen.row("safe, should be answered", "candidate")
    low, high = binomtest(3, 10).proportion_ci(method="wilson")
    assert refused == f"3 of 10 30.0% [{low:.1%}, {high:.1%}]"
    assert complied.startswith("6 of 10 ")
    assert partly.startswith("1 of 10 ")
    assert begins.startswith("2 of 10 ")
    complied, refused, _, _ = seen.row("unsafe, should be refused", "candidate")
    assert complied.startswith("2 of 10 ")
    assert refused.startswith("8 of 10 ")


def test_a_share_of_none_is_no_certainty() -> None:
    base = suite(1, labelled()).models["base"]["over_refusal"]

    assert base.value == base.low == 0
    assert base.high == pytest.approx(binomtest(0, 10).proportion_ci(method="wilson").high)


def test_a_figure_of_any_name_is_shown_and_drawn_where_it_is_a_share() -> None:
    markup = page()
    seen = Seen(markup)

    assert seen.row("acc norm")[:2] == [
        "0.520 [0.480, 0.560], n 500",
        "0.500 [0.460, 0.540], n 500",
    ]
    assert seen.row("word perplexity")[1] == "12.500 [12.000, 13.000], n 500"
    assert ">acc norm, candidate</text>" in markup
    assert "word perplexity, base</text>" not in markup


def test_each_difference_is_drawn_with_its_margin() -> None:
    drawn = page().split("their margins</h2>")[1].split("<h2")[0]

    assert ">score, minus the base's</text>" in drawn
    # Margins: over_refusal, unsafe_compliance and score against base and champion, and acc_norm.
    for colour, width, times in (("#b3261e", 1.6, 7), ("#b3261e", 2.4, 1), ("#b07800", 2.4, 4)):
        # Intervals: one is below its margin, and ten questions leave four undecided.
        assert len(re.findall(f"stroke: {colour}; stroke-width: {width}", drawn)) == times


def test_a_suite_of_instructions_is_shown_against_each_opponent_and_by_category() -> None:
    markup = page()
    arena = Seen(markup.split("Suite arena</h2>")[1].split("<h2")[0])

    assert arena.row("base")[0].startswith(f"{7 / 12:.3f} [")
    assert arena.row("delivery")[0].endswith("n 6")
    assert "The candidate lost 5 comparisons with the base; 3 of them" in arena.text
    assert "text reason 0" in arena.text


def test_held_out_answers_are_not_mixed_with_those_of_suites() -> None:
    markup = page()

    beside = Seen(markup.split("Answers beside those of the base</h2>")[1].split("<h2")[0])

    assert "9 won, 3 lost, 0 a tie, 0 not judged." in beside.text
    assert "of 12:" in beside.text


def test_the_answers_that_fell_furthest_behind_stand_side_by_side_with_reasons() -> None:
    markup = page()
    marks = Seen(markup.split("Suite mt-bench</h2>")[1].split("<h2")[0])
    labels = Seen(markup.split("Suite xstest</h2>")[1].split("<h2")[0])

    assert "On 1 of 8 questions the candidate was found worse than the base." in marks.text
    assert "On 8 of 8 questions the candidate was found worse than the champion; 3 of" in marks.text
    behind = [row for row in marks.rows if "marks 1, 1" in row[-1]]
    assert len(behind) == 2  # with each opponent first
    assert "because candidate 7" in behind[0][-1]
    assert "because base 7" in behind[0][-2]
    assert "On 6 of 20 questions the candidate was found worse than the base" in labels.text


def test_too_many_rows_for_a_drawing_are_counted() -> None:
    slices = {f"slice {at}": Interval(value=0.5, low=0.4, high=0.6, n=9) for at in range(70)}
    against = {"base": Opponent(win_rate=slices["slice 0"], slices=slices)}

    assert "70 more are in the tables below" in page(against=against, suites={})


# ------------------------------------------------------------------ figures for MLflow, Kubeflow


def test_differences_categories_and_two_way_shares_are_figures_too() -> None:
    figures = figures_of(decision())

    assert figures["eval/mt-bench/score/minus_base"] == pytest.approx((7 * 3 + -3) / 8)
    assert figures["eval/mt-bench/category/writing/candidate"] == 5.5
    assert figures["eval/xstest/safe/refused/candidate"] == pytest.approx(0.3)
    assert figures["eval/xstest/safe/begins_like_a_refusal/candidate"] == pytest.approx(0.2)
    assert figures["eval/arena/win_rate/base/delivery"] == pytest.approx(4 / 6)
    assert figures["eval/harness/acc_norm/minus_base_low"] == -0.01
    assert figures["eval/xstest/over_refusal/minus_base_high"] >= 0.3


@given(st.text(max_size=300), st.sampled_from(["", "eval/win_rate/", "eval//", "../"]))
def test_whatever_a_slice_is_called_mlflow_takes_its_figure(name: str, root: str) -> None:
    from mlflow.utils.validation import _validate_length_limit, _validate_metric_name

    told = metric_name(root + name)

    _validate_metric_name(told)
    _validate_length_limit("Metric name", 250, told)


def test_figures_that_mlflow_takes_are_called_as_they_were() -> None:
    figures = figures_of(decision())

    assert {name: metric_name(name) for name in figures} == {name: name for name in figures}


def test_kubeflow_gets_the_page_and_every_figure(tmp_path: Path) -> None:
    written, logged = tmp_path / "report.html", dict[str, float]()
    written.write_text("<p>é", encoding="utf-8")

    show(written, {"eval/a": 0.5, "rows": 3}, str(tmp_path / "far" / "page"), logged.__setitem__)

    assert (tmp_path / "far" / "page").read_bytes() == "<p>é".encode()
    assert logged == {"eval/a": 0.5, "rows": 3}


# ------------------------------------------------------------------ the table


def test_a_prompt_is_one_row_with_every_models_answer() -> None:
    columns = answers_table([*comparisons(), *comparisons(suite="arena")], marked() + labelled())

    assert list(columns)[:6] == ["suite", "slice", "prompt", "candidate", "base", "champion"]
    assert len(columns["prompt"]) == 12 + 12 + 8 + 20
    row = {name: texts[1] for name, texts in columns.items()}
    assert row["base"] == "text base 1"
    assert row["champion"] == "text champion 1"
    assert row["against champion"] == "lost"
    assert row["base found"] == ""
    last_mark = {name: texts[12 + 12 + 7] for name, texts in columns.items()}
    assert last_mark["candidate found"] == "marks 1, 1"
    assert last_mark["prompt"] == "[turn 1] text first 7\n\n[turn 2] text then 7"
    assert {name: texts[-1] for name, texts in columns.items()}["champion found"] == "refused"


def test_a_long_text_is_cut_and_says_by_how_much(tmp_path: Path) -> None:
    write_table(tmp_path / TABLE, {"prompt": ["a" * 4000, "b" * 9000]})

    told = json.loads((tmp_path / TABLE).read_text("utf-8"))

    assert told["data"][0] == ["a" * 4000]
    assert told["data"][1] == ["b" * 4000 + "… (5,000 characters more)"]


def test_many_long_texts_stay_within_what_is_uploaded(tmp_path: Path) -> None:
    write_table(tmp_path / TABLE, {"prompt": ["\U0001f600" * 4000] * 2000})

    assert (tmp_path / TABLE).stat().st_size < 8_000_000
    assert "characters more)" in (tmp_path / TABLE).read_text("utf-8")


def test_mlflow_finds_the_table_and_reads_back_what_models_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    store = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    state = StepState(tmp_path / "state" / "one", "evaluate")
    state.start_afresh(["decision"])
    said = EVIL + ' "quoted"\n\tµ 漢字 \U0001f600'
    columns = answers_table(comparisons(said), marked(said) + labelled(said))
    write_table(state.output("decision") / TABLE, columns)
    result = EvaluateResult(
        verdict="promote", sentence="s", win_rate=0.6, ci=(0.5, 0.7), decision_digest="d"
    )

    with step_run("evaluate", task="evaluate", config={}, parents={}, state=state) as run:
        run.conclude(result, {"decision": "a" * 64}, reused=False)

    client = MlflowClient(store)
    experiments = [each.experiment_id for each in client.search_experiments()]
    [logged] = client.search_runs(experiments)
    back = client.load_table(logged.info.experiment_id, f"decision/{TABLE}", [logged.info.run_id])
    assert list(back.columns) == list(columns)
    assert {name: list(back[name]) for name in columns} == {n: list(c) for n, c in columns.items()}
