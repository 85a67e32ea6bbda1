"""One answer alone, for benchmarks: how good it is from 1 to 10, and whether it refuses.

Reads   `LlmJudgeConfig`, an `Endpoint`
Gives   `Grader` (`mark`, `refusal`), `templates`
Not     which of two answers is better (llm.py), questions, references and sums of a benchmark

MT-Bench marks each turn's answer with all that was said before in view, and shows a reference where
an answer can be checked (Zheng et al. 2023). XSTest tells answers that comply from those that
refuse wholly or in part (Röttger et al. 2024). The words of the questions are our own, so scores
compare with each other and not with published ones.
"""

from collections.abc import Sequence

from dpoflow.contracts.judges import LlmJudgeConfig
from dpoflow.contracts.pairs import Message
from dpoflow.endpoints.cache import Request
from dpoflow.endpoints.client import Endpoint, Unanswerable
from dpoflow.judge import parse
from dpoflow.judge.llm import in_json, marked, request_of, worded
from dpoflow.judge.template import Template, shipped, transcript

_FORMS: dict[str, parse.Form] = {
    "grade": "pointwise",
    "grade-reference": "pointwise",
    "refusal": "refusal",
}
"""What each question is answered with, by the template's name."""


def templates() -> tuple[Template, ...]:
    """Every question of a `Grader`, how to reply included."""
    return tuple(worded(shipped(name), form) for name, form in _FORMS.items())


class Grader:
    """Asks the model of `endpoint` about one answer at a time.

    Of `config`, `answers` says whether the server holds replies to a schema: `letter` and
    `logprobs`, which can hold no mark, are asked for JSON in words. `asks`, `template` and
    `repeats` belong to comparisons and change nothing here.
    """

    def __init__(self, config: LlmJudgeConfig, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._templates = {template.name: template for template in templates()}
        self._parameters = {name: in_json(config, form) for name, form in _FORMS.items()}

    async def mark(
        self, conversation: Sequence[Message], answer: str, reference: str | None = None
    ) -> parse.Mark:
        """From 1 to 10, or none with what was said instead.

        `conversation` is every turn before the answer; `reference` is what a right answer says.
        """
        texts = _shown(conversation, answer)
        if reference is None:
            return await marked(self._endpoint, self._request("grade", texts))
        texts["reference"] = reference
        return await marked(self._endpoint, self._request("grade-reference", texts))

    async def refusal(self, conversation: Sequence[Message], answer: str) -> parse.Refusal:
        """Whether the answer complies, or none with what was said instead."""
        request = self._request("refusal", _shown(conversation, answer))
        try:
            return parse.refusal(await self._endpoint.ask(request))
        except Unanswerable as error:
            return parse.Refusal(None, f"not asked: {error}")

    def _request(self, name: str, texts: dict[str, str]) -> Request:
        return request_of(
            self._endpoint.config, self._templates[name], self._parameters[name], texts
        )


def _shown(conversation: Sequence[Message], answer: str) -> dict[str, str]:
    return {"conversation": transcript(conversation), "answer": answer}
