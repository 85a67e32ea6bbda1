"""Each format as its publisher writes it, and each way a row of it can be broken.

The rows are written out here from the formats' own documentation, never produced by an adapter.
"""

from typing import Any, get_args

import pytest

from dpoflow.contracts.errors import DataRejected
from dpoflow.contracts.pairs import PreferencePair, Prompt, Source
from dpoflow.contracts.spec import FormatName
from dpoflow.sources.formats.registry import FORMATS, convert, recognise
from dpoflow.sources.reasons import REASONS, Code, Quarantine

ORIGIN = Source(dataset="d", row="d.jsonl:1", licence="MIT")
Row = dict[str, Any]


def turn(role: str, content: object) -> Row:
    return {"role": role, "content": content}


def said(speaker: str, value: object) -> Row:
    return {"from": speaker, "value": value}


def part(text: str) -> list[Row]:
    return [{"type": "text", "value": text}]


ASKED, GOOD, BAD = turn("user", "Why?"), turn("assistant", "Because."), turn("assistant", "No.")
CANONICAL: Row = {
    "schema_version": 1,
    "prompt": [ASKED],
    "chosen": GOOD,
    "rejected": BAD,
    "source": {"dataset": "old", "row": "7", "licence": "CC0"},
}
HH: Row = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: Because.",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: No.",
}
TRL_TEXT: Row = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
TRL_TEXT_IMPLICIT: Row = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
TRL_CHAT: Row = {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]}
TRL_CHAT_IMPLICIT: Row = {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}
ULTRA: Row = {
    "prompt": "Why?",
    "prompt_id": "f0e37e9f",
    "chosen": [ASKED, GOOD],
    "rejected": [ASKED, BAD],
    "messages": [ASKED, GOOD],
    "score_chosen": 8.5,
    "score_rejected": 6.0,
}
SHAREGPT: Row = {
    "conversations": [said("system", "Be brief."), said("human", "Why?")],
    "chosen": said("gpt", "Because."),
    "rejected": said("gpt", "No."),
}
FACTORY_V1: Row = {
    "chosen_messages": [
        {**turn("user", part("Why?")), "loss_weight": 0.0},
        {**turn("assistant", part("Because.")), "loss_weight": 1.0},
    ],
    "rejected_messages": [turn("user", part("Why?")), turn("assistant", part("No."))],
}
PROMPTS: Row = {"prompt": "Why?", "gold": "Because.", "slice": "billing"}
PROMPTS_CHAT: Row = {"prompt": [turn("system", "Be brief."), ASKED]}
SHP: Row = {
    "post_id": "q1",
    "domain": "askphysics_train",
    "history": "Why?",
    "human_ref_A": "No.",
    "human_ref_B": "Because.",
    "labels": 0,
    "score_A": 12,
    "score_B": 34,
    "upvote_ratio": 0.93,
}
SUMMARY: Row = {
    "info": {"id": "t3", "post": "It broke.", "title": "Lamp", "subreddit": "AskReddit"},
    "summaries": [{"text": "No.", "policy": "ref"}, {"text": "Because.", "policy": "sup4"}],
    "choice": 1,
    "worker": "w7",
    "batch": "batch9",
    "split": "train",
    "extra": {"confidence": 8},
}
NEWS: Row = {**SUMMARY, "info": {"id": "n", "article": "Rain fell.", "site": "cnndm"}}
VOTES: Row = {
    "idx": 7,
    "motivation_app": "Gmail",
    "instruction": "Shorten.",
    "input": "It rains a lot.",
    "response1": "No.",
    "response2": "Because.",
    "annotator1": 2,
    "annotator2": 0,
    "annotator3": 2,
}


def said_by(user: str, value: object, **more: object) -> Row:
    return {"value": value, "user_id": user, **more}


def ranks(first: int, second: int) -> list[Row]:
    return [{"value": "response1", "rank": first}, {"value": "response2", "rank": second}]


# Argilla: `Settings.for_ranking` names the fields, `Record.to_dict` and `to_list` the rest.
FIELDS: Row = {"instruction": "Why?", "response1": "No.", "response2": "Because."}
ARGILLA: Row = {
    "id": "r1",
    "_server_id": "6f",
    "status": "completed",
    "fields": FIELDS,
    "metadata": {"source": "web", "slice": "billing"},
    "suggestions": {"preference": {"value": "response1", "score": 0.9, "agent": "gpt"}},
    "responses": {
        "preference": [said_by("ann", "response2")],
        "why": [said_by("ann", "It answers.")],
    },
    "vectors": {},
}
ARGILLA_RANKED: Row = {**ARGILLA, "responses": {"ranking": [said_by("ann", ranks(2, 1))]}}
ARGILLA_RATED: Row = {  # distilabel's PreferenceToArgilla
    **ARGILLA,
    "fields": {
        "id": "sha", "instruction": "Why?", "generations-0": "No.", "generations-1": "Because."
    },
    "responses": {
        "generations-0-rating": [said_by("ann", 2)],
        "generations-1-rating": [said_by("ann", 5)],
        "generations-0-rationale": [said_by("ann", "Too short.")],
    },
}  # fmt: skip
ARGILLA_SERVER: Row = {  # a record of the HTTP API, with include=responses
    **{key: ARGILLA[key] for key in ("id", "status", "fields", "metadata")},
    "external_id": None,
    "responses": [
        {"user_id": "ann", "status": "submitted", "values": {"ranking": {"value": ranks(2, 1)}}},
        {"user_id": "bob", "status": "discarded", "values": None},
    ],
}
ARGILLA_FLAT: Row = {
    "id": "r1",
    "status": "pending",
    "_server_id": "6f",
    **FIELDS,
    "turns": 3,
    "preference.responses": ["response2", "response1", "response2"],
    "preference.responses.users": ["ann", "bob", "cem"],
    "preference.responses.status": ["submitted", "discarded", "submitted"],
    "preference.suggestion": "response1",
    "preference.suggestion.score": None,
    "preference.suggestion.agent": "gpt",
}


def task(data: Row, *annotations: Row) -> Row:
    return {"id": 1, "data": data, "annotations": list(annotations), "drafts": [], "project": 3}


def annotated(who: object, value: Row | None, kind: str = "pairwise", **more: object) -> Row:
    """As labelstud.io/guide/task_format shows an annotation."""
    name = "comparison" if kind == "pairwise" else "rank"
    result = [] if value is None else [
        {"from_name": name, "to_name": name, "id": "x", "type": kind, "value": value}
    ]  # fmt: skip
    return {"id": 9, "completed_by": who, "was_cancelled": False, "result": result, **more}


ANSWERS: Row = {"prompt": "Why?", "answer1": "No.", "answer2": "Because."}
RIGHT, LEFT = {"selected": "right"}, {"selected": "left"}
ITEMS: Row = {
    "prompt": "Why?",
    "items": [
        {"id": "a", "title": "A", "body": "No."},
        {"id": "b", "title": "B", "body": "Because."},
    ],
}
STUDIO: Row = task(ANSWERS, annotated(7, RIGHT))
STUDIO_RANKED: Row = task(ITEMS, annotated(7, {"ranker": {"rank": ["b", "a"]}}, "ranker"))
STUDIO_LISTED: Row = task(ITEMS, annotated(7, {"ranker": ["b", "a"]}, "ranker"))

LABELLED: Row = {
    "id": "1",
    "messages": [{"role": "user", "content": "Why?"}],
    "first": "Because.",
    "second": "No idea.",
    "votes": [{"annotator": "ann", "choice": "first", "left": "second", "at": 1}],
    "at": 1,
}

SOUND: list[tuple[FormatName, Row]] = [
    ("canonical", CANONICAL),
    ("hh-rlhf", HH),
    ("trl", TRL_TEXT),
    ("trl", TRL_TEXT_IMPLICIT),
    ("trl", TRL_CHAT),
    ("trl", TRL_CHAT_IMPLICIT),
    ("ultrafeedback", ULTRA),
    ("sharegpt", SHAREGPT),
    ("sharegpt", FACTORY_V1),
    ("prompts", PROMPTS),
    ("prompts", PROMPTS_CHAT),
    ("shp", SHP),
    ("summaries", SUMMARY),
    ("summaries", NEWS),
    ("votes", VOTES),
    ("argilla", ARGILLA),
    ("argilla", ARGILLA_RANKED),
    ("argilla", ARGILLA_RATED),
    ("argilla", ARGILLA_SERVER),
    ("argilla", ARGILLA_FLAT),
    ("label-studio", STUDIO),
    ("label-studio", STUDIO_RANKED),
    ("label-studio", STUDIO_LISTED),
    ("mlflow-labels", LABELLED),
]


def pair_of(name: FormatName, row: Row) -> PreferencePair:
    made = convert(row, FORMATS[name], ORIGIN)
    assert isinstance(made, PreferencePair)
    return made


def prompt_of(row: Row) -> Prompt:
    made = convert(row, FORMATS["prompts"], ORIGIN)
    assert isinstance(made, Prompt)
    return made


def talk(item: PreferencePair | Prompt) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in item.prompt]


def code_of(name: FormatName, row: Any) -> Code:
    with pytest.raises(Quarantine) as caught:
        convert(row, FORMATS[name], ORIGIN)
    return caught.value.code


# ---------------------------------------------------------------- sound rows


@pytest.mark.parametrize(
    ("name", "row", "prompt"),
    [
        ("canonical", CANONICAL, [("user", "Why?")]),
        ("hh-rlhf", HH, [("user", "Hi"), ("assistant", "Hello"), ("user", "Why?")]),
        ("trl", TRL_CHAT, [("user", "Why?")]),
        ("trl", TRL_CHAT_IMPLICIT, [("user", "Why?")]),
        ("ultrafeedback", ULTRA, [("user", "Why?")]),
        ("sharegpt", SHAREGPT, [("system", "Be brief."), ("user", "Why?")]),
        ("sharegpt", FACTORY_V1, [("user", "Why?")]),
        ("shp", SHP, [("user", "Why?")]),
        ("summaries", SUMMARY,
         [("user", "SUBREDDIT: r/AskReddit\n\nTITLE: Lamp\n\nPOST: It broke.\n\nTL;DR:")]),
        ("summaries", NEWS, [("user", "Article:\nRain fell.\n\nTL;DR:")]),
        ("votes", VOTES, [("user", "Shorten.\n\nIt rains a lot.")]),
        ("argilla", ARGILLA, [("user", "Why?")]),
        ("argilla", ARGILLA_RANKED, [("user", "Why?")]),
        ("argilla", ARGILLA_RATED, [("user", "Why?")]),
        ("argilla", ARGILLA_SERVER, [("user", "Why?")]),
        ("argilla", ARGILLA_FLAT, [("user", "Why?")]),
        ("label-studio", STUDIO, [("user", "Why?")]),
        ("label-studio", STUDIO_RANKED, [("user", "Why?")]),
        ("label-studio", STUDIO_LISTED, [("user", "Why?")]),
    ],
)  # fmt: skip
def test_the_same_preference_is_the_same_pair_in_every_format(
    name: FormatName, row: Row, prompt: list[tuple[str, str]]
) -> None:
    pair = pair_of(name, row)

    assert talk(pair) == prompt
    assert (pair.chosen.content, pair.rejected.content) == ("Because.", "No.")
    assert pair.label == "preferred"


def test_upvotes_give_the_margin_and_the_domain_its_slice() -> None:
    pair = pair_of("shp", SHP)

    assert (pair.margin, pair.slice) == (22.0, "askphysics_train")


def test_a_workers_vote_is_kept_with_its_confidence() -> None:
    (vote,) = pair_of("summaries", SUMMARY).votes

    assert (vote.annotator, vote.verdict, vote.score) == ("w7", "chosen", 8.0)


@pytest.mark.parametrize("choice", [1.0, "1"])
def test_whole_numbers_are_known_as_tables_write_them(choice: object) -> None:
    assert pair_of("summaries", {**SUMMARY, "choice": choice}).chosen.content == "Because."
    assert pair_of("shp", {**SHP, "labels": choice, "score_A": 90}).chosen.content == "No."


@pytest.mark.parametrize(
    ("said", "label", "chosen", "margin"),
    [
        ((2, 0, 2), "preferred", "Because.", 2 / 3),
        ((1, 1, 2), "preferred", "No.", 1 / 3),
        ((1, 1, 1), "preferred", "No.", 1.0),
        ((0, 0, 1), "tie", "No.", 1 / 3),
        ((0, 0, 0), "tie", "No.", 0.0),
        ((0, 1, 2), "inconsistent", "No.", 0.0),
        ((2, 2, ""), "preferred", "Because.", 1.0),
        ((1.0, 1.0, 2.0), "preferred", "No.", 1 / 3),
        ((2, 0, None), "inconsistent", "Because.", 0.5),
        (("2", "2", "1"), "preferred", "Because.", 1 / 3),
    ],
)
def test_more_than_half_of_all_votes_decide(
    said: tuple[object, ...], label: str, chosen: str, margin: float
) -> None:
    pair = pair_of("votes", {**VOTES, **{f"annotator{n + 1}": v for n, v in enumerate(said)}})

    assert (pair.label, pair.chosen.content) == (label, chosen)
    assert pair.margin == pytest.approx(margin)
    assert len(pair.votes) == sum(vote not in (None, "") for vote in said)


def argilla_of(*responses: Row, **more: object) -> Row:
    return {**ARGILLA, "responses": {"preference": list(responses)}, **more}


def submitted(user: str, value: object) -> Row:
    return said_by(user, value, status="submitted")


@pytest.mark.parametrize(
    ("name", "row", "label", "chosen", "verdicts"),
    [
        ("argilla", ARGILLA_FLAT, "preferred", "Because.", ["chosen", "invalid", "chosen"]),
        ("argilla", ARGILLA_SERVER, "preferred", "Because.", ["chosen", "invalid"]),
        ("argilla", argilla_of(*(submitted(who, "response1") for who in "ab"),
                               submitted("c", "response2")),
         "preferred", "No.", ["chosen", "chosen", "rejected"]),
        ("argilla", argilla_of(submitted("a", "response1"), submitted("b", "response2")),
         "inconsistent", "No.", ["chosen", "rejected"]),
        ("argilla", argilla_of(submitted("a", ranks(1, 1))), "tie", "No.", ["tie"]),
        ("argilla", {**ARGILLA, "responses": {"preference": [said_by("a", "response1")],
                                              "why": None}},
         "preferred", "No.", ["chosen"]),
        ("argilla", argilla_of(submitted("a", ranks(1, 2)), said_by("b", None, status="draft")),
         "preferred", "No.", ["chosen", "invalid"]),
        ("argilla", argilla_of(submitted("a", ranks(1, 2)),
                               said_by("b", ranks(2, 1), status="discarded")),
         "preferred", "No.", ["chosen", "invalid"]),
        ("argilla", {**ARGILLA_RATED, "responses": {
            "generations-0-rating": [submitted("a", 4), submitted("b", 4)],
            "generations-1-rating": [submitted("a", 4), submitted("c", 5)]}},
         "tie", "No.", ["tie", "invalid", "invalid"]),
        ("label-studio", task(ANSWERS, annotated(1, LEFT), annotated(2, LEFT), annotated(3, RIGHT)),
         "preferred", "No.", ["chosen", "chosen", "rejected"]),
        ("label-studio", task(ANSWERS, annotated(1, LEFT), annotated(2, RIGHT)),
         "inconsistent", "No.", ["chosen", "rejected"]),
        ("label-studio", task(ANSWERS, annotated(1, RIGHT), annotated(2, None),
                              annotated(3, LEFT, was_cancelled=True)),
         "preferred", "Because.", ["chosen", "invalid", "invalid"]),
    ],
)  # fmt: skip
def test_annotators_decide_as_voters_do_and_unfinished_votes_are_counted(
    name: FormatName, row: Row, label: str, chosen: str, verdicts: list[str]
) -> None:
    pair = pair_of(name, row)

    assert (pair.label, pair.chosen.content) == (label, chosen)
    assert [vote.verdict for vote in pair.votes] == verdicts


def test_an_annotator_is_a_number_and_never_an_address() -> None:
    person = {"id": 7, "email": "ann@example.org", "first_name": "Ann"}

    (vote,) = pair_of("label-studio", task(ANSWERS, annotated(person, RIGHT))).votes

    assert vote.annotator == "7"


def test_a_comparison_that_names_its_fields_is_taken_at_its_word() -> None:
    named = annotated(7, LEFT)
    named["result"][0]["to_name"] = "mine, theirs"
    data = {"prompt": "Why?", "theirs": "No.", "mine": "Because."}

    assert pair_of("label-studio", task(data, named)).chosen.content == "Because."


def test_a_prompt_may_be_a_chat() -> None:
    chat = [turn("system", "Be brief."), ASKED]

    for name, row in (
        ("argilla", {**ARGILLA, "fields": {**FIELDS, "instruction": chat}}),
        ("label-studio", task({**ANSWERS, "prompt": chat}, annotated(7, RIGHT))),
    ):
        assert talk(pair_of(name, row)) == [("system", "Be brief."), ("user", "Why?")]  # type: ignore[arg-type]


def test_metadata_may_name_the_slice() -> None:
    assert pair_of("argilla", ARGILLA).slice == "billing"
    assert pair_of("argilla", {**ARGILLA_FLAT, "slice": "sales"}).slice == "sales"
    assert pair_of("label-studio", task({**ANSWERS, "slice": "web"}, annotated(7, LEFT))).slice == (
        "web"
    )


def test_a_flat_row_tells_which_of_its_columns_are_read() -> None:
    used = {*FORMATS["argilla"].reads, *FORMATS["argilla"].also_reads(ARGILLA_FLAT)}

    assert set(ARGILLA_FLAT) - used == {
        "turns",
        *(f"preference.suggestion{each}" for each in ("", ".score", ".agent")),
    }


@pytest.mark.parametrize(
    ("name", "row", "told"),
    [
        ("argilla", {**ARGILLA, "fields": {"question": "Why?", "response1": "a", "response2": "b"}},
         "fields: question, response1, response2; questions: preference, why"),
        ("argilla", {**ARGILLA, "fields": {**FIELDS, "context": "Rain."}}, "context"),
        ("argilla", {**ARGILLA_RANKED, "fields": {**FIELDS, "context": "Rain."}},
         "context may be part of the prompt"),
        ("argilla", argilla_of(said_by("a", "response1"), said_by("b", "response1")),
         "export with to_datasets() or to_list(flatten=True)"),
        ("argilla", argilla_of(submitted("a", ["response2", "response1"])),
         "names without ranks, in the order of its options"),
        ("label-studio", task({"prompt": "Why?", "left": "a", "right": "b"}, annotated(7, LEFT)),
         "fields: prompt, left, right"),
        ("label-studio", task({"text": "Why?", "answer1": "a", "answer2": "b"}, annotated(7, LEFT)),
         "fields: text, answer1, answer2"),
    ],
)  # fmt: skip
def test_what_would_be_a_guess_names_what_was_found(name: FormatName, row: Row, told: str) -> None:
    with pytest.raises(Quarantine) as caught:
        convert(row, FORMATS[name], ORIGIN)

    assert caught.value.code == "ambiguous"
    assert told in caught.value.detail


def test_trl_text_keeps_the_answers_as_they_are_and_asks_in_one_user_turn() -> None:
    pair = pair_of("trl", TRL_TEXT)

    assert talk(pair) == [("user", "The sky is")]
    assert (pair.chosen.content, pair.rejected.content) == (" blue.", " green.")


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "answers"),
    [
        # TRL's own example in "Dataset formats"
        ("The sky is blue.", "The sky is green.", "The sky is", ("blue.", "green.")),
        # the answers begin alike: a character more would split the word
        ("Say: blackbird", "Say: blackberry", "Say:", ("blackbird", "blackberry")),
        # a word that only one text goes on with is no part of the prompt
        ("Say: black", "Say: blackberry", "Say:", ("black", "blackberry")),
        ("Q? yes", "Q? yes, sir", "Q?", ("yes", "yes, sir")),
        ("Q: why?\nA: so", "Q: why?\nA: no", "Q: why?\nA:", ("so", "no")),
        # one answer goes on where the other stops: then it is blank, which validate refuses
        ("Tell me more", "Tell me", "Tell me", ("more", "")),
    ],
)
def test_an_implicit_text_prompt_ends_at_a_word(
    chosen: str, rejected: str, prompt: str, answers: tuple[str, str]
) -> None:
    pair = pair_of("trl", {"chosen": chosen, "rejected": rejected})

    assert talk(pair) == [("user", prompt)]
    assert (pair.chosen.content, pair.rejected.content) == answers


@pytest.mark.parametrize("name", ["ultrafeedback", "trl"])
def test_scores_give_the_margin(name: FormatName) -> None:
    row = ULTRA if name == "ultrafeedback" else {**TRL_CHAT_IMPLICIT, "score_chosen": 8.5,
                                                 "score_rejected": 6}  # fmt: skip

    assert pair_of(name, row).margin == 2.5


def test_equal_scores_are_a_tie_because_the_publisher_drew_at_random() -> None:
    pair = pair_of("ultrafeedback", {**ULTRA, "score_rejected": 8.5})

    assert (pair.label, pair.margin) == ("tie", 0.0)


def test_without_scores_there_is_no_margin() -> None:
    row = {key: value for key, value in ULTRA.items() if not key.startswith("score")}

    assert pair_of("ultrafeedback", row).margin is None


def test_a_system_field_becomes_the_first_turn() -> None:
    row = {**SHAREGPT, "conversations": [said("human", "Why?")], "system": "Be kind."}

    assert talk(pair_of("sharegpt", row)) == [("system", "Be kind."), ("user", "Why?")]


def test_hh_rlhfs_prompt_is_not_the_common_beginning_of_its_texts() -> None:
    row = {
        "chosen": "\n\nHuman: Why?\n\nAssistant: I think so.",
        "rejected": "\n\nHuman: Why?\n\nAssistant: I think not.",
    }

    pair = pair_of("hh-rlhf", row)

    assert talk(pair) == [("user", "Why?")]
    assert (pair.chosen.content, pair.rejected.content) == ("I think so.", "I think not.")


def test_a_prompt_carries_its_human_answer_and_its_slice() -> None:
    prompt = prompt_of(PROMPTS)

    assert (talk(prompt), prompt.reference, prompt.slice) == (
        [("user", "Why?")],
        "Because.",
        "billing",
    )


@pytest.mark.parametrize("gold", [None, "", "  \n"])
def test_a_blank_gold_answer_is_none(gold: str | None) -> None:
    assert prompt_of({"prompt": "Why?", "gold": gold}).reference is None


def test_a_canonical_row_keeps_where_it_first_came_from() -> None:
    assert pair_of("canonical", CANONICAL).source.dataset == "old"


@pytest.mark.parametrize(("name", "row"), SOUND[1:])
def test_every_other_row_says_where_it_came_from(name: FormatName, row: Row) -> None:
    assert convert(row, FORMATS[name], ORIGIN).source == ORIGIN


# ---------------------------------------------------------------- broken rows


def without(row: Row, key: str) -> Row:
    return {name: value for name, value in row.items() if name != key}


@pytest.mark.parametrize(
    ("name", "row", "code"),
    [
        # a field that is absent, null or of another type
        ("canonical", without(CANONICAL, "rejected"), "missing_field"),
        ("canonical", {**CANONICAL, "margin": "much"}, "wrong_type"),
        ("canonical", {**CANONICAL, "label": "good"}, "wrong_type"),
        ("canonical", {**CANONICAL, "sorce": {}}, "unknown_field"),
        ("canonical", {**CANONICAL, "schema_version": 2}, "wrong_version"),
        ("canonical", {**CANONICAL, "pair_id": "0" * 64}, "wrong_id"),
        ("canonical", {**CANONICAL, "votes": [{"annotator": "\ud800", "verdict": "tie"}]},
         "lone_surrogate"),
        ("canonical", {**CANONICAL, "chosen": ASKED}, "last_turn_not_assistant"),
        ("hh-rlhf", without(HH, "chosen"), "missing_field"),
        ("hh-rlhf", {**HH, "chosen": None}, "missing_field"),
        ("hh-rlhf", {**HH, "chosen": 3}, "wrong_type"),
        ("trl", without(TRL_TEXT, "rejected"), "missing_field"),
        ("trl", {**TRL_TEXT, "chosen": [GOOD]}, "wrong_type"),
        ("trl", {**TRL_TEXT, "prompt": ["Why?"]}, "wrong_type"),
        ("trl", {**TRL_CHAT, "prompt": "Why?"}, "wrong_type"),
        ("trl", {**TRL_CHAT, "chosen": ["Because."]}, "wrong_type"),
        ("trl", {**TRL_CHAT, "chosen": [{"role": "assistant"}]}, "missing_field"),
        ("ultrafeedback", without(ULTRA, "prompt"), "missing_field"),
        ("ultrafeedback", {**ULTRA, "score_chosen": "8"}, "wrong_type"),
        ("ultrafeedback", {**ULTRA, "score_chosen": float("nan")}, "wrong_type"),
        ("ultrafeedback", {**ULTRA, "score_chosen": 10**400}, "wrong_type"),
        ("sharegpt", without(SHAREGPT, "conversations"), "missing_field"),
        ("sharegpt", {**SHAREGPT, "chosen": "Because."}, "wrong_type"),
        ("sharegpt", without(FACTORY_V1, "rejected_messages"), "missing_field"),
        ("prompts", {"gold": "x"}, "missing_field"),
        ("prompts", {"prompt": 3}, "wrong_type"),
        ("prompts", {"prompt": "q", "gold": 3}, "wrong_type"),
        ("prompts", {"prompt": "q", "slice": ["a"]}, "wrong_type"),
        ("prompts", {"prompt": "q", "slice": "s" * 101}, "wrong_type"),
        ("prompts", {**TRL_TEXT}, "unknown_field"),
        # who speaks, and when
        ("trl", {**TRL_CHAT, "chosen": [turn("bot", "x")]}, "unknown_role"),
        ("sharegpt", {**SHAREGPT, "chosen": said("function_call", "{}")}, "unknown_role"),
        ("sharegpt", {**SHAREGPT, "tools": "[{}]"}, "unsupported_content"),
        ("sharegpt", {**SHAREGPT, "images": ["a.png"]}, "unsupported_content"),
        ("trl", {**TRL_CHAT, "chosen": [{**GOOD, "tool_calls": [1]}]}, "unsupported_content"),
        ("trl", {**TRL_CHAT, "chosen": [GOOD, ASKED, GOOD]}, "unsupported_content"),
        ("trl", {**TRL_CHAT, "prompt": [turn("user", [{"type": "image"}])]}, "unsupported_content"),
        ("trl", {**TRL_CHAT, "prompt": [ASKED, GOOD]}, "last_turn_not_user"),
        ("trl", {**TRL_CHAT, "chosen": []}, "last_turn_not_assistant"),
        ("trl", {**TRL_CHAT, "prompt": [ASKED, ASKED]}, "roles_do_not_alternate"),
        ("trl", {**TRL_CHAT, "prompt": [ASKED, turn("system", "s"), ASKED]}, "system_not_first"),
        ("prompts", {"prompt": [turn("system", "s")]}, "empty_prompt"),
        ("prompts", {"prompt": []}, "empty_prompt"),
        ("sharegpt", {**SHAREGPT, "conversations": [said("human", "a"), said("gpt", "b")]},
         "last_turn_not_user"),
        ("sharegpt", {**SHAREGPT, "system": "a second one"}, "system_not_first"),
        ("sharegpt", {**SHAREGPT, "chosen": said("human", "x")}, "last_turn_not_assistant"),
        # hh-rlhf's known traps
        ("hh-rlhf", {**HH, "chosen": "Hi there"}, "not_a_transcript"),
        ("hh-rlhf", {**HH, "chosen": "Note.\n\nHuman: a\n\nAssistant: b"}, "not_a_transcript"),
        ("hh-rlhf", {**HH, "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c"},
         "last_turn_not_assistant"),
        ("hh-rlhf", {"chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c",
                     "rejected": "\n\nHuman: a\n\nHuman: b\n\nAssistant: d"},
         "roles_do_not_alternate"),
        ("hh-rlhf", {**HH, "rejected": "\n\nHuman: Why?\n\nAssistant: No."}, "prompts_differ"),
        ("hh-rlhf", {**HH, "rejected": HH["rejected"].replace("Hello", "Hallo")}, "prompts_differ"),
        # two conversations that are not one
        ("trl", {**TRL_CHAT_IMPLICIT, "chosen": [turn("user", "What?"), GOOD]}, "prompts_differ"),
        ("ultrafeedback", {**ULTRA, "prompt": "Something else"}, "prompts_differ"),
        ("sharegpt", {**FACTORY_V1, "rejected_messages": [turn("user", "x"), BAD]},
         "prompts_differ"),
        ("trl", {"chosen": "alpha beta", "rejected": "gamma beta"}, "no_common_prompt"),
        ("trl", {"chosen": "alphabet", "rejected": "alphorn"}, "no_common_prompt"),
        ("trl", {"chosen": "", "rejected": "x"}, "no_common_prompt"),
        ("ultrafeedback", {**ULTRA, "score_chosen": 1.0}, "scores_contradict"),
        # labels that say nothing, or two things
        ("shp", {**SHP, "labels": 1}, "scores_contradict"),
        ("shp", {**SHP, "labels": 2}, "wrong_type"),
        ("shp", {**SHP, "labels": True}, "wrong_type"),
        ("shp", {**SHP, "score_B": 1e308, "score_A": -1e308}, "scores_contradict"),
        ("shp", {**SHP, "labels": 10**5000}, "wrong_type"),
        ("votes", {**VOTES, "annotator1": 10**5000}, "wrong_type"),
        ("shp", {**SHP, "score_A": "12"}, "wrong_type"),
        ("shp", without(SHP, "history"), "missing_field"),
        ("summaries", {**SUMMARY, "choice": 2}, "wrong_type"),
        ("summaries", {**SUMMARY, "choice": None}, "missing_field"),
        ("summaries", {**SUMMARY, "summaries": [{"text": "a"}]}, "wrong_type"),
        ("summaries", {**SUMMARY, "summaries": ["a", "b"]}, "wrong_type"),
        ("summaries", {**SUMMARY, "info": {"post": "a", "title": "b"}}, "missing_field"),
        ("summaries", {**SUMMARY, "extra": {"confidence": "high"}}, "wrong_type"),
        ("votes", {**VOTES, "annotator2": 3}, "wrong_type"),
        ("votes", {**VOTES, "annotator2": "A"}, "wrong_type"),
        ("votes", without(VOTES, "response2"), "missing_field"),
        # annotators who did not finish, or whose vote could mean two things
        ("argilla", {**ARGILLA, "status": "pending"}, "ambiguous"),
        ("argilla", argilla_of(said_by("a", "response1", status="draft")), "no_vote"),
        ("argilla", argilla_of(said_by("a", "response1", status="done")), "wrong_type"),
        ("argilla", argilla_of(submitted("a", "response1"), submitted("a", "response2")),
         "ambiguous"),
        ("argilla", argilla_of(submitted("a", "both"), submitted("b", "response1")), "wrong_type"),
        ("argilla", argilla_of(), "no_vote"),
        ("argilla", {**ARGILLA, "responses": {"preference": "response1"}}, "wrong_type"),
        ("argilla", {**ARGILLA, "responses": {"preference": ["response1"]}}, "wrong_type"),
        ("argilla", {**ARGILLA, "fields": {**FIELDS, "prompt": "What?"}}, "ambiguous"),
        ("argilla", {**ARGILLA, "fields": {**FIELDS, "response3": "c"}}, "ambiguous"),
        ("argilla", {**ARGILLA, "responses": {"helpful": [submitted("a", "response1")],
                                              "honest": [submitted("a", "response2")]}},
         "ambiguous"),
        ("argilla", argilla_of(submitted("a", [*ranks(1, 2), {"value": "response3", "rank": 3}]),
                               fields={**FIELDS, "response3": "c"}), "unsupported_content"),
        ("argilla", argilla_of(submitted("a", [{"value": "x", "rank": 1}])), "ambiguous"),
        ("argilla", argilla_of(submitted("a", ranks(1, 2)[:1])), "unsupported_content"),
        ("argilla", argilla_of(submitted("a", [*ranks(1, 2), *ranks(2, 1)])), "wrong_type"),
        ("argilla", argilla_of(submitted("a", [{"value": "response1", "rank": None},
                                               {"value": "response2", "rank": 1}])),
         "missing_field"),
        ("argilla", {**ARGILLA_RATED, "fields": {"instruction": "Why?", "generations-0": "No."}},
         "unsupported_content"),
        ("argilla", {**ARGILLA_FLAT, "preference.responses.users": ["ann"]}, "wrong_type"),
        ("argilla", without(ARGILLA_FLAT, "preference.responses.status"), "wrong_type"),
        ("argilla", {**ARGILLA_FLAT, "preference.responses": None}, "no_vote"),
        ("argilla", {**ARGILLA, "fields": {**FIELDS, "response1": 3}}, "wrong_type"),
        ("label-studio", task(ANSWERS), "no_vote"),
        ("label-studio", task(ANSWERS, annotated(7, LEFT, was_cancelled=True)), "no_vote"),
        ("label-studio", task(ANSWERS, annotated(7, None)), "no_vote"),
        ("label-studio", task(ANSWERS, annotated(7, {"selected": "none"})), "wrong_type"),
        ("label-studio", task(ANSWERS, annotated(7, LEFT), annotated(7, RIGHT)), "ambiguous"),
        ("label-studio", task(ANSWERS, annotated(None, LEFT)), "wrong_type"),
        ("label-studio", task({**ANSWERS, "answer3": "c"}, annotated(7, LEFT)), "ambiguous"),
        ("label-studio", task(without(ANSWERS, "prompt"), annotated(7, LEFT)), "ambiguous"),
        ("label-studio", task({**ANSWERS, "answer1": None}, annotated(7, LEFT)), "missing_field"),
        ("label-studio", task({**ANSWERS, **ITEMS}, annotated(7, LEFT),
                              annotated(8, {"ranker": ["b", "a"]}, "ranker")), "ambiguous"),
        ("label-studio", task(ANSWERS, {**annotated(7, LEFT),
                                        "result": annotated(7, LEFT)["result"] * 2}), "ambiguous"),
        ("label-studio", task(ITEMS, annotated(7, {"ranker": {"_": ["b"], "best": ["a"]}},
                                               "ranker")), "ambiguous"),
        ("label-studio", task(ITEMS, annotated(7, {"ranker": {"best": ["b", "a"]}}, "ranker")),
         "ambiguous"),
        ("label-studio", task(ITEMS, annotated(7, {"ranker": ["b"]}, "ranker")), "wrong_type"),
        ("label-studio", task({**ITEMS, "items": ITEMS["items"] * 2},
                              annotated(7, {"ranker": ["b", "a"]}, "ranker")),
         "unsupported_content"),
        # text that cannot be written
        ("hh-rlhf", {**HH, "chosen": HH["chosen"] + "\ud83d"}, "lone_surrogate"),
        ("trl", {**TRL_TEXT, "rejected": "\udc00"}, "lone_surrogate"),
        ("prompts", {"prompt": "q", "slice": "\ud800"}, "lone_surrogate"),
    ],
)  # fmt: skip
def test_a_broken_row_says_what_is_broken(name: FormatName, row: Row, code: Code) -> None:
    assert code_of(name, row) == code


def test_every_reason_has_a_sentence_and_every_sentence_a_reason() -> None:
    assert set(REASONS) == set(get_args(Code))
    assert all(sentence[0].islower() and len(sentence) > 20 for sentence in REASONS.values())


# ---------------------------------------------------------------- recognising


@pytest.mark.parametrize(("name", "row"), SOUND)
def test_a_format_is_recognised_from_one_row(name: FormatName, row: Row) -> None:
    assert recognise([row], "x").name == name


@pytest.mark.parametrize(("name", "row"), SOUND)
def test_exactly_one_format_fits_a_sound_row(name: FormatName, row: Row) -> None:
    assert [form.name for form in FORMATS.values() if form.fits(row)] == [name]


def test_every_format_the_spec_offers_is_there() -> None:
    assert {"auto", *FORMATS} == set(get_args(FormatName))


def test_a_few_odd_rows_do_not_hide_the_format() -> None:
    rows = [HH] * 11 + [{**HH, "chosen": ""}] * 5 + [Quarantine("not_an_object")] * 4

    assert recognise(rows, "x").name == "hh-rlhf"


@pytest.mark.parametrize(
    "rows",
    [
        [{"instruction": "a", "output": "b"}],
        [TRL_TEXT, PROMPTS],
        [Quarantine("not_an_object")],
        [{}],
    ],
    ids=["unknown", "mixed", "no objects", "no keys"],
)
def test_what_is_not_clear_is_not_guessed(rows: list[Any]) -> None:
    with pytest.raises(DataRejected, match=r"set data.sources\[\].format") as caught:
        recognise(rows, "x.jsonl")

    message = str(caught.value)
    assert all(name in message for name in FORMATS)
    for row in rows:
        if isinstance(row, dict):
            assert all(key in message for key in row)


def test_hostile_keys_cannot_play_with_the_terminal() -> None:
    with pytest.raises(DataRejected) as caught:
        recognise([{"\x1b[2J\ud800" + "k" * 9000: 1}], "x")

    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1500
