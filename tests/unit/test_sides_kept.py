"""A prompt stays on the side that it was on, whatever data and spec do from night to night."""

import itertools
import random
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import WORDS
from tests.workshop import Row, Seen, Workshop, row

from dpoflow.contracts.manifest import sha256_file
from dpoflow.contracts.pairs import Message, Prompt, Source, write_parquet
from dpoflow.sources.pinned import DataRole, Pinned, read_pinned, write_pinned


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def text(number: int) -> str:
    dice = random.Random(number)  # noqa: S311  # words, not secrets
    return " ".join(dice.choices(WORDS, k=14))


def remember(workshop: Workshop, role: DataRole, texts: Iterable[str]) -> None:
    """As snapshot pins the prompts of an earlier version beside the data."""
    data = workshop.path / "data"
    source = Source(dataset="then", row="1")
    rows = [
        Prompt(prompt=(Message(role="user", content=each),), source=source)
        for each in sorted(texts)
    ]
    draft = data / "draft.parquet"
    write_parquet(rows, Prompt, draft)
    sha256 = sha256_file(draft)
    draft.rename(data / "files" / sha256)
    told = Pinned(
        source="lineage",
        name=f"{role}/prompts.parquet",
        format="canonical",
        licence="unknown",
        sha256=sha256,
        num_bytes=1,
        role=role,
    )
    write_pinned([*read_pinned(data), told], data)


def sides(seen: Seen) -> tuple[set[str], set[str]]:
    """(trained on, held out) by the texts of prompts."""
    found: dict[str, set[str]] = {"train": set(), "heldout": set()}
    for pair in seen.pairs:
        found[pair.split].add(pair.prompt[-1].content)
    return found["train"], found["heldout"]


def night(
    workshop: Workshop,
    rows: list[Row],
    *,
    heldout: Iterable[str] = (),
    learnt: Iterable[str] = (),
    old: list[Row] | None = None,
    **knobs: object,
) -> Seen:
    workshop.write({"x.jsonl": rows, **({"old.jsonl": old} if old else {})})
    for role, texts in (("heldout", heldout), ("learnt", learnt)):
        if texts:
            remember(workshop, role, texts)  # type: ignore[arg-type]
    return workshop.run_pinned(**knobs)


def test_what_was_held_out_stays_so_under_another_seed_and_share(workshop: Workshop) -> None:
    rows = [row(text(number)) for number in range(60)]
    learnt, heldout = sides(night(workshop, rows, heldout_fraction=0.4))

    after = night(workshop, rows, heldout=heldout, learnt=learnt, heldout_fraction=0.1, seed=77)

    assert sides(after) == (learnt, heldout)
    assert len(heldout) > 10


def test_without_that_memory_another_seed_would_train_on_them(workshop: Workshop) -> None:
    rows = [row(text(number)) for number in range(60)]
    _, heldout = sides(night(workshop, rows, heldout_fraction=0.4))

    trained, _ = sides(night(workshop, rows, heldout_fraction=0.1, seed=77))

    assert trained & heldout


def test_what_is_near_a_prompt_of_before_goes_to_its_side_though_that_one_is_gone(
    workshop: Workshop,
) -> None:
    heldout, learnt = {text(number) for number in range(20)}, {text(n) for n in range(20, 40)}
    rows = [row(f"{each} please") for each in sorted(heldout | learnt)]

    seen = night(workshop, rows, heldout=heldout, learnt=learnt, heldout_fraction=0.5)

    assert sides(seen) == (
        {f"{each} please" for each in learnt},
        {f"{each} please" for each in heldout},
    )


def test_what_is_near_both_sides_can_be_on_neither(workshop: Workshop) -> None:
    words = text(3).split()
    held, learnt = " ".join([*words, "today"]), " ".join(["please", *words])
    between = " ".join(words)

    seen = night(
        workshop, [row(held), row(learnt), row(between), row(text(9))],
        heldout={held}, learnt={learnt}, near_similarity=0.8, heldout_fraction=0.01,
    )  # fmt: skip

    trained, kept_out = sides(seen)
    assert held in kept_out
    assert learnt in trained
    assert between not in trained | kept_out
    assert list(seen.codes.values()) == ["leakage"]


def test_an_old_pair_that_was_held_out_before_is_not_replayed(workshop: Workshop) -> None:
    rows = [row(text(number)) for number in range(10)]
    old = [row(text(number)) for number in (50, 51, 52)]

    seen = night(
        workshop, rows, old=old, heldout={text(51)}, replay_per_new=5, heldout_fraction=0.01
    )

    trained, _ = sides(seen)
    assert {text(50), text(52)} <= trained
    assert text(51) not in trained
    assert {row_id: code for row_id, code in seen.codes.items() if "old" in row_id} == {
        "old.jsonl:2": "leakage"
    }


def test_rows_balance_and_what_is_remembered_is_no_row(workshop: Workshop) -> None:
    rows = [row(text(number)) for number in range(10)]

    seen = night(workshop, rows, heldout={text(n) for n in range(100, 130)}, learnt={text(1)})

    assert seen.result.counts.num_in == 10
    assert seen.result.counts.balances()
    assert {each.prompt[-1].content for each in seen.pairs} <= {text(n) for n in range(10)}
    assert seen.report["near"]["of_prompts"] == 10
    told = {each["file"]: each["num_rows"] for each in seen.report["files"]}
    assert told == {"x.jsonl": 10, "heldout/prompts.parquet": 30, "learnt/prompts.parquet": 1}


@settings(max_examples=12)
@given(
    arriving=st.lists(
        st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["", " today", " please"])),
                 min_size=1, max_size=8),
        min_size=2, max_size=4,
    ),
    seeds=st.lists(st.integers(0, 3), min_size=4, max_size=4),
)  # fmt: skip
def test_no_night_ever_trains_on_what_any_night_held_out(
    tmp_path_factory: pytest.TempPathFactory,
    arriving: list[list[tuple[int, str]]],
    seeds: list[int],
) -> None:
    """Each night brings other files, and forgets those of the night before."""
    heldout, learnt = set[str](), set[str]()
    nights = []
    for at, (some, seed) in enumerate(zip(arriving, seeds, strict=False)):
        # Far from all others, one on each side, so that no night is without pairs.
        rows = [row(f"{text(number)}{end}") for number, end in some]
        rows += [row(text(1000 + 20 * at + extra)) for extra in range(4)]
        workshop = Workshop(tmp_path_factory.mktemp("night"))
        seen = night(
            workshop, rows, heldout=heldout, learnt=learnt, heldout_fraction=0.4, seed=seed
        )
        trained, kept_out = sides(seen)
        nights.append((trained, kept_out))
        learnt |= trained
        heldout |= kept_out

    for (trained, _), (_, kept_out) in itertools.product(nights, nights):
        assert trained & kept_out == set()
    for early, late in itertools.combinations_with_replacement(nights, 2):
        for held, one in itertools.product(early[1], late[0]):
            assert likeness(held, one) < 0.8, (held, one)


def likeness(one: str, other: str) -> float:
    left, right = ({each[at : at + 5] for at in range(len(each) - 4)} for each in (one, other))
    return len(left & right) / len(left | right)
