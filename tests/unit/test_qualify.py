"""Whether a judge earns its vote: figures that others published, or that can be counted by hand."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import cohen_kappa_score
from tests.fakes.openai_server import Action, Say, ScriptedServer
from tests.judging import config, honest
from tests.published import FOLDER, needs_data
from typer.testing import CliRunner

from dpoflow.contracts.errors import ConfigError, DataRejected, GateNotPassed
from dpoflow.contracts.judges import LlmJudgeConfig
from dpoflow.contracts.spec_file import load_spec
from dpoflow.judge.build import judge_id
from dpoflow.judge.labelled import read_labelled, read_verdicts
from dpoflow.judge.qualify import Item, qualify
from dpoflow.judge.trust import check_trust, family
from dpoflow.judge.verdict import Verdict, counted, unordered
from dpoflow_pipelines.cli import app

runner = CliRunner()


def items(text: str) -> list[Item]:
    """Label, forward and swapped of each pair, as 1, 2, = and ?: `111 122`."""
    names: dict[str, Any] = {"1": "first", "2": "second", "=": "tie", "?": "invalid"}
    return [Item(*(names[letter] for letter in word)) for word in text.split()]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=needs_data)
        for name in ("GPT-4_Vanilla", "ChatGPT_Vanilla", "ChatGPT_Swap")
    ],
)
def test_recorded_verdicts_on_llmbar_give_the_published_statistics(name: str) -> None:
    """Zeng et al. 2023; their kappa fields are of something else and are left alone."""
    told = json.loads((FOLDER / "llmbar" / f"natural_{name}_statistics.json").read_text())

    report = qualify(name, read_verdicts(FOLDER / "llmbar" / f"natural_{name}_result.json"))

    published = {
        key: int(text.split(" / 100")[0]) / 100
        for key, text in told.items()
        if " / 100" in str(text)
    }
    assert report.accuracy_forward == published["correct_False"]
    assert report.accuracy_swapped == published["correct_True"]
    assert report.both_correct == published["correct_both"]
    assert report.positional_agreement == published["equal"]


def test_kappa_is_scikit_learns_between_label_and_what_both_orders_say() -> None:
    dice = random.Random(1)  # noqa: S311
    made = items(" ".join("".join(dice.choices("12=?", (5, 4, 1, 1), k=3)) for _ in range(200)))
    made = [item for item in made if item.label != "invalid"]

    report = qualify("judge", made)

    agreed = [item.agreed or "none" for item in made]
    expected = cohen_kappa_score([item.label for item in made], agreed)
    assert report.kappa == pytest.approx(expected, abs=1e-12)
    low, high = report.kappa_ci
    assert low < report.kappa < high


def test_its_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Judges of known quality: right with 0.85 in both orders together, else the other side."""
    truth = 2 * 0.85 - 1  # of balanced labels and errors, kappa is 2p - 1
    held = 0
    for seed in range(200):
        dice = random.Random(seed)  # noqa: S311
        words = []
        for _ in range(150):
            label = dice.choice("12")
            said = label if dice.random() < 0.85 else {"1": "2", "2": "1"}[label]
            words.append(label + said * 2)
        low, high = qualify("judge", items(" ".join(words)), seed=seed).kappa_ci
        held += low <= truth <= high
    assert 0.90 <= held / 200 <= 0.98


@pytest.mark.parametrize(
    ("verdicts", "agreement", "first_position", "qualified"),
    [
        ("111 222 " * 20, 1.0, 0.5, True),
        ("112 212 " * 20, 0.0, 1.0, False),  # always the one shown first
        ("122 211 " * 20, 1.0, 0.5, False),  # upside down
        ("1?? 2?? " * 20, 0.0, None, False),
        ("1== 2== " * 20, 1.0, None, False),  # agrees with itself and says nothing
        ("111 222 " * 9, 1.0, 0.5, False),  # right on too few
    ],
)
def test_agreeing_with_itself_is_not_enough_and_neither_is_being_right(
    verdicts: str, agreement: float, first_position: float | None, *, qualified: bool
) -> None:
    report = qualify("judge", items(verdicts))

    assert report.positional_agreement == agreement
    assert report.first_position_rate == first_position
    assert report.qualified == qualified
    assert report.sentence.startswith("qualified" if qualified else "unqualified")


def test_a_length_flip_is_a_shorter_better_answer_that_lost_in_both_orders() -> None:
    def item(word: str, first: int, second: int) -> Item:
        return items(word)[0]._replace(lengths=(first, second))

    told = qualify(
        "judge",
        [
            item("122", 10, 90),  # the shorter is better, and the longer won
            item("111", 10, 90),
            item("112", 10, 90),  # undecided
            item("211", 90, 10),  # and the other way round
            item("111", 90, 10),  # the longer is better: no flip possible
            item("1=2", 50, 50),
        ],
    )
    assert told.length_flip_rate == 2 / 4
    assert qualify("judge", items("111")).length_flip_rate is None


def test_what_a_panel_settles_counts_and_not_what_most_of_its_ballots_say() -> None:
    """One heavy seat decides, and two light ones are right."""
    light = unordered("light", Verdict(choice="first"))
    heavy = unordered("heavy", Verdict(choice="second"))
    settled = counted([(light, 1), (light, 1), (heavy, 5)])

    told = qualify("panel", [Item("first", "first", "first", settled=settled)] * 30)

    assert told.both_correct == 0.0
    assert not told.qualified


def test_slices_are_told_apart() -> None:
    one = [item._replace(slice="code") for item in items("111 112")]
    two = [item._replace(slice="prose") for item in items("222 222")]

    report = qualify("judge", [*one, *two])

    assert {name: (p.n, p.both_correct) for name, p in report.slices.items()} == {
        "code": (2, 0.5),
        "prose": (2, 1.0),
    }


# ---------------------------------------------------------------- files


def written(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def test_verdicts_may_be_named_in_every_usual_way(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"label": 1, "forward": "1", "swapped": "first"},
        {"label": "second", "forward": 2, "swapped": "B"},
        {"label": "tie", "forward": None, "swapped": "invalid", "slice": "x"},
    )

    assert read_verdicts(path) == [
        *items("111 222"),
        Item("tie", "invalid", "invalid", slice="x"),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": 1, "forward": 1}, "row 1: 'swapped' is missing"),
        ({"label": 3, "forward": 1, "swapped": 1}, "row 1: 3 names no answer"),
        ({"label": "invalid", "forward": 1, "swapped": 1}, "says nothing"),
        ("{", "line 1 is not JSON"),
        ("17", "row 1"),
        ("", "holds no row"),
    ],
)
def test_a_broken_row_is_named(row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataRejected, match=message):
        read_verdicts(written(tmp_path, row))


def test_our_own_pairs_are_labelled_pairs_and_chosen_is_not_always_first(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{n}?"}],
            "chosen": {"role": "assistant", "content": "good"},
            "rejected": {"role": "assistant", "content": "bad"},
            "source": {"dataset": "t", "row": str(n)},
        }
        for n in range(40)
    ]
    made = read_labelled(written(tmp_path, *rows))

    labels = [one.label for one in made]
    assert 10 < labels.count("first") < 30
    assert all((one.first if one.label == "first" else one.second) == "good" for one in made)


# ---------------------------------------------------------------- the command


def spec_at(folder: Path, judge: dict[str, Any] | LlmJudgeConfig, **more: Any) -> Path:
    told = judge if isinstance(judge, dict) else judge.model_dump(mode="json", exclude_none=True)
    spec = {
        "name": "x",
        "model": "./m",
        "data": {"sources": [{"uri": "d.jsonl"}]},
        "evaluate": {"judge": told},
    }
    path = folder / "spec.yaml"
    path.write_text(json.dumps(spec | more))  # JSON is YAML
    return path


def labelled_at(folder: Path) -> Path:
    return written(
        folder,
        *(
            {
                "prompt": f"{n}?",
                "first": f"{n} quality={n % 2}",
                "second": f"{n} quality={1 - n % 2}",
                "label": 2 - n % 2,
            }
            for n in range(24)
        ),
    )


def command(*words: str) -> Any:
    return runner.invoke(app, ["judge", "qualify", *words], catch_exceptions=True)


def test_a_good_judge_is_qualified_asked_once_and_told_to_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out, home = tmp_path / "judge.json", str(tmp_path / "home")
    with ScriptedServer(honest) as server:
        spec = spec_at(tmp_path, config(server))
        words = [str(spec), "--labelled", str(labelled_at(tmp_path)), "--home", home]
        priced = command(*words, "--dry-run")
        assert not server.seen
        told = command(*words, "--json", "--out", str(out), "--require", "qualified")
        again = command(*words)
        asked = sum(server.paid.values())

    assert "at most 48 requests" in priced.stdout
    report = json.loads(told.stdout)
    assert (report["n"], report["both_correct"], report["qualified"]) == (24, 1.0, True)
    assert json.loads(out.read_text()) == report
    assert "qualified on 24 pairs" in again.stdout
    assert asked == 48, "the second time nothing was asked"
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    experiment = client.get_experiment_by_name("x")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert runs[0].data.metrics["judge/both_correct"] == 1.0
    assert runs[0].data.tags["dpoflow.judge"] == report["judge"]


def test_a_judge_that_goes_by_the_order_is_found_out(tmp_path: Path) -> None:
    def always_a(body: dict[str, Any], attempt: int) -> Action:
        return Say('{"reason": "", "verdict": "A"}')

    with ScriptedServer(always_a) as server:
        spec = spec_at(tmp_path, config(server))
        told = command(
            *(str(spec), "--labelled", str(labelled_at(tmp_path))),
            *("--home", str(tmp_path / "home"), "--require", "qualified"),
        )

    assert isinstance(told.exception, GateNotPassed)
    assert "unqualified on 24 pairs" in str(told.exception)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name either --labelled FILE and a SPEC, or --verdicts FILE"),
        (["--labelled", "x"], "name the SPEC"),
        (["--verdicts", "x", "--require", "promote"], "--require takes qualified"),
        (["--verdicts", "x", "--of", "train"], "--of takes synthesize or evaluate"),
        (["--verdicts", "x", "--dry-run"], "--verdicts asks nobody"),
    ],
)
def test_a_command_that_says_too_little_is_told_what_is_missing(
    words: list[str], message: str
) -> None:
    told = command(*words)
    assert isinstance(told.exception, ConfigError)
    assert message in str(told.exception)


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (
            {"kind": "lm"},
            "evaluate.judge.kind must be one of 'rubric', 'llm', 'reward', 'panel', got 'lm'",
        ),
        ({"kind": "llm"}, "evaluate.judge.endpoint is missing"),
        (
            {"kind": "llm", "endpoint": {"base_url": "http://[", "model": "m"}},
            "evaluate.judge.endpoint.base_url: Invalid IPv6 URL",
        ),
        (
            {"kind": "llm", "endpoint": {"base_url": "http://h/v1", "model": "m", "modle": "m"}},
            "unknown key evaluate.judge.endpoint.modle; did you mean",
        ),
        ({"kind": "llm", "qualification": "none.json"}, "the judge's qualification"),
    ],
)
def test_a_judge_that_is_wrongly_written_is_told_by_its_key(
    judge: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        load_spec(spec_at(tmp_path, judge))

    assert message in str(error.value)


# ---------------------------------------------------------------- trust


def judged_by(report: dict[str, Any] | None, **knobs: Any) -> LlmJudgeConfig:
    endpoint = {"base_url": "http://h/v1", "model": "Qwen/Qwen3-8B"}
    return LlmJudgeConfig.model_validate(
        {"kind": "llm", "endpoint": endpoint, "qualification": report, **knobs}
    )


def test_a_qualification_goes_with_the_judge_that_earned_it(tmp_path: Path) -> None:
    name = judge_id(judged_by(None))
    good = qualify(name, items("111 222 " * 20)).model_dump(mode="json")
    bad = qualify(name, items("112 212 " * 20)).model_dump(mode="json")

    assert check_trust(judged_by(good), ()) == [good["sentence"]]
    assert judge_id(judged_by(good)) == name
    with pytest.raises(ConfigError, match="a knob changed; qualify it again"):
        check_trust(judged_by(good, max_tokens=7), ())
    with pytest.raises(ConfigError, match="is unqualified on 40 pairs"):
        check_trust(judged_by(bad), ())
    assert "was never held against people's labels" in check_trust(judged_by(None), ())[0]
    (tmp_path / "judge.json").write_text(json.dumps(good))
    spec = spec_at(
        tmp_path, judged_by(None).model_dump(mode="json") | {"qualification": "judge.json"}
    )
    loaded = load_spec(spec).evaluate.judge
    assert isinstance(loaded, LlmJudgeConfig)
    assert loaded.qualification is not None
    assert loaded.qualification.qualified


def test_a_judge_of_the_writers_family_is_warned_of() -> None:
    told = check_trust(judged_by(None), ["qwen2.5-0.5b", "llama"])

    assert any("are of one family" in sentence for sentence in told)
    assert not any("family" in sentence for sentence in check_trust(judged_by(None), ["llama"]))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Qwen/Qwen2.5-7B", "qwen"), ("gpt-4o", "gpt"), ("/models/llama-3/", "llama"), ("7b", "")],
)
def test_a_family_is_the_first_word_of_a_models_name(name: str, expected: str) -> None:
    assert family(name) == expected


def test_preference_pairs_of_any_format_are_labelled_pairs(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    told = read_labelled(tmp_path / "pairs.jsonl")

    assert {one.label for one in told} == {"first", "second"}
    assert all((one.first if one.label == "first" else one.second)[:4] == "good" for one in told)


def test_a_file_that_is_not_there_is_the_commands_fault_and_an_odd_row_the_files(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match=r"none\.jsonl cannot be read \(No such file"):
        read_labelled(tmp_path / "none.jsonl")
    (tmp_path / "odd.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": 3}\n')
    with pytest.raises(DataRejected, match="keys seen: chosen, prompt, rejected"):
        read_labelled(tmp_path / "odd.jsonl")
