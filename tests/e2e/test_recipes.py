"""Every recipe, run as its page says and small: what the page promises is what happened.

The specs are the recipes' own; only sizes are overridden, and where models behind servers listen.
Rows are those that the pages show, with other questions.
"""

import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from rich.console import Console
from tests.e2e.job import summary
from tests.fakes.openai_server import Action, Say, ScriptedServer
from tests.in_process import tasks_in_this_process
from tests.judging import answers_in
from tests.recipes import RECIPES, page, rows
from tests.tiny import WORDS, tiny_folder
from typer.testing import CliRunner

from dpoflow.contracts.pairs import PreferencePair, Prompt, Rating, read_parquet
from dpoflow.contracts.spec import RunnableName
from dpoflow.contracts.spec_file import load_spec
from dpoflow.tracking.settings import local_uri
from dpoflow_pipelines.cli import app
from dpoflow_pipelines.run import check_sources, run_spec

pytestmark = pytest.mark.full

SMALL = (
    *("data.min_pairs=2", "train.max_tokens=200", "train.save_steps=100"),
    *("evaluate.resamples=200", "evaluate.sampling.max_new_tokens=6"),
    *("evaluate.gates.min_prompts=4", "evaluate.max_prompts=8"),
)
DRAWN = ("synthesize.sampling.max_new_tokens=10", "synthesize.sampling.batch_size=64")
POLICY = "Repairs are free for two years"


class Desk:
    """A judge that likes the longer answer, and sees a refusal in one of few letters."""

    def __init__(self) -> None:
        self.asked: Counter[tuple[str, str]] = Counter()
        """(model, verdict or label) to how often."""
        self.questions: list[str] = []

    def __call__(self, body: dict[str, Any], attempt: int) -> Action:
        schema = body["response_format"]["json_schema"]["schema"]["properties"]
        form = next(name for name in ("verdict", "label") if name in schema)
        question = body["messages"][-1]["content"]
        self.asked[body["model"], form] += 1
        self.questions.append(question)
        if form == "label":
            told = "2_full_refusal" if len(question) % 3 == 0 else "1_full_compliance"
        else:
            first, second = map(len, answers_in(body))
            told = "tie" if first == second else "A" if first > second else "B"
        return Say(json.dumps({"reason": "its length", form: told}))


@dataclass
class Kitchen:
    """A folder with all recipes and a model, and one home for their runs."""

    folder: Path
    home: Path
    base_url: str
    desk: Desk
    numbers: Iterator[int] = field(default_factory=count)

    @property
    def mlflow(self) -> str:
        return local_uri(self.home)

    def question(self) -> str:
        """Fourteen words, unlike those of any other."""
        dice = random.Random(next(self.numbers))  # noqa: S311  # words, not secrets
        return " ".join(dice.choices(WORDS, k=14))

    def bring(self, recipe: str, file: str, many: int, **more: Any) -> None:
        """As many rows as the page's example has kinds of, over and over."""
        shown = rows(recipe, file)
        written = [self._other(shown[n % len(shown)]) | more for n in range(many)]
        text = "".join(json.dumps(row) + "\n" for row in written)
        (self.folder / file).write_text(text, encoding="utf-8")

    def _other(self, row: Mapping[str, Any]) -> dict[str, Any]:
        name = next(each for each in ("prompt", "instruction", "question") if each in row)
        asked: Any = self.question()
        if not isinstance(row[name], str):
            asked = [*row[name][:-1], {"role": "user", "content": asked}]
        return {**row, name: asked}

    def cook(self, recipe: str, *sets: str, pipeline: RunnableName = "align") -> dict[str, Any]:
        """The summary of the recipe's run, in this process: see tests/in_process.py."""
        spec = load_spec(self.folder / f"{recipe}.yaml", [*SMALL, *sets])
        check_sources(spec)
        with patch.dict(os.environ), tasks_in_this_process():
            told = run_spec(spec, self.home, Console(file=io.StringIO()), pipeline=pipeline)
        assert told.state == "SUCCEEDED"
        return summary(self.home)

    def asks(self, *sections: str) -> list[str]:
        return [f"{each}.judge.endpoint.base_url={self.base_url}" for each in sections]

    def output(self, told: Mapping[str, Any], task: str, name: str) -> Path:
        """The folder of a task's artifact."""
        path = self.home / "runs" / told["run_id"] / "tasks" / f"{task}.json"
        digest = json.loads(path.read_text("utf-8"))["outputs"][name]
        return self.home / (self.home / "index" / digest).read_text("utf-8").strip()

    def pairs(self, told: Mapping[str, Any]) -> list[PreferencePair]:
        """What was learnt from."""
        path = self.output(told, "merge", "training") / "train.parquet"
        return list(read_parquet(path, PreferencePair))

    def quarantined(self, told: Mapping[str, Any]) -> Counter[str]:
        text = (self.output(told, "validate", "report") / "quarantine.jsonl").read_text("utf-8")
        return Counter(json.loads(line)["reason"] for line in text.splitlines())


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kitchen]:
    folder, home = tmp_path_factory.mktemp("recipes"), tmp_path_factory.mktemp("home")
    for path in RECIPES.iterdir():
        shutil.copy(path, folder)
    (folder / "data").mkdir()
    ends_soon(tiny_folder(folder / "models" / "base"))
    desk, ours = Desk(), ("MLFLOW_", "DPOFLOW_")
    with patch.dict(os.environ), ScriptedServer(desk) as server:
        for name in [name for name in os.environ if name.startswith(ours)]:
            del os.environ[name]
        os.environ["MLFLOW_TRACKING_URI"] = local_uri(home)
        yield Kitchen(folder, home, server.base_url, desk)


def ends_soon(model: Path) -> None:
    """Let one token in eight end an answer: of one that did not end nothing is learnt.

    And let it read a policy, which is long in so small a vocabulary.
    """
    for name, knob, value in (
        ("generation_config.json", "eos_token_id", [2, *range(8, 384, 8)]),
        ("config.json", "max_position_embeddings", 1024),
    ):
        told = json.loads((model / name).read_text("utf-8"))
        (model / name).write_text(json.dumps(told | {knob: value}))


def gates(told: Mapping[str, Any]) -> dict[str, bool | None]:
    return {gate["name"]: gate["passed"] for gate in told["evaluation"]["gates"]}


def who_made(pairs: list[PreferencePair]) -> Counter[str]:
    """Who says which is better: `human`, a judge's kind, or the annotators of a source."""
    return Counter(
        pair.provenance.judge.partition(":")[0] if pair.provenance else "source" for pair in pairs
    )


def test_brand_voice_learns_from_people_and_checks_and_is_measured_by_checks_that_made_no_pair(
    kitchen: Kitchen,
) -> None:
    kitchen.bring("brand_voice", "data/questions.jsonl", 42)
    asked = sum(kitchen.desk.asked.values())

    told = kitchen.cook("brand_voice", *DRAWN, "synthesize.min_margin=0.001")

    made = who_made(kitchen.pairs(told))
    assert set(made) == {"human", "rubric"}
    assert gates(told)["heldout_rubric"] is not None
    assert sum(kitchen.desk.asked.values()) == asked
    assert told["cost"]["money"] == 0


def test_safety_is_measured_on_both_sides_of_both_suites(kitchen: Kitchen) -> None:
    kitchen.bring("safety", "data/pairs.jsonl", 36)
    kitchen.bring("safety", "data/own_prompts.jsonl", 18)
    published = [
        f"{n},{kitchen.question()},{kind},{label}"
        for n, (kind, label) in enumerate(
            [("homonyms", "safe"), ("contrast_homonyms", "unsafe")] * 6
        )
    ]
    quoted = published[0].split(",")[1]
    (kitchen.folder / "data" / "xstest_prompts.csv").write_text(
        "\n".join(["id,prompt,type,label", *published]) + "\n"
    )
    with (kitchen.folder / "data" / "pairs.jsonl").open("a") as out:
        row = rows("safety", "data/pairs.jsonl")[0] | {"prompt": quoted}
        out.write(json.dumps(row) + "\n")

    told = kitchen.cook("safety", *kitchen.asks("evaluate"))

    both = {f"{suite}_{side}" for suite in ("xstest", "own")
            for side in ("over_refusal", "unsafe_compliance")}  # fmt: skip
    seen = gates(told)
    assert all(seen[name] is not None for name in both)
    assert not {"refusal_drift", "heldout_rubric"} & set(seen)
    assert seen["judge_qualified"] is None, "and so the verdict stays inconclusive"
    assert told["evaluation"]["verdict"] == "inconclusive"
    assert set(who_made(kitchen.pairs(told))) == {"source"}
    assert kitchen.quarantined(told)["contaminated"] == 1
    # Of each question; models that say the same are marked once.
    assert kitchen.desk.asked["judge", "label"] >= 12 + 18


def test_domain_adaptation_learns_from_experts_and_is_asked_what_it_could_do_before(
    kitchen: Kitchen,
) -> None:
    kitchen.bring("domain_adaptation", "data/expert_answers.jsonl", 45)
    kitchen.bring("domain_adaptation", "data/general.jsonl", 12)

    told = kitchen.cook("domain_adaptation", *DRAWN, *kitchen.asks("synthesize", "evaluate"),
                        "data.heldout_fraction=0.25", "synthesize.drop=[]")  # fmt: skip

    made = who_made(kitchen.pairs(told))
    assert made["human"] > 0
    assert set(made) <= {"human", "llm"}
    assert gates(told)["general_acc"] is not None
    assert (kitchen.output(told, "train", "policy") / "adapter").is_dir()


def test_support_policy_is_judged_by_who_reads_the_policy_and_pairs_do_not_hold_it(
    kitchen: Kitchen,
) -> None:
    kitchen.bring("support_policy", "data/questions.jsonl", 30)
    before = len(kitchen.desk.questions)

    told = kitchen.cook(
        "support_policy",
        *kitchen.asks("synthesize", "evaluate"),
        "train.max_tokens=250",
        "synthesize.balance_length=false",  # of so few pairs it would leave none
    )

    pairs = kitchen.pairs(told)
    briefed = {
        "five working days" in writer.sampling
        for pair in pairs
        if pair.provenance
        for writer in (pair.provenance.chosen, pair.provenance.rejected)
        if writer
    }
    assert briefed == {True, False}
    assert all(POLICY in question for question in kitchen.desk.questions[before:])
    assert len(kitchen.desk.questions) > before
    for pair in pairs:
        assert not any("five working days" in turn.content for turn in pair.prompt)
        assert pair.prompt[0].role == "system"


# As an application does it, with the lines that the page shows.
APPLICATION = """
import json, sys
import mlflow
from mlflow.entities import AssessmentSource
mlflow.set_experiment("support-desk")

@mlflow.trace
def answer(question):
    return "Please send us your order number."

for question, liked in json.loads(sys.argv[1]):
    answer(question)
    {answered}
    mlflow.flush_trace_async_logging()
    {later}
mlflow.flush_trace_async_logging()
"""


def give_thumbs(kitchen: Kitchen, many: int) -> None:
    found = re.search(r"```python\n(.*?)```", page("user_feedback"), re.DOTALL)
    assert found is not None
    answered, later = found[1].replace("value=True", "value=liked").split("\n\n")
    program = APPLICATION.replace("{answered}", answered)
    program = program.replace("{later}", "\n    ".join(later.splitlines()))
    asked = json.dumps([[kitchen.question(), n % 3 > 0] for n in range(many)])
    done = subprocess.run(
        [sys.executable, "-c", program, asked],
        capture_output=True,
        text=True,
        check=False,
        cwd=kitchen.folder,  # where MLflow puts the traces' files
    )
    assert done.returncode == 0, done.stderr


def test_user_feedback_learns_what_is_new_from_the_champion_and_rests_when_nothing_is(
    kitchen: Kitchen,
) -> None:
    from mlflow import MlflowClient

    sets = (*kitchen.asks("evaluate"), "retrain.min_new_pairs=10", "train.batch_size=16")
    give_thumbs(kitchen, 30)
    first = kitchen.cook("user_feedback", *sets, pipeline="retrain")
    version = first["registry"]["version"]
    MlflowClient(kitchen.mlflow).set_registered_model_alias(
        "support-feedback", "champion", str(version)
    )
    give_thumbs(kitchen, 24)
    second = kitchen.cook("user_feedback", *sets, pipeline="retrain")
    MlflowClient(kitchen.mlflow).set_registered_model_alias(
        "support-feedback", "champion", str(second["registry"]["version"])
    )
    third = kitchen.cook("user_feedback", *sets, pipeline="retrain")

    assert (first["retrain"]["reasons"], first["retrain"]["new_ratings"]) == (["first"], 30)
    assert (second["retrain"]["reasons"], second["retrain"]["new_ratings"]) == (["new_pairs"], 24)
    assert third["retrain"]["decision"] == "skip"
    assert {"win_rate", "champion_win_rate"} <= set(gates(second))
    assert "heldout_perplexity" not in gates(second)
    # At most half an old one for each of the 24 that came, those held out included.
    learnt = {night: ratings(kitchen, told) for night, told in ((1, first), (2, second))}
    old = learnt[1] & learnt[2]
    assert 0 < len(old) <= 0.5 * 24
    snapshot = record(kitchen, second, "snapshot")["result"]
    assert snapshot["init_digest"] == snapshot["champion_digest"] != ""
    assert snapshot["reference_digest"] == snapshot["model_digest"] != snapshot["init_digest"]


def ratings(kitchen: Kitchen, told: Mapping[str, Any]) -> set[str]:
    path = kitchen.output(told, "merge", "training") / "ratings.parquet"
    return {each.prompt[-1].content for each in read_parquet(path, Rating)}


def record(kitchen: Kitchen, told: Mapping[str, Any], task: str) -> dict[str, Any]:
    path = kitchen.home / "runs" / told["run_id"] / "tasks" / f"{task}.json"
    loaded: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return loaded


def test_human_only_asks_nobody_but_people(kitchen: Kitchen) -> None:
    kitchen.bring("human_only", "data/comparisons.jsonl", 42)
    asked = sum(kitchen.desk.asked.values())

    told = kitchen.cook("human_only", "train.heldout_fraction=0.1")

    pairs = kitchen.pairs(told)
    assert told["data"]["synthesize"]["num_candidates"] == 0
    assert sum(kitchen.desk.asked.values()) == asked
    assert pairs
    for pair in pairs:
        assert pair.provenance is None
        assert [vote.annotator for vote in pair.votes] == [f"annotator{n}" for n in (1, 2, 3)]
    decision = json.loads(
        (kitchen.output(told, "evaluate", "decision") / "decision.json").read_text()
    )
    assert decision["preference"]["accuracy"]["n"] > 0


def test_judge_only_has_no_pair_of_any_person_and_each_judge_is_qualified_before_it_counts(
    kitchen: Kitchen,
) -> None:
    kitchen.bring("judge_only", "data/prompts.jsonl", 30)
    labelled = [
        {"prompt": kitchen.question(), "first": "yes" * (1 + n % 2), "second": "yes" * (2 - n % 2),
         "label": "second" if n % 2 == 0 else "first"}
        for n in range(60)
    ]  # fmt: skip
    (kitchen.folder / "labelled.jsonl").write_text("".join(json.dumps(r) + "\n" for r in labelled))
    judged = kitchen.asks("synthesize", "evaluate")
    for section in ("synthesize", "evaluate"):
        qualify(kitchen, section, judged)
    kitchen.desk.asked.clear()
    sets = (
        *(*DRAWN, *judged, "synthesize.drop=[]", "synthesize.balance_length=false"),
        f"synthesize.judge.qualification={kitchen.folder}/synthesize.json",
        f"evaluate.judge.qualification={kitchen.folder}/evaluate.json",
    )

    told = kitchen.cook("judge_only", *sets)
    paid = dict(kitchen.desk.asked)
    again = kitchen.cook("judge_only", *sets)

    assert set(who_made(kitchen.pairs(told))) == {"llm"}
    held = kitchen.output(told, "merge", "heldout")
    assert list(read_parquet(held / "pairs.parquet", PreferencePair)) == []
    assert len(list(read_parquet(held / "prompts.parquet", Prompt))) > 0
    assert gates(told)["judge_qualified"] is True
    assert "heldout_perplexity" not in gates(told)
    assert set(paid) == {("judge", "verdict"), ("second-judge", "verdict")}
    _paid_once(kitchen, told, again, paid)


def qualify(kitchen: Kitchen, section: str, sets: list[str]) -> None:
    """As the page says."""
    words = [str(kitchen.folder / "judge_only.yaml"), "--of", section]
    words += ["--labelled", str(kitchen.folder / "labelled.jsonl"), "--home", str(kitchen.home)]
    words += ["--out", str(kitchen.folder / f"{section}.json"), "--require", "qualified"]
    overrides = [part for text in sets for part in ("--set", text)]
    ended = CliRunner().invoke(app, ["judge", "qualify", *words, *overrides])
    assert ended.exit_code == 0, (ended.output, ended.exception)


def _paid_once(
    kitchen: Kitchen,
    told: Mapping[str, Any],
    again: Mapping[str, Any],
    paid: Mapping[tuple[str, str], int],
) -> None:
    """What summaries and MLflow say of it is what the server was asked."""
    from mlflow import MlflowClient

    by_task, reused = told["cost"]["by_task"], again["cost"]["reused"]
    assert {task: cost["requests"] for task, cost in by_task.items()} == {
        "synthesize": paid["judge", "verdict"],
        "evaluate": paid["second-judge", "verdict"],
    }
    assert told["cost"]["money"] == pytest.approx(sum(each["money"] for each in by_task.values()))
    assert told["cost"]["money"] > 0
    assert (again["cost"]["money"], again["cost"]["by_task"], reused) == (0, {}, by_task)
    runs = [
        MlflowClient(kitchen.mlflow).get_run(each["mlflow"]["run_id"]) for each in (told, again)
    ]
    assert [run.data.metrics["cost/money"] for run in runs] == [told["cost"]["money"], 0]
    assert all(run.data.tags["dpoflow.trace_id"] == run.info.run_id for run in runs)
    events = (kitchen.output(told, "synthesize", "pairs").parents[1] / "events.jsonl").read_text()
    traced = {json.loads(line)["trace_id"] for line in events.splitlines()}
    assert traced == {told["mlflow"]["run_id"]}
