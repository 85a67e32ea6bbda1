"""Whatever a row holds, an adapter answers with a pair, a prompt or a reason."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.test_adapters_formats import SOUND

from dpoflow.contracts.errors import DataRejected
from dpoflow.contracts.pairs import PreferencePair, Prompt, Source
from dpoflow.contracts.spec import FormatName
from dpoflow.sources.checks import check
from dpoflow.sources.formats.registry import FORMATS, convert, recognise
from dpoflow.sources.reasons import REASONS, Quarantine
from dpoflow.validate.excerpt import MAX_CHARS, of_item, of_row, plain

ORIGIN = Source(dataset="d", row="d:1")
KEYS = sorted(set().union(*(form.reads for form in FORMATS.values())))
TEXT = st.text(max_size=12) | st.sampled_from(
    ["user", "human", "Why?", " ", "\n\nHuman: a\n\nAssistant: b", "\n\nAssistant:", "\ud800"]
)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.just(10**400)
ROLE = st.sampled_from(["user", "assistant", "system", "human", "gpt", "tool"]) | SCALAR
PART = st.fixed_dictionaries(
    {}, optional={"type": st.just("text"), "text": SCALAR, "value": SCALAR}
)
CONTENT = SCALAR | st.lists(PART, max_size=2)
TURN = st.fixed_dictionaries(
    {},
    optional={"role": ROLE, "content": CONTENT, "from": ROLE, "value": CONTENT,
              "tool_calls": SCALAR},
)  # fmt: skip
VALUE = SCALAR | TURN | st.lists(TURN | SCALAR, max_size=4)
ROW = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), VALUE, max_size=6)

CHAT = st.lists(
    st.builds(lambda role, content: {"role": role, "content": content},
              st.sampled_from(["user", "assistant", "system"]), TEXT),
    max_size=4,
)  # fmt: skip
NEARLY = st.fixed_dictionaries(
    {"prompt": CHAT | TEXT, "chosen": CHAT | TEXT, "rejected": CHAT | TEXT},
    optional={"score_chosen": SCALAR, "score_rejected": SCALAR, "slice": TEXT, "source": VALUE},
)


def places(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every value inside `value` stands."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(
        value, list) else ()  # fmt: skip
    for key, each in inside:
        yield (*path, key)
        yield from places(each, (*path, key))


@st.composite
def altered(draw: st.DrawFn, names: tuple[str, ...] = tuple(FORMATS)) -> dict[str, Any]:
    """A sound row in which up to two values, wherever they stand, went away or became others."""
    row: Any = deepcopy(draw(st.sampled_from([row for name, row in SOUND if name in names])))
    for _ in range(draw(st.integers(0, 2))):
        if not (found := list(places(row))):
            break
        *way, last = draw(st.sampled_from(found))
        inside = row
        for step in way:
            inside = inside[step]
        if draw(st.booleans()):
            inside[last] = draw(VALUE | st.sampled_from([inside[at] for at in _keys(inside)]))
        else:
            del inside[last]
    return dict(row)


def _keys(value: Any) -> list[Any]:
    return list(value) if isinstance(value, dict) else list(range(len(value)))


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=150)
@given(row=ROW | NEARLY | altered())
def test_an_adapter_gives_a_row_or_a_reason(name: FormatName, row: dict[str, Any]) -> None:
    answer = answer_to(row, name)

    if isinstance(answer, Quarantine):
        assert answer.code in REASONS
        assert plain(answer.detail).isprintable()
    else:
        assert isinstance(answer, PreferencePair | Prompt)
        assert type(answer).model_validate_json(answer.model_dump_json()) == answer
        assert of_item(answer).isprintable()


@pytest.mark.parametrize("name", ["argilla", "label-studio"])
@settings(max_examples=400)
@given(drawn=st.data())
def test_annotations_of_any_shape_give_a_vote_or_a_reason(
    name: FormatName, drawn: st.DataObject
) -> None:
    row = drawn.draw(altered((name,)))
    answer = answer_to(row, name)

    if isinstance(answer, PreferencePair):
        votes = [vote.verdict for vote in answer.votes if vote.verdict != "invalid"]
        assert votes
        assert answer.margin == abs(votes.count("chosen") - votes.count("rejected")) / len(votes)
        used = FORMATS[name].reads.union(FORMATS[name].also_reads(row))
        assert convert({key: row[key] for key in row if key in used}, FORMATS[name], ORIGIN)
    else:
        assert isinstance(answer, Quarantine)
        assert plain(answer.detail).isprintable()


def answer_to(row: dict[str, Any], name: FormatName) -> PreferencePair | Prompt | Quarantine:
    try:
        item = convert(row, FORMATS[name], ORIGIN)
        check(item, max_chars=1000)
    except Quarantine as refusal:
        return refusal
    return item


@settings(max_examples=100)
@given(rows=st.lists(ROW | NEARLY | altered(), max_size=25))
def test_recognising_names_a_format_or_rejects(rows: list[Any]) -> None:
    fitting = [2 * sum(map(form.fits, rows[:20])) > len(rows[:20]) for form in FORMATS.values()]

    if sum(fitting) == 1:
        assert recognise(rows, "x") == list(FORMATS.values())[fitting.index(True)]
    else:
        with pytest.raises(DataRejected, match=r"^[\x20-\x7e]"):
            recognise(rows, "x")


@settings(max_examples=100)
@given(row=VALUE | ROW)
def test_an_excerpt_is_short_and_plain(row: object) -> None:
    glimpse = of_row(row)

    assert len(glimpse) <= MAX_CHARS
    assert glimpse.isprintable()


def test_an_excerpt_cannot_play_with_the_terminal() -> None:
    glimpse = of_row({"a": "\x1b[31mred\u202e\x00\ud800", "b": "x" * 10**6})

    assert glimpse.isprintable()
    assert len(glimpse) <= 200


@settings(max_examples=100)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: "Human:" not in text and "Assistant:" not in text and text.strip() == text),
    min_size=2, max_size=6), other=st.just("another answer"))  # fmt: skip
def test_a_transcript_of_any_turns_comes_back_turn_by_turn(texts: list[str], other: str) -> None:
    """Written as hh-rlhf writes it: blank line, speaker, colon, blank, text."""
    texts = texts[: len(texts) // 2 * 2]
    speakers = ["Human", "Assistant"] * 3

    def transcript(said: list[str]) -> str:
        return "".join(f"\n\n{who}: {what}" for who, what in zip(speakers, said, strict=False))

    row = {"chosen": transcript(texts), "rejected": transcript([*texts[:-1], other])}

    pair = convert(row, FORMATS["hh-rlhf"], ORIGIN)

    assert isinstance(pair, PreferencePair)
    assert [turn.content for turn in pair.prompt] == texts[:-1]
    assert (pair.chosen.content, pair.rejected.content) == (texts[-1], other)
