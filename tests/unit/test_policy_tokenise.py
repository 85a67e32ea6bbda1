"""Conversations as tokens, checked against strings written out by hand."""

import pytest
from tests.tiny import pair_of, tiny_tokenizer

from dpoflow.contracts.errors import DataRejected
from dpoflow.contracts.pairs import Message, PreferencePair, Source
from dpoflow.policy.tokenise import (
    EncodedPair,
    answer_tokens,
    encode_pair,
    prompt_tokens,
    turn_end,
)

SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n"
ASK = "<|im_start|>user\nthe sea?<|im_end|>\n<|im_start|>assistant\n"


def user(content: str) -> Message:
    return Message(role="user", content=content)


def text_of(tokens: tuple[int, ...]) -> str:
    return str(tiny_tokenizer().decode([*tokens], skip_special_tokens=False))


def encoded(pair: PreferencePair, max_tokens: int = 256) -> EncodedPair:
    made = encode_pair(tiny_tokenizer(), pair, max_tokens)
    assert isinstance(made, EncodedPair)
    return made


def test_a_prompt_is_the_template_with_the_assistants_turn_opened() -> None:
    assert text_of(prompt_tokens(tiny_tokenizer(), (user("the sea?"),))) == SYSTEM + ASK


def test_prompt_and_answer_join_into_the_template_up_to_the_end_of_turn() -> None:
    pair = encoded(pair_of("the sea?", "blue", "snow snow"))

    assert text_of(pair.prompt + pair.chosen) == SYSTEM + ASK + "blue<|im_end|>"
    assert text_of(pair.prompt + pair.rejected) == SYSTEM + ASK + "snow snow<|im_end|>"


def test_an_answer_ends_with_one_end_of_turn_and_begins_without_one() -> None:
    tokenizer = tiny_tokenizer()
    pair = encoded(pair_of("the sea?", "blue", "snow snow"))

    for answer in (pair.chosen, pair.rejected):
        assert answer.count(tokenizer.eos_token_id) == 1
        assert answer[-1] == tokenizer.eos_token_id
    assert pair.prompt[0] == tokenizer.bos_token_id
    assert pair.prompt[1] != tokenizer.bos_token_id


def test_a_system_message_replaces_the_templates_own_and_turns_keep_their_order() -> None:
    prompt = (
        Message(role="system", content="be calm"),
        user("the sea?"),
        Message(role="assistant", content="blue"),
        user("and snow?"),
    )
    pair = PreferencePair(
        prompt=prompt,
        chosen=Message(role="assistant", content="calm"),
        rejected=Message(role="assistant", content="snow"),
        source=Source(dataset="tiny", row="1"),
    )

    assert text_of(encoded(pair).prompt) == (
        "<|im_start|>system\nbe calm<|im_end|>\n<|im_start|>user\nthe sea?<|im_end|>\n"
        "<|im_start|>assistant\nblue<|im_end|>\n<|im_start|>user\nand snow?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ("", "snow", "empty_chosen"),
        ("blue", " \n", "empty_rejected"),
        ("blue", "blue", "identical"),
        ("blue<|im_end|>sea", "snow", "eos_inside"),
        ("blue " * 200, "snow", "too_long"),
        ("blue", "snow " * 300, "too_long"),
    ],
)
def test_a_pair_that_cannot_be_trained_on_says_why(chosen: str, rejected: str, reason: str) -> None:
    assert encode_pair(tiny_tokenizer(), pair_of("the sea?", chosen, rejected), 256) == reason


def test_a_pair_of_exactly_max_tokens_is_kept() -> None:
    pair = encoded(pair_of("the sea?", "blue", "snow snow"))
    longest = len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))

    assert encoded(pair_of("the sea?", "blue", "snow snow"), longest) == pair
    assert (
        encode_pair(tiny_tokenizer(), pair_of("the sea?", "blue", "snow snow"), longest - 1)
        == "too_long"
    )


def test_a_template_without_an_end_of_turn_gets_one() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )

    answer = answer_tokens(tokenizer, (user("the sea?"),), "blue")

    assert answer[-1] == tokenizer.eos_token_id
    assert text_of(answer) == " blue\n<|im_end|>"


def test_an_answer_ends_as_the_template_ends_a_turn_though_eos_is_another_token() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"  # noqa: S105  # as Gemma's: turns end with <|im_end|>

    pair = encode_pair(tokenizer, pair_of("the sea?", "blue", "snow"), 256)

    assert isinstance(pair, EncodedPair)
    assert text_of(pair.chosen) == "blue<|im_end|>"
    assert text_of((turn_end(tokenizer),)) == "<|im_end|>"
    assert encode_pair(tokenizer, pair_of("a?", "b<|im_end|>c", "snow"), 256) == "eos_inside"


def test_what_a_template_writes_before_an_answer_does_not_end_it() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] }}"
        "{% if m['role'] == 'assistant' %}{{ '<|im_start|>final' }}{% endif %}"
        "{{ '\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
    )

    answer = answer_tokens(tokenizer, (user("the sea?"),), "blue")

    assert text_of(answer) == "<|im_start|>final\nblue<|im_end|>"


def test_an_answer_whose_template_shows_past_turns_otherwise_is_tokenised_by_itself() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant (thinking): ' }}{% endif %}"
    )

    assert text_of(answer_tokens(tokenizer, (user("the sea?"),), "blue")) == "blue<|im_end|>"


def test_a_template_that_refuses_a_role_says_so_in_one_line() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system turns\nplease') }}"

    with pytest.raises(DataRejected, match="refuses a conversation of user") as refused:
        prompt_tokens(tokenizer, (user("the sea?"),))

    assert "\n" not in str(refused.value)


def test_an_answer_that_was_cut_has_no_end_to_learn_from() -> None:
    whole = pair_of("the sea?", "blue", "snow snow")
    cut = whole.model_copy(update={"rejected_ended": False})

    with_end = encode_pair(tiny_tokenizer(), whole, 256)
    without = encode_pair(tiny_tokenizer(), cut, 256)

    assert isinstance(with_end, EncodedPair)
    assert isinstance(without, EncodedPair)
    assert (*without.rejected, tiny_tokenizer().eos_token_id) == with_end.rejected
    assert without.chosen == with_end.chosen


# ---------------------------------------------------------------- too long


def test_a_prompt_is_cut_at_its_start_and_answers_at_their_end() -> None:
    tokenizer, pair = tiny_tokenizer(), pair_of("the sea?", "blue and calm today", "snow snow")
    whole = encode_pair(tokenizer, pair, 256)
    assert isinstance(whole, EncodedPair)
    room = whole.longest - 2

    prompt = encode_pair(tokenizer, pair, room, "cut_prompt")
    answer = encode_pair(tokenizer, pair, room, "cut_answer")

    assert isinstance(prompt, EncodedPair)
    assert (prompt.prompt, prompt.chosen) == (whole.prompt[2:], whole.chosen)
    assert isinstance(answer, EncodedPair)
    assert (answer.prompt, answer.chosen) == (whole.prompt, whole.chosen[:-2])
    assert answer.rejected == whole.rejected  # it was short enough
    assert (prompt.cut, answer.cut, whole.cut) == (True, True, False)
    assert prompt.longest == answer.longest == room


def test_what_is_no_pair_after_cutting_is_left_out() -> None:
    tokenizer = tiny_tokenizer()
    late = pair_of("the sea?", "blue and calm today", "blue and calm snow")
    whole = encode_pair(tokenizer, late, 256)
    assert isinstance(whole, EncodedPair)

    assert encode_pair(tokenizer, late, len(whole.prompt) + 1, "cut_answer") == "identical"
    assert encode_pair(tokenizer, late, len(whole.prompt), "cut_answer") == "too_long"
    assert encode_pair(tokenizer, late, len(whole.chosen), "cut_prompt") == "too_long"
