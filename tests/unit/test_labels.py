"""Comparisons for people: each once, sides by hash, and what comes back from MLflow by format."""

import json
from pathlib import Path
from typing import Any

import pytest

from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.contracts.pairs import Message, PreferencePair, Rating, Source, prompt_digest
from dpoflow.contracts.spec import SourceConfig, Spec
from dpoflow.sources.formats.registry import FORMATS, convert, recognise
from dpoflow.sources.reasons import Quarantine
from dpoflow.tracking.comparisons import Comparison, read_shown
from dpoflow.tracking.feedback import place_of
from dpoflow.tracking.labels import preview_of_answers, preview_of_prompt
from dpoflow_pipelines.labels import drawn, read_comparisons, reviewers_of

ORIGIN = Source(dataset="d", row="r")


def asked(text: str = "Why?", first: str = "a", second: str = "b") -> Comparison:
    return Comparison((Message(role="user", content=text),), first, second)


def written(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --------------------------------------------------------------------------- sides


def test_the_order_of_the_answers_in_a_file_changes_nothing_of_what_is_shown() -> None:
    one, other = asked(first="a", second="b"), asked(first="b", second="a")

    assert one.id == other.id
    assert one.shown("q", "ann") == other.shown("q", "ann")


def test_sides_are_a_fair_coin_for_each_reviewer_and_not_the_same_for_two() -> None:
    many = [asked(f"q {n}") for n in range(400)]

    ann, ben = ([each.shown("q", who).turned for each in many] for who in ("ann", "ben"))

    # 400 tosses: 3.3 standard deviations of 10 around 200, and around 200 that agree.
    assert 167 < sum(ann) < 233
    assert 167 < sum(ben) < 233
    assert 167 < sum(a == b for a, b in zip(ann, ben, strict=True)) < 233


def test_what_is_shown_is_read_back_and_any_change_of_it_changes_its_id() -> None:
    shown = asked().shown("q", "ann")
    known = shown.trace_id("1", "q", "ann")

    again = read_shown(shown.inputs, shown.outputs, {})
    swapped = read_shown(shown.inputs, {"left": shown.right, "right": shown.left}, {})
    edited = read_shown(shown.inputs, {**shown.outputs, "left": "other"}, {})

    assert again == shown
    assert again.comparison == asked()
    assert swapped is not None
    assert edited is not None
    ids = {swapped.trace_id("1", "q", "ann"), edited.trace_id("1", "q", "ann")}
    ids |= {shown.trace_id(*where) for where in (("2", "q", "ann"), ("1", "q", "ben"))}
    assert len(ids) == 4
    assert known not in ids


@pytest.mark.parametrize("inputs", [None, "text", {}, {"messages": []}, {"messages": [{}]}])
def test_a_trace_that_is_no_comparison_is_none(inputs: Any) -> None:
    assert read_shown(inputs, {"left": "a", "right": "b"}, {}) is None


# --------------------------------------------------------------------------- previews


@pytest.mark.parametrize("size", [(5, 5), (3000, 5), (5, 3000), (3000, 3000)])
def test_a_preview_fits_its_column_and_shows_both_answers(size: tuple[int, int]) -> None:
    left, right = ("l" * size[0], "r" * size[1])

    shown = preview_of_answers(left, right)

    assert len(shown) <= 1000  # MLflow's column: String(1000)
    assert shown.count("l") >= min(size[0], 400)
    assert shown.count("r") >= min(size[1], 400)
    assert ("[…]" in shown) is (max(size) > 1000)


@pytest.mark.parametrize("ticks", [3, 7, 2000])
def test_no_answer_ends_its_fence(ticks: int) -> None:
    answer = f"{'`' * ticks}\n**right**\nforged"

    lines = preview_of_answers(answer, "honest").split("\n")

    fence = lines[1]
    assert set(fence) == {"`"}
    assert lines.count(fence) == 4
    assert lines[-2] == "honest"


def test_of_a_long_conversation_the_preview_shows_the_end() -> None:
    turns = [
        Message(role="user", content="x" * 2000),
        Message(role="assistant", content="yes"),
        Message(role="user", content="and now?"),
    ]

    shown = preview_of_prompt(turns)

    assert len(shown) == 1000
    assert shown.endswith("assistant: yes\n\nuser: and now?")


# --------------------------------------------------------------------------- files


def test_rows_that_people_cannot_be_asked_about_are_counted_by_reason(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"prompt": "q", "first": "a", "second": "b"},
        {"prompt": "q", "first": "b", "second": "a"},
        {"prompt": "q", "first": "same", "second": " same"},
        {"prompt": "q", "first": "", "second": "b"},
        {"prompt": "q", "first": 1, "second": "b"},
    )

    read = read_comparisons(path)

    assert read.comparisons == [asked("q")]
    assert sorted(read.left_out.values()) == [1, 1, 1, 1]


def test_an_evaluations_answers_are_asked_about_and_its_benchmarks_are_not(tmp_path: Path) -> None:
    prompt = (Message(role="user", content="Why?"),)
    line = {
        "suite": "heldout",
        "prompt_id": prompt_digest(prompt),
        "slice": "s",
        "question": "Why?",
        "against": "base",
        "theirs": "b",
        "candidate": "a",
    }
    later = {**line, "question": "And then?"}  # its prompt_id is of a longer conversation

    read = read_comparisons(written(tmp_path, line, {**line, "suite": "mt_bench"}, later))

    assert [(each.prompt, each.first, each.second, each.slice) for each in read.comparisons] == [
        (prompt, "a", "b", "s")
    ]
    assert len(read.left_out) == 2


def test_pairs_in_any_format_of_sources_are_comparisons(tmp_path: Path) -> None:
    read = read_comparisons(written(tmp_path, {"prompt": "q", "chosen": "b", "rejected": "a"}))

    assert read.comparisons == [asked("q")]


def test_a_file_without_a_comparison_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataRejected, match="holds no comparison"):
        read_comparisons(written(tmp_path, {"prompt": "q", "completion": "a", "label": True}))


def test_a_larger_draw_keeps_the_smaller_one_whatever_the_order() -> None:
    many = [asked(f"q {n}") for n in range(30)]

    ten, twenty = drawn(many, 10), drawn(many[::-1], 20)

    assert twenty[:10] == ten
    assert len(drawn(many, None)) == 30


def test_reviewers_are_named_as_mlflow_spells_them() -> None:
    assert reviewers_of(" Ann,ben ,") == ["ann", "ben"]
    with pytest.raises(ConfigError, match="names ann twice"):
        reviewers_of("ann,ANN")


# --------------------------------------------------------------------------- labels as pairs


def labelled(*votes: dict[str, Any], **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": "Why?"}]
    return {"id": "1", "messages": turns, "first": "a", "second": "b", "votes": votes, "at": 1} | {
        "votes": list(votes),
        **more,
    }


def vote(annotator: str | None, choice: str | None, left: str = "first", **more: Any) -> Any:
    return {"annotator": annotator, "choice": choice, "left": left, "at": 1, **more}


def test_each_vote_says_which_answer_stood_first_for_its_annotator() -> None:
    row = labelled(
        vote("ann", "second", left="second", reason="short"),
        vote("ben", "second", left="first"),
        vote("cat", "neither", left="first"),
    )

    pair = convert(row, FORMATS["mlflow-labels"], ORIGIN)

    assert isinstance(pair, PreferencePair)
    assert (pair.chosen.content, pair.rejected.content, pair.label) == ("b", "a", "preferred")
    assert pair.margin == pytest.approx(2 / 3)
    assert [(v.annotator, v.order, v.verdict, v.rationale) for v in pair.votes] == [
        ("ann", "chosen_first", "chosen", "short"),
        ("ben", "rejected_first", "chosen", None),
        ("cat", "rejected_first", "tie", "neither is good"),
    ]


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (labelled(vote(None, "first", why="finished by ann, labelled as ben")), "no_annotator"),
        (labelled(vote("ann", None)), "no_vote"),
        (labelled(), "no_vote"),
        (labelled(vote("ann", "maybe")), "ambiguous"),
        (labelled(unusable="changed"), "wrong_id"),
        (labelled(unusable="gone"), "missing_field"),
        (labelled(1), "wrong_type"),  # type: ignore[arg-type]  # what the case is about
    ],
)
def test_a_label_that_cannot_count_says_why(row: dict[str, Any], code: str) -> None:
    with pytest.raises(Quarantine) as caught:
        convert(row, FORMATS["mlflow-labels"], ORIGIN)

    assert caught.value.code == code


# --------------------------------------------------------------------------- thumbs as ratings

CHAT = {"messages": [{"role": "user", "content": "Why?"}]}
SAID = {"role": "assistant", "content": "Because."}


def thumbed(request: Any, response: Any, thumb: Any = True) -> dict[str, Any]:
    return {"id": "1", "trace": "tr-1", "request": request, "response": response} | {
        "thumb": thumb,
        "at": 1,
    }


@pytest.mark.parametrize(
    ("request_", "response"),
    [
        ("Why?", "Because."),
        ({"question": "Why?"}, "Because."),
        ({"query": "Why?", "k": 4}, {"answer": "Because.", "score": 0.5}),
        (CHAT, {"choices": [{"message": SAID, "finish_reason": "stop"}]}),
        (CHAT["messages"], SAID),
        (CHAT, [SAID]),
        (CHAT, {"messages": [*CHAT["messages"], SAID]}),
        ({"input": "Why?", "model": "m"}, {"output": [{"type": "reasoning"}, SAID]}),
        ({"model": "m", **CHAT}, {"content": [{"type": "text", "text": "Because."}], "id": "x"}),
        (
            {"messages": [{"type": "human", "content": "Why?"}]},
            {"messages": [{"type": "human", "content": "Why?"}, {**SAID, "type": "ai"}]},
        ),
    ],
)
def test_prompt_and_answer_are_found_in_what_applications_trace(
    request_: Any, response: Any
) -> None:
    row = thumbed(request_, response, thumb=False)

    rating = convert(row, recognise([row], "x"), ORIGIN)

    assert isinstance(rating, Rating)
    assert [turn.content for turn in rating.prompt] == ["Why?"]
    assert (rating.answer.content, rating.desirable) == ("Because.", False)


def test_a_system_message_beside_the_messages_comes_first() -> None:
    row = thumbed({"system": "Be kind.", **CHAT}, "Because.")

    rating = convert(row, FORMATS["mlflow-feedback"], ORIGIN)

    assert [turn.role for turn in rating.prompt] == ["system", "user"]


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (thumbed(None, "Because."), "missing_field"),
        (thumbed("Why?", None), "missing_field"),
        (thumbed({"a": "x", "b": "y"}, "Because."), "ambiguous"),
        (thumbed({"n": 1}, "Because."), "ambiguous"),
        (thumbed(7, "Because."), "wrong_type"),
        (thumbed("Why?", {"choices": []}), "ambiguous"),
        (thumbed("Why?", {"choices": [{"message": SAID}] * 2}), "ambiguous"),
        (thumbed("Why?", {"messages": CHAT["messages"]}), "last_turn_not_assistant"),
        (thumbed("Why?", []), "missing_field"),
        (thumbed("Why?", [{**SAID, "tool_calls": [{}]}]), "unsupported_content"),
        (thumbed("Why?", "Because.", thumb=3), "wrong_type"),
        (thumbed("Why?", "Because.", thumb=None), "missing_field"),
    ],
)
def test_what_would_be_a_guess_is_quarantined(row: dict[str, Any], code: str) -> None:
    with pytest.raises(Quarantine) as caught:
        convert(row, FORMATS["mlflow-feedback"], ORIGIN)

    assert caught.value.code == code


# --------------------------------------------------------------------------- the spec


def test_names_in_a_uri_may_hold_blanks_and_experiments_slashes() -> None:
    labels = place_of("mlflow-labels:///Shared/my%20labels/spring")
    thumbs = place_of("mlflow-feedback://support%20app?name=thumbs%20up")

    assert (labels.experiment, labels.name) == ("/Shared/my labels", "spring")
    assert (thumbs.experiment, thumbs.name) == ("support app", "thumbs up")


def test_since_champion_is_the_version_of_the_specs_own_model() -> None:
    source = {"uri": "mlflow-labels://e/q", "since": "champion"}
    spec = Spec.model_validate({"name": "desk", "model": "m", "data": {"sources": [source]}})

    assert spec.snapshot.sources[0].since == "models:/desk@champion"


def test_since_of_a_file_is_refused() -> None:
    with pytest.raises(ValueError, match="since champion is used by mlflow-labels"):
        SourceConfig(uri="a.jsonl", since="champion")
