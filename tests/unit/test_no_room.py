"""A prompt that fills the model's context is left out and counted; it does not end the run."""

from pathlib import Path

from tests.tiny import tiny_folder, tiny_pairs

from dpoflow.contracts.manifest import seal
from dpoflow.contracts.pairs import Message, PreferencePair, Prompt, Source, write_parquet
from dpoflow.contracts.spec import EvaluateConfig, SynthesizeConfig
from dpoflow.evaluate.step import run as evaluate
from dpoflow.state.events import read_events
from dpoflow.state.step import StepState
from dpoflow.synthesize.step import run as synthesize

JUDGE = {
    "rubric": {
        "checks": [
            {"kind": "max_count", "name": "calm", "half": "judge", "text": "!", "at_most": 0}
        ]
    }
}
SAMPLING = {"temperature": 1.0, "max_new_tokens": 8}
LENGTHS = (3, 300, 5)  # words; the model's context is 256 tokens


def prompts(folder: Path, split: str) -> Path:
    folder.mkdir()
    rows = [
        Prompt.model_validate(
            {
                "prompt": (Message(role="user", content="snow " * words),),
                "source": Source(dataset="test", row=str(words)),
                "split": split,
            }
        )
        for words in LENGTHS
    ]
    write_parquet(rows, Prompt, folder / "prompts.parquet")
    return folder


def model(folder: Path) -> Path:
    made = tiny_folder(folder / "model")
    seal(made, "test.model", parents={}, config={}, code="")
    return made


def state_of(folder: Path) -> StepState:
    state = StepState(folder, "test")
    state.start_afresh(["out"])
    return state


def test_synthesize_counts_it_among_what_is_not_a_pair(tmp_path: Path) -> None:
    config = SynthesizeConfig.model_validate({"judge": JUDGE, "sampling": SAMPLING})
    state = state_of(tmp_path / "state")

    result = synthesize(
        config,
        prompts=prompts(tmp_path / "prompts", "train"),
        model=model(tmp_path),
        pairs=state.output("out"),
        state=state,
    )

    assert result.not_pairs["too_long"] == 1
    assert result.num_pairs + sum(result.not_pairs.values()) == result.num_prompts == 3
    assert result.num_candidates == 2 * config.candidates


def test_evaluate_compares_the_others_and_says_how_many_were_left_out(tmp_path: Path) -> None:
    heldout, state = prompts(tmp_path / "heldout", "heldout"), state_of(tmp_path / "state")
    write_parquet(tiny_pairs(2), PreferencePair, heldout / "pairs.parquet")
    seal(heldout, "test.heldout", parents={}, config={}, code="")
    learnt, base = tmp_path / "pairs", model(tmp_path)
    learnt.mkdir()
    write_parquet(tiny_pairs(2), PreferencePair, learnt / "train.parquet")
    seal(learnt, "test.pairs", parents={}, config={}, code="")

    evaluate(
        EvaluateConfig.model_validate({"judge": JUDGE, "sampling": SAMPLING}),
        model=base,
        policy=base,
        pairs=learnt,
        heldout=heldout,
        decision=state.output("out"),
        state=state,
    )

    assert len((state.output("out") / "answers.jsonl").read_text().splitlines()) == 2
    said = [event.message for event in read_events(tmp_path / "state" / "events.jsonl")[0]]
    assert any("1 of 3 held-out prompts and 0 of 2 pairs: left out" in text for text in said)
