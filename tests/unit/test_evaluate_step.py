"""The whole step on models that say what a test wants: what must never be promoted, and is not."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation import SHORT, WORDY, Evaluation, missed, says
from tests.fakes.openai_server import Refuse, Say, ScriptedServer
from tests.judging import answers_in
from tests.judging import config as asked_of
from tests.tiny import tiny_folder

from dpoflow.contracts import manifest
from dpoflow.contracts.errors import ConfigError, DataRejected


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    return Evaluation(tmp_path)


def test_a_model_that_says_what_is_wanted_comes_out_as_the_test_wrote_it(
    evaluation: Evaluation,
) -> None:
    says(evaluation.folder / "base", SHORT)
    says(evaluation.folder / "candidate", WORDY)

    evaluation.run()

    told = evaluation.comparisons()
    assert {(each.theirs, each.candidate) for each in told} == {(SHORT, WORDY)}
    assert {each.outcome for each in told} == {1.0}


def test_the_same_model_again_is_inconclusive(evaluation: Evaluation) -> None:
    for name in ("base", "candidate"):
        tiny_folder(evaluation.folder / name)

    result = evaluation.run(gates={"finished": None})

    assert result.verdict == "inconclusive"
    assert result.ci == (0.5, 0.5)
    assert missed(evaluation.decision()) == {"win_rate"}


def test_one_answer_to_everything_is_never_promoted_however_much_the_judge_likes_it(
    evaluation: Evaluation,
) -> None:
    says(evaluation.folder / "base", SHORT)
    says(evaluation.folder / "candidate", WORDY)

    result = evaluation.run(
        gates={"length_ratio": None, "perplexity_ratio": None, "heldout_perplexity": None,
               "language_drift": None, "heldout_rubric": None}
    )  # fmt: skip

    assert result.win_rate is not None
    assert result.win_rate > 0.5
    assert result.verdict == "reject"
    assert missed(evaluation.decision()) == {"duplicate_answers"}


def test_a_champion_with_padding_is_never_promoted(evaluation: Evaluation) -> None:
    says(evaluation.folder / "base", SHORT)
    says(evaluation.folder / "champion", SHORT)
    says(evaluation.folder / "candidate", WORDY)

    result = evaluation.run(
        gates={"duplicate_answers": None, "perplexity_ratio": None, "heldout_perplexity": None}
    )

    decision = evaluation.decision()
    assert result.verdict == "reject"
    assert decision.against["champion"].win_rate is not None
    assert decision.against["champion"].win_rate.value == 1.0
    assert {"length_ratio", "length_ratio_champion"} <= missed(decision)


def test_a_judge_that_always_says_a_decides_nothing(evaluation: Evaluation) -> None:
    says(evaluation.folder / "base", SHORT)
    says(evaluation.folder / "candidate", WORDY)
    with ScriptedServer(lambda *_: Say(json.dumps({"reason": "A", "verdict": "A"}))) as server:
        result = evaluation.run(
            judge=asked_of(server).model_dump(mode="json"),
            gates={"length_ratio": None, "duplicate_answers": None, "perplexity_ratio": None,
                   "heldout_perplexity": None, "heldout_rubric": None},
        )  # fmt: skip

    assert result.verdict == "inconclusive"
    assert result.win_rate == 0.5
    assert missed(evaluation.decision()) == {"win_rate", "judge_qualified"}


def test_labels_that_are_shuffled_show_nothing(evaluation: Evaluation) -> None:
    for seed, name in enumerate(("base", "candidate")):
        tiny_folder(evaluation.folder / name, seed=seed)

    def coin(body: dict[str, Any], _attempt: int) -> Say:
        # Sure of itself in both orders, and without an idea: what the pair hashes to wins.
        first, second = answers_in(body)
        digest = hashlib.sha256("|".join(sorted((first, second))).encode()).digest()
        likes_first = (digest[0] % 2 == 0) is (first < second)
        return Say(json.dumps({"reason": "r", "verdict": "A" if likes_first else "B"}))

    with ScriptedServer(coin) as server:
        result = evaluation.run(
            judge=asked_of(server).model_dump(mode="json"),
            gates={"finished": None, "perplexity_ratio": None, "length_ratio": None,
                   "heldout_perplexity": None, "language_drift": None, "duplicate_answers": None},
        )  # fmt: skip

    told = [each.outcome for each in evaluation.comparisons()]
    assert {0.0, 1.0} <= set(told)
    assert result.verdict == "inconclusive"
    assert "win_rate" in missed(evaluation.decision())


def test_a_judge_that_nobody_held_against_people_never_promotes(evaluation: Evaluation) -> None:
    says(evaluation.folder / "base", SHORT)
    says(evaluation.folder / "candidate", WORDY)

    def prefers_wordy(body: dict[str, Any], _attempt: int) -> Say:
        text = body["messages"][-1]["content"]
        first = text.find(WORDY) < text.rfind(SHORT + "\n")
        return Say(json.dumps({"reason": "r", "verdict": "A" if first else "B"}))

    with ScriptedServer(prefers_wordy) as server:
        result = evaluation.run(
            judge=asked_of(server).model_dump(mode="json"),
            gates={"length_ratio": None, "duplicate_answers": None, "perplexity_ratio": None,
                   "heldout_perplexity": None, "heldout_rubric": None},
        )  # fmt: skip

    assert result.win_rate == 1.0
    assert result.verdict == "inconclusive"
    assert missed(evaluation.decision()) == {"judge_qualified"}


def test_a_model_that_says_nothing_is_rejected_and_not_a_crash(evaluation: Evaluation) -> None:
    tiny_folder(evaluation.folder / "base")
    says(evaluation.folder / "candidate", "")

    result = evaluation.run()

    assert result.verdict != "promote"
    assert {"finished", "perplexity_ratio"} <= missed(evaluation.decision())
    assert evaluation.decision().measures["empty"] == 1.0


def test_a_weight_that_is_no_number_ends_it_with_a_clear_error(evaluation: Evaluation) -> None:
    from safetensors.torch import load_file, save_file

    says(evaluation.folder / "base", SHORT)
    folder = says(evaluation.folder / "candidate", WORDY)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})

    with pytest.raises(DataRejected, match="logits that are not finite"):
        evaluation.run()


def test_a_policy_that_was_trained_on_other_pairs_is_inconclusive(evaluation: Evaluation) -> None:
    for name in ("base", "candidate"):
        tiny_folder(evaluation.folder / name)
    evaluation.model = lambda name: evaluation.seal(name, {"pairs": "0" * 64})  # type: ignore[method-assign]

    evaluation.run()

    assert "data_current" in missed(evaluation.decision())


def test_a_held_out_prompt_that_was_trained_on_is_found(evaluation: Evaluation) -> None:
    for name in ("base", "candidate"):
        tiny_folder(evaluation.folder / name)
    evaluation.learn("ask 3")

    evaluation.run()

    gate = next(each for each in evaluation.decision().gates if each.name == "no_contamination")
    assert (gate.seen, gate.passed) == ("1 of 24 prompts were", False)


def test_a_known_champion_is_asked_nothing_and_a_new_one_each_prompt_once(
    evaluation: Evaluation,
) -> None:
    tiny_folder(evaluation.folder / "base")
    tiny_folder(evaluation.folder / "candidate", seed=1)
    evaluation.run("first")
    # The registry keeps less beside the weights than training leaves there.
    (evaluation.folder / "candidate" / "training.json").write_text("{}")
    (evaluation.folder / "candidate").rename(evaluation.folder / "champion")
    tiny_folder(evaluation.folder / "candidate", seed=2)

    evaluation.run("second")

    assert evaluation.generated("first") == {"candidate": 24, "champion": 0, "base": 24}
    assert evaluation.generated("second") == {"candidate": 24, "champion": 0, "base": 0}
    decision = evaluation.decision("second")
    assert list(decision.against) == ["base", "champion"]
    assert "win_rate/champion" in decision.tests or decision.against["champion"].win_rate


def test_what_changed_since_the_champion_is_told(evaluation: Evaluation) -> None:
    for name in ("base", "candidate", "champion"):
        tiny_folder(evaluation.folder / name)
    sealed = evaluation.seal
    evaluation.model = lambda name: sealed(  # type: ignore[method-assign]
        name,
        {"pairs": manifest.read(evaluation.pairs).digest},
        {"uri": "3", "trained": {"config": {"beta": 0.1, "lora": {"rank": 8}},
                                 "parents": {"pairs": "a" * 64}}}
        if name == "champion" else {"beta": 0.3, "lora": {"rank": 8}},
    )  # fmt: skip

    evaluation.run()

    digest = manifest.read(evaluation.pairs).digest
    assert evaluation.decision().changed == {
        "beta": ("0.1", "0.3"),
        "made from pairs": ("a" * 12, digest[:12]),
    }
    page = (evaluation.folder / "root/state/one/outputs/decision/report.html").read_text()
    assert ">What changed since the champion</h2>" in page


def test_models_that_count_tokens_differently_are_not_compared_by_tokens(
    evaluation: Evaluation,
) -> None:
    tiny_folder(evaluation.folder / "candidate")
    tiny_folder(evaluation.folder / "base")
    path = evaluation.folder / "base" / "tokenizer.json"
    told = json.loads(path.read_text())
    first, second = list(told["model"]["vocab"])[300:302]
    vocabulary = told["model"]["vocab"]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(told))

    result = evaluation.run()

    assert result.verdict != "promote"
    assert {"length_ratio", "heldout_perplexity"} <= missed(evaluation.decision())


def test_a_judge_that_dies_half_way_is_paid_once(evaluation: Evaluation) -> None:
    for seed, name in enumerate(("base", "candidate")):
        tiny_folder(evaluation.folder / name, seed=seed)
    asked: list[str] = []

    def dies(body: dict[str, Any], attempt: int) -> Any:
        if len(asked) >= 20 and not alive:
            return Refuse(401)
        asked.append(json.dumps(body["messages"]))
        return Say(json.dumps({"reason": "r", "verdict": "tie"}))

    alive: list[bool] = []
    with ScriptedServer(dies) as server:
        judge = asked_of(server, endpoint={"concurrency": 1}).model_dump(mode="json")
        with pytest.raises(ConfigError):
            evaluation.run(judge=judge)
        alive.append(True)
        evaluation.run(judge=judge)

    assert len(asked) == len(set(asked)) == 48
