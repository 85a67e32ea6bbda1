"""The whole step on models that say what a test wants: what must never be promoted, and is not."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes.openai_server import Refuse, Say, ScriptedServer
from tests.judging import config as asked_of
from tests.tiny import pair_of, tiny_folder, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from dpoflow.contracts import manifest
from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.contracts.pairs import PreferencePair, Prompt, read_jsonl, write_parquet
from dpoflow.contracts.results import Decision, EvaluateResult
from dpoflow.contracts.spec import EvaluateConfig
from dpoflow.evaluate.measure import Comparison
from dpoflow.evaluate.step import run
from dpoflow.state.events import read_events
from dpoflow.state.step import StepState

LONG = {"name": "long", "kind": "word_count", "half": "judge", "min": 4, "max": 60, "falloff": 4}
CALM = {"name": "calm", "kind": "max_count", "half": "heldout", "text": "!", "at_most": 0}
RUBRIC = {"rubric": {"checks": [LONG, CALM]}}
SHORT = "the sea is"
WORDY = "the sea is blue and calm today while seven small boats wait"


def says(folder: Path, text: str, seed: int = 0) -> Path:
    """A model that answers `text` to everything: each token leads to one other, whatever was asked.

    Its layers add nothing, so what comes next hangs on the last token alone.
    """
    tokenizer = tiny_tokenizer()
    chain = tokenizer(text, add_special_tokens=False)["input_ids"]
    opening = tokenizer("assistant\n", add_special_tokens=False)["input_ids"][-1]
    path = [opening, *chain, tokenizer.eos_token_id]
    assert len(set(path)) == len(path), "each token must come once"
    torch.manual_seed(seed)
    size = len(tokenizer)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=size,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )
    )
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.zero_()
        for token, then in itertools.pairwise(path):
            model.lm_head.weight[then, token] = 1.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Evaluation:
    """Everything that the step takes, with a number of held-out prompts."""

    def __init__(self, folder: Path, num_prompts: int = 24) -> None:
        self.folder = folder
        split = {"pairs": "p" * 64}
        learnt = [pair_of(f"learn {at}", "yes please", "no") for at in range(8)]
        (folder / "pairs").mkdir(parents=True)
        write_parquet(learnt, PreferencePair, folder / "pairs" / "train.parquet")
        self.pairs = self.seal("pairs", split)
        held = [pair_of(f"ask {at}", "yes please", "no") for at in range(num_prompts)]
        (folder / "heldout").mkdir()
        write_parquet(held, PreferencePair, folder / "heldout" / "pairs.parquet")
        prompts = [
            Prompt(prompt=pair.prompt, source=pair.source, slice="even" if at % 2 else "odd")
            for at, pair in enumerate(held)
        ]
        write_parquet(prompts, Prompt, folder / "heldout" / "prompts.parquet")
        self.heldout = self.seal("heldout", split)

    def seal(
        self, name: str, parents: dict[str, str], config: dict[str, Any] | None = None
    ) -> Path:
        folder = self.folder / name
        manifest.seal(folder, "test", parents=parents, config=config or {}, code="")
        return folder

    def model(self, name: str) -> Path:
        """The model in the folder `name`, sealed as trained on the pairs."""
        digest = manifest.read(self.pairs).digest
        return self.seal(name, {"pairs": digest}, {"beta": 0.1, "epochs": 1})

    def learn(self, prompt: str) -> None:
        """This prompt alone is trained on."""
        pair = pair_of(prompt, "a", "b")
        write_parquet([pair], PreferencePair, self.pairs / "train.parquet")
        self.seal("pairs", {"pairs": "p" * 64})

    def run(self, name: str = "one", **knobs: Any) -> EvaluateResult:
        """Of the models `candidate`, `base`, and `champion` if there is one."""
        gates = {"equal_length": None, **knobs.pop("gates", {})}
        config = EvaluateConfig.model_validate(
            {
                "judge": RUBRIC,
                "sampling": {"max_new_tokens": 40, "batch_size": 8},
                "resamples": 400,
                "gates": gates,
                **knobs,
            }
        )
        state = StepState(self.folder / "root" / "state" / name, "evaluate")
        state.start_afresh(["decision"])
        champion = self.folder / "champion"
        return run(
            config,
            model=self.model("base"),
            policy=self.model("candidate"),
            pairs=self.pairs,
            heldout=self.heldout,
            champion=self.model("champion") if champion.exists() else None,
            decision=state.output("decision"),
            state=state,
        )

    def decision(self, name: str = "one") -> Decision:
        folder = self.folder / "root" / "state" / name / "outputs" / "decision"
        return Decision.model_validate_json((folder / "decision.json").read_text())

    def comparisons(self, name: str = "one") -> list[Comparison]:
        folder = self.folder / "root" / "state" / name / "outputs" / "decision"
        return list(read_jsonl(folder / "answers.jsonl", Comparison))

    def generated(self, name: str) -> dict[str, int]:
        """How many answers were made, by whose they are."""
        events, _ = read_events(self.folder / "root" / "state" / name / "events.jsonl")
        told = dict.fromkeys(("candidate", "champion", "base"), 0)
        for event in events:
            if event.phase and event.phase.endswith(" answers"):
                told[event.phase.split()[0]] = event.done or 0
        return told


def missed(decision: Decision) -> set[str]:
    return {gate.name for gate in decision.gates if not gate.passed}


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
