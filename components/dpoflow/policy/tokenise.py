"""Conversations as tokens: the same ones for training, scoring and generation.

Reads   a tokenizer with a chat template, preference pairs, prompts
Gives   `prompt_tokens`, `answer_tokens`, `conversation_tokens`, `turn_end`; `encode_pair` and
        `encode_rating`, or why they refuse one
Not     padding and batches: see layout.py

An answer begins where the template's generation prompt ends, and ends with the one token by which
the template ends a turn (not always the tokenizer's eos: Gemma's is another). What the template
writes after that, SmolLM2 a line break, is never sampled, so never trained on.
"""

import itertools
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, overload

from dpoflow.contracts.errors import DataRejected
from dpoflow.contracts.pairs import Message, PreferencePair, Rating

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Dropped = Literal["too_long", "empty_chosen", "empty_rejected", "identical", "eos_inside"]
"""Why a pair cannot be trained on; `eos_inside`: an answer spells the end-of-turn token itself."""

TooLong = Literal["drop", "cut_prompt", "cut_answer"]
"""What becomes of a pair with more tokens than there is room for."""


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """One pair as token ids; an answer that ended ends with the end-of-turn token.

    A rated answer is a pair of which the other answer is empty.
    """

    pair_id: str
    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    cut: bool = False
    """Whether something was cut away to make it fit."""

    @property
    def longest(self) -> int:
        """Tokens of the prompt and its longer answer."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt, once, and of both answers."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected)


class EncodedPairs(Sequence[EncodedPair]):
    """Pairs at four bytes a token: as tuples they would take nine times as much."""

    def __init__(self, pairs: Iterable[EncodedPair] = ()) -> None:
        self._tokens, self._ends = array("i"), array("q", [0])
        self.ids: list[str] = []
        self._cut = bytearray()
        for pair in pairs:
            self.append(pair)

    def append(self, pair: EncodedPair) -> None:
        """Put one more at the end."""
        for tokens in (pair.prompt, pair.chosen, pair.rejected):
            self._tokens.extend(tokens)
            self._ends.append(len(self._tokens))
        self.ids.append(pair.pair_id)
        self._cut.append(pair.cut)

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, place: int) -> EncodedPair: ...
    @overload
    def __getitem__(self, place: slice) -> "EncodedPairs": ...
    def __getitem__(self, place: int | slice) -> "EncodedPair | EncodedPairs":
        if isinstance(place, slice):
            return EncodedPairs(self[each] for each in range(*place.indices(len(self))))
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        place %= len(self)
        ends = self._ends[3 * place : 3 * place + 4]
        prompt, chosen, rejected = (
            tuple(self._tokens[start:end]) for start, end in itertools.pairwise(ends)
        )
        return EncodedPair(self.ids[place], prompt, chosen, rejected, bool(self._cut[place]))

    @property
    def num_cut(self) -> int:
        """How many were cut to fit."""
        return sum(self._cut)


def prompt_tokens(
    tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[Message]
) -> tuple[int, ...]:
    """The conversation so far and the words that open the assistant's turn."""
    return _tokens(tokenizer, _render(tokenizer, prompt, opened=True))


def answer_tokens(
    tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[Message], answer: str
) -> tuple[int, ...]:
    """The tokens of `answer` after `prompt`, with one end-of-turn token at the end.

    The whole conversation is rendered, and its tokens must begin with the prompt's. Where they do
    not, because a token spans the boundary or the template shows past turns in another way than the
    open one, the answer is tokenised by itself: generation, too, starts from the prompt's tokens.
    """
    opening, alone = prompt_tokens(tokenizer, prompt), _tokens(tokenizer, answer)
    turn = Message(role="assistant", content=answer)
    text = _render(tokenizer, [*prompt, turn], opened=False)
    whole = _tokens(tokenizer, text)
    body = whole[len(opening) :] if whole[: len(opening)] == opening else alone
    end = _end_after(tokenizer, text, answer)
    ends = [place for place, token in enumerate(body) if token == end][alone.count(end) :]
    return body[: ends[0] + 1] if ends else (*body, end)


def conversation_tokens(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]
) -> tuple[int, ...]:
    """A whole conversation, as the template writes it."""
    return _tokens(tokenizer, _render(tokenizer, messages, opened=False))


def turn_end(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The token that ends an assistant's turn."""
    return answer_tokens(tokenizer, [Message(role="user", content="a")], "b")[-1]


def _end_after(tokenizer: "PreTrainedTokenizerBase", text: str, answer: str) -> int:
    """The first token after `answer` that is no text, or the tokenizer's eos where none follows."""
    said = answer.strip()
    _, found, after = text.rpartition(said) if said else ("", "", "")
    added = tokenizer.added_tokens_decoder.items()
    special = {*tokenizer.all_special_ids, *(token for token, what in added if what.special)}
    written = [token for token in _tokens(tokenizer, after if found else "") if token in special]
    eos = tokenizer.eos_token_id
    assert isinstance(eos, int), "load() refuses tokenizers without eos_token"
    return written[0] if written else eos


def encode_pair(
    tokenizer: "PreTrainedTokenizerBase",
    pair: PreferencePair,
    max_tokens: int,
    too_long: TooLong = "drop",
) -> EncodedPair | Dropped:
    """`pair` as tokens, or why not. Only on demand is anything cut: half an answer is another."""
    if not pair.chosen.content.strip():
        return "empty_chosen"
    if not pair.rejected.content.strip():
        return "empty_rejected"
    prompt = prompt_tokens(tokenizer, pair.prompt)
    chosen = answer_tokens(tokenizer, pair.prompt, pair.chosen.content)
    rejected = answer_tokens(tokenizer, pair.prompt, pair.rejected.content)
    if not pair.rejected_ended:
        rejected = rejected[:-1]
    if chosen == rejected:
        return "identical"
    if max(answer.count(chosen[-1]) for answer in (chosen, rejected)) > 1:
        return "eos_inside"
    whole = EncodedPair(pair.pair_id, prompt, chosen, rejected)
    return whole if whole.longest <= max_tokens else _cut(whole, max_tokens, too_long)


def encode_rating(
    tokenizer: "PreTrainedTokenizerBase",
    rating: Rating,
    max_tokens: int,
    too_long: TooLong = "drop",
) -> EncodedPair | Dropped:
    """The same of one answer by itself: chosen under a thumb up, rejected under a thumb down."""
    if not rating.answer.content.strip():
        return "empty_chosen" if rating.desirable else "empty_rejected"
    prompt = prompt_tokens(tokenizer, rating.prompt)
    answer = answer_tokens(tokenizer, rating.prompt, rating.answer.content)
    if answer.count(answer[-1]) > 1:
        return "eos_inside"
    chosen, rejected = (answer, ()) if rating.desirable else ((), answer)
    whole = EncodedPair(rating.rating_id, prompt, chosen, rejected)
    return whole if whole.longest <= max_tokens else _cut(whole, max_tokens, too_long)


def _cut(pair: EncodedPair, max_tokens: int, how: TooLong) -> EncodedPair | Dropped:
    """A prompt keeps its end, an answer its start; what is left must still be a pair."""
    if how == "cut_prompt":
        room = max_tokens - max(len(pair.chosen), len(pair.rejected))
        return replace(pair, prompt=pair.prompt[-room:], cut=True) if room > 0 else "too_long"
    room = max_tokens - len(pair.prompt)
    if how == "drop" or room <= 0:
        return "too_long"
    chosen, rejected = pair.chosen[:room], pair.rejected[:room]
    return (
        replace(pair, chosen=chosen, rejected=rejected, cut=True)
        if chosen != rejected
        else "identical"
    )


def _render(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], *, opened: bool
) -> str:
    turns = [message.model_dump() for message in messages]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=opened)
    except Exception as error:  # noqa: BLE001  # a template is a program: it raises what it likes
        roles = ", ".join(message.role for message in messages)
        raise DataRejected(
            f"the model's chat template refuses a conversation of {roles} ({error}); "
            "use a model whose template knows these roles, or leave them out of the data"
        ) from None
    return str(text)


def _tokens(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[int, ...]:
    """The template has written every special token there is to write: add none."""
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
