"""The main job with a writer and a judge behind a server: real sockets, a fake model."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tests.e2e.job import SPEC, SmallJob, summary
from tests.fakes.openai_server import Action, Say, ScriptedServer
from tests.judging import answers_in
from tests.tiny import tiny_folder

from dpoflow.contracts.pairs import PreferencePair, read_parquet

KEY = "sk-of-the-test"


def quality(text: str) -> int:
    found = re.search(r"quality (\d)", text)
    return int(found[1]) if found else 0


def script(body: dict[str, Any], attempt: int) -> Action:
    """A writer whose seed sets its quality, and a judge that sees quality."""
    if "You compare two answers" not in body["messages"][-1]["content"]:
        return Say(f"We will look into it, with quality {1 + body['seed'] % 7}.")
    first, second = map(quality, answers_in(body))
    word = "tie" if first == second else "A" if first > second else "B"
    return Say(json.dumps({"reason": "its quality", "verdict": word}))


def ask(job: SmallJob, server: ScriptedServer, **more: Any) -> None:
    """Let the spec of the job ask this server."""
    endpoint = {"base_url": server.base_url, "api_key_env": "JUDGE_KEY"}
    priced = {"price_input": 1, "price_output": 2}
    judge = {
        "kind": "llm",
        "endpoint": endpoint | priced | {"model": "the-judge"},
        "traced": 1.0,
    }
    writers = [
        {"name": "policy", "candidates": 1, "sampling": {"temperature": 1.0, "max_new_tokens": 16}},
        {
            "name": "strong",
            "candidates": 2,
            "system": "Answer as a clerk.",
            "endpoint": endpoint | {"model": "a-writer"},
        },
    ]
    spec = YAML(typ="safe").load(SPEC)
    spec["synthesize"] = {"generators": writers, "judge": judge, "min_margin": 0.1} | more
    Path(job.spec).write_text(json.dumps(spec))  # JSON is YAML


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallJob:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    tiny_folder(tmp_path / "model")
    return SmallJob.write(tmp_path)


@pytest.mark.full
def test_pairs_name_their_writers_judge_and_both_orders_and_nothing_is_paid_twice(
    job: SmallJob, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    with ScriptedServer(script, key=KEY) as server:
        ask(job, server)
        foretold = job.call("run", job.spec, "--dry-run").out
        ended = job.run(home)
        assert ended.code == 0, ended.out + ended.err
        paid = sum(server.paid.values())
        assert paid == len(server.paid)
        cost = summary(home)["data"]["synthesize"]["cost"]
        ask(job, server, max_pairs=2, strategy="all_above_margin")
        anew = job.run(home)
        assert anew.code == 0, anew.err
        assert sum(server.paid.values()) == paid, "another strategy asks nothing again"
        system = {h["authorization"] for h in server.headers}
    told = summary(home)["data"]["synthesize"]

    assert f"about {cost['a-writer']['requests']} requests" in foretold
    assert system == {f"Bearer {KEY}"}
    assert told["num_prompts"] >= told["num_pairs"] / 2 > 0
    assert told["outcomes"].keys() <= {"preferred", "tie"}
    assert sum(each["requests"] for each in cost.values()) == paid
    assert cost["the-judge"]["money"] > cost["a-writer"]["money"] == 0
    assert told["cost"] == {}, "what was there cost nothing"
    _audit(home, told)
    _told_to_mlflow(home)
    for path in home.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
    assert KEY not in ended.out + ended.err


def _audit(home: Path, told: dict[str, Any]) -> None:
    """The last run's pairs and the comparisons behind them."""
    (record,) = home.glob(f"runs/{summary(home)['run_id']}/tasks/synthesize.json")
    folder = Path(json.loads(record.read_text())["state_dir"]) / "outputs" / "pairs"
    judged = [
        pair
        for pair in read_parquet(folder / "pairs.parquet", PreferencePair)
        if pair.provenance is not None and pair.provenance.chosen is not None
    ]
    assert judged
    for pair in judged:
        assert pair.provenance is not None
        assert pair.provenance.chosen is not None
        assert pair.provenance.chosen.generator == "a-writer"
        assert "Answer as a clerk." in pair.provenance.chosen.sampling
        assert not any("clerk" in turn.content for turn in pair.prompt)
        assert pair.provenance.judge.startswith("llm:the-judge:pairwise@")
        assert len(pair.provenance.requests) == 2
        assert {vote.order for vote in pair.votes} == {"chosen_first", "rejected_first"}
        assert quality(pair.chosen.content) > quality(pair.rejected.content)
    lines = (folder / "comparisons.jsonl").read_text().splitlines()
    assert len(lines) == sum(told["outcomes"].values())


def _told_to_mlflow(home: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    traces = client.search_traces(locations=[experiment.experiment_id], max_results=500)
    models = {trace.info.tags["mlflow.traceName"].split(":")[0] for trace in traces}
    assert models == {"the-judge", "a-writer"}


@pytest.mark.full
def test_a_budget_stops_the_asking_and_the_run_goes_on_with_what_it_has(
    job: SmallJob, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    with ScriptedServer(script, key=KEY) as server:
        ask(job, server, budget={"requests": 20})
        ended = job.run(home)
        assert ended.code == 0, ended.out + ended.err
        assert sum(server.paid.values()) == 20
    told = summary(home)["data"]["synthesize"]

    assert told["stopped_by"] == "the budget of 20 requests has 0 left"
    assert told["not_pairs"]["over_budget"] > 0
    assert told["num_prompts"] == told["num_pairs"] + sum(told["not_pairs"].values())
    assert told["missing"].keys() <= {"over_budget"}


def test_what_is_wrong_with_a_judge_is_told_before_there_is_a_run(
    job: SmallJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    with ScriptedServer(script, key=KEY) as server:
        ask(job, server)
        priced = job.call("run", job.spec, "--dry-run", "--json")
        monkeypatch.delenv("JUDGE_KEY")
        ended = job.run(home)

    assert priced.code == 0, priced.err
    assert re.search(r"the-judge: with .* about \d+ requests, [\d,]+ tokens, [\d.]+", priced.err)
    assert json.loads(priced.out)["synthesize"]["generators"][1]["name"] == "strong"
    assert ended.code == 2
    assert "JUDGE_KEY is not set" in ended.err
    assert not (home / "runs").exists()
    assert not server.seen
