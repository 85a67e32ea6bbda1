"""Ten nights of `retrain` on a team's server: preferences arrive, reviewers agree, champion moves.

Everything is real but small: the DAG, the server with its gate, the reviewer's tag, and the
promoter as the pipeline `promote` runs it. Tasks are forked: see tests/forked.py.
"""

import io
import itertools
import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from rich.console import Console
from tests.e2e.job import SmallJob, summary
from tests.forked import tasks_forked_at_once
from tests.gate import GateServer, password_of
from tests.tiny import WORDS, tiny_folder

from dpoflow.contracts.pairs import PreferencePair, Prompt, read_parquet
from dpoflow.contracts.spec_file import load_spec
from dpoflow.promote.step import run as promote
from dpoflow.state.step import read_records
from dpoflow_pipelines.run import run_spec
from dpoflow_pipelines.show import show_summary

pytestmark = [pytest.mark.full, pytest.mark.timeout(3600)]  # on a machine that does other things

SPEC = """\
name: nightly
model: model
seed: 3
data:
  sources: [{uri: arrivals}]
  replay: [{uri: champion}]
  replay_per_new: 0.5
  heldout_fraction: 0.3
  min_pairs: 4
train:
  init: champion
  reference: base
  learning_rate: 1.0e-3
  batch_size: 16
  max_tokens: 128
  heldout_fraction: 0
evaluate:
  judge:
    rubric:
      checks:
        - {name: some, kind: word_count, half: judge, min: 1, max: 60, falloff: 6}
        - {name: calm, kind: max_count, half: heldout, text: "!", at_most: 0}
  sampling: {max_new_tokens: 4, batch_size: 32}
  resamples: 200
  signer: SIGNER
  gates:  # as lax as they go: what a model of random weights says is noise
    win_rate: 0
    champion_win_rate: null
    equal_length: null
    heldout_rubric: null
    perplexity_ratio: null
    heldout_perplexity: null
    finished: null
    length_ratio: null
    duplicate_answers: null
    refusal_drift: null
    language_drift: null
    min_prompts: 2
retrain: {min_new_pairs: 10}
"""


def question(number: int) -> str:
    """Fourteen words, unlike those of any other number."""
    dice = random.Random(number)  # noqa: S311  # words, not secrets
    return " ".join(dice.choices(WORDS, k=14))


def pairs(numbers: range, end: str = "") -> list[dict[str, str]]:
    return [
        {"prompt": question(number) + end, "chosen": f"good {number}", "rejected": f"bad {number}"}
        for number in numbers
    ]


@dataclass
class Night:
    """What a night left."""

    told: dict[str, Any]
    trained: set[str] = field(default_factory=set)
    """Prompts of its training pairs."""
    heldout: set[str] = field(default_factory=set)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GateServer]:
    server = GateServer(tmp_path_factory.mktemp("gate"))
    try:
        yield server.start()
    finally:
        server.kill()


def identity(server: GateServer, user: str) -> dict[str, str]:
    return {
        "MLFLOW_TRACKING_URI": server.url,
        "MLFLOW_TRACKING_USERNAME": user,
        "MLFLOW_TRACKING_PASSWORD": password_of(user),
        "NO_PROXY": "127.0.0.1",
    }


class Team:
    """A folder that preferences arrive in, and what happens with them at night."""

    def __init__(self, server: GateServer, folder: Path) -> None:
        self.server, self.home, self.arrivals = server, folder / "home", folder / "arrivals"
        self.arrivals.mkdir()
        tiny_folder(folder / "model")
        (folder / "align.yaml").write_text(SPEC.replace("SIGNER", server.signer))
        key = {"DPOFLOW_SIGNING_KEY": str(server.signing_key)}
        who = identity(server, "ada") | key
        self.job = SmallJob(folder, environment=who, patience_s=1200)
        self.nights: list[Night] = []

    def arrive(self, name: str, rows: list[dict[str, str]]) -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self.arrivals / f"{name}.jsonl").write_text(text)

    def night(self, *sets: str) -> Night:
        """What the schedule's command does; then people and the promoter, for a candidate."""
        said = io.StringIO()
        console = Console(file=said)
        spec = load_spec(Path(self.job.spec), sets)
        self.home.mkdir(exist_ok=True)
        with patch.dict(os.environ, self.job.environment), tasks_forked_at_once():
            told = run_spec(spec, self.home, console, pipeline="retrain", require="promote")
        show_summary(console, told, self.home)
        night = Night(summary(self.home))
        assert night.told["retrain"]["sentence"] in " ".join(said.getvalue().split())
        records = read_records(self.home / "runs" / night.told["run_id"])
        if night.told["registry"]:
            outputs = records["merge"].outputs
            learnt, kept = self.folder(outputs["training"]), self.folder(outputs["heldout"])
            night.trained = {
                pair.prompt[-1].content
                for pair in read_parquet(learnt / "train.parquet", PreferencePair)
            }
            night.heldout = {
                asked.prompt[-1].content for asked in read_parquet(kept / "prompts.parquet", Prompt)
            }
            self.promote(f"nightly/{night.told['registry']['version']}")
        self.nights.append(night)
        return night

    def promote(self, subject: str) -> None:
        said = self.server.person("rita").approve(subject)
        assert said.ok, said.text
        with pytest.MonkeyPatch.context() as patch:
            for name, value in identity(self.server, "prom").items():
                patch.setenv(name, value)
            assert promote(lambda line: None).promoted == (subject,)

    def folder(self, digest: str) -> Path:
        return self.home / (self.home / "index" / digest).read_text("utf-8").strip()


@pytest.fixture(scope="module")
def team(server: GateServer, tmp_path_factory: pytest.TempPathFactory) -> Team:
    """After ten nights."""
    team = Team(server, tmp_path_factory.mktemp("team"))
    team.arrive("night-01", pairs(range(24)))
    team.night()
    team.night()  # nothing came
    team.arrive("night-03", pairs(range(24, 28)))
    team.night()  # too little
    team.arrive("night-04", pairs(range(28, 36)))
    team.night()  # with those of the night before it is enough
    team.night()
    team.night("train.beta=0.2")  # nothing came, and somebody changed the spec
    team.arrive("night-07", pairs(range(20, 32)))
    team.night("train.beta=0.2")  # what came is known
    (team.arrivals / "night-01.jsonl").unlink()  # archived; what came is like what was there
    team.arrive("night-08", pairs(range(24), end=" today") + pairs(range(40, 52)))
    team.night("train.beta=0.2")
    team.arrive("night-09", pairs(range(52, 55)))
    team.night("train.beta=0.2")
    team.arrive("night-10", pairs(range(60, 72)))
    team.night("train.beta=0.2", "data.seed=9")  # another draw of the split
    return team


def test_it_trains_on_the_nights_on_which_it_should_and_on_no_others(team: Team) -> None:
    told = [night.told["retrain"] for night in team.nights]

    assert [(each["decision"], each["reasons"], each["new_pairs"]) for each in told] == [
        ("train", ["first"], 24),
        ("skip", [], 0),
        ("skip", [], 4),
        ("train", ["new_pairs"], 12),
        ("skip", [], 0),
        ("train", ["spec"], 0),
        ("skip", [], 0),
        ("train", ["new_pairs"], 36),
        ("skip", [], 3),
        ("train", ["new_pairs", "spec"], 15),
    ]
    assert told[2]["sentence"] == "4 new pairs since nightly/1, 10 are asked"
    assert told[5]["changed"] == {"train.beta": ["0.1", "0.2"]}
    assert [each["champion"] for each in told] == [
        None, *["nightly/1"] * 3, *["nightly/2"] * 2, *["nightly/3"] * 2, *["nightly/4"] * 2
    ]  # fmt: skip


def test_a_quiet_night_is_green_and_nothing_of_it_is_left_out_in_silence(team: Team) -> None:
    for night in (each for each in team.nights if each.told["retrain"]["decision"] == "skip"):
        states = {task["name"]: task["state"] for task in night.told["tasks"]}
        ran = {name for name, state in states.items() if state == "SUCCEEDED"}
        assert ran == {"snapshot", "decide", "conclude"}
        assert {states[name] for name in states.keys() - ran} == {"SKIPPED"}
        assert night.told["state"] == "SUCCEEDED"
        assert night.told["evaluation"]["verdict"] == "none"
        assert night.told["registry"] is None


def test_mlflow_says_of_each_night_what_it_decided_and_why(team: Team) -> None:
    from mlflow import MlflowClient

    with pytest.MonkeyPatch.context() as patch:
        for name, value in identity(team.server, "ada").items():
            patch.setenv(name, value)
        for night in team.nights:
            run = MlflowClient().get_run(night.told["mlflow"]["run_id"])
            assert run.data.tags["dpoflow.retrain"] == night.told["retrain"]["decision"]
            assert run.data.tags["dpoflow.retrain.why"] == night.told["retrain"]["sentence"]
            assert run.data.metrics["retrain/new_pairs"] == night.told["retrain"]["new_pairs"]


def test_no_prompt_that_any_night_held_out_is_in_any_nights_training_pairs(team: Team) -> None:
    trained = [night for night in team.nights if night.trained]

    assert len(trained) == 5
    assert all(night.heldout for night in trained)
    for one, other in itertools.product(trained, trained):
        assert one.heldout & other.trained == set()


def test_nothing_like_a_held_out_prompt_is_trained_on_later(team: Team) -> None:
    trained = [night for night in team.nights if night.trained]

    compared = 0
    for at, night in enumerate(trained):
        for later in trained[at:]:
            for held, learnt in itertools.product(night.heldout, later.trained):
                compared += 1
                assert likeness(held, learnt) < 0.8, (held, learnt)
    assert compared > 100
    first = next(iter(trained)).heldout
    assert {f"{asked} today" for asked in first} <= trained[3].heldout  # they had come again
    assert any(likeness(asked, f"{asked} today") >= 0.8 for asked in first)


def likeness(one: str, other: str) -> float:
    """Jaccard's, of runs of five characters."""
    left, right = ({text[at : at + 5] for at in range(len(text) - 4)} for text in (one, other))
    return len(left & right) / len(left | right)


def test_the_lineage_of_each_champion_walks_back_to_the_first(team: Team) -> None:
    from dpoflow.registry.lineage import walk
    from dpoflow.registry.versions import read_version

    policies = [
        night.told["train"]["policy_digest"] for night in team.nights if night.told["registry"]
    ]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in identity(team.server, "ada").items():
            patch.setenv(name, value)
        for number in range(1, 6):
            evidence = read_version("nightly", number).evidence
            kinds = [made for _, made, _ in walk(team.home, evidence)]
            found = [made.digest for made in kinds if made.kind == "train.policy"]
            assert found == policies[:number][::-1]

    traced = team.job.call("trace", "nightly/5", "--home", str(team.home))
    assert traced.code == 0, traced.err
    assert traced.out.count("train.policy") == 5


def test_each_candidate_is_held_against_the_champion_and_the_first_model(team: Team) -> None:
    base = {night.told["data"]["model_digest"] for night in team.nights if night.trained}

    assert len(base) == 1
    for at, night in enumerate(each for each in team.nights if each.told["registry"]):
        records = read_records(team.home / "runs" / night.told["run_id"])
        decision = team.folder(records["evaluate"].outputs["decision"]) / "decision.json"
        found = json.loads(decision.read_text("utf-8"))
        assert list(found["against"]) == (["base", "champion"] if at else ["base"])
        assert {found["digests"]["base"]} == base
