"""Whether there is something to learn: the decision as a table, and what it counts."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import pair_of, ratings_of

from dpoflow.contracts.pairs import PreferencePair, Rating, write_jsonl, write_parquet
from dpoflow.contracts.results import Thumbs
from dpoflow.contracts.spec import DecideConfig, SnapshotConfig, SourceConfig, Spec
from dpoflow.decide.champion import changes
from dpoflow.decide.news import News, news_of
from dpoflow.decide.verdict import Champion, decide, lowest_rise
from dpoflow.snapshot import data as snapshot_data
from dpoflow.state.step import StepState

URI = "models:/desk@champion"


def config(**knobs: Any) -> DecideConfig:
    return DecideConfig(champion=URI, **{"min_new_pairs": 50, **knobs})


def champion(age: float = 3, **more: Any) -> Champion:
    return Champion("desk/3", age, **more)


def thumbs(down: int, of: int) -> Thumbs:
    return Thumbs(down=down, of=of)


BETA = {"train.beta": ("0.1", "0.3")}
SINCE = "since desk/3, 50 are asked"
HUNDRED = "0 new pairs and 100 rated answers since desk/3, 500 are asked"
LOST = "its data is not under /state"
FEEDBACK = {"thumbs": thumbs(40, 100), "before": thumbs(10, 100)}
# Wilson's intervals: 40/100 [0.3094, 0.4980], 10/100 [0.0552, 0.1744], 1/5 [0.0362, 0.6245]. So a
# rise from 10/100 to 40/100 is at least 0.3 - sqrt(0.0906^2 + 0.0744^2) = 0.1828; the way back is
# -0.3 - sqrt(0.0448^2 + 0.0980^2) = -0.4077; to 1/5, 0.1 - sqrt(0.1638^2 + 0.0744^2) = -0.0799.

TABLE: list[tuple[str, DecideConfig, News, Champion | None, str, list[str], str]] = [
    ("no champion yet", config(), News(pairs=8), None,
     "train", ["first"], "no version of desk is champion yet"),
    ("no champion yet, and no pair", config(), News(), None,
     "train", ["first"], "no version of desk is champion yet"),
    ("nothing new", config(), News(), champion(),
     "skip", [], "0 new pairs since desk/3, 50 are asked"),
    ("one pair", config(), News(pairs=1), champion(),
     "skip", [], "1 new pair since desk/3, 50 are asked"),
    ("one too few", config(), News(pairs=49), champion(),
     "skip", [], "49 new pairs since desk/3, 50 are asked"),
    ("just enough", config(), News(pairs=50), champion(),
     "train", ["new_pairs"], "50 new pairs since desk/3, 50 are asked"),
    ("thousands", config(), News(pairs=12_345), champion(),
     "train", ["new_pairs"], "12,345 new pairs since desk/3, 50 are asked"),
    ("rated answers count", config(), News(pairs=20, ratings=30), champion(),
     "train", ["new_pairs"], "20 new pairs and 30 rated answers since desk/3, 50 are asked"),
    ("prompts do not, where no pairs are made of them", config(), News(pairs=2, prompts=500),
     champion(), "skip", [], "2 new pairs since desk/3, 50 are asked"),
    ("prompts do, where pairs are made of them", config(counts_prompts=True),
     News(pairs=2, prompts=48), champion(),
     "train", ["new_pairs"], "2 new pairs and 48 prompts since desk/3, 50 are asked"),
    ("all three", config(counts_prompts=True), News(pairs=2, ratings=1, prompts=1), champion(),
     "skip", [], "2 new pairs, 1 rated answer and 1 prompt since desk/3, 50 are asked"),
    ("young, and too little", config(max_age_days=30), News(pairs=12), champion(3),
     "skip", [], f"12 new pairs {SINCE}; the champion is 3 days old, 30 allowed"),
    ("as old as is allowed", config(max_age_days=30), News(pairs=12), champion(30),
     "skip", [], f"12 new pairs {SINCE}; the champion is 30 days old, 30 allowed"),
    ("older, and a little is new", config(max_age_days=30), News(pairs=1), champion(30.1),
     "train", ["age"], "the champion is 30.1 days old, 30 allowed"),
    ("older, and nothing is new", config(max_age_days=30), News(), champion(400),
     "skip", [],
     f"0 new pairs {SINCE}; the champion is 400 days old, 30 allowed, and nothing is new"),
    ("older, and only prompts are new", config(max_age_days=30), News(prompts=9), champion(31),
     "skip", [],
     f"0 new pairs {SINCE}; the champion is 31 days old, 30 allowed, and nothing is new"),
    ("age is no reason where no age is set", config(), News(pairs=1), champion(4000),
     "skip", [], "1 new pair since desk/3, 50 are asked"),
    ("feedback is no reason where no bound is set", config(), News(ratings=49, **FEEDBACK),
     champion(), "skip", [], "0 new pairs and 49 rated answers since desk/3, 50 are asked"),
    ("feedback got worse", config(min_new_pairs=500, more_thumbs_down=0.1),
     News(ratings=100, **FEEDBACK), champion(), "train", ["feedback"],
     "40 of 100 new thumbs are down, 10 of 100 before: surely +0.183 or more, 0.1 allowed"),
    ("it got worse, and by less than is allowed", config(min_new_pairs=500, more_thumbs_down=0.2),
     News(ratings=100, **FEEDBACK), champion(), "skip", [],
     (f"{HUNDRED}; 40 of 100 new thumbs are down, 10 of 100 before: surely +0.183 or more, "
     "0.2 allowed")),
    ("it got worse, and perhaps by chance", config(more_thumbs_down=0),
     News(ratings=5, thumbs=thumbs(1, 5), before=thumbs(10, 100)), champion(), "skip", [],
     (f"0 new pairs and 5 rated answers {SINCE}; "
     "1 of 5 new thumbs are down, 10 of 100 before: surely -0.080 or more, 0 allowed")),
    ("it got better", config(min_new_pairs=500, more_thumbs_down=0),
     News(ratings=100, thumbs=thumbs(10, 100), before=thumbs(40, 100)), champion(), "skip", [],
     (f"{HUNDRED}; "
     "10 of 100 new thumbs are down, 40 of 100 before: surely -0.408 or more, 0 allowed")),
    ("no feedback then", config(more_thumbs_down=0),
     News(ratings=5, thumbs=thumbs(5, 5)), champion(), "skip", [],
     (f"0 new pairs and 5 rated answers {SINCE}; "
     "no feedback is in the champion's data")),
    ("no feedback now", config(more_thumbs_down=0), News(before=thumbs(1, 9)), champion(),
     "skip", [], "0 new pairs since desk/3, 50 are asked; no feedback is new"),
    ("a changed spec", config(), News(), champion(changed=BETA),
     "train", ["spec"], "the spec changed since: train.beta was 0.1, is 0.3"),
    ("a changed spec that is no reason", config(changed_spec=False), News(),
     champion(changed=BETA), "skip", [], "0 new pairs since desk/3, 50 are asked"),
    ("five changes", config(), News(), champion(changed=dict.fromkeys("abcde", ("1", "2"))),
     "train", ["spec"],
     "the spec changed since: a was 1, is 2, b was 1, is 2, c was 1, is 2 and 2 more"),
    ("two reasons", config(), News(pairs=60), champion(changed=BETA),
     "train", ["new_pairs", "spec"],
     "60 new pairs since desk/3, 50 are asked; the spec changed since: train.beta was 0.1, is 0.3"),
    ("the champion's data are gone", config(), News(pairs=2), champion(unknown=LOST),
     "train", ["unknown"], f"what is new since desk/3 cannot be known: {LOST}"),
    ("no source has anything, whatever else changed", config(), News(has_data=False),
     champion(changed=BETA), "skip", [], "no source has anything at all"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "news", "known", "decision", "reasons", "sentence"),
    [row[1:] for row in TABLE],
    ids=[row[0] for row in TABLE],
)
def test_the_decision(
    asked: DecideConfig,
    news: News,
    known: Champion | None,
    decision: str,
    reasons: list[str],
    sentence: str,
) -> None:
    found = decide(asked, news, known)

    assert (found.decision, list(found.reasons), found.sentence) == (decision, reasons, sentence)
    assert found.champion == (known.name if known else None)
    assert found.new_pairs == news.pairs


@pytest.mark.parametrize(
    ("now", "before", "low"),
    [  # Newcombe (1998), table II, method 10: examples a, b and e
        ((56, 70), (48, 80), 0.0524),
        ((9, 10), (3, 10), 0.1705),
        ((5, 56), (0, 29), -0.0381),
    ],
)
def test_the_interval_is_that_of_newcombes_table(
    now: tuple[int, int], before: tuple[int, int], low: float
) -> None:
    assert lowest_rise(thumbs(*before), thumbs(*now)) == pytest.approx(low, abs=5e-5)


# ---------------------------------------------------------------- counting


class Sources:
    """Files of preferences, pinned as snapshot pins them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "root" / "state" / "key" / "work").mkdir(parents=True)
        self.state = StepState(folder / "root" / "state" / "key", "decide")

    def file(self, name: str, rows: Iterable[dict[str, Any]]) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def pinned(
        self, name: str, *paths: Path, replay: tuple[Path, ...] = (), system: str | None = None
    ) -> Path:
        asked = SnapshotConfig(
            sources=tuple(SourceConfig(uri=str(path), system=system) for path in paths),
            replay=tuple(SourceConfig(uri=str(path)) for path in replay),
            model="",
        )
        located = snapshot_data.find(asked, self.state.root, self.state.events)
        snapshot_data.pin(located, self.folder / name, self.state.events)
        return self.folder / name

    def news(self, data: Path, before: Path | None, **knobs: Any) -> News:
        scratch = self.state.work / "seen.sqlite"
        found = news_of(data, before, config(**knobs), scratch, self.state.events)
        assert not scratch.exists()
        return found


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources(tmp_path)


def rows(*numbers: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {"prompt": f"question {n}", "chosen": f"good {n}", "rejected": f"bad {n}", **more}
        for n in numbers
    ]


def test_all_is_new_without_a_champion(sources: Sources) -> None:
    data = sources.pinned("now", sources.file("a.jsonl", rows(*range(7))))

    assert sources.news(data, None).pairs == 7


def test_what_is_delivered_twice_renamed_or_sorted_anew_is_not_new(sources: Sources) -> None:
    before = sources.pinned("then", sources.file("a.jsonl", rows(*range(30))))
    again = [
        sources.file("a.jsonl", rows(*range(30))),
        sources.file("renamed.jsonl", rows(*reversed(range(25)))),
        sources.file("b.jsonl", [*rows(*range(20, 33)), *rows(31, 32)]),
        sources.file("c.jsonl", rows(32, 33)),
    ]

    found = sources.news(sources.pinned("now", *again), before)

    assert found == News(pairs=4)  # 30, 31, 32, 33


def test_the_same_data_are_no_news_and_are_not_even_read(sources: Sources) -> None:
    path = sources.file("a.jsonl", rows(*range(3)))
    before, data = sources.pinned("then", path), sources.pinned("now", path)
    for each in (data / "files").iterdir():
        each.write_text("no JSON")

    assert sources.news(data, before) == News()


def test_data_that_went_away_are_no_news(sources: Sources) -> None:
    paths = [sources.file(f"{n}.jsonl", rows(n, n + 1)) for n in (1, 5)]
    before = sources.pinned("then", *paths)

    assert sources.news(sources.pinned("now", paths[0]), before) == News()


def test_replayed_pairs_are_old_wherever_they_stand(sources: Sources) -> None:
    old, path = sources.file("old/a.jsonl", rows(1, 2)), sources.file("b.jsonl", rows(3))
    before = sources.pinned("then", path, replay=(old,))
    data = sources.pinned("now", sources.file("c.jsonl", rows(1, 3, 4)), replay=(old,))

    assert sources.news(data, before).pairs == 1


def test_our_own_pairs_are_known_by_their_ids_in_any_format(sources: Sources) -> None:
    before = sources.pinned("then", sources.file("a.jsonl", rows(1, 2)))
    ours = [pair_of(f"question {n}", f"good {n}", f"bad {n}") for n in (2, 3)]
    path = sources.folder / "ours.parquet"
    write_parquet(ours, PreferencePair, path)

    assert sources.news(sources.pinned("now", path), before).pairs == 1


def test_another_system_message_makes_other_pairs(sources: Sources) -> None:
    path = sources.file("a.jsonl", rows(1, 2, 3))
    before = sources.pinned("then", path)

    assert sources.news(sources.pinned("now", path, system="Be brief."), before).pairs == 3


def test_what_teaches_nothing_is_not_counted(sources: Sources) -> None:
    blank = {"prompt": "q", "chosen": " ", "rejected": "b"}
    same = {"prompt": "q", "chosen": "b", "rejected": "b"}
    path = sources.file("a.jsonl", [*rows(1), blank, same, {"prompt": 7}])
    tie = pair_of("t", "one", "other").model_copy(update={"label": "tie"})
    write_jsonl([tie], sources.folder / "tie.jsonl")

    found = sources.news(sources.pinned("now", path, sources.folder / "tie.jsonl"), None)

    assert found == News(pairs=1)


def test_a_contradiction_is_news_of_two_pairs_that_validate_settles(sources: Sources) -> None:
    turned = [{"prompt": "question 1", "chosen": "bad 1", "rejected": "good 1"}]
    before = sources.pinned("then", sources.file("a.jsonl", rows(1)))

    assert sources.news(sources.pinned("now", sources.file("b.jsonl", turned)), before).pairs == 1


def test_thumbs_are_counted_on_both_sides(sources: Sources) -> None:
    then = ratings_of([pair_of(f"old {n}", "yes", "no") for n in range(10)])  # 10 up, 10 down
    now = [*then[:4], *ratings_of([pair_of(f"new {n}", "yes", "no") for n in range(3)])]
    write_parquet(then, Rating, sources.folder / "then.parquet")
    write_parquet([*now, *now[-1:]], Rating, sources.folder / "now.parquet")
    before = sources.pinned("before", sources.folder / "then.parquet")

    found = sources.news(sources.pinned("data", sources.folder / "now.parquet"), before)

    assert (found.ratings, found.thumbs, found.before) == (6, thumbs(3, 6), thumbs(10, 20))


def test_prompts_without_answers_are_counted_apart(sources: Sources) -> None:
    asked = [{"prompt": f"what is {n}?"} for n in range(5)]
    path = sources.file("a.jsonl", [*asked, *asked[:2]])

    assert sources.news(sources.pinned("now", path), None) == News(prompts=5)


def test_memory_does_not_grow_with_the_length_of_rows(sources: Sources) -> None:
    import tracemalloc

    def peak(name: str, length: int) -> int:
        many = rows(*range(1500), rejected="b" * length)
        data = sources.pinned(name, sources.file(f"{name}.jsonl", many))
        tracemalloc.start()
        sources.news(data, None)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak("long", 8000) - peak("short", 10) < 6_000_000  # of 12 MB more in the file


# ---------------------------------------------------------------- the spec


def spec(**more: Any) -> Spec:
    return Spec.model_validate(
        {"name": "desk", "model": "m", "data": {"sources": [{"uri": "a"}]}, **more}
    )


@pytest.mark.parametrize(
    ("more", "changed"),
    [
        ({}, set()),
        ({"train": {"beta": 0.3}}, {"train.beta"}),
        ({"train": {"loss": "ipo_sum", "epochs": 2}}, {"train.loss", "train.epochs"}),
        ({"train": {"save_steps": 3, "device": "cpu", "heldout_looks": 2}}, set()),
        ({"data": {"sources": [{"uri": "elsewhere"}]}}, set()),
        ({"data": {"sources": [{"uri": "a"}], "heldout_fraction": 0.3}}, {"data.heldout_fraction"}),
        ({"data": {"sources": [{"uri": "a"}], "min_agreement": 0.3}}, set()),
        ({"seed": 4}, {"data.seed", "train.seed"}),  # and synthesize's, which is off
        ({"evaluate": {"gates": {"win_rate": 0.6}}}, set()),
        ({"retrain": {"min_new_pairs": 3}}, set()),
        ({"registry": {"model": "other"}}, set()),
    ],
)
def test_a_changed_spec_is_one_that_would_teach_something_else(
    more: dict[str, Any], changed: set[str]
) -> None:
    before, now = spec().decide.sections, spec(**more).decide.sections

    found = {
        f"{section}.{knob}"
        for section in now
        for knob, _ in changes(before[section], now[section], now[section])
    }

    assert found == changed


def test_models_that_move_with_the_champion_are_no_change_of_the_spec() -> None:
    assert spec().decide.fixed == ("model", "init", "reference")
    assert spec(train={"init": "champion"}).decide.fixed == ("model",)
    assert spec(train={"init": "champion", "reference": "base"}).decide.fixed == (
        *("model", "reference"),
    )


def test_align_and_retrain_get_the_same_sections_but_for_what_is_for_a_schedule() -> None:
    align, retrain = spec().arguments(), spec().arguments("retrain")

    differing = {key for key in retrain if retrain[key] != align.get(key)}
    assert differing == {"snapshot_config", "decide_config"}
    pinned = json.loads(retrain["snapshot_config"])
    assert (pinned["lineage"], pinned["unattended"]) == ([URI], True)
    assert json.loads(retrain["decide_config"])["min_new_pairs"] == 100
