"""The main job with a reward model as judge, in both places that take one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from tests.e2e.job import SPEC, SmallJob, summary
from tests.tiny import tiny_folder, tiny_reward_folder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dpoflow.contracts import manifest
from dpoflow.contracts.pairs import PreferencePair, read_parquet


@pytest.fixture
def job(tmp_path: Path) -> SmallJob:
    tiny_folder(tmp_path / "model")
    tiny_reward_folder(tmp_path / "reward", scale=20)
    made = SmallJob.write(tmp_path)
    spec = YAML(typ="safe").load(SPEC)
    for section in ("synthesize", "evaluate"):
        spec[section]["judge"] = {"kind": "reward", "model": "reward"}
    # A random model seldom ends its turn, and an answer that was cut never wins.
    spec["synthesize"]["sampling"] = {"temperature": 5.0, "max_new_tokens": 180}
    Path(made.spec).write_text(json.dumps(spec))  # JSON is YAML
    return made


def result_of(home: Path, task: str) -> dict[str, Any]:
    record = home / "runs" / summary(home)["run_id"] / "tasks" / f"{task}.json"
    found: dict[str, Any] = json.loads(record.read_text())
    return found


@pytest.mark.full
def test_chosen_answers_have_the_greater_reward_and_the_decision_names_the_model(
    job: SmallJob, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    ended = job.run(home)
    assert ended.code == 0, ended.out + ended.err

    pairs = Path(result_of(home, "synthesize")["state_dir"], "outputs", "pairs", "pairs.parquet")
    judged = [
        pair
        for pair in read_parquet(pairs, PreferencePair)
        if pair.provenance is not None and pair.provenance.judge.startswith("reward:reward:")
    ]
    assert judged
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "reward")

    def reward(pair: PreferencePair, answer: str) -> float:
        turns = [turn.model_dump() for turn in pair.prompt]
        turns.append({"role": "assistant", "content": answer})
        batch = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
        with torch.inference_mode():
            return float(model(input_ids=batch["input_ids"]).logits[0, 0])

    for pair in judged:
        assert reward(pair, pair.chosen.content) > reward(pair, pair.rejected.content)
    decision = Path(result_of(home, "evaluate")["state_dir"], "outputs/decision/decision.json")
    pinned = result_of(home, "snapshot")["result"]
    assert json.loads(decision.read_text())["digests"]["judges"] == pinned["judges_digest"]
    assert manifest.verify(Path(pinned["judges_uri"])).digest == pinned["judges_digest"]
    assert "was never held against people's labels" in ended.out + ended.err


@pytest.mark.full
def test_a_reward_model_is_qualified_like_any_judge(job: SmallJob, tmp_path: Path) -> None:
    labelled = tmp_path / "labelled.jsonl"
    rows = (
        {"prompt": f"q{at}", "first": f"boats {at}", "second": f"rivers {at}", "label": 1 + at % 2}
        for at in range(12)
    )
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows))

    asked = ("judge", "qualify", job.spec, "--labelled", str(labelled), "--json")
    ended = job.call(*asked, "--of", "synthesize", "--home", str(tmp_path / "home"))

    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert report["n"] == 12
    assert report["positional_agreement"] == 1.0, "answers are scored one by one"
    assert report["accuracy_forward"] == report["accuracy_swapped"] == report["both_correct"]


def test_a_reward_model_that_is_not_there_is_told_before_there_is_a_run(
    job: SmallJob, tmp_path: Path
) -> None:
    ended = job.run(tmp_path / "home", "evaluate.judge.model=elsewhere")

    assert ended.code == 2
    assert "a judge's model" in ended.err
    assert "elsewhere does not exist" in ended.err
    assert not (tmp_path / "home" / "runs").exists()
