"""The pair contract: disk gives back what was written, under ids that anybody can compute."""

import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dpoflow.contracts.pairs import (
    Message,
    PreferencePair,
    Prompt,
    Provenance,
    Quality,
    Source,
    Vote,
    Writer,
    read_jsonl,
    read_parquet,
    with_system,
    write_jsonl,
    write_parquet,
)

WRITABLE = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
"""Text that UTF-8 can carry: anything but half a surrogate pair."""


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


SOURCE = Source(dataset="faq", row="faq.jsonl:3", licence="CC-BY-4.0")
BARE = PreferencePair(
    prompt=(user("Wie spät?"),),
    chosen=assistant("Zwölf."),
    rejected=assistant("Spät."),
    source=SOURCE,
)
FULL = PreferencePair(
    prompt=(Message(role="system", content="Be kind."), user("q"), assistant("a"), user("q2")),
    chosen=assistant("yes\n\tand\u2028no"),
    rejected=assistant("🙂"),
    label="tie",
    margin=0.1,
    votes=(
        Vote(annotator="human", verdict="tie"),
        Vote(annotator="j", order="chosen_first", verdict="chosen", score=-1e-9, rationale="why"),
    ),
    source=SOURCE,
    provenance=Provenance(
        chosen=Writer(generator="g", sampling='{"top_p":1.0}', seed=2**40),
        rejected=Writer(generator="h", sampling="{}", seed=1),
        judge="j",
        requests=("k",),
    ),
    quality=Quality(chosen_chars=9, rejected_chars=1),
    split="heldout",
    slice="billing",
)


@pytest.mark.parametrize("pair", [BARE, FULL], ids=["bare", "full"])
def test_a_pair_survives_parquet_and_jsonl(pair: PreferencePair, tmp_path: Path) -> None:
    assert write_parquet([pair, pair], PreferencePair, tmp_path / "p.parquet") == 2
    assert write_jsonl([pair], tmp_path / "p.jsonl") == 1

    assert list(read_parquet(tmp_path / "p.parquet", PreferencePair)) == [pair, pair]
    assert list(read_jsonl(tmp_path / "p.jsonl", PreferencePair)) == [pair]


@pytest.mark.parametrize("reference", [None, "", "an answer"])
def test_a_prompt_survives_parquet_and_jsonl(reference: str | None, tmp_path: Path) -> None:
    prompt = Prompt(prompt=(user("q"),), reference=reference, source=SOURCE, split="heldout")
    write_parquet([prompt], Prompt, tmp_path / "p.parquet")
    write_jsonl([prompt], tmp_path / "p.jsonl")

    assert list(read_parquet(tmp_path / "p.parquet", Prompt)) == [prompt]
    assert list(read_jsonl(tmp_path / "p.jsonl", Prompt)) == [prompt]


def test_no_pairs_make_a_parquet_file_with_the_whole_schema(tmp_path: Path) -> None:
    assert write_parquet([], PreferencePair, tmp_path / "p.parquet") == 0

    assert list(read_parquet(tmp_path / "p.parquet", PreferencePair)) == []
    assert set(pq.read_schema(tmp_path / "p.parquet").names) == set(PreferencePair.model_fields)


def test_more_pairs_than_a_batch_come_back_in_order(tmp_path: Path) -> None:
    pairs = [BARE.model_copy(update={"slice": str(number)}) for number in range(10)]
    write_parquet(pairs, PreferencePair, tmp_path / "p.parquet", batch=3)

    back = read_parquet(tmp_path / "p.parquet", PreferencePair, batch=4)

    assert [pair.slice for pair in back] == [str(number) for number in range(10)]


@given(asked=WRITABLE, chosen=WRITABLE, rejected=WRITABLE)
def test_a_pair_id_is_sha256_of_its_plain_json(asked: str, chosen: str, rejected: str) -> None:
    pair = PreferencePair(
        prompt=(user(asked),), chosen=assistant(chosen), rejected=assistant(rejected), source=SOURCE
    )

    content = {
        "prompt": [{"role": "user", "content": asked}],
        "chosen": chosen,
        "rejected": rejected,
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert pair.pair_id == hashlib.sha256(text.encode()).hexdigest()


def test_the_id_of_one_pair_is_known_for_good() -> None:
    # By sha256sum, of the JSON with sorted keys, no blanks and its umlauts as they are.
    # Another hash would part every new run from every old one.
    assert BARE.pair_id == "cf2511994ab7b08e2e248be87dcc8d508c40f8b6591a44a3fd86942e0aafcb3c"


def test_where_a_pair_came_from_is_no_part_of_its_id() -> None:
    moved = BARE.model_copy(update={"source": Source(dataset="other", row="1")})

    assert PreferencePair.model_validate(moved.model_dump()).pair_id == BARE.pair_id


def test_the_same_question_has_one_id_as_prompt_and_in_a_pair() -> None:
    assert Prompt(prompt=BARE.prompt, source=SOURCE).prompt_id == BARE.prompt_id


@pytest.mark.parametrize(
    "change",
    [
        {"chosen": {"role": "assistant", "content": "Eins."}},
        {"rejected": {"role": "assistant", "content": "Eins."}},
        {"prompt": [{"role": "user", "content": "Wie spät? "}]},
        {"pair_id": "0" * 64},
    ],
    ids=["chosen", "rejected", "prompt", "id"],
)
def test_a_pair_that_was_edited_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="does not match the content"):
        PreferencePair.model_validate({**BARE.model_dump(), **change})


@pytest.mark.parametrize(
    "prompt",
    [
        [],
        [("assistant", "a")],
        [("user", "q"), ("assistant", "a")],
        [("user", "q"), ("user", "q")],
        [("user", "q"), ("system", "s"), ("user", "q")],
        [("system", "s")],
    ],
)
def test_a_prompt_that_is_no_conversation_is_refused(prompt: list[tuple[str, str]]) -> None:
    turns = [{"role": role, "content": content} for role, content in prompt]

    with pytest.raises(ValidationError):
        Prompt.model_validate({"prompt": turns, "source": SOURCE.model_dump()})


def test_a_user_cannot_be_the_one_who_answers() -> None:
    with pytest.raises(ValidationError, match="assistant"):
        PreferencePair(
            prompt=(user("q"),), chosen=user("a"), rejected=assistant("b"), source=SOURCE
        )


def test_a_field_nobody_knows_is_refused() -> None:
    with pytest.raises(ValidationError, match="extra"):
        PreferencePair.model_validate({**BARE.model_dump(), "chosen_score": 3})


def test_a_system_message_is_put_only_where_there_is_none_and_makes_another_prompt() -> None:
    source = Source(dataset="d", row="1")
    bare = Prompt(prompt=(user("Why?"),), source=source)

    told = with_system(bare, "Be brief.")

    assert isinstance(told, Prompt)
    assert [turn.role for turn in told.prompt] == ["system", "user"]
    assert told.prompt_id != bare.prompt_id
    assert with_system(told, "Be long.") == told
    assert with_system(bare, None) == bare
