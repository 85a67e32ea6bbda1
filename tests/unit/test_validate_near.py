"""Near prompts are never parted: every pair that the definition calls near is in one cluster.

What is expected comes from the definition, written down here once more and tried on every pair.
"""

import itertools
import random
import re
import string
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.workshop import Workshop, row

from dpoflow.validate.near import alike, clusters
from dpoflow.validate.runs import Batch

PARTED = (
    "please a write while snow snow short calm pier wait seven very much sea please",
    "please a write while snow snow short calm pier wait seven very much sea today",
)
"""An earlier version trained on one and held the other out."""
SUPPORT = (
    "how can i change the address on my order before it ships out why was card charged twice this "
    "month what do you need to cancel subscription and get money back for item that never arrived "
    "where is parcel tracking page says delivered but nothing came when will refund reach account "
    "help me reset password email not work since update phone app keeps closing login page says "
    "error please tell who should contact about warranty repair broken screen new laptop wrong fit "
    "shoes want exchange them larger pair different colour could someone explain invoice extra fee"
).split()


@cache
def runs(text: str) -> set[str]:
    """Of five characters; a shorter text is one run."""
    return {text[at : at + 5] for at in range(len(text) - 4)} if len(text) > 5 else {text}


@cache
def numbers(text: str) -> list[str]:
    return re.findall(r"\d+", text)


def jaccard(left: str, right: str) -> float:
    common = len(runs(left) & runs(right))
    return common / (len(runs(left)) + len(runs(right)) - common)


def is_near(left: str, right: str, least: float) -> bool:
    return numbers(left) == numbers(right) and jaccard(left, right) >= least


def by_brute_force(texts: Sequence[str], least: float) -> list[int]:
    """The smallest of each one's connected component, by trying all pairs until nothing changes."""
    parts = [{item} for item in range(len(texts))]
    for one, other in itertools.combinations(range(len(texts)), 2):
        if is_near(texts[one], texts[other], least):
            joined = [part for part in parts if one in part or other in part]
            parts = [part for part in parts if part not in joined] + [set().union(*joined)]
    found = {item: min(part) for part in parts for item in part}
    return [found[item] for item in range(len(texts))]


def clustered(texts: Sequence[str], least: float, folder: Path) -> list[int]:
    return clusters(
        lambda: texts,
        texts.__getitem__,
        least,
        np.arange(len(texts)),
        folder / "near",
    ).tolist()


# ---------------------------------------------------------------- the definition


def test_near_is_the_papers_similarity_of_runs_of_five() -> None:
    whole = " ".join(random.Random(1).choices(SUPPORT, k=20))  # noqa: S311 no secret
    for cut in range(0, 60, 3):
        part = whole[cut:]
        assert alike(whole, part, 0.8) == (jaccard(whole, part) >= 0.8)


def test_what_differs_in_a_number_is_not_near() -> None:
    asked = "Please compute {} plus {} and explain every single step of the way to me"

    assert alike(asked.format(23, 45), asked.format(23, 45) + "!", 0.8)
    assert not alike(asked.format(23, 45), asked.format(23, 46), 0.8)


# ---------------------------------------------------------------- every near pair


def test_two_that_were_once_parted_are_on_one_side(workshop: Workshop) -> None:
    assert jaccard(*PARTED) == pytest.approx(0.878, abs=5e-4)
    others = [row(" ".join(random.Random(seed).choices(SUPPORT, k=12))) for seed in range(40)]  # noqa: S311

    for seed in range(6):  # at 0.4 some seed draws one and not the other
        seen = workshop.run([*map(row, PARTED), *others], heldout_fraction=0.4, seed=seed)
        where = {pair.split for pair in seen.pairs if pair.prompt[0].content in PARTED}
        assert len(where) == 1, seed


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def near_pair(dice: random.Random, number: int, least: float) -> tuple[str, str]:
    """A question of 5 to 40 words and one with a word or two replaced, put in or left out."""
    while True:
        words = dice.choices(SUPPORT, k=dice.randint(5, 40))
        changed = list(words)
        for _ in range(dice.choice((1, 1, 2))):
            at = dice.randrange(len(changed))
            changed[at : at + dice.randint(0, 1)] = dice.choices(SUPPORT, k=dice.randint(0, 1))
        # The number keeps pairs apart, so that none is found by way of another.
        one, other = (f"{' '.join(each)} {number}" for each in (words, changed))
        if one != other and is_near(one, other, least):
            return one, other


@pytest.mark.parametrize("least", [0.5, 0.7, 0.8, 0.9, 0.95])
def test_of_ten_thousand_near_questions_none_is_missed(least: float, tmp_path: Path) -> None:
    """Two thousand at each of five thresholds."""
    dice = random.Random(least)  # noqa: S311
    pairs = [near_pair(dice, number, least) for number in range(2_000)]
    texts = sorted({text for pair in pairs for text in pair}, key=len)

    found = dict(zip(texts, clustered(texts, least, tmp_path), strict=True))

    assert [pair for pair in pairs if found[pair[0]] != found[pair[1]]] == []
    assert len(set(found.values())) == len(pairs)


WORDS = st.sampled_from(["a", "ab", "aba", "the", "them", "sea", "7", "12", "été", "日本", "🙂"])
TEXTS = st.one_of(
    st.lists(WORDS, max_size=30).map(" ".join),
    st.text("ab", max_size=60),
    st.text("aé日🙂 1", max_size=12),
)


@settings(max_examples=150)
@given(texts=st.lists(TEXTS, max_size=24), least=st.floats(0.5, 1))
def test_clusters_are_the_connected_components_of_what_is_near(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], least: float
) -> None:
    texts.sort(key=len)

    found = clustered(texts, least, tmp_path_factory.mktemp("near"))

    assert found == by_brute_force(texts, least)


@settings(max_examples=60)
@given(
    text=st.lists(WORDS, min_size=5, max_size=40).map(" ".join),
    edits=st.lists(st.tuples(st.integers(0, 200), st.sampled_from(["", "x", "the "])), max_size=6),
    least=st.floats(0.5, 1),
)
def test_a_text_and_what_it_became_step_by_step_hang_together_as_far_as_they_are_near(
    tmp_path_factory: pytest.TempPathFactory, text: str, edits: list[tuple[int, str]], least: float
) -> None:
    texts = [text]
    for at, put in edits:
        last = texts[-1]
        texts.append(last[:at] + put + last[at + 1 :])
    texts.sort(key=len)

    found = clustered(texts, least, tmp_path_factory.mktemp("near"))

    assert found == by_brute_force(texts, least)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("least", [0.5, 0.8, 0.95])
def test_rows_of_one_template_with_few_words_are_told_apart_as_defined(
    seed: int, least: float, tmp_path: Path
) -> None:
    dice = random.Random(seed)  # noqa: S311
    template = " ".join(dice.choices(SUPPORT, k=(0, 3, 10, 30, 60, 120)[seed]))
    texts = [
        f"{template} {' '.join(dice.choices(SUPPORT[:8], k=dice.randint(0, 14)))}"
        for _ in range(160)
    ]
    texts.sort(key=len)

    assert clustered(texts, least, tmp_path) == by_brute_force(texts, least)


@pytest.mark.parametrize("seed", range(12))
def test_families_of_questions_that_were_changed_again_and_again_are_told_apart_as_defined(
    seed: int, tmp_path: Path
) -> None:
    dice = random.Random(seed)  # noqa: S311
    words = SUPPORT[: dice.choice((4, 12, 90))]
    texts = list[str]()
    for _ in range(160):
        one = dice.choices(words, k=dice.randint(3, 40))
        if texts and dice.random() < 0.7:
            one = dice.choice(texts).split()
        for _ in range(dice.randint(0, 3)):
            at = dice.randrange(len(one))
            one[at : at + dice.randint(0, 1)] = dice.choices(words, k=1)
        texts.append(" ".join(one))
    texts.sort(key=len)

    for least in (0.6, 0.8, 0.9, dice.uniform(0.5, 1)):
        assert clustered(texts, least, tmp_path) == by_brute_force(texts, least)


@pytest.mark.parametrize("letters", ["ab", "abc", string.ascii_lowercase])
def test_texts_that_are_tangles_of_the_same_characters_are_told_apart_as_defined(
    letters: str, tmp_path: Path
) -> None:
    """Of few letters there are thousands of ways to go on: such texts are looked up by less."""
    dice = random.Random(letters)  # noqa: S311
    texts = list[str]()
    for _ in range(60):
        one = dice.choices(letters, k=300)
        for _ in range(3):
            one[dice.randrange(300)] = dice.choice(letters)
            at, to = sorted(dice.sample(range(300), 2))
            one = one[at:to] + one[:at] + one[to:]
            texts.append("".join(one))

    for least in (0.5, 0.8, 0.9):
        assert clustered(texts, least, tmp_path) == by_brute_force(texts, least)


def test_what_is_joined_for_another_reason_stays_so(tmp_path: Path) -> None:
    texts = ["alpha beta gamma", "wholly different words", "alpha beta gammas"]

    found = clusters(lambda: texts, texts.__getitem__, 1, np.array([0, 0, 2]), tmp_path / "near")

    assert found.tolist() == [0, 0, 2]
    assert clustered(texts, 0.8, tmp_path) == [0, 1, 0]
    assert clustered([], 0.8, tmp_path) == []
    assert clustered(["alone"], 0.8, tmp_path) == [0]


@settings(max_examples=100)
@given(texts=st.lists(TEXTS, min_size=2, max_size=8), bits=st.sampled_from([64, 256, 1024]))
def test_sketches_never_differ_in_more_bits_than_texts_do_in_runs(
    texts: list[str], bits: int
) -> None:
    sets = [{each[at : at + 5] for at in range(max(1, len(each) - 4))} for each in texts]
    batch = Batch(texts, np.zeros(len(texts), np.uint64))
    sketches = batch.sketches(bits)

    assert batch.sizes.tolist() == list(map(len, sets))
    for one, other in itertools.combinations(range(len(texts)), 2):
        differ = int(np.bitwise_count(sketches[one] ^ sketches[other]).sum())
        assert differ <= len(sets[one] ^ sets[other])


def test_twins_among_hundreds_of_one_template_meet(workshop: Workshop) -> None:
    asked = "Please tell me all about the state of my order with the order number {}"
    told = [f"{asked.format(10_000 + number)}{end}" for number in range(400) for end in "?!"]

    seen = workshop.run([row(each.replace("!", ", please?")) for each in told])

    assert seen.report["near"]["num_clusters"] == 400


def test_clusters_do_not_hang_on_the_order_of_rows(workshop: Workshop, tmp_path: Path) -> None:
    dice = random.Random(3)  # noqa: S311
    texts = [text for number in range(40) for text in near_pair(dice, number, 0.8)]
    names = []
    for at in range(2):
        dice.shuffle(texts)
        seen = Workshop(tmp_path / str(at)).run(list(map(row, texts)))
        names.append({pair.prompt_id: pair.quality.cluster for pair in seen.pairs if pair.quality})

    assert names[0] == names[1]
    assert len(set(names[0].values())) == 40
