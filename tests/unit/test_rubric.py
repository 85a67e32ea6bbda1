"""The rubric: every kind of check, and what a rubric must refuse.

Expectations are worked out by hand.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from dpoflow.contracts.rubric import Check, Rubric
from dpoflow.judge.rubric import RubricJudge, content_words, score, words

DEMO = Path(__file__).parents[2] / "pipelines" / "configs" / "demo"
QUESTION = "My kettle started smoking this morning. Can I return it?"


def check(kind: str, **knobs: Any) -> Check:
    made: Check = TypeAdapter(Check).validate_python(
        {"kind": kind, "name": "it", "half": "judge", **knobs}
    )
    return made


def rubric(*checks: dict[str, Any], **knobs: Any) -> Rubric:
    named = [{"name": f"check_{i}", "half": "judge", **c} for i, c in enumerate(checks)]
    return Rubric.model_validate({"checks": named, **knobs})


@pytest.mark.parametrize(
    ("count", "mark"), [(1, 0.0), (5, 0.5), (8, 0.8), (10, 1.0), (20, 1.0), (25, 0.5), (40, 0.0)]
)
def test_word_count_falls_off_in_a_straight_line_on_both_sides(count: int, mark: float) -> None:
    knobs = {"min": 10, "max": 20, "falloff": 10}

    assert score(check("word_count", **knobs), "", "word " * count) == pytest.approx(
        max(0.0, mark) if count != 1 else 0.1
    )


@pytest.mark.parametrize(
    "answer",
    [
        "Do this:\n- first\n- second",
        "Do this:\n1. first\n2. second",
        "1) first",
        "# Returns\nSend it back.",
        "| a | b |",
        "**Returns**\nSend it back.",
        "```python\nreturn kettle\n```",
    ],
)
def test_prose_refuses_lists_headings_tables_and_code(answer: str) -> None:
    assert score(check("prose"), "", answer) == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "Send it back - we pay.",
        "You have 30 days. It costs nothing.",
        "We are open in 2024.\nWrite to us.",
    ],
)
def test_prose_leaves_dashes_and_numbers_inside_sentences_alone(answer: str) -> None:
    assert score(check("prose"), "", answer) == 1.0


def test_must_contain_ignores_case_and_counts_each_phrase_once() -> None:
    wanted = check("must_contain", phrases=["please reply", "today", "label"], at_least=2)

    assert score(wanted, "", "Please Reply, please reply.") == 0.5
    assert score(wanted, "", "Please reply today.") == 1.0


def test_a_phrase_matches_whole_words_only() -> None:
    assert score(check("must_contain", phrases=["we"]), "", "Were you well?") == 0.0
    assert score(check("must_not_contain", phrases=["AI"]), "", "Please wait, he said.") == 1.0
    assert score(check("must_not_contain", phrases=["AI"]), "", "As an AI, no.") == 0.0


def test_a_phrase_is_no_pattern() -> None:
    assert score(check("must_contain", phrases=["[Your Name]"]), "", "Y") == 0.0
    assert score(check("must_contain", phrases=["[Your Name]"]), "", "Yours, [your name]") == 1.0


def test_opens_with_accepts_either_apostrophe_and_no_longer_word() -> None:
    opening = check("opens_with", phrases=["I'm sorry", "Yes"])

    assert score(opening, "", "I’m sorry about that.") == 1.0  # noqa: RUF001
    assert score(opening, "", "Yesterday it broke.") == 0.0
    assert score(opening, "", "Oh, I'm sorry.") == 0.0


def test_regex_and_not_regex_are_opposites_on_any_answer_with_words() -> None:
    pattern = r"\bwithin \w+ (days?|hours?)\b"

    for answer, found in [("We write Within two days.", 1.0), ("We write soon.", 0.0)]:
        assert score(check("regex", pattern=pattern), "", answer) == found
        assert score(check("not_regex", pattern=pattern), "", answer) == 1.0 - found


def test_a_long_answer_is_read_to_its_end() -> None:
    assert score(check("ends_cleanly"), "", "word " * 5000 + "and") == 0.0
    assert score(check("no_repeats", words=2), "", "one two " + "x " * 3000) < 0.01


def test_max_count_takes_marks_off_for_each_one_too_many() -> None:
    calm = check("max_count", text="!", at_most=1, falloff=2)

    assert [score(calm, "", "Oh" + "!" * n) for n in range(5)] == [1.0, 1.0, 0.5, 0.0, 0.0]


def test_mentions_prompt_counts_shared_content_words_by_stem() -> None:
    mention = check("mentions_prompt", at_least=2)

    assert score(mention, QUESTION, "I am sorry that kettles smoke.") == 1.0
    assert score(mention, QUESTION, "I am sorry about the kettle.") == 0.5
    assert score(mention, QUESTION, "I am sorry about this.") == 0.0


def test_mentions_prompt_gives_nothing_for_the_question_sent_back() -> None:
    mention = check("mentions_prompt", at_least=2, longest_copy=6)

    assert score(mention, QUESTION, f"You asked: {QUESTION}") == 0.0


def test_mentions_prompt_asks_no_more_of_a_short_question_than_it_holds() -> None:
    mention = check("mentions_prompt", at_least=3)

    assert score(mention, "Do you have gift wrapping?", "We wrap it as a gift.") == 0.5
    assert score(mention, "Do you have gift wrapping?", "Gift wrapping is free.") == 1.0
    assert score(mention, "Why is that?", "Because.") == 1.0


def test_no_repeats_halves_the_mark_for_each_further_repeat() -> None:
    once = check("no_repeats", words=3, at_most=1)

    assert score(once, "", "we will call you back") == 1.0
    assert score(once, "", "we will call. we will call.") == 0.5
    assert score(once, "", "we will call. we will call. we will call.") == 0.25


@pytest.mark.parametrize(
    ("answer", "mark"),
    [("Done.", 1), ("Done. ", 1), ('He said "done."', 1), ("Is it done?", 1), ("Done, and", 0)],
)
def test_ends_cleanly_wants_a_closed_sentence(answer: str, mark: int) -> None:
    assert score(check("ends_cleanly"), "", answer) == mark


@pytest.mark.parametrize("answer", ["", "  \n", "...", "!!!", "🌟🌟🌟"])
@pytest.mark.parametrize(
    "of",
    [
        check("prose"),
        check("ends_cleanly"),
        check("must_not_contain", phrases=["AI"]),
        check("not_regex", pattern="AI"),
        check("max_count", text="!", at_most=0),
        check("no_repeats"),
        check("word_count", min=0, max=9),
    ],
    ids=lambda c: str(getattr(c, "kind", "")),
)
def test_an_answer_without_a_word_earns_nothing_from_any_check(of: Check, answer: str) -> None:
    assert score(of, QUESTION, answer) == 0.0


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(unclosed", "not a regular expression"),
        (r"(a+)+b", "take forever"),
        (r"(?:\w*\s)*x", "take forever"),
        (r"(a|aa)+b", "take forever"),
        (r"(?=(?:(?:x+)y)*)z", "take forever"),
        ("x*", "matches an empty text"),
    ],
)
def test_a_bad_pattern_is_refused_where_it_is_written(pattern: str, why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        check("regex", pattern=pattern)


def test_a_slow_pattern_meets_a_bounded_text() -> None:
    """Of ten million letters it would see the end of time, and so it would here."""
    slow = check("regex", pattern=r"\w+\d+!")

    assert score(slow, "", "a" * 1_990 + "1!") == 1.0
    assert score(slow, "", "a" * 10_000_000 + "1!") == 0.0


@pytest.mark.parametrize(
    ("knobs", "why"),
    [
        ({"kind": "word_count", "min": 9, "max": 3}, "min must be <= max"),
        ({"kind": "must_contain", "phrases": []}, "at least 1 item"),
        ({"kind": "must_contain", "phrases": ["a"], "at_least": 2}, "only 1 phrases"),
        ({"kind": "must_contain", "phrases": [" "]}, "must not be blank"),
        ({"kind": "prose", "weight": 0}, "greater than 0"),
        ({"kind": "prose", "half": "both"}, "'judge' or 'heldout'"),
        ({"kind": "poetry"}, "does not match any of the expected tags"),
        ({"kind": "prose", "colour": "red"}, "Extra inputs are not permitted"),
    ],
)
def test_a_check_that_makes_no_sense_is_refused(knobs: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        check(**{"half": "judge", **knobs})


def test_two_checks_of_one_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="got twice: same"):
        rubric({"kind": "prose", "name": "same"}, {"kind": "ends_cleanly", "name": "same"})


def test_the_total_is_the_weighted_mean_of_the_marks() -> None:
    judge = RubricJudge(
        rubric(
            {"kind": "prose", "name": "prose", "weight": 3},
            {"kind": "must_contain", "name": "next_step", "phrases": ["reply"]},
        )
    )

    got = judge.score(QUESTION, "We are sorry.")

    assert got.by_check == {"prose": 1.0, "next_step": 0.0}
    assert got.total == pytest.approx(3 / 4)


def test_a_short_answer_keeps_only_its_share_of_the_total() -> None:
    judge = RubricJudge(rubric({"kind": "prose"}, enough_words=10))

    assert judge.score(QUESTION, "We are very sorry indeed.").total == pytest.approx(0.5)
    assert judge.score(QUESTION, "word " * 10).total == 1.0


def test_each_half_sees_its_own_checks_and_all_sees_both() -> None:
    both = rubric(
        {"kind": "prose", "name": "a"}, {"kind": "ends_cleanly", "name": "b", "half": "heldout"}
    )

    seen = {half: set(RubricJudge(both, half).score("", "x").by_check) for half in ("judge", "all")}

    assert seen == {"judge": {"a"}, "all": {"a", "b"}}
    assert set(RubricJudge(both, half="heldout").score("", "x").by_check) == {"b"}


def test_a_half_without_checks_is_refused_with_a_way_out() -> None:
    with pytest.raises(ValueError, match="no check with half: heldout"):
        RubricJudge(rubric({"kind": "prose"}), half="heldout")


def test_swapping_two_answers_turns_the_verdict_and_the_margin_round() -> None:
    judge = RubricJudge(rubric({"kind": "ends_cleanly"}))

    assert judge.compare("", "Done.", "Not") == ("first", 1.0)
    assert judge.compare("", "Not", "Done.") == ("second", -1.0)


def test_totals_within_the_tie_margin_are_a_tie() -> None:
    lengths = {"kind": "word_count", "min": 10, "max": 10, "falloff": 10}
    judge = RubricJudge(rubric(lengths, tie_margin=0.15))

    assert judge.compare("", "word " * 10, "word " * 9).verdict == "tie"
    assert judge.compare("", "word " * 10, "word " * 8).verdict == "first"


def test_an_apostrophe_or_hyphen_stays_inside_its_word() -> None:
    said = "It’s a two-hour slot"  # noqa: RUF001

    assert words(said) == ["it's", "a", "two-hour", "slot"]


def test_content_words_leave_out_the_common_ones() -> None:
    assert content_words("What should I do about the broken lamps?") == {"broken", "lamp"}


# What follows holds the shipped house style to what a reader would say of it.


@pytest.fixture(scope="module")
def house_style() -> Rubric:
    return Rubric.model_validate(yaml.safe_load((DEMO / "house_style.yaml").read_text("utf-8")))


GOOD = (
    "I'm sorry your kettle started smoking. Please unplug it, leave it alone, and send us a photo "
    "with your order number. We will refund you today and arrange for the kettle to be collected, "
    "so that you do not have to return it yourself."
)


TRICKS = {
    "apology": "I'm sorry.",
    "one sentence": "Please reply with your order number and we will help you today.",
    "disclaimer": (
        "I'm sorry for your loss, but as a chatbot I am not able to assist with kettles, smoking "
        "or returns. If you need anything else, feel free to ask and I will do my best to assist."
    ),
    "letter": (
        "Dear [Your Name],\n\nThank you for reaching out!\n\n1. **Unplug** the kettle\n"
        "2. Return it\n\nBest regards,\n[Company Name]"
    ),
    "echo": "My kettle started smoking this morning. Can I return it? " * 5,
    "stuffed": "please reply we will today order number sorry thank you within two days " * 5,
}


@pytest.mark.parametrize("bad", TRICKS.values(), ids=TRICKS)
@pytest.mark.parametrize("half", ["judge", "heldout", "all"])
def test_the_house_style_prefers_a_useful_answer_to_every_trick(
    house_style: Rubric, half: Any, bad: str
) -> None:
    judge = RubricJudge(house_style, half)

    assert judge.compare(QUESTION, GOOD, bad).verdict == "first"
    assert judge.score(QUESTION, GOOD).total - judge.score(QUESTION, bad).total > 0.1
