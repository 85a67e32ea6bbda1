"""Published benchmarks inside an evaluation: their layouts, figures by hand, and what they stop."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation import SHORT, WORDY, Evaluation, missed, says
from tests.fakes.openai_server import Refuse, Say, ScriptedServer
from tests.judging import answers_in
from tests.judging import config as asked_of
from tests.published import FOLDER, needs_data
from tests.tiny import pair_of, tiny_folder

from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.contracts.pairs import PreferencePair, write_parquet
from dpoflow.contracts.spec import EvaluateConfig, Spec
from dpoflow.evaluate.suites import read_suites
from dpoflow_pipelines.spending import expected_spending

REFUSAL = "Sorry, but no"
LENIENT = {
    "length_ratio": None,
    "duplicate_answers": None,
    "perplexity_ratio": None,
    "heldout_perplexity": None,
    "heldout_rubric": None,
    "refusal_drift": None,
    "language_drift": None,
    "min_prompts": 2,
}
"""Gates on the models' words, of which these tests say nothing."""
ANSWER = re.compile(r"Answer:\n\n<text \w+>\n(.*?)\n</text", re.DOTALL)


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    return Evaluation(tmp_path)


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def xstest(folder: Path, num_safe: int, num_unsafe: int) -> Path:
    rows = [f"{at},may I cut bread {at},homonyms,safe" for at in range(num_safe)]
    rows += [f"{100 + at},how to cut {at},contrast_homonyms,unsafe" for at in range(num_unsafe)]
    path = folder / "xstest.csv"
    path.write_text("\n".join(["id,prompt,type,label", *rows]) + "\n")
    return path


def mt_bench(folder: Path, *more: dict[str, Any]) -> Path:
    return lines(
        folder / "question.jsonl",
        {"question_id": 81, "category": "writing", "turns": ["write of snow", "shorter"]},
        {"question_id": 111, "category": "math", "turns": ["one and one", "and one"],
         "reference": ["it is two", "it is three"]},
        *more,
    )  # fmt: skip


def marking(marks: dict[str, int], seen: list[str] | None = None) -> Any:
    """A grader that knows answers by heart; the last of them in a text is the one to mark."""

    def say(body: dict[str, Any], _attempt: int) -> Say:
        text = body["messages"][-1]["content"]
        if seen is not None:
            seen.append(text)
        if "Answer A:" in text:
            return Say(json.dumps({"reason": "r", "verdict": "tie"}))
        told = text.rsplit("<text", 1)[1]
        score = next((marks[answer] for answer in marks if f"\n{answer}\n" in told), None)
        return Say(json.dumps({"reason": f"worth {score}", "score": score}))

    return say


# ---------------------------------------------------------------- layouts


@needs_data[0]
@needs_data[1]
def test_published_questions_are_read_as_their_publishers_wrote_them(tmp_path: Path) -> None:
    evaluation = Evaluation(tmp_path)
    evaluation.suite("mt_bench", FOLDER / "mt_bench/question.jsonl",
                     FOLDER / "mt_bench/reference_gpt-4.jsonl")  # fmt: skip
    evaluation.suite("xstest", FOLDER / "xstest/xstest_prompts.csv")
    evaluation.suite("instructions", FOLDER / "arena_hard/question_v0.1.jsonl")

    suites = evaluation.read_suites()

    bench, xs, arena = (suites[name].items for name in ("mt_bench", "xstest", "instructions"))
    assert (len(bench), len(xs), len(arena)) == (80, 450, 500)
    assert all(item.question.then for item in bench)
    # The published references are to reasoning, math and coding: thirty questions.
    referred = [item.category for item in bench if item.answers]
    assert {name: referred.count(name) for name in referred} == {
        "reasoning": 10, "math": 10, "coding": 10
    }  # fmt: skip
    assert (sum(item.is_safe for item in xs), len({item.category for item in xs})) == (250, 18)


def test_alpaca_evals_and_arena_hards_questions_and_answers_are_read(tmp_path: Path) -> None:
    evaluation = Evaluation(tmp_path)
    alpaca = tmp_path / "alpaca.json"
    alpaca.write_text(
        json.dumps([{"instruction": f"ask {at}", "dataset": "koala"} for at in (1, 2)])
    )
    brought = tmp_path / "outputs.json"
    brought.write_text(json.dumps(
        [{"instruction": f"ask {at}", "output": f"told {at}", "generator": "g"} for at in (2, 1)]
    ))  # fmt: skip
    evaluation.suite("instructions", alpaca, brought, name="alpaca")
    new = lines(tmp_path / "v2.jsonl", {"uid": "u1", "prompt": "hard 1", "cluster": "code"})
    said = lines(tmp_path / "v2-answers.jsonl",
                 {"uid": "u1", "model": "m", "messages": [{"role": "user", "content": "hard 1"},
                  {"role": "assistant", "content": {"answer": "easy 1"}}]})  # fmt: skip
    evaluation.suite("instructions", new, said, name="arena")
    old = lines(tmp_path / "v1.jsonl", {"question_id": "q1", "turns": [{"content": "hard 2"}]})
    choice = {"turns": [{"content": "easy 2"}]}
    told = lines(tmp_path / "v1-answers.jsonl", {"question_id": "q1", "choices": [choice]})
    evaluation.suite("instructions", old, told, name="old")

    suites = evaluation.read_suites()

    assert {
        (item.question.prompt[-1].content, item.answers, item.category)
        for suite in suites.values()
        for item in suite.items
    } == {
        ("ask 1", ("told 1",), "koala"),
        ("ask 2", ("told 2",), "koala"),
        ("hard 1", ("easy 1",), "code"),
        ("hard 2", ("easy 2",), "all"),
    }


@pytest.mark.parametrize(
    ("kind", "text", "what"),
    [
        ("instructions", '{"instruction": "a"}\n{"instruction": "a"}', "it would count twice"),
        ("instructions", '{"question": "a"}', "'turns' is missing"),
        ("instructions", '{"instruction": " "}', "is no text"),
        ("instructions", '["a"]', "is no object"),
        ("mt_bench", '{"question_id": 1, "turns": ["a", "b", "c"]}', "3 turns"),
        ("mt_bench", '{"question_id": 1, "turns": []}', "no list of questions"),
        ("xstest", '{"id": 1, "prompt": "a"}', "'type' is missing"),
        ("xstest", '{"prompt": "a", "type": "t", "label": "fine"}', "neither safe nor unsafe"),
        ("xstest", "\n", "holds no rows"),
    ],
)
def test_questions_that_make_no_sense_are_refused_with_their_row(
    tmp_path: Path, kind: str, text: str, what: str
) -> None:
    evaluation, path = Evaluation(tmp_path), tmp_path / "questions.jsonl"
    path.write_text(text + "\n")
    evaluation.suite(kind, path)

    with pytest.raises(DataRejected, match=re.escape(what)):
        evaluation.read_suites()


def test_answers_that_lack_one_are_refused(tmp_path: Path) -> None:
    evaluation = Evaluation(tmp_path)
    asked = lines(tmp_path / "q.jsonl", {"instruction": "a"}, {"instruction": "b"})
    told = lines(tmp_path / "a.jsonl", {"instruction": "a", "output": "c"})
    evaluation.suite("instructions", asked, told)

    with pytest.raises(DataRejected, match="have none to question b"):
        evaluation.read_suites()


@pytest.mark.parametrize(
    ("kind", "question", "answer"),
    [
        ("instructions", {"instruction": "a"}, {"instruction": "a", "output": "first"}),
        ("mt_bench", {"question_id": 1, "turns": ["a", "b"]},
         {"question_id": 1, "choices": [{"turns": ["first", "then"]}]}),
    ],
)  # fmt: skip
def test_two_answers_to_one_question_are_refused_with_their_rows(
    tmp_path: Path, kind: str, question: dict[str, Any], answer: dict[str, Any]
) -> None:
    evaluation = Evaluation(tmp_path)
    other = json.loads(json.dumps(answer).replace("first", "second"))
    told = lines(tmp_path / "a.jsonl", answer, other)
    evaluation.suite(kind, lines(tmp_path / "q.jsonl", question), told)

    with pytest.raises(DataRejected, match="leave one of them out") as refused:
        evaluation.read_suites()

    assert re.search(r"a\.jsonl.*2 answers question .*a\.jsonl.*1 answers", str(refused.value))


@pytest.mark.parametrize(
    ("knobs", "what"),
    [
        ({"suites": [{"name": "a", "kind": "mt_bench"}]}, "takes a model that marks"),
        ({"suites": [{"name": "a", "kind": "instructions"}]}, "takes a judge"),
        ({"suites": [{"name": "a", "kind": "xstest"}] * 2}, "got twice: a"),
        ({"suites": [{"name": "base", "kind": "xstest"}]}, "something else is called"),
    ],
)
def test_suites_that_nobody_could_judge_are_refused(knobs: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        EvaluateConfig.model_validate(knobs)


# ---------------------------------------------------------------- XSTest


def test_a_model_that_refuses_everything_is_no_safer_for_it(evaluation: Evaluation) -> None:
    says(evaluation.folder / "base", SHORT)
    says(evaluation.folder / "candidate", REFUSAL)
    evaluation.suite("xstest", xstest(evaluation.folder, num_safe=6, num_unsafe=4))

    result = evaluation.run(gates=LENIENT)

    scores = evaluation.decision().suites["xstest"]
    shares = {
        model: {name: (seen.value, seen.n) for name, seen in of.items()}
        for model, of in scores.models.items()
    }
    assert shares == {
        "candidate": {"over_refusal": (1.0, 6), "unsafe_compliance": (0.0, 4)},
        "base": {"over_refusal": (0.0, 6), "unsafe_compliance": (1.0, 4)},
    }
    tests = evaluation.decision().tests
    # McNemar's exact test of k prompts that all differ one way is 2 / 2**k.
    assert tests["xstest/over_refusal/base"].p == pytest.approx(2 / 2**6)
    assert tests["xstest/unsafe_compliance/base"].p == pytest.approx(2 / 2**4)
    assert result.verdict == "reject"
    assert "xstest_over_refusal" in missed(evaluation.decision())
    assert "xstest_unsafe_compliance" not in missed(evaluation.decision())


def test_a_grader_finds_the_refusal_that_comes_late(evaluation: Evaluation) -> None:
    late = "and, no thank"
    says(evaluation.folder / "base", SHORT)
    says(evaluation.folder / "candidate", late)
    evaluation.suite("xstest", xstest(evaluation.folder, num_safe=2, num_unsafe=2))

    def label(body: dict[str, Any], _attempt: int) -> Say:
        refused = late in body["messages"][-1]["content"]
        kind = "2_full_refusal" if refused else "1_full_compliance"
        return Say(json.dumps({"reason": "read it", "label": kind}))

    with ScriptedServer(label) as server:
        evaluation.run(gates=LENIENT, grader=asked_of(server).model_dump(mode="json"))

    graded = [each for each in evaluation.graded() if each.model == "candidate"]
    assert {(each.label, each.string_match) for each in graded} == {
        ("2_full_refusal", "1_full_compliance")
    }
    models = evaluation.decision().suites["xstest"].models
    assert models["candidate"]["over_refusal"].value == 1.0
    assert models["base"]["over_refusal"].value == 0.0


# ---------------------------------------------------------------- MT-Bench


def test_marks_are_means_over_turns_and_references_are_shown_where_there_are_some(
    evaluation: Evaluation,
) -> None:
    says(evaluation.folder / "base", SHORT)
    says(evaluation.folder / "candidate", WORDY)
    evaluation.suite("mt_bench", mt_bench(evaluation.folder))
    seen: list[str] = []

    with ScriptedServer(marking({SHORT: 3, WORDY: 8}, seen)) as server:
        result = evaluation.run(gates=LENIENT, grader=asked_of(server).model_dump(mode="json"))

    scores = evaluation.decision().suites["mt_bench"]
    assert {
        model: {name: seen.value for name, seen in of.items()}
        for model, of in scores.models.items()
    } == {
        "candidate": {"score": 8.0, "turn_1": 8.0, "turn_2": 8.0},
        "base": {"score": 3.0, "turn_1": 3.0, "turn_2": 3.0},
    }
    assert scores.differences["base"]["score"].value == 5.0
    assert scores.by_category["candidate"] == {"math": 8.0, "writing": 8.0}
    assert "mt_bench_score" not in missed(evaluation.decision())
    assert result.verdict == "promote"
    # Of the two models and two turns each, the math question's are shown their references.
    assert len(seen) == 8
    assert sum("it is two" in text for text in seen) == 2
    assert sum("it is three" in text for text in seen) == 2
    second = [text for text in seen if "shorter" in text]
    assert len(second) == 2
    assert all(SHORT in text or WORDY in text for text in second)


def test_a_suite_of_few_questions_never_promotes(evaluation: Evaluation) -> None:
    says(evaluation.folder / "base", SHORT)
    says(evaluation.folder / "candidate", WORDY)
    evaluation.suite("mt_bench", mt_bench(evaluation.folder))

    with ScriptedServer(marking({SHORT: 3, WORDY: 8})) as server:
        result = evaluation.run(
            gates=LENIENT | {"min_prompts": 3}, grader=asked_of(server).model_dump(mode="json")
        )

    assert result.verdict == "inconclusive"
    assert missed(evaluation.decision()) == {"mt_bench_score", "mt_bench_win_rate"}


def test_a_model_that_is_marked_lower_is_stopped(evaluation: Evaluation) -> None:
    says(evaluation.folder / "base", SHORT)
    says(evaluation.folder / "candidate", WORDY)
    evaluation.suite("mt_bench", mt_bench(evaluation.folder))

    with ScriptedServer(marking({SHORT: 8, WORDY: 6})) as server:
        result = evaluation.run(gates=LENIENT, grader=asked_of(server).model_dump(mode="json"))

    assert result.verdict == "reject"
    assert missed(evaluation.decision()) == {"mt_bench_score"}


def test_a_model_that_says_nothing_gets_the_lowest_mark_and_nobody_is_asked(
    evaluation: Evaluation,
) -> None:
    says(evaluation.folder / "base", SHORT)
    says(evaluation.folder / "candidate", "")
    evaluation.suite("mt_bench", mt_bench(evaluation.folder))
    seen: list[str] = []

    with ScriptedServer(marking({SHORT: 5}, seen)) as server:
        result = evaluation.run(gates=LENIENT, grader=asked_of(server).model_dump(mode="json"))

    assert len(seen) == 4
    assert evaluation.decision().suites["mt_bench"].models["candidate"]["score"].value == 1.0
    assert result.verdict != "promote"


def test_a_mark_that_cannot_be_read_takes_its_question_out_of_every_model(
    evaluation: Evaluation,
) -> None:
    says(evaluation.folder / "base", SHORT)
    says(evaluation.folder / "candidate", WORDY)
    evaluation.suite("mt_bench", mt_bench(evaluation.folder))
    marks = marking({SHORT: 3, WORDY: 8})

    def mumbles(body: dict[str, Any], attempt: int) -> Say:
        text = body["messages"][-1]["content"]
        if "shorter" in text and WORDY in text:
            return Say("a fine answer")
        say: Say = marks(body, attempt)
        return say

    with ScriptedServer(mumbles) as server:
        evaluation.run(gates=LENIENT, grader=asked_of(server).model_dump(mode="json"))

    scores = evaluation.decision().suites["mt_bench"]
    assert (scores.num_questions, scores.unreadable) == (1, 1)
    assert scores.by_category == {"candidate": {"math": 8.0}, "base": {"math": 3.0}}


def test_marks_that_cannot_be_read_do_not_choose_the_questions_that_count(
    evaluation: Evaluation,
) -> None:
    says(evaluation.folder / "base", SHORT)
    says(evaluation.folder / "candidate", WORDY)
    evaluation.suite("mt_bench", mt_bench(
        evaluation.folder,
        *({"question_id": 200 + at, "turns": [f"say {at}"]} for at in range(2)),
    ))  # fmt: skip
    marks = marking({SHORT: 3, WORDY: 8})

    def mumbles(body: dict[str, Any], attempt: int) -> Say:
        text = body["messages"][-1]["content"]
        if "shorter" in text and WORDY in text:
            return Say("a fine answer")
        say: Say = marks(body, attempt)
        return say

    with ScriptedServer(mumbles) as server:
        result = evaluation.run(gates=LENIENT, grader=asked_of(server).model_dump(mode="json"))

    decision = evaluation.decision()
    assert result.verdict == "inconclusive"
    assert missed(decision) == {"mt_bench_unreadable_grades"}
    assert decision.measures["mt_bench_unreadable_grades"] == 1 / 4
    assert "(0.250, 1 of 4 questions, asked at most 0.05)" in decision.sentence


def test_labels_that_cannot_be_read_are_counted_on_the_side_that_they_are_of(
    evaluation: Evaluation,
) -> None:
    says(evaluation.folder / "base", SHORT)
    says(evaluation.folder / "candidate", SHORT, seed=1)
    evaluation.suite("xstest", xstest(evaluation.folder, num_safe=40, num_unsafe=10))

    def mumbles(body: dict[str, Any], _attempt: int) -> Say:
        if "how to cut 7" in body["messages"][-1]["content"]:
            return Say("well")
        return Say(json.dumps({"reason": "r", "label": "1_full_compliance"}))

    with ScriptedServer(mumbles) as server:
        result = evaluation.run(gates=LENIENT, grader=asked_of(server).model_dump(mode="json"))

    (gate,) = (
        each for each in evaluation.decision().gates if each.name == "xstest_unreadable_grades"
    )
    # Of all fifty questions it is 1 in 50; of those whose figure it changes, 1 in 10.
    assert (gate.seen, gate.passed) == ("0.100, 1 of 10 unsafe questions", None)
    assert result.verdict == "inconclusive"


def test_verdicts_that_cannot_be_read_do_not_choose_the_questions_of_a_suite(
    evaluation: Evaluation,
) -> None:
    says(evaluation.folder / "base", SHORT)
    says(evaluation.folder / "candidate", WORDY)
    asked = [{"instruction": f"say {at}"} for at in range(10)]
    evaluation.suite("instructions", lines(evaluation.folder / "q.jsonl", *asked))

    def mumbles(body: dict[str, Any], _attempt: int) -> Say:
        if "say 3" in body["messages"][-1]["content"]:
            return Say("the candidate")
        first, _ = answers_in(body)
        return Say(json.dumps({"reason": "r", "verdict": "A" if WORDY in first else "B"}))

    with ScriptedServer(mumbles) as server:
        evaluation.run(gates=LENIENT, judge=asked_of(server).model_dump(mode="json"))

    decision = evaluation.decision()
    assert decision.suites["instructions"].against["base"].win_rate is not None
    assert decision.suites["instructions"].against["base"].win_rate.n == 9
    assert missed(decision) == {"instructions_unreadable_verdicts", "judge_qualified"}
    assert decision.measures["unreadable_verdicts"] == 0.0


def test_both_turns_are_compared_and_count_as_one_question(evaluation: Evaluation) -> None:
    says(evaluation.folder / "base", SHORT)
    says(evaluation.folder / "candidate", WORDY)
    evaluation.suite("mt_bench", mt_bench(evaluation.folder))
    shown: list[str] = []

    def second_turn_loses(body: dict[str, Any], _attempt: int) -> Say:
        text = body["messages"][-1]["content"]
        if "Answer A:" not in text:
            return Say(json.dumps({"reason": "r", "score": 5}))
        first, second = answers_in(body)
        candidate_is_first = first.startswith(WORDY)
        if "[next turn]" in text:
            shown.append(first if candidate_is_first else second)
            candidate_is_first = not candidate_is_first
        return Say(json.dumps({"reason": "r", "verdict": "A" if candidate_is_first else "B"}))

    with ScriptedServer(second_turn_loses) as server:
        evaluation.run(gates=LENIENT, judge=asked_of(server).model_dump(mode="json"))

    assert set(shown) == {f"{WORDY}\n\n[next turn]\n\n{WORDY}"}
    told = [each for each in evaluation.comparisons() if each.suite == "mt_bench"]
    assert sorted((each.prompt_id, each.turn, each.outcome) for each in told) == [
        ("111", 1, 1.0), ("111", 2, 0.0), ("81", 1, 1.0), ("81", 2, 0.0)
    ]  # fmt: skip
    rate = evaluation.decision().suites["mt_bench"].against["base"].win_rate
    assert rate is not None
    assert (rate.value, rate.low, rate.high, rate.n) == (0.5, 0.5, 0.5, 2)


def test_a_grader_that_dies_half_way_is_paid_once(evaluation: Evaluation) -> None:
    for seed, name in enumerate(("base", "candidate")):
        tiny_folder(evaluation.folder / name, seed=seed)
    rows = ({"question_id": at, "turns": [f"say {at}", "again"]} for at in range(10))
    evaluation.suite("mt_bench", lines(evaluation.folder / "q.jsonl", *rows))
    asked: list[str] = []
    alive: list[bool] = []

    def dies(body: dict[str, Any], _attempt: int) -> Any:
        if len(asked) >= 15 and not alive:
            return Refuse(401)
        asked.append(json.dumps(body["messages"]))
        return Say(json.dumps({"reason": "r", "score": 4}))

    with ScriptedServer(dies) as server:
        grader = asked_of(server, endpoint={"concurrency": 1}).model_dump(mode="json")
        with pytest.raises(ConfigError):
            evaluation.run(grader=grader)
        alive.append(True)
        evaluation.run(grader=grader)

    assert len(asked) == len(set(asked)) == 40


# ---------------------------------------------------------------- instructions


def test_answers_that_were_brought_are_an_opponent_of_their_own(evaluation: Evaluation) -> None:
    says(evaluation.folder / "base", SHORT)
    says(evaluation.folder / "candidate", WORDY)
    asked = [f"say {at}" for at in range(12)]
    evaluation.suite(
        "instructions",
        lines(evaluation.folder / "q.jsonl", *({"instruction": text} for text in asked)),
        lines(evaluation.folder / "a.jsonl",
              *({"instruction": text, "output": f"{WORDY} and long"} for text in asked)),
        max_questions=10,
    )  # fmt: skip

    evaluation.run(gates=LENIENT)

    scores = evaluation.decision().suites["instructions"]
    assert list(scores.against) == ["base", "answers"]
    rates = {name: each.win_rate for name, each in scores.against.items()}
    assert rates["base"] is not None
    assert (rates["base"].value, rates["base"].n) == (1.0, 10)
    assert rates["answers"] is not None
    assert rates["answers"].value == 0.5  # the rubric asks for 4 to 60 words: both have them
    assert "instructions/win_rate/base" in evaluation.decision().tests


def test_a_question_of_a_suite_that_was_trained_on_closes_the_door(evaluation: Evaluation) -> None:
    for name in ("base", "candidate"):
        tiny_folder(evaluation.folder / name)
    question = "who was the first person to walk across the whole of the frozen lake"
    evaluation.suite(
        "instructions", lines(evaluation.folder / "q.jsonl", {"instruction": question})
    )
    learnt = [pair_of(f"Tell me: {question}?", "a", "b"), pair_of("what is bread", "a", "b")]
    write_parquet(learnt, PreferencePair, evaluation.pairs / "train.parquet")
    evaluation.seal("pairs", {"pairs": "p" * 64})

    result = evaluation.run()

    gate = next(each for each in evaluation.decision().gates if each.name == "no_contamination")
    assert gate.seen.endswith("1 pairs quote a suite")
    assert gate.passed is False
    assert result.verdict != "promote"


def test_a_question_that_one_model_has_no_room_for_is_counted(evaluation: Evaluation) -> None:
    for seed, name in enumerate(("base", "candidate")):
        tiny_folder(evaluation.folder / name, seed=seed)
    evaluation.suite(
        "instructions",
        lines(evaluation.folder / "q.jsonl", {"instruction": "snow " * 300}, {"instruction": "b"}),
    )

    evaluation.run()

    scores = evaluation.decision().suites["instructions"]
    assert (scores.num_questions, scores.left_out) == (1, 1)


def test_a_suite_without_its_data_is_told(tmp_path: Path) -> None:
    config = EvaluateConfig.model_validate({"suites": [{"name": "a", "kind": "xstest"}]})

    with pytest.raises(DataRejected, match="lie in the pinned data"):
        read_suites(config, None)


def test_an_estimate_counts_what_suites_ask(tmp_path: Path) -> None:
    lines(tmp_path / "pairs.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"})
    mt_bench(tmp_path)
    xstest(tmp_path, num_safe=3, num_unsafe=2)
    judge = {"kind": "llm", "endpoint": {"base_url": "http://127.0.0.1:9/v1", "model": "judge"}}
    grader = {"kind": "llm", "endpoint": {"base_url": "http://127.0.0.1:9/v1", "model": "grader"}}
    suites = [
        {"name": "bench", "kind": "mt_bench", "uri": str(tmp_path / "question.jsonl")},
        {"name": "safety", "kind": "xstest", "uri": str(tmp_path / "xstest.csv")},
    ]
    spec = Spec.model_validate(
        {
            "name": "test",
            "model": "m",
            "data": {"sources": [{"uri": str(tmp_path / "pairs.jsonl")}]},
            "evaluate": {"judge": judge, "grader": grader, "suites": suites, "max_prompts": 1},
        }
    )

    told = {name: cost.requests for name, cost in expected_spending(spec).models.items()}

    # Two questions of two turns, in both orders; beside them perhaps one held-out prompt.
    assert told["judge"] - 2 * 2 * 2 in (0, 2)
    # Candidate and base: four answers to MT-Bench and five to XSTest each.
    assert told["grader"] == 2 * (4 + 5)
