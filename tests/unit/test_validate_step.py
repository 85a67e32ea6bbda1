"""Validate: every row is accounted for, the split holds still, nothing held out is trained on."""

import hashlib
import html
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.workshop import Row, Seen, Workshop, row, rows

from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.contracts.pairs import (
    Label,
    Message,
    PreferencePair,
    Provenance,
    Source,
    Writer,
)
from dpoflow.contracts.spec import SourceConfig
from dpoflow.validate.ledger import Ledger


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def drawn(some_id: str, seed: int) -> float:
    """The split as the README words it, with hashlib alone."""
    digest = hashlib.sha256(f"{seed}:{some_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def root(text: str) -> str:
    """How a conversation begins, as the README words it."""
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()


# ---------------------------------------------------------------- every row is accounted for


def test_every_row_is_kept_or_has_a_reason(workshop: Workshop) -> None:
    bad = [
        row("q1", "same", " same "),
        row("q2", ""),
        row("q3", "good", "\t"),
        row("  "),
        row("q5", "x" * 101),
        row("q6", "\ud800"),
        {"prompt": "q7"},
        ["no object"],
        row("question 0", "good 0"),
        row("q9", "A", "B"),
        row("q9", "B", "A"),
    ]

    seen = workshop.run(rows(10) + bad, max_chars=100, max_quarantined=1)

    assert list(seen.codes.values()) == [
        *("identical", "empty_chosen", "empty_rejected", "empty_prompt", "too_long"),
        *("lone_surrogate", "missing_field", "not_an_object", "duplicate"),
        *("conflicting", "conflicting"),
    ]
    assert list(seen.codes) == [f"x.jsonl:{number}" for number in range(11, 22)]
    assert seen.result.counts.num_in == 21
    assert seen.result.counts.num_kept == 10 == len(seen.pairs)
    assert seen.result.counts.quarantined == Counter(seen.codes.values())
    assert seen.report["counts"] == seen.result.counts.model_dump()
    assert set(seen.report["reasons"]) == set(seen.codes.values())


def test_pairs_and_prompts_of_several_files_meet_in_one_set(workshop: Workshop) -> None:
    seen = workshop.run(
        {"pairs.jsonl": rows(6), "ask.jsonl": [{"prompt": f"ask {n}", "id": n} for n in range(4)]}
    )

    assert (len(seen.pairs), len(seen.prompts)) == (6, 4)
    assert seen.report["by_source"] == {"ask.jsonl": {"kept": 4}, "pairs.jsonl": {"kept": 6}}
    told = {
        each["file"]: (each["format"], each["fields_not_used"]) for each in seen.report["files"]
    }
    assert told == {"ask.jsonl": ("prompts", ["id"]), "pairs.jsonl": ("trl", [])}


@settings(max_examples=8)
@given(
    lines=st.lists(
        st.builds(row, st.sampled_from("abc"), st.sampled_from("xyz "), st.sampled_from("xyz "))
        | st.sampled_from([{}, [], None, 3, {"prompt": "a"}, row("a", "\ud800")]),
        max_size=25,
    ),
    max_pairs=st.none() | st.integers(1, 3),
)
def test_no_row_is_ever_lost(
    lines: list[Any], max_pairs: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    workshop = Workshop(tmp_path_factory.mktemp("w"))
    seen = workshop.run(rows(30) + lines, max_pairs=max_pairs, max_quarantined=1)

    assert seen.result.counts.num_in == 30 + len(lines)
    assert seen.result.counts.num_kept == len(seen.pairs) + len(seen.prompts)
    assert len(seen.pairs) + len(seen.prompts) + len(seen.quarantine) == 30 + len(lines)
    assert len({pair.pair_id for pair in seen.pairs}) == len(seen.pairs)


def test_the_same_files_give_the_same_bytes(workshop: Workshop, tmp_path: Path) -> None:
    first = workshop.run([*rows(40), {}])
    kept = (workshop.path / "pairs" / "pairs.parquet").read_bytes()

    again = Workshop(tmp_path / "again").run([*reversed(rows(40)), {}])

    assert [pair.pair_id for pair in first.pairs] == [pair.pair_id for pair in again.pairs]
    assert first.result.pairs_digest == again.result.pairs_digest
    workshop.run([*rows(40), {}])
    assert (workshop.path / "pairs" / "pairs.parquet").read_bytes() == kept


def test_ties_are_kept_for_audit(workshop: Workshop) -> None:
    turns = [{"role": "user", "content": "q"}]
    ultra = {"prompt": "q", "score_chosen": 5, "score_rejected": 5} | {
        name: [*turns, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")
    }

    seen = workshop.run([ultra])

    assert [pair.label for pair in seen.pairs] == ["tie"]


def test_a_prompt_with_a_human_answer_outlives_the_same_prompt_without(workshop: Workshop) -> None:
    lines = [{"prompt": "q"}, {"prompt": "q", "gold": "a"}, {"prompt": "q"}]

    seen = workshop.run(lines, max_quarantined=1)

    assert [prompt.reference for prompt in seen.prompts] == ["a"]
    assert seen.codes == {"x.jsonl:1": "duplicate", "x.jsonl:3": "duplicate"}


def test_lengths_are_measured_in_characters(workshop: Workshop) -> None:
    seen = workshop.run([row("q", "äöü🙂", "b")])

    quality = seen.pairs[0].quality
    assert quality is not None
    assert (quality.chosen_chars, quality.rejected_chars) == (4, 1)


def test_the_quarantine_list_shows_no_text_that_a_terminal_would_obey(workshop: Workshop) -> None:
    seen = workshop.run([*rows(5), row("\x1b[2J" + "q" * 5000, "\u202e", "\u202e")])

    (line,) = seen.quarantine
    assert (line["reason"], line["row"], line["dataset"]) == ("identical", "x.jsonl:6", "x.jsonl")
    assert len(line["excerpt"]) <= 200
    assert line["excerpt"].isprintable()


def test_a_format_that_was_named_is_not_second_guessed(workshop: Workshop) -> None:
    workshop.write({"x.jsonl": [{"prompt": "q"}] * 3})
    page = workshop.path / "data" / "sources.json"
    page.write_text(page.read_text().replace('"auto"', '"trl"'))

    with pytest.raises(DataRejected, match=r"missing_field 3 \(first at x.jsonl:1\)"):
        workshop.run_pinned()


# ---------------------------------------------------------------- too much is broken


def test_nothing_left_rejects_the_data_and_still_lists_the_rows(workshop: Workshop) -> None:
    with pytest.raises(DataRejected) as caught:
        workshop.run([row("q", "a", "a"), row("r", "", "a")], max_quarantined=1)

    message = str(caught.value)
    assert "2 of 2 rows" in message
    assert "nothing is left" in message
    assert "identical 1 (first at x.jsonl:1)" in message
    lines = (workshop.path / "report" / "quarantine.jsonl").read_text().splitlines()
    assert len(lines) == 2


@pytest.mark.parametrize(("broken", "passes"), [(5, True), (6, False)])
def test_a_larger_share_than_allowed_rejects_the_data(
    workshop: Workshop, broken: int, *, passes: bool
) -> None:
    lines = rows(10 - broken) + [row(f"b{number}", "") for number in range(broken)]

    if passes:
        assert len(workshop.run(lines, max_quarantined=0.5).quarantine) == broken
    else:
        with pytest.raises(DataRejected, match=r"data.max_quarantined \(0.5\)"):
            workshop.run(lines, max_quarantined=0.5)


def test_rows_beyond_max_pairs_are_not_held_against_the_data(workshop: Workshop) -> None:
    seen = workshop.run(rows(20), max_pairs=2, max_quarantined=0)

    assert seen.result.counts.quarantined == {"not_selected": 18}
    lowest = sorted(
        (hashlib.sha256(f"0:{pair_id}".encode()).hexdigest(), pair_id)
        for pair_id in (
            pair.pair_id for pair in Workshop(workshop.path / "all").run(rows(20)).pairs
        )
    )
    assert {pair.pair_id for pair in seen.pairs} == {pair_id for _, pair_id in lowest[:2]}


def test_a_damaged_file_stops_the_step(workshop: Workshop) -> None:
    workshop.write({"x.jsonl": rows(1)})
    (path,) = (workshop.path / "data" / "files").iterdir()
    path.write_text(path.read_text() + '{"cut')

    with pytest.raises(DataRejected, match=r"x\.jsonl, line 2"):
        workshop.run_pinned()


# ---------------------------------------------------------------- the split


def test_the_split_is_the_published_hash(workshop: Workshop) -> None:
    seen = workshop.run(rows(50), seed=3, heldout_fraction=0.3)

    for pair in seen.pairs:
        expected = "heldout" if drawn(root(pair.prompt[0].content), seed=3) < 0.3 else "train"
        assert pair.split == expected
    assert {pair.split for pair in seen.pairs} == {"train", "heldout"}


def test_adding_data_moves_no_prompt_to_the_other_side(workshop: Workshop, tmp_path: Path) -> None:
    before = {pair.prompt_id: pair.split for pair in workshop.run(rows(30)).pairs}

    after = {pair.prompt_id: pair.split for pair in Workshop(tmp_path / "more").run(rows(90)).pairs}

    assert before.items() <= after.items()


def test_pairs_and_prompts_that_ask_the_same_are_on_the_same_side(workshop: Workshop) -> None:
    asked = [f"question {number}" for number in range(30)]
    seen = workshop.run(
        {
            "a.jsonl": [row(text, "one") for text in asked],
            "b.jsonl": [row(text, "two") for text in asked],
            "c.jsonl": [{"prompt": text} for text in asked],
        }
    )

    sides: dict[str, set[str]] = {}
    for item in [*seen.pairs, *seen.prompts]:
        sides.setdefault(item.prompt_id, set()).add(item.split)
    assert len(sides) == 30
    assert all(len(side) == 1 for side in sides.values())


def test_a_split_that_the_data_brings_along_is_not_trusted(workshop: Workshop) -> None:
    pairs = [pair.model_dump(mode="json") for pair in workshop.run(rows(30)).pairs]
    swapped = [{**pair, "split": "train"} for pair in pairs]

    seen = Workshop(workshop.path / "again").run(swapped)

    assert {pair.split for pair in seen.pairs} == {"train", "heldout"}


# ---------------------------------------------------------------- merge


def turn(role: Any, content: str) -> Message:
    return Message(role=role, content=content)


def made(
    prompt: str,
    chosen: str = "good",
    rejected: str = "bad",
    *,
    label: Label = "preferred",
    split: Any = "train",
    provenance: bool = True,
    slice: str = "all",  # noqa: A002 the field's name
) -> PreferencePair:
    """A pair as synthesize writes it."""
    return PreferencePair(
        prompt=(turn("user", prompt),),
        chosen=turn("assistant", chosen),
        rejected=turn("assistant", rejected),
        label=label,
        margin=0.5,
        source=Source(dataset="ask", row="ask.jsonl:1"),
        provenance=Provenance(
            chosen=None, rejected=Writer(generator="g", sampling="{}", seed=0), judge="j"
        )
        if provenance
        else None,
        split=split,
        slice=slice,
    )


def sides(seen: Seen) -> dict[str, list[str]]:
    """Side to the prompts asked on it."""
    return {
        side: [
            item.prompt[0].content for item in [*seen.pairs, *seen.prompts] if item.split == side
        ]
        for side in ("train", "heldout")
    }


def test_human_and_synthetic_pairs_train_together_in_order_of_their_ids(workshop: Workshop) -> None:
    human = workshop.run(rows(20))
    seen = workshop.merge([made("new"), made("newer")])

    ids = [pair.pair_id for pair in seen.pairs]
    trained = [pair.pair_id for pair in human.pairs if pair.split == "train"]
    assert ids == sorted([*trained, made("new").pair_id, made("newer").pair_id])
    assert all(pair.split == "train" and pair.label == "preferred" for pair in seen.pairs)
    assert seen.result.num_pairs == len(ids)
    assert seen.result.counts.num_in == 22 == seen.result.counts.num_kept


def test_every_heldout_prompt_is_asked_once(workshop: Workshop) -> None:
    asked = [f"question {number}" for number in range(40)]
    human = workshop.run(
        {
            "a.jsonl": [row(text, "one") for text in asked[:30]],
            "b.jsonl": [row(text, "two") for text in asked[:30]],
            "c.jsonl": [{"prompt": text, "gold": "human"} for text in asked[10:]],
        }
    )

    seen = workshop.merge([])

    expected = {text for text in asked if drawn(root(text), seed=0) < 0.2}
    assert expected == set(sides(human)["heldout"])
    assert sorted(prompt.prompt[0].content for prompt in seen.prompts) == sorted(expected)
    assert all(prompt.split == "heldout" for prompt in seen.prompts)
    known = {prompt.prompt[0].content: prompt.reference for prompt in seen.prompts}
    assert known == {text: "human" if text in asked[10:] else None for text in expected}
    assert {pair.prompt[0].content for pair in workshop.heldout_pairs()} == expected & set(
        asked[:30]
    )
    assert seen.result.num_heldout_prompts == len(expected)


@pytest.mark.parametrize(
    "disguise", [str, str.upper, "  {}\n".format, lambda text: text.replace(" ", "\u00a0 ")]
)
def test_a_training_pair_that_asks_what_is_held_out_is_caught(
    workshop: Workshop, disguise: Any
) -> None:
    human = workshop.run({"c.jsonl": [{"prompt": f"question {n}"} for n in range(30)]})
    secret = sides(human)["heldout"][0]

    seen = workshop.merge([made(disguise(secret)), made("harmless")])

    assert list(seen.codes.values()) == ["leakage"]
    assert [pair.prompt[0].content for pair in seen.pairs] == ["harmless"]


def test_pairs_that_ask_the_same_in_capitals_are_on_one_side(workshop: Workshop) -> None:
    texts = [f"question {number}" for number in range(40)]
    human = workshop.run([row(text) for text in [*texts, *map(str.upper, texts)]])
    secret = {text.lower() for text in sides(human)["heldout"]}

    seen = workshop.merge([])

    trained = {pair.prompt[0].content.lower() for pair in seen.pairs}
    assert secret
    assert trained.isdisjoint(secret)
    assert len(seen.pairs) + len(workshop.heldout_pairs()) == 80


def test_what_the_judge_left_open_is_not_trained_on(workshop: Workshop) -> None:
    workshop.run(rows(5))
    labels: list[Label] = ["tie", "inconsistent", "invalid"]

    seen = workshop.merge([made(label, label=label) for label in labels])

    assert seen.result.counts.quarantined == {"not_preferred": 3}
    assert [line["detail"] for line in seen.quarantine] == labels


def test_a_human_pair_outlives_its_synthetic_double_and_a_contradiction_ends_both(
    workshop: Workshop,
) -> None:
    human = workshop.run(rows(30))
    first, second = sides(human)["train"][:2]
    good = {pair.prompt[0].content: pair.chosen.content for pair in human.pairs}

    seen = workshop.merge([made(first, good[first]), made(second, "bad", good[second])])

    assert seen.result.counts.quarantined == {"duplicate": 1, "conflicting": 2}
    kept = {pair.prompt[0].content: pair.provenance for pair in seen.pairs}
    assert kept[first] is None
    assert second not in kept


@pytest.mark.parametrize(
    ("pair", "code"),
    [
        (made("s", "x", "x\n"), "identical"),
        (made("s", " "), "empty_chosen"),
        (made("s", "x" * 40_000), "too_long"),
    ],
)
def test_a_synthetic_pair_is_checked_like_any_other(
    workshop: Workshop, pair: PreferencePair, code: str
) -> None:
    workshop.run(rows(10))

    seen = workshop.merge([pair])

    assert seen.result.counts.quarantined == {code: 1}
    assert seen.result.counts.num_in == 11


def test_merge_shows_no_address_neither_of_what_is_kept_nor_of_what_is_out(
    workshop: Workshop,
) -> None:
    mail = "jane.doe@example.com"
    workshop.run([row(f"question {n}", chosen=f"good {n}, ask {mail}") for n in range(20)])
    twice = made(f"write to {mail}")

    seen = workshop.merge([twice, twice, made("q", f"ask {mail}", f"ask {mail} ")])

    assert sorted(line["reason"] for line in seen.quarantine) == ["duplicate", "identical"]
    for path in (workshop.path / "report2").iterdir():
        assert mail not in path.read_text("utf-8"), path.name


def test_a_tie_gives_way_to_a_preference_whichever_comes_first(workshop: Workshop) -> None:
    tie = row("q", score_chosen=1, score_rejected=1)

    for data in ([tie, row("q"), *rows(5)], [row("q"), tie, *rows(5)]):
        seen = workshop.run(data)

        assert list(seen.codes.values()) == ["duplicate"]
        assert {pair.label for pair in seen.pairs} == {"preferred"}


def test_copies_of_one_row_take_no_longer_than_other_rows(tmp_path: Path) -> None:
    """Each looked up among all would be 900 million steps: the time of this test is out."""
    with Ledger(tmp_path / "rows.sqlite", "US") as ledger:
        ledger.add({"kind": "pair", "id": "same", "row": f"x:{at}"} for at in range(30_000))
        ledger.index()
        ledger.drop_duplicates()

        counts = ledger.counts()

    assert counts.quarantined == {"duplicate": 29_999}


def test_a_synthetic_heldout_pair_is_for_evaluation(workshop: Workshop) -> None:
    human = workshop.run({"c.jsonl": [{"prompt": f"question {n}", "gold": "g"} for n in range(30)]})
    secret = sides(human)["heldout"][0]

    seen = workshop.merge([made(secret, split="heldout"), made("harmless")])

    assert seen.codes == {}
    assert [pair.prompt[0].content for pair in workshop.heldout_pairs()] == [secret]


def test_too_few_training_pairs_stop_the_run_with_all_its_counts(workshop: Workshop) -> None:
    workshop.run(rows(5))

    with pytest.raises(DataRejected) as caught:
        workshop.merge([made("t", label="tie")], min_pairs=100)

    message = str(caught.value)
    assert "data.min_pairs (100)" in message
    assert "6 pairs came in, 5 were kept" in message
    assert "not_preferred 1" in message
    assert (workshop.path / "report2" / "quarantine.jsonl").read_text().count("\n") == 1


def test_length_bias_is_what_a_calculator_says(workshop: Workshop) -> None:
    human = workshop.run([row(f"q{n}", "aaaa", "bb") for n in range(10)])
    num_human = len(sides(human)["train"])
    made_up = [made("n", "aa", "bbbb"), made("m", "aaa", "bbb"), made("l", "aaaa", "b")]

    bias = workshop.merge(made_up).report["length_bias"]

    # Clopper and Pearson's interval for n of n begins at the n-th root of 2.5%.
    assert bias["human"]["chosen_longer"] == 1.0 == bias["human"]["high"]
    assert bias["human"]["low"] == pytest.approx(0.025 ** (1 / num_human))
    assert bias["human"]["n"] == num_human
    assert bias["human"]["length_ratio"] == pytest.approx(2)
    # The pair of equal lengths is on neither side; 1/2 and 4 have the middle sqrt(2).
    assert bias["synthetic"]["n"] == 2
    assert bias["synthetic"]["length_ratio"] == pytest.approx(2**0.5)
    assert bias["all"]["chosen_longer"] == pytest.approx((num_human + 1) / (num_human + 2))


def test_coverage_is_counted_by_slice_and_side(workshop: Workshop) -> None:
    asked = [{"prompt": f"question {n}", "slice": "abc"[n % 3]} for n in range(60)]
    workshop.run(asked)

    seen = workshop.merge([made("x", slice="a"), made("y", slice="a"), made("z", slice="b")])

    expected = Counter(line["slice"] for line in asked if drawn(root(line["prompt"]), seed=0) < 0.2)
    told = seen.report["by_slice"]
    assert {name: told[name].get("heldout_prompts") for name in "abc"} == dict(expected)
    assert {name: told[name].get("train_pairs") for name in "abc"} == {"a": 2, "b": 1, "c": None}


def test_a_synthetic_pair_that_hides_its_maker_breaks_the_synthetic_suite(
    workshop: Workshop,
) -> None:
    workshop.run(rows(5))

    with pytest.raises(DataRejected, match=r"not_be_null\(generator\)"):
        workshop.merge([made("x", provenance=False)])


def test_no_synthetic_pair_at_all_is_fine(workshop: Workshop) -> None:
    human = workshop.run(rows(20))

    seen = workshop.merge([])

    assert len(seen.pairs) == len(sides(human)["train"])
    assert seen.report["length_bias"]["synthetic"] is None


def test_config_errors_are_not_ours_to_raise_about_data(workshop: Workshop) -> None:
    with pytest.raises(ConfigError):
        workshop.find(SourceConfig(uri=str(workshop.path / "nope")))


# ---------------------------------------------------------------- old pairs


def old_rows(count: int) -> list[Row]:
    return [row(f"old question {number}", f"good {number}") for number in range(count)]


@pytest.mark.parametrize(("per_new", "kept"), [(0.25, 10), (0.5, 20), (10.0, 30)])
def test_so_many_old_pairs_are_mixed_in_for_each_new_one(
    workshop: Workshop, per_new: float, kept: int
) -> None:
    seen = workshop.run({"new.jsonl": rows(40), "old.jsonl": old_rows(30)}, replay_per_new=per_new)

    old = [pair for pair in seen.pairs if pair.prompt[0].content.startswith("old")]
    assert len(old) == kept
    assert len(seen.pairs) == 40 + kept
    assert Counter(seen.codes.values())["not_replayed"] == 30 - kept
    assert seen.result.counts.balances()


def test_an_old_pair_is_never_held_out(workshop: Workshop) -> None:
    """The policy may have learnt from it, so it can test nothing."""
    files = {"new.jsonl": rows(40), "old.jsonl": old_rows(40)}
    seen = workshop.run(files, replay_per_new=1.0, heldout_fraction=0.5)

    sides = Counter((pair.prompt[0].content.startswith("old"), pair.split) for pair in seen.pairs)
    assert sides[True, "train"] == 40
    assert sides[True, "heldout"] == 0
    assert sides[False, "heldout"] > 5


def test_nothing_near_an_old_pair_tests_the_policy(workshop: Workshop) -> None:
    """It may have learnt the answer already."""
    again = [row(f"question {number}!", "another answer") for number in range(20)]

    seen = workshop.run(
        {"new.jsonl": rows(40), "old.jsonl": again}, replay_per_new=1, heldout_fraction=0.5
    )

    leaks = Counter(seen.codes.values())["leakage"]
    held_out = [int(p.prompt[0].content.split()[1]) for p in seen.pairs if p.split == "heldout"]
    assert min(held_out) >= 20
    assert leaks > 5
    assert len(seen.pairs) == 60 - leaks


# ---------------------------------------------------------------- the page for people


def page_of(workshop: Workshop, folder: str = "report") -> str:
    return (workshop.path / folder / "report.html").read_text("utf-8")


def test_the_page_asks_nobody_runs_nothing_and_shows_what_data_say_as_text(
    workshop: Workshop,
) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    broken = [row(f"{evil} q", "same", "same"), {"prompt": "=cmd|' /C calc'!A0", evil: 1}]
    pairs = [row(f"{evil} {n}", f'"{evil}', f"'{evil}", slice=evil[:90]) for n in range(6)]

    workshop.run(pairs + broken, max_quarantined=0.9)
    page = page_of(workshop)

    tags = set(re.findall(r"<(?!/|!)([a-zA-Z]+)", page))
    assert not tags & {"script", "img", "iframe", "link", "object", "form", "a", "base"}
    assert not re.search(r"<[^>]*\son\w+=", page)
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?https?:", page)
    assert html.escape(f'"{evil}') in page


def test_the_page_has_the_numbers_of_the_json_and_the_same_bytes_each_time(
    workshop: Workshop,
) -> None:
    data = [*rows(30), row("same", "a", " a "), row("question 1", "good 1")]
    seen = workshop.run(data)
    page = page_of(workshop)

    assert "32 in = 30 kept + 1 duplicate, 1 identical." in page
    assert "2 broken" in page
    assert seen.result.pairs_digest in page
    assert all(name in page for name in seen.report["expectations"])
    lengths = seen.report["lengths"]
    assert sum(lengths["chosen"]) == sum(lengths["rejected"]) == 30
    workshop.run_pinned()
    assert page_of(workshop) == page


def test_sources_add_up_to_what_was_kept_also_after_the_merge(workshop: Workshop) -> None:
    workshop.run(
        {"x.jsonl": rows(30), "ask.jsonl": [{"prompt": f"only asked {n}"} for n in range(40)]}
    )
    seen = workshop.merge([])

    kept = sum(told.get("kept", 0) for told in seen.report["by_source"].values())
    assert kept == seen.result.counts.num_kept == 30


def test_lengths_fall_into_the_bins_that_numpy_puts_them_in(workshop: Workshop) -> None:
    data = [row(f"q{n}", "x" * (n + 1), "y" * (n * n + 1)) for n in range(40)]

    lengths = workshop.run(data).report["lengths"]

    edges = np.array(lengths["edges"])
    assert edges[0] == 1
    assert edges[-1] == pytest.approx(39 * 39 + 2)
    assert lengths["rejected"] == np.histogram([n * n + 1 for n in range(40)], edges)[0].tolist()
    assert edges[1:] / edges[:-1] == pytest.approx(edges[1])


def test_a_page_is_there_where_the_data_are_rejected(workshop: Workshop) -> None:
    with pytest.raises(DataRejected):
        workshop.run([row("q", "same", "same")] * 3)

    assert "0 of 3 rows kept" in page_of(workshop)
    assert "chosen and rejected say the same" in page_of(workshop)
