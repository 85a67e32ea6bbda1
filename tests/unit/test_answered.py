"""What a model answered is kept: another evaluation of it generates nothing."""

from pathlib import Path

import torch
from tests.tiny import tiny_folder

from dpoflow.contracts.pairs import Message
from dpoflow.contracts.spec import EvaluateConfig
from dpoflow.evaluate.answered import answered
from dpoflow.policy.generate import Answer
from dpoflow.policy.load import load
from dpoflow.state.events import read_events
from dpoflow.state.step import StepState

CONFIG = EvaluateConfig.model_validate(
    {"sampling": {"temperature": 1.0, "max_new_tokens": 6, "batch_size": 2}}
)
PROMPTS = [(Message(role="user", content=f"snow {word}"),) for word in ("one", "two", "three")]


def ask(
    root: Path, evaluation: str, digest: str = "a", config: EvaluateConfig = CONFIG
) -> tuple[list[Answer], int]:
    """The answers of an evaluation of its own, and how many were generated for it."""
    folder = root / "model"
    if not folder.exists():
        tiny_folder(folder)
    state = StepState(root / "state" / evaluation, "evaluate")
    state.start_afresh(["out"])
    model, tokenizer = load(folder)
    answers = answered(
        model, tokenizer, PROMPTS, config, digest=digest, dtype=torch.float32, state=state, name="x"
    )
    events, _ = read_events(state.folder / "events.jsonl")
    return answers, max((event.done or 0 for event in events), default=0)


def test_another_evaluation_of_a_known_model_generates_nothing(tmp_path: Path) -> None:
    first, made = ask(tmp_path, "one")
    again, made_again = ask(tmp_path, "two")

    assert (made, made_again) == (3, 0)
    assert again == first


def test_another_model_seed_or_way_of_sampling_is_asked(tmp_path: Path) -> None:
    ask(tmp_path, "one")

    greedy = CONFIG.model_copy(
        update={"sampling": CONFIG.sampling.model_copy(update={"temperature": 0.0})}
    )
    others = [
        ask(tmp_path, "model", digest="b"),
        ask(tmp_path, "seed", config=CONFIG.model_copy(update={"seed": 7})),
        ask(tmp_path, "sampling", config=greedy),
    ]

    assert [made for _, made in others] == [3, 3, 3]


def test_what_a_kill_left_is_gone_on_with_and_only_the_whole_is_kept(tmp_path: Path) -> None:
    ask(tmp_path / "whole", "one")
    (whole,) = (tmp_path / "whole" / "answers").iterdir()
    lines = whole.read_bytes().splitlines(keepends=True)
    work = tmp_path / "cut" / "state" / "one" / "work"
    work.mkdir(parents=True)
    (work / "x.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1][:5])

    ask(tmp_path / "cut", "one")

    assert (tmp_path / "cut" / "answers" / whole.name).read_bytes() == whole.read_bytes()
