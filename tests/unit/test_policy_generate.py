"""Answers are the same ones, however they are batched, killed and continued."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.tiny import FAMILIES, WORDS, Family, tiny_model, tiny_tokenizer
from transformers import GenerationConfig, PreTrainedModel

from dpoflow.contracts.errors import DataRejected
from dpoflow.contracts.pairs import Message
from dpoflow.contracts.spec import SamplingConfig
from dpoflow.policy.generate import Answer, _Draw, generate
from dpoflow.policy.tokenise import prompt_tokens
from dpoflow.state.events import Events, read_events

PROMPTS = [(Message(role="user", content=" ".join(WORDS[: 1 + (7 * n) % 11])),) for n in range(7)]
DRAWN = SamplingConfig(temperature=1.0, max_new_tokens=12, batch_size=3)
GREEDY = SamplingConfig(max_new_tokens=12, batch_size=3)


def ask(
    folder: Path,
    sampling: SamplingConfig = DRAWN,
    *,
    seed: int = 0,
    model: PreTrainedModel | None = None,
    prompts: Sequence[tuple[Message, ...]] | None = None,
) -> list[Answer]:
    return generate(
        model or tiny_model(),
        tiny_tokenizer(),
        PROMPTS if prompts is None else prompts,
        sampling,
        seed=seed,
        dtype=torch.float32,
        store=folder / "answers.jsonl",
        events=Events(folder / "events.jsonl", "test"),
        phase="sampling",
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stretch", [1, 5, 12])
def test_greedy_answers_are_the_likeliest_token_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: Family, stretch: int
) -> None:
    monkeypatch.setattr("dpoflow.policy.generate.STRETCH", stretch)
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    said = []
    for prompt in PROMPTS:  # by hand, one prompt and one token at a time, without cache or padding
        tokens = list(prompt_tokens(tokenizer, prompt))
        start = len(tokens)
        for _ in range(12):
            tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        said.append(tokens[start:])
    # A random model never ends its turn: let it mean that by a token that some say and some not.
    told = [token for tokens in said for token in tokens[6:]]
    end = next(token for token in told if any(token not in tokens for tokens in said))
    model.generation_config.eos_token_id = [2, end]
    expected = []
    for tokens in said:
        cut = tokens[: tokens.index(end)] if end in tokens else tokens
        text = tokenizer.decode(cut, skip_special_tokens=True)
        expected.append(Answer(text=text, num_tokens=len(cut), finished=end in tokens))

    assert {answer.finished for answer in expected} == {True, False}  # some leave, some stay
    assert ask(tmp_path, GREEDY, model=model) == expected


def test_the_seed_sets_the_answers_and_nothing_else_does(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()

    torch.manual_seed(1)
    first = ask(folders[0])
    torch.manual_seed(2)

    assert ask(folders[1]) == first
    assert ask(folders[2], seed=1) != first


def test_the_random_state_of_others_is_left_as_it_was(tmp_path: Path) -> None:
    model = tiny_model()  # seeds the global state itself
    torch.manual_seed(7)
    expected = torch.rand(3)

    torch.manual_seed(7)
    ask(tmp_path, model=model)

    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_after_a_kill_the_list_is_that_of_an_uninterrupted_run(tmp_path: Path, kept: int) -> None:
    whole = ask(tmp_path)
    store = tmp_path / "answers.jsonl"
    lines = store.read_bytes().splitlines(keepends=True)
    torn = lines[kept][: len(lines[kept]) // 2]

    store.write_bytes(b"".join(lines[:kept]) + torn)

    assert ask(tmp_path) == whole
    assert store.read_bytes() == b"".join(lines)


def test_a_finished_store_needs_no_model(tmp_path: Path) -> None:
    whole = ask(tmp_path)

    class Broken(torch.nn.Module):
        config = tiny_model().config

    assert ask(tmp_path, model=Broken()) == whole  # type: ignore[arg-type]


def test_answers_of_another_request_are_thrown_away(tmp_path: Path) -> None:
    ask(tmp_path)
    (tmp_path / "fresh").mkdir()

    assert ask(tmp_path, seed=5) == ask(tmp_path / "fresh", seed=5)
    said = [event.message for event in read_events(tmp_path / "events.jsonl")[0]]
    assert any("another request" in message for message in said)


def test_a_models_own_generation_defaults_do_not_reach_the_answers(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    model = tiny_model()
    model.generation_config = GenerationConfig(
        top_k=1, do_sample=True, repetition_penalty=5.0, eos_token_id=2, pad_token_id=2
    )

    assert ask(tmp_path / "own", model=model) == ask(tmp_path)
    assert model.generation_config.top_k == 1


def test_a_prompt_that_leaves_no_room_is_refused_by_its_place(tmp_path: Path) -> None:
    prompts = [*PROMPTS, (Message(role="user", content="snow " * 300),)]

    with pytest.raises(
        DataRejected,
        match=r"prompt 7 has \d+ tokens, and the model's context less max_new_tokens 12 leaves 244",
    ):
        ask(tmp_path, prompts=prompts)


def test_no_prompts_give_no_answers(tmp_path: Path) -> None:
    assert ask(tmp_path, prompts=[]) == []


def test_progress_ends_at_the_number_of_prompts(tmp_path: Path) -> None:
    ask(tmp_path)

    events = [event for event in read_events(tmp_path / "events.jsonl")[0] if event.total]
    counts = [event.done for event in events]
    assert counts == sorted(counts)
    assert (events[-1].done, events[-1].total, events[-1].unit) == (7, 7, "answers")
    assert json.loads((tmp_path / "answers.jsonl").read_text().splitlines()[1])["batch"] == 0


def test_draws_follow_temperature_and_nucleus_as_their_paper_defines_them() -> None:
    # Probabilities 0.5, 0.3, 0.15, 0.05: the smallest set that holds 0.8 is the first two.
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(20_000, 4)
    ids = torch.zeros(1, 1, dtype=torch.long)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nucleus = _Draw(1.0, 0.8)(ids, logits).argmax(dim=1).bincount(minlength=4) / 20_000
        cooled = _Draw(0.5, 1.0)(ids, logits).argmax(dim=1).bincount(minlength=4) / 20_000

    squares = torch.tensor([0.25, 0.09, 0.0225, 0.0025])
    assert nucleus.tolist() == pytest.approx([0.625, 0.375, 0, 0], abs=0.015)
    assert cooled.tolist() == pytest.approx((squares / squares.sum()).tolist(), abs=0.015)
