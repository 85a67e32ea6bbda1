"""Answers that were rated by themselves: read, checked, split, and learnt from with KTO."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import ratings_of, tiny_pairs, tiny_tokenizer
from tests.training import FAST, Job
from tests.workshop import Row, Workshop, row, rows

from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.contracts.pairs import Rating, Source, read_parquet, write_parquet
from dpoflow.contracts.spec import TrainConfig
from dpoflow.policy.layout import LayoutName
from dpoflow.policy.load import load
from dpoflow.policy.tokenise import EncodedPair, encode_rating
from dpoflow.sources.formats.registry import FORMATS, convert, recognise
from dpoflow.sources.reasons import Quarantine

ORIGIN = Source(dataset="d", row="1")


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def thumb(prompt: str, completion: str, label: Any = True, **more: Any) -> Row:
    return {"prompt": prompt, "completion": completion, "label": label, **more}


# ---------------------------------------------------------------- the format

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    "given",
    [
        thumb("q", "a", True),
        thumb("q", "a", 1),
        thumb("q", "a", 1.0),
        thumb("q", "a", "True"),
        {"prompt": TURNS[:1], "completion": TURNS[1:], "label": True},
        {"messages": TURNS, "label": True},
        {"messages": TURNS, "kto_tag": True},
        {
            "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
            "label": True,
        },
    ],
)
def test_every_documented_layout_is_recognised_and_says_the_same(given: Row) -> None:
    form = recognise([given], "x")
    rating = convert(given, form, ORIGIN)

    assert form.name == "unpaired"
    assert isinstance(rating, Rating)
    assert [turn.content for turn in rating.prompt] == ["q"]
    assert (rating.answer.content, rating.desirable) == ("a", True)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (thumb("q", "a", 0.5), "wrong_type"),
        (thumb("q", "a", "good"), "wrong_type"),
        (thumb("q", "a", None), "missing_field"),
        (thumb("q", "a", float("nan")), "wrong_type"),
        ({"messages": TURNS[:1], "label": True}, "last_turn_not_assistant"),
        ({"messages": TURNS[1:], "label": True}, "empty_prompt"),
        ({"prompt": "q", "completion": TURNS, "label": True}, "unsupported_content"),
    ],
)
def test_what_would_be_a_guess_is_refused(given: Row, code: str) -> None:
    with pytest.raises(Quarantine) as caught:
        convert(given, FORMATS["unpaired"], ORIGIN)

    assert caught.value.code == code


# ---------------------------------------------------------------- validate


def ratings(workshop: Workshop, where: str) -> list[Rating]:
    return list(read_parquet(workshop.path / where / "ratings.parquet", Rating))


def test_what_a_version_was_trained_on_can_be_replayed(workshop: Workshop, tmp_path: Path) -> None:
    """Its files are our own: pairs and ratings come back as they were."""
    thumbs = [thumb(f"question {n}", "a", n % 2 == 0) for n in range(30)]
    workshop.run([*rows(30)])
    workshop.merge([])
    assert not (tmp_path / "training" / "ratings.parquet").exists()
    workshop.run({"a.jsonl": thumbs, "b.jsonl": rows(30)})
    workshop.merge([])
    old = [tmp_path / "training" / name for name in ("train.parquet", "ratings.parquet")]
    another = Workshop(tmp_path / "another")
    for path in old:
        path.rename(another.folder("in") / f"old-{path.name}")
    new = another.folder("in") / "new.jsonl"
    new.write_text("".join(json.dumps(row(f"new {n}")) + "\n" for n in range(80)))

    another.pin(*sorted(another.folder("in").iterdir()))
    seen = another.run_pinned(replay_per_new=1)

    again = {each.rating_id for each in ratings(another, "pairs")}
    assert len(again) > 15
    assert again <= {each.rating_id for each in ratings(workshop, "pairs")}
    assert set(seen.report["by_source"]) == {
        "new.jsonl",
        "old-ratings.parquet",
        "old-train.parquet",
    }


def test_ratings_go_through_validate_like_pairs(workshop: Workshop) -> None:
    data = {
        "a.jsonl": [thumb(f"question {n}", f"answer {n}", n % 2 == 0) for n in range(30)],
        "b.jsonl": [
            thumb("question 0", "answer 0"),
            thumb("question 1", "answer 1", label=True),
            thumb("empty", " "),
            thumb("key", "ghp_" + "a1B2" * 9),
        ],
        "c.jsonl": [row(f"question {n}") for n in range(30)],
    }

    seen = workshop.run(data)

    assert Counter(seen.codes.values()) == {
        "duplicate": 1,
        "conflicting": 2,
        "empty_answer": 1,
        "secret": 1,
    }
    kept = ratings(workshop, "pairs")
    assert len(kept) == 29 == seen.result.num_ratings + seen.result.num_heldout_ratings
    pairs = {pair.prompt_id: pair.split for pair in seen.pairs}
    assert {each.prompt_id: each.split for each in kept}.items() <= pairs.items()
    assert seen.report["labels"] == {"preferred": 30, "desirable": 15, "undesirable": 14}
    assert seen.result.counts.balances()


def test_merge_hands_ratings_on_and_asks_their_heldout_prompts(workshop: Workshop) -> None:
    workshop.run([thumb(f"question {n}", "a", n % 2 == 0) for n in range(40)])
    kept = ratings(workshop, "pairs")

    seen = workshop.merge([], min_pairs=20)

    assert ratings(workshop, "training") == [each for each in kept if each.split == "train"]
    held_out = [each for each in kept if each.split == "heldout"]
    assert ratings(workshop, "heldout") == held_out
    assert {each.prompt_id for each in seen.prompts} == {each.prompt_id for each in held_out}
    assert seen.result.counts.num_in == 40 == seen.result.counts.num_kept
    assert seen.result.num_ratings == len(kept) - len(held_out)


def test_thumbs_that_nearly_all_point_one_way_are_rejected_where_asked(workshop: Workshop) -> None:
    data = [thumb(f"question {n}", "a", n != 3) for n in range(40)]

    with pytest.raises(DataRejected, match=r"39 thumbs are up and 1 down.*data\.min_thumbs"):
        workshop.run(data, min_thumbs=0.1)


# ---------------------------------------------------------------- training

KTO = FAST.model_copy(
    update={"loss": "kto", "desirable_weight": 1.5, "undesirable_weight": 0.5, "epochs": 1}
)


@torch.no_grad()
def logp(model: Any, encoded: EncodedPair, prompt: tuple[int, ...] | None = None) -> float:
    """log p(answer | prompt) by one plain forward pass."""
    asked, answer = encoded.prompt if prompt is None else prompt, encoded.chosen or encoded.rejected
    logits = model(torch.tensor([[*asked, *answer]])).logits[0].double().log_softmax(-1)
    places = range(len(asked) - 1, len(asked) + len(answer) - 1)
    return sum(float(logits[at, token]) for at, token in zip(places, answer, strict=True))


@pytest.mark.parametrize("layout", ["packed", "shared", "concat"])
def test_the_first_loss_is_ktos_formula_over_single_answers(
    tmp_path: Path, layout: LayoutName
) -> None:
    """Policy and reference are one, so z0 and every log-ratio are 0: v is sigmoid(0)."""
    rated = ratings_of(tiny_pairs(5))
    some = [each for at, each in enumerate(rated) if at % 4]  # two are up
    ups = sum(each.desirable for each in some)
    job = Job(tmp_path, [], some)

    result = job.run(KTO.model_copy(update={"batch_size": 16, "layout": layout}))

    expected = (1.5 * ups + 0.5 * (len(some) - ups)) / 2 / len(some)
    assert (ups, len(some)) == (2, 7)
    assert result.first_loss == pytest.approx(expected, abs=1e-6)
    assert result.num_pairs == len(some)


def test_figures_after_an_update_are_those_of_plain_forward_passes(tmp_path: Path) -> None:
    """One batch, two epochs: the second update's figures are of the policy after the first."""
    rated = ratings_of(tiny_pairs(4))[:7]
    job = Job(tmp_path, [], rated)
    once = KTO.model_copy(update={"batch_size": 16, "epochs": 1, "schedule": "constant"})
    job.run(once, "once")
    job.run(once.model_copy(update={"epochs": 2}), "twice")

    second = [each.metrics for each in job.events("twice") if each.metrics][1]
    encoded = [encode_rating(tiny_tokenizer(), each, 512) for each in rated]
    policy, reference = load(job.policy("once"))[0], load(job.model)[0]
    ups, downs = [], []
    for each in encoded:
        assert isinstance(each, EncodedPair)
        reward = KTO.beta * (logp(policy, each) - logp(reference, each))
        (ups if each.chosen else downs).append(reward)
    assert second["train/reward_chosen"] == pytest.approx(sum(ups) / len(ups), abs=1e-4)
    assert second["train/reward_rejected"] == pytest.approx(sum(downs) / len(downs), abs=1e-4)


def test_thumbs_teach_which_answers_are_wanted(tmp_path: Path) -> None:
    job = Job(tmp_path, [], ratings_of(tiny_pairs(48)))
    job.run(KTO.model_copy(update={"epochs": 4, "learning_rate": 2e-3}))

    policy, reference = load(job.policy())[0], load(job.model)[0]
    gains: dict[bool, list[float]] = {True: [], False: []}
    for rating in ratings_of(tiny_pairs(20, seed=9)):
        encoded = encode_rating(tiny_tokenizer(), rating, 512)
        assert isinstance(encoded, EncodedPair)
        gains[rating.desirable].append(logp(policy, encoded) - logp(reference, encoded))
    better = sum(up > down for up, down in zip(gains[True], gains[False], strict=True))
    assert better >= 18


def test_pairs_and_ratings_train_together(tmp_path: Path) -> None:
    job = Job(tmp_path, tiny_pairs(6), ratings_of(tiny_pairs(5, seed=3)))

    result = job.run(KTO.model_copy(update={"batch_size": 16, "epochs": 4}))

    assert result.num_pairs == 16
    assert result.first_loss == pytest.approx(0.5)  # six times (1.5 + 0.5) / 4, five times each / 2
    assert result.last_loss < 0.45


def test_an_objective_of_pairs_refuses_ratings(tmp_path: Path) -> None:
    job = Job(tmp_path, tiny_pairs(4), ratings_of(tiny_pairs(1)))

    with pytest.raises(ConfigError, match=r"rated by themselves.*set train\.loss: kto"):
        job.run(FAST)


def test_pairs_are_learnt_the_same_beside_an_empty_file_of_ratings(tmp_path: Path) -> None:
    job = Job(tmp_path, tiny_pairs(8))
    config = TrainConfig(**{**FAST.model_dump(), "epochs": 1})

    assert not (job.pairs / "ratings.parquet").exists()
    without = job.run(config, "without")
    write_parquet([], Rating, job.pairs / "ratings.parquet")
    with_file = job.run(config, "with")

    assert with_file.policy_digest == without.policy_digest
