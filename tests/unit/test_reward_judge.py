"""Reward models as judges: transformers' own numbers, and models that are none."""

import asyncio
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_folder, tiny_reward_folder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dpoflow.contracts import manifest
from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.contracts.judges import PanelJudgeConfig, RewardJudgeConfig, reward_folder
from dpoflow.contracts.pairs import Message
from dpoflow.judge.build import Servers, build, judge_id
from dpoflow.judge.trust import check_trust
from dpoflow.judge.verdict import Outcome
from dpoflow.snapshot.model import Store, pin, pin_judges

ASKED = (Message(role="user", content="the sea is blue and calm?"),)
ANSWERS = ["seven small boats", "music bread music", "rivers", "please wait for wind near the pier"]


def judge_of(folder: Path, **knobs: Any) -> RewardJudgeConfig:
    return RewardJudgeConfig(kind="reward", model=str(folder), **knobs)


def pinned(tmp_path: Path, *folders: Path) -> Path:
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    return pin_judges(map(str, folders), Store(tmp_path / "home", work, lambda told: None))


def decide(
    config: RewardJudgeConfig | PanelJudgeConfig, models: Path, couples: Sequence[tuple[str, str]]
) -> list[Outcome]:
    async def run() -> list[Outcome]:
        async with Servers(models / "unused.sqlite", "me", None, lambda *_: None) as at:
            judge = await build(config, at, models=models)
            return list(
                await asyncio.gather(*(judge.decide(ASKED, one, two) for one, two in couples))
            )

    return asyncio.run(run())


def rewards_by_transformers(folder: Path) -> dict[str, float]:
    """All answers in one padded batch, as a model card would score them."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model.config.pad_token_id = tokenizer.pad_token_id = 0  # no token of any text
    turns = [
        [*(t.model_dump() for t in ASKED), {"role": "assistant", "content": a}] for a in ANSWERS
    ]
    batch = tokenizer.apply_chat_template(
        turns, padding=True, return_tensors="pt", return_dict=True, tokenize=True
    )
    with torch.inference_mode():
        scores = model(**batch).logits[:, 0].double()
    return dict(zip(ANSWERS, scores.tolist(), strict=True))


def test_margins_are_those_of_bradley_and_terry_over_transformers_own_rewards(
    tmp_path: Path,
) -> None:
    folder = tiny_reward_folder(tmp_path / "rm", scale=20)
    judge = judge_of(folder)
    known = rewards_by_transformers(folder)
    couples = list(itertools.permutations(ANSWERS, 2))

    told = decide(judge, pinned(tmp_path, folder), couples)

    for (first, second), outcome in zip(couples, told, strict=True):
        won = torch.sigmoid(torch.tensor(known[first] - known[second], dtype=torch.float64))
        assert outcome.margin == pytest.approx(2 * float(won) - 1, abs=1e-5)
        assert outcome.winner == ("first" if known[first] > known[second] else "second")
        assert outcome.ballots[0].judge == judge_id(judge)


def test_turning_the_rewards_around_turns_every_verdict_around(tmp_path: Path) -> None:
    kind, cruel = tiny_reward_folder(tmp_path / "a"), tiny_reward_folder(tmp_path / "b", scale=-1)
    couples = list(itertools.permutations(ANSWERS, 2))

    models = pinned(tmp_path, kind, cruel)
    one, other = (decide(judge_of(each), models, couples) for each in (kind, cruel))

    assert {each.winner for each in one} == {"first", "second"}
    assert [(each.winner, each.margin) for each in one] == [
        (each.swapped().winner, each.swapped().margin) for each in other
    ]


def test_equal_answers_are_a_tie_and_what_is_too_long_is_invalid(tmp_path: Path) -> None:
    folder = tiny_reward_folder(tmp_path / "rm")
    long = "snow " * 300  # the model reads 256 tokens

    models = pinned(tmp_path, folder)
    same, beyond = decide(judge_of(folder), models, [("boats", "boats"), ("boats", long)])
    (short,) = decide(judge_of(folder, max_tokens=16), models, [("boats", "rivers")])

    assert (same.label, same.margin) == ("tie", 0.0)
    assert (beyond.label, short.label) == ("invalid", "invalid")


def test_a_reward_model_has_a_seat_in_a_panel(tmp_path: Path) -> None:
    one, other = tiny_reward_folder(tmp_path / "a"), tiny_reward_folder(tmp_path / "b", scale=-1)
    seats = [{"judge": judge_of(one), "weight": 2}, {"judge": judge_of(other), "weight": 1}]
    panel = PanelJudgeConfig.model_validate({"kind": "panel", "seats": seats})
    couples = list(itertools.permutations(ANSWERS, 2))

    models = pinned(tmp_path, one, other)

    assert [each.winner for each in decide(panel, models, couples)] == [
        each.winner for each in decide(judge_of(one), models, couples)
    ]


def damaged(folder: Path) -> Path:
    return tiny_reward_folder(folder, scale=float("nan"))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (tiny_folder, "is LlamaForCausalLM with 2 labels; a reward model is"),
        (lambda at: tiny_reward_folder(at, labels=3), "with 3 labels; a reward model is"),
        (damaged, "gives nan; its weights are damaged"),
    ],
)
def test_a_model_that_gives_no_rewards_is_refused(
    tmp_path: Path, make: Callable[[Path], Path], told: str
) -> None:
    folder = make(tmp_path / "rm")

    with pytest.raises(DataRejected, match=told):
        decide(judge_of(folder), pinned(tmp_path, folder), [("boats", "rivers")])


def test_a_model_that_was_not_pinned_is_told_by_its_name(tmp_path: Path) -> None:
    one, other = tiny_reward_folder(tmp_path / "a"), tmp_path / "b"

    with pytest.raises(ConfigError, match="b is not among those that were pinned"):
        decide(judge_of(other), pinned(tmp_path, one), [("boats", "rivers")])


def test_models_of_judges_are_pinned_by_content_and_found_again(tmp_path: Path) -> None:
    one, other = tiny_reward_folder(tmp_path / "a"), tiny_reward_folder(tmp_path / "b", scale=2)

    models = pinned(tmp_path, other, one)
    again = pinned(tmp_path, one, other, one)

    assert again == models == models.parent / manifest.verify(models).digest
    assert {path.name for path in models.iterdir() if path.is_dir()} == {
        reward_folder(str(one)),
        reward_folder(str(other)),
    }
    tiny_reward_folder(one, scale=3)
    assert pinned(tmp_path, one, other) != models, "the content changed, so its name does"


def test_a_model_that_was_pinned_as_the_base_is_pinned_again_as_a_judge(tmp_path: Path) -> None:
    folder = tiny_reward_folder(tmp_path / "rm")
    (tmp_path / "work").mkdir()
    store = Store(tmp_path / "home", tmp_path / "work", lambda told: None)

    alone, judges = pin(str(folder), store), pin_judges([str(folder)], store)

    assert (alone / "config.json").is_file()
    assert (judges / reward_folder(str(folder)) / "config.json").is_file()
    assert pin(str(folder), store) == alone


def test_a_model_with_code_of_its_own_is_told_when_it_is_pinned(tmp_path: Path) -> None:
    folder = tiny_reward_folder(tmp_path / "rm")
    words = json.loads((folder / "config.json").read_text())
    words |= {"model_type": "novel", "auto_map": {"AutoConfig": "configuration_novel.Novel"}}
    (folder / "config.json").write_text(json.dumps(words))

    with pytest.raises(DataRejected, match="no config that transformers knows"):
        pinned(tmp_path, folder)


def test_a_reward_model_has_to_earn_its_vote_like_others(tmp_path: Path) -> None:
    (said,) = check_trust(judge_of(tmp_path / "rm"), ["llama"])

    assert "was never held against people's labels" in said
