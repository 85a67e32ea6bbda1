"""Validate on what only many rows show: near-copies, contamination, agreement, what texts hold."""

import itertools
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score
from tests.tiny import tiny_tokenizer
from tests.waiting import AT_MOST_S
from tests.workshop import Workshop, row, rows

from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.contracts.pairs import Message, PreferencePair, Source, Vote
from dpoflow.contracts.spec import LANGUAGES, SourceConfig, ValidateConfig
from dpoflow.snapshot import data as snapshot_data
from dpoflow.sources.pinned import Pinned
from dpoflow.sources.reasons import Quarantine
from dpoflow.texts.contamination import GRAM, Evaluations, Overlap
from dpoflow.texts.language import language_of
from dpoflow.validate import crew
from dpoflow.validate.agreement import agreement_of, said
from dpoflow.validate.private import personal_in, secrets_in
from dpoflow.validate.row import Batch

if TYPE_CHECKING:
    from dpoflow.sources.json_rows import Raw

WORDS = (
    "river stone letter garden window market paper silver morning harbour copper engine winter "
    "planet thunder meadow ladder kitchen violin desert pocket anchor marble forest candle island"
).split()


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def text(seed: int, num_words: int = 20) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=num_words))  # noqa: S311 no secret


def sides(pairs: list[PreferencePair]) -> dict[str, set[str]]:
    """Cluster, or the prompt of one by itself, to the sides it is on."""
    found: dict[str, set[str]] = {}
    for pair in pairs:
        assert pair.quality is not None
        found.setdefault(pair.quality.cluster or pair.prompt_id, set()).add(pair.split)
    return found


# ---------------------------------------------------------------- near-copies


def test_near_prompts_are_on_one_side_and_an_old_heldout_one_stays(
    workshop: Workshop, tmp_path: Path
) -> None:
    first = [row(text(seed)) for seed in range(40)]
    more = [row(f"{text(seed)} please") for seed in range(40)]

    before = workshop.run(first, heldout_fraction=0.3)
    after = Workshop(tmp_path / "more").run([*first, *more], heldout_fraction=0.3)

    held = {pair.prompt_id for pair in before.pairs if pair.split == "heldout"}
    still = {pair.prompt_id for pair in after.pairs if pair.split == "heldout"}
    assert 0 < len(held) < 40
    assert held < still  # some of `more` were drawn, and what is near them came along
    assert len(sides(after.pairs)) == 40
    assert all(len(where) == 1 for where in sides(after.pairs).values())
    assert after.report["near"]["num_clusters"] == 40
    assert after.report["near"]["num_prompts"] == 80


def test_conversations_that_begin_alike_are_on_one_side(workshop: Workshop) -> None:
    def turns(seed: int, *further: str) -> list[dict[str, str]]:
        said = [text(seed), *further]
        roles = itertools.cycle(("user", "assistant"))
        return [{"role": role, "content": each} for role, each in zip(roles, said, strict=False)]

    answers = {"chosen": [{"role": "assistant", "content": "a"}]}
    answers["rejected"] = [{"role": "assistant", "content": "b"}]
    data = [
        {"prompt": turns(seed, *further), **answers}
        for seed in range(30)
        for further in ((), ("yes", text(seed + 100)), ("no", text(seed + 200)))
    ]

    seen = workshop.run(data, heldout_fraction=0.4)

    assert len(seen.pairs) == 90
    assert len(sides(seen.pairs)) == 30
    assert all(len(where) == 1 for where in sides(seen.pairs).values())


def test_data_of_one_template_are_not_held_out_as_a_whole(workshop: Workshop) -> None:
    template = f"{text(1, 40)} {{}}"

    data = [row(template.format(word)) for word in WORDS]

    with pytest.raises(DataRejected, match="nearly the same"):
        workshop.run(data)
    assert (workshop.path / "report" / "report.html").is_file()

    seen = workshop.run(data, near_similarity=1)
    assert {pair.split for pair in seen.pairs} == {"train", "heldout"}


# ---------------------------------------------------------------- contamination


def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_not(workshop: Workshop) -> None:
    secret = text(5, 30).split()
    quoted = {num: f"Well, {' '.join(secret[4 : 4 + num]).upper()}. Right?" for num in (12, 13)}

    seen = workshop.run(
        {
            "eval.jsonl": [{"prompt": " ".join(secret)}],
            "x.jsonl": [
                *rows(20),
                row("asks", chosen=quoted[12]),
                row("asks", chosen=quoted[13]),
                row("asks", rejected=quoted[13]),
                row(quoted[13]),
            ],
        }
    )

    assert set(seen.codes) == {"x.jsonl:22", "x.jsonl:23", "x.jsonl:24"}
    assert set(seen.codes.values()) == {"contaminated"}
    assert seen.result.counts.num_in == 24  # the evaluation set is no row that came in
    assert seen.quarantine[0]["detail"].startswith("eval.jsonl: ")


def test_a_short_question_is_found_where_it_is_asked_again(workshop: Workshop) -> None:
    seen = workshop.run(
        {
            "eval.jsonl": [{"prompt": "Why is the sky blue?"}],
            "x.jsonl": [*rows(5), row("why is  the SKY blue"), row("Is the sky blue? Why?")],
        }
    )

    assert seen.codes == {"x.jsonl:6": "contaminated"}


def test_a_set_that_cannot_be_read_stops_the_run(workshop: Workshop) -> None:
    with pytest.raises(DataRejected, match=r"eval\.jsonl:2 of the evaluation set.*asks nothing"):
        workshop.run({"eval.jsonl": [{"prompt": "a"}, {"prompt": 3}], "x.jsonl": rows(5)})


@pytest.mark.parametrize(
    "made",
    [
        {"question_id": 1, "category": "writing", "turns": ["Who was first?", "And who last?"]},
        {"id": "v2", "prompt": "Who was first?", "type": "x", "note": "And who last?"},
        {"messages": [{"role": "user", "content": "Who was first?"}], "label": 1},
        {"instruction": "Who was first?", "output_1": "a", "output_2": "b"},
    ],
)
def test_a_published_set_protects_its_questions_whatever_its_layout(
    workshop: Workshop, made: dict[str, Any]
) -> None:
    """MT-Bench's, XSTest's, chats', LLMBar's."""
    seen = workshop.run(
        {"eval.jsonl": [made], "x.jsonl": [*rows(5), row("who was first"), row("writing")]}
    )

    assert seen.codes == {"x.jsonl:6": "contaminated"}


@pytest.mark.parametrize(
    "made",
    [
        {"prompt": "What do we breathe?", "choices": {"text": ["Oxygen", "Good 3"]}},
        {
            "messages": [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": "Good 3"},
            ]
        },
        {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "Good 3"}]},
        {"prompt": "Good 3"},
    ],
)
def test_an_answer_is_never_taken_for_a_question(workshop: Workshop, made: dict[str, Any]) -> None:
    """ARC's choices; a short answer of a chat; an answer here that is a question there."""
    seen = workshop.run({"eval.jsonl": [made], "x.jsonl": rows(5)})

    assert seen.codes == {}


def test_whoever_a_row_is_about_its_question_counts(workshop: Workshop) -> None:
    made = {"role": "Linux terminal", "prompt": "List the files"}

    seen = workshop.run({"eval.jsonl": [made], "x.jsonl": [*rows(5), row("list the files")]})

    assert seen.codes == {"x.jsonl:6": "contaminated"}


def test_a_question_without_blanks_between_its_words_is_found_inside_another(
    workshop: Workshop,
) -> None:
    asked = "请解释为什么天空在晴朗的日子里看起来是蓝色的"

    seen = workshop.run(
        {"eval.jsonl": [{"prompt": asked}], "x.jsonl": [row(f"请回答 {asked}"), *rows(5)]}
    )

    assert seen.codes == {"x.jsonl:1": "contaminated"}


@settings(max_examples=40)
@given(st.lists(st.lists(st.lists(st.sampled_from("abc"), max_size=30), max_size=3), max_size=6))
def test_overlaps_are_those_that_a_plain_search_finds(told: list[list[list[str]]]) -> None:
    held = Evaluations()
    secret = random.Random(7).choices("abc", k=40)  # noqa: S311 not that kind of secret
    grams = {tuple(secret[at : at + GRAM]) for at in range(40 - GRAM + 1)}
    held.grams = dict.fromkeys(grams, "set")
    planted = [*told, [["x"], secret[3:20]]]

    found = Overlap(held).of([([], [" ".join(each) for each in texts]) for texts in planted])

    expected = [
        any(tuple(each[at : at + GRAM]) in grams for each in texts for at in range(len(each)))
        for texts in planted
    ]
    assert [each is not None for each in found] == expected
    assert found[-1] is not None


def disguised(dice: random.Random, told: list[str]) -> str:
    """The same words in other cases, with other blanks and signs between them."""
    cases = (str.lower, str.upper, str.title)
    signs = (" ", "  ", "\n", ", ", "; ", " - ", "… ", "\u00a0", ") (")
    return "".join(dice.choice(cases)(word) + dice.choice(signs) for word in told)


def test_of_two_thousand_disguised_quotes_none_is_missed_and_nothing_else_is_found() -> None:
    """Twelve words of a set or thirteen, in the midst of words that it does not have."""
    dice = random.Random(13)  # noqa: S311 no secret
    known = [f"known{chr(97 + at % 26)}{at}" for at in range(400)] + [
        "été",
        "straße",
        "ﬁne",
        "\uff21",
    ]
    mine = [f"mine{at}" for at in range(400)]
    held, asked = Evaluations(), [dice.sample(known, 40) for _ in range(50)]
    for words in asked:
        held.add({"prompt": " ".join(words)}, "set")
    quotes = []
    for num in [GRAM, GRAM - 1] * 2_000:
        words, at = dice.choice(asked), dice.randrange(40 - num)
        around = (dice.choices(mine, k=dice.randint(0, 20)) for _ in range(2))
        quotes.append(disguised(dice, [*next(around), *words[at : at + num], *next(around)]))

    found = Overlap(held).of([(["who"], [each]) for each in quotes])

    assert [each is not None for each in found] == [True, False] * 2_000


# ---------------------------------------------------------------- duplicates, contradictions


@pytest.mark.parametrize("seed", range(3))
def test_duplicates_and_contradictions_are_those_that_comparing_all_rows_finds(
    workshop: Workshop, seed: int
) -> None:
    dice = random.Random(seed)  # noqa: S311 no secret
    prompts = ["one", "One", "one ", "another"]  # to compare, other blanks are another prompt
    told = [
        row(dice.choice(prompts), *dice.sample(["yes", "Yes", "no", "perhaps", "no!"], 2))
        for _ in range(120)
    ]

    codes = workshop.run(told, max_quarantined=1.0).codes

    said = [(each["prompt"], each["chosen"], each["rejected"]) for each in told]
    expected = {}
    for at, (prompt, chosen, rejected) in enumerate(said):
        if said[at] in said[:at]:
            expected[f"x.jsonl:{at + 1}"] = "duplicate"
        elif (prompt, rejected, chosen) in said:
            expected[f"x.jsonl:{at + 1}"] = "conflicting"
    assert codes == expected
    assert {*codes.values()} == {"duplicate", "conflicting"}


# ---------------------------------------------------------------- what texts hold

# Put together here, so that no scanner takes this file for a leak.
SECRETS = {
    "AWS Access Key": "AKIA" + "Q3EGVXB7LMNPRST2",
    "GitHub Token": "ghp_" + "a1B2" * 9,
    "Private Key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "Stripe Access Key": "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc",
    "Basic Auth Credentials": "https://user:" + "pa55word@example.com/path",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_is_found_and_never_written_down(workshop: Workshop, kind: str) -> None:
    assert secrets_in(f"use {SECRETS[kind]} for it") >= {kind}

    seen = workshop.run([*rows(5), row("q", chosen=f"use {SECRETS[kind]} for it")])

    assert seen.codes == {"x.jsonl:6": "secret"}
    assert seen.report["findings"][f"secret: {kind}"] == 1
    for path in (workshop.path / "report").iterdir():
        assert SECRETS[kind] not in path.read_text("utf-8")


def test_a_secret_in_a_row_that_is_out_for_another_reason_is_not_shown(workshop: Workshop) -> None:
    key = SECRETS["AWS Access Key"]

    seen = workshop.run([*rows(5), row(key, chosen="same", rejected="same")])

    assert seen.codes == {"x.jsonl:6": "identical"}
    assert key not in (workshop.path / "report" / "quarantine.jsonl").read_text()


@pytest.mark.parametrize("private", ["650-253-0000", "DE89 3704 0044 0532 0130 00"])
def test_what_begins_a_line_is_hidden_too(workshop: Workshop, private: str) -> None:
    workshop.run([*rows(5), row(f"Call or pay\n{private}", chosen="")])

    for path in (workshop.path / "report").iterdir():
        assert private not in path.read_text("utf-8"), path.name


def test_no_detail_slice_or_annotator_tells_what_is_private(workshop: Workshop) -> None:
    phone, mail, quoted = "650-253-0000", "jane.doe@example.com", text(5, 20)
    votes = [{"annotator": name, "order": "unordered", "verdict": "chosen"} for name in (mail, "b")]
    workshop.run(
        {
            "eval.jsonl": [{"prompt": f"{phone} {quoted}"}],
            "x.jsonl": [
                *rows(5),
                row(f"Mine: {phone} {quoted}"),
                {"prompt": [{"role": mail, "content": "x"}], "chosen": "a", "rejected": "b"},
                row("of a slice", slice=f"of {mail}"),
                row("seen by two", votes=votes),
            ],
        },
        max_quarantined=1.0,
    )

    for path in (workshop.path / "report").iterdir():
        shown = path.read_text("utf-8")
        assert phone not in shown, path.name
        assert mail not in shown, path.name


@pytest.mark.parametrize(
    ("said", "kinds"),
    [
        ("write to jane.doe+x@example.co.uk today", {"mail"}),
        ("call (650) 253-0000", {"phone"}),  # a number that Google publishes
        ("call +44 20 7031 3000", {"phone"}),
        (
            "call 650 - 253 - 0000, 650\N{NON-BREAKING HYPHEN}253\N{NON-BREAKING HYPHEN}0000",
            {"phone"},
        ),
        ("call (650)\N{NO-BREAK SPACE}253\N{EN DASH}0000", {"phone"}),
        ("pay with 4111 1111 1111 1111", {"card"}),  # Visa's test number
        ("pay with 4111 1111 1111 1111.", {"card"}),
        ("pay with 4111 1111 1111 1112", set()),  # its check digit is wrong
        ("pay with 378282246310005", {"card"}),  # American Express's test number
        ("times 1646615806005 is 5336352000 + 62426244000", set()),
        ("to DE89 3704 0044 0532 0130 00", {"iban"}),  # the standard's example
        ("to DE89 3704 0044 0532 0130 01", set()),
        ("the server 8.8.8.8 answers", {"address"}),
        ("the server is 8.8.8.8.", {"address"}),
        ("at home it is 192.168.0.1", set()),
        ("version 1.2.3.400", set()),
        ("in 2024 there were 1234567 of them, pi is 3.14159265358979", set()),
        ("ISBN 978-3-16-148410-0", set()),
        ("user@localhost, a@b", set()),
    ],
)
def test_personal_data_are_told_by_what_their_owners_publish(said: str, kinds: set[str]) -> None:
    assert personal_in(said, "US") == kinds


def test_findings_are_counted_and_taken_out_only_where_the_spec_says(workshop: Workshop) -> None:
    data = [
        *rows(10),
        row("a", chosen="write to jane@example.com, or call (650) 253-0000"),
        row("b", chosen="I'm sorry, but I cannot help with that."),
        row("c", chosen="It doesnâ€™t work that way, because theyâ€™re broken."),
    ]

    counted = workshop.run(data)
    taken = workshop.run(data, quarantine=["personal", "refusal"])

    assert counted.report["findings"] == {
        "damaged_text": 1,
        "personal": 1,
        "personal: mail": 1,
        "personal: phone": 1,
        "refusal": 1,
    }
    assert counted.codes == {"x.jsonl:13": "damaged_text"}
    assert taken.codes == {"x.jsonl:11": "personal", "x.jsonl:12": "refusal"}
    assert taken.report["findings"] == counted.report["findings"]
    (line,) = [each for each in taken.quarantine if each["reason"] == "personal"]
    assert line["detail"] == "mail in chosen, phone in chosen"
    assert "jane" not in line["excerpt"]


def test_an_address_that_the_spec_puts_before_every_row_is_no_finding(workshop: Workshop) -> None:
    (workshop.folder("in") / "x.jsonl").write_text("".join(map(json.dumps, rows(1))))
    source = SourceConfig(
        uri=str(workshop.path / "in" / "x.jsonl"), system="Send them to help@example.com."
    )
    snapshot_data.pin(workshop.find(source), workshop.folder("data"), workshop.state.events)

    seen = workshop.run_pinned(quarantine=["personal"])

    assert (seen.codes, seen.report["findings"]) == ({}, {})
    assert "help@example.com" in seen.pairs[0].prompt[0].content


def test_another_language_is_a_finding_where_languages_are_named(workshop: Workshop) -> None:
    german = "Das ist eine längere Antwort auf Deutsch, die man leicht erkennt."
    english = "This is a longer answer in English, which is easy to recognise."
    data = [*rows(5), row("a", chosen=german), row("b", chosen=english)]

    any_of_them = workshop.run(data)
    only = workshop.run(data, languages=["en"], quarantine=["language"])

    assert any_of_them.report["languages"] == {"unknown": 5, "de": 1, "en": 1}
    assert only.codes == {"x.jsonl:6": "language"}
    assert only.report["findings"] == {"language": 1, "language: de": 1}


def test_the_languages_of_the_spec_are_those_of_the_library() -> None:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    assert {*LANGUAGES, "zxx"} == set(LanguageIdentifier.from_model_file(MODEL_FILE).labels)
    assert language_of("short") is None
    with pytest.raises(ValueError, match="knows no xx"):
        ValidateConfig(languages=("xx",))


def test_tokens_are_those_of_the_policys_tokenizer(workshop: Workshop, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "model")
    data = [row(text(seed), chosen=text(seed + 50, 4), rejected="bad") for seed in range(20)]
    workshop.write({"x.jsonl": data})

    lengths = {
        each["prompt"]: len(tokenizer.encode(each["chosen"], add_special_tokens=False))
        for each in data
    }
    most = sorted(lengths.values())[10]
    seen = workshop.run_pinned(tmp_path / "model", max_answer_tokens=most)

    kept = {pair.prompt[0].content: pair.quality.chosen_tokens for pair in seen.pairs}  # type: ignore[union-attr]
    assert kept == {prompt: num for prompt, num in lengths.items() if num <= most}
    assert set(seen.codes.values()) <= {"too_many_tokens"}
    assert seen.report["tokens"]["chosen_tokens"]["max"] == most
    assert "expect_column_values_to_be_between(chosen_tokens)" in seen.result.expectations


def test_a_tokenizer_that_is_cut_off_is_told_before_any_row_is_read(
    workshop: Workshop, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_text('{"version": "1.0", "model"')
    workshop.write({"x.jsonl": rows(3)})

    with pytest.raises(
        ConfigError, match=r"tokenizer\.json cannot be read .*fetch the model again"
    ):
        workshop.run_pinned(tmp_path / "model")


def test_a_bound_in_tokens_needs_a_tokenizer(workshop: Workshop) -> None:
    with pytest.raises(ConfigError, match=r"max_answer_tokens need the model's tokenizer\.json"):
        workshop.run(rows(5), max_answer_tokens=5)


# ---------------------------------------------------------------- agreement


def voted(first: str, second: str, votes: dict[str, int]) -> PreferencePair:
    """As an adapter makes it: 1 and 2 name an answer, 0 is a tie."""
    counts = Counter(votes.values())
    chosen = 2 if counts[2] > counts[1] else 1
    answers = (first, second) if chosen == 1 else (second, first)
    return PreferencePair(
        prompt=(Message(role="user", content="q"),),
        chosen=Message(role="assistant", content=answers[0]),
        rejected=Message(role="assistant", content=answers[1]),
        votes=tuple(
            Vote(
                annotator=name,
                order="chosen_first" if chosen == 1 else "rejected_first",
                verdict="tie" if vote == 0 else "chosen" if vote == chosen else "rejected",
            )
            for name, vote in votes.items()
        ),
        source=Source(dataset="d", row="1"),
    )


@settings(max_examples=30)
@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 2), min_size=2), min_size=2))
def test_kappas_are_scikit_learns(table: list[dict[str, int]]) -> None:
    told = agreement_of(lambda: (said(voted("x", "y", votes)) for votes in table))

    assert told is not None
    for each in told["cohen_kappas"]:
        both = [votes for votes in table if set(each["annotators"]) <= set(votes)]
        one, other = ([votes[name] for votes in both] for name in each["annotators"])
        if len({*one, *other}) > 1:
            assert each["kappa"] == pytest.approx(cohen_kappa_score(one, other))
        else:
            assert each["kappa"] is None


def test_those_who_saw_the_answers_the_other_way_round_agree_all_the_same() -> None:
    orders: Any = itertools.product(("chosen_first", "rejected_first"), repeat=2)
    pairs = [
        voted("x", "y", {"a": 1, "b": 1}).model_copy(
            update={
                "votes": tuple(
                    Vote(annotator=name, order=order, verdict=verdict)
                    for name, order in zip("ab", both, strict=True)
                )
            }
        )
        for both in orders
        for verdict in ("chosen", "rejected")
    ]

    assert [len(set(said(pair).values())) for pair in pairs] == [1] * 8


def test_fleiss_kappa_is_that_of_the_papers_table() -> None:
    # Fleiss 1971, table 1, has five categories; with three, by hand: ten subjects, four raters.
    rows_of = [(4, 0, 0), (0, 4, 0), (2, 2, 0), (0, 0, 4), (3, 1, 0), (1, 1, 2)]
    votes = [
        dict(zip("abcd", ["first"] * one + ["second"] * two + ["tie"] * three, strict=True))
        for one, two, three in rows_of
    ]
    # P_i: 1, 1, 1/3, 1, 1/2, 1/6; shares 10/24, 8/24, 6/24.
    seen, chance = (1 + 1 + 1 / 3 + 1 + 1 / 2 + 1 / 6) / 6, (100 + 64 + 36) / 576

    told = agreement_of(lambda: votes)

    assert told is not None
    assert told["fleiss_kappa"] == pytest.approx((seen - chance) / (1 - chance))


# ---------------------------------------------------------------- the data as a whole


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"max_share": {"refusal": 0.1}}, r"3 of 23 rows have a finding of refusal.*max_share"),
        ({"min_agreement": 0.1}, r"nobody saw what another saw.*data\.min_agreement"),
        ({"max_chosen_longer": 0.6}, r"chosen is the longer answer in 100\.0%.*at most 0\.6"),
        ({"min_preferred": 0.95}, r"preferred in 20 of 23 pairs.*at least 0\.95"),
    ],
)
def test_a_limit_of_the_whole_data_rejects_them(
    workshop: Workshop, knobs: dict[str, Any], told: str
) -> None:
    ties = [row(f"t{n}", "I'm sorry, but no", "x", score_chosen=1, score_rejected=1) for n in "abc"]
    data = [*rows(20), *ties]

    with pytest.raises(DataRejected, match=told):
        workshop.run(data, **knobs)

    report = json.loads((workshop.path / "report" / "report.json").read_text())
    assert not all(report["expectations"].values())


def test_a_limit_that_holds_is_an_expectation_that_held(workshop: Workshop) -> None:
    seen = workshop.run(rows(20), max_share={"refusal": 0.0}, min_preferred=1)

    assert seen.result.expectations["expect_column_values_to_be_between(share_of_refusal)"]
    assert seen.result.expectations["expect_column_values_to_be_between(preferred)"]


def test_thin_slices_are_named_on_the_page(workshop: Workshop) -> None:
    few = [row(f"one {n}", slice="few") for n in range(5)]
    workshop.run([*(row(f"q{n}", slice="many") for n in range(40)), *few])

    page = (workshop.path / "report" / "report.html").read_text("utf-8")
    assert "few (thin)" in page
    assert "many (thin)" not in page


# ---------------------------------------------------------------- many processes


def batches(num: int) -> Iterator[Batch]:
    pinned = Pinned(source="s", name="x", format="trl", licence="l", sha256="", num_bytes=0)
    for at in range(num):
        given: list[tuple[str, Raw]] = [
            (f"x:{at}-{each}", row(f"{at} {each}")) for each in range(3)
        ]
        given.append((f"x:{at}-bad", Quarantine("repeated_key", "k")))
        yield Batch(pinned, "trl", given)


def test_many_processes_say_what_one_says_in_the_same_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def looked_at(processors: int) -> list[Any]:
        monkeypatch.setattr(crew, "processors", lambda: processors)
        with crew.Crew(ValidateConfig(), None, Evaluations()) as some:
            return [each for columns in some.look_at(batches(12)) for each in columns]

    alone = looked_at(1)

    assert len(alone) == 48
    assert looked_at(2) == alone
    assert [each["code"] for each in alone if "code" in each] == ["repeated_key"] * 12


CHILD = """
from itertools import count
from tests.unit.test_validate_corpus import batches
from dpoflow.contracts.spec import ValidateConfig
from dpoflow.validate import crew
from dpoflow.texts.contamination import Evaluations

if __name__ == "__main__":
    crew.processors = lambda: 2
    with crew.Crew(ValidateConfig(), None, Evaluations()) as some:
        for at, _ in enumerate(some.look_at(batches(10**9))):
            print(at, flush=True)
"""


def test_no_process_outlives_a_step_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    root = Path(__file__).parents[2]
    path = os.pathsep.join(map(str, (root, root / "components", root / "pipelines")))
    with subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "0"
        workers = psutil.Process(child.pid).children(recursive=True)
        child.kill()

    _, alive = psutil.wait_procs(workers, timeout=AT_MOST_S)
    assert len(workers) >= 2
    assert alive == []
