"""What judging would cost, before anything is asked.

Reads   a judge's config, the texts it would see or how long they may be
Gives   `Expected`, `of_labelled`, `of_comparisons`, `of_marks`
Not     what was really paid (endpoints/cache.py)

Every request is taken to be new and every answer to be as long as it may be.
"""

from collections.abc import Iterable, Iterator, Sequence

from dpoflow.contracts.base import Contract
from dpoflow.contracts.judges import EndpointConfig, JudgeConfig, LlmJudgeConfig, models_in
from dpoflow.contracts.pairs import Message
from dpoflow.contracts.results import Cost
from dpoflow.endpoints.client import BYTES_A_TOKEN
from dpoflow.judge.grade import templates
from dpoflow.judge.labelled import Labelled
from dpoflow.judge.llm import template_of
from dpoflow.judge.template import transcript

Sizes = tuple[int, int, int]
"""Bytes of a conversation, of the first answer, of the second."""


class Expected(Contract):
    """By model."""

    models: dict[str, Cost] = {}

    def plus(self, endpoint: EndpointConfig, requests: int, read: int, written: int) -> "Expected":
        """With so many requests more, and their tokens."""
        old = self.models.get(endpoint.model, Cost(requests=0, tokens=0, money=0.0))
        money = (read * endpoint.price_input + written * endpoint.price_output) / 1e6
        new = Cost(
            requests=old.requests + requests,
            tokens=old.tokens + read + written,
            money=old.money + money,
        )
        return Expected(models=self.models | {endpoint.model: new})


def of_labelled(judge: JudgeConfig, pairs: Sequence[Labelled]) -> Expected:
    """Of qualifying the judge on these pairs."""
    return of_comparisons(
        judge, ((_bytes(one.conversation), _size(one.first), _size(one.second)) for one in pairs)
    )


def of_comparisons(
    judge: JudgeConfig, sizes: Iterable[Sizes], so_far: Expected | None = None
) -> Expected:
    """Of comparing answers of these sizes, each couple once."""
    each, expected = list(sizes), so_far or Expected()
    for model in models_in(judge):
        asked = [size for one in each for size in _requests(model, one)]
        extra = _size(template_of(model).text)
        read = sum(size + extra for size in asked) // BYTES_A_TOKEN
        many = len(asked) * model.repeats
        expected = expected.plus(
            model.endpoint, many, read * model.repeats, many * model.max_tokens
        )
    return expected


def of_marks(
    grader: LlmJudgeConfig, sizes: Iterable[int], so_far: Expected | None = None
) -> Expected:
    """Of looking at single answers: bytes of a conversation with its answer, for each."""
    each, extra = list(sizes), max(_size(template.text) for template in templates())
    read = sum(size + extra for size in each) // BYTES_A_TOKEN
    return (so_far or Expected()).plus(
        grader.endpoint, len(each), read, len(each) * grader.max_tokens
    )


def _requests(model: LlmJudgeConfig, sizes: Sizes) -> Iterator[int]:
    """Bytes of each request about one couple."""
    asked, first, second = sizes
    if model.asks == "pointwise":
        yield from (asked + first, asked + second)
    else:
        yield from (asked + first + second,) * 2


def _bytes(conversation: Sequence[Message]) -> int:
    return _size(transcript(conversation))


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
