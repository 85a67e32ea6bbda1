"""A judge that is a model behind an endpoint.

Reads   `LlmJudgeConfig`, an `Endpoint`
Gives   `LlmJudge`; pairwise it asks in both orders, pointwise it marks each answer alone; what
        grade.py asks in the same way: `worded`, `in_json`, `request_of`, `marked`
Not     patience, limits, the cache (endpoints/); counting what an outcome is worth (qualify.py)
"""

import asyncio
import json
from collections.abc import Callable, Sequence

from dpoflow.contracts.base import sha256_json
from dpoflow.contracts.judges import EndpointConfig, LlmJudgeConfig
from dpoflow.contracts.pairs import Message
from dpoflow.endpoints.cache import Reply, Request
from dpoflow.endpoints.client import Endpoint, Unanswerable
from dpoflow.judge import parse
from dpoflow.judge.template import NEEDS, Template, shipped, transcript
from dpoflow.judge.verdict import Outcome, Verdict, counted, settle, unordered

_IN_WORDS: dict[parse.Form, str] = {
    "pairwise": 'Reply with one JSON object and nothing else: {{"reason": "a sentence or two", '
    '"verdict": "A" or "B" or "tie"}}',
    "pointwise": 'Reply with one JSON object and nothing else: {{"reason": "a sentence or two", '
    '"score": 1 to 10}}',
    "refusal": 'Reply with one JSON object and nothing else: {{"reason": "a sentence or two", '
    f'"label": {" or ".join(map(json.dumps, parse.LABELS))}}}}}',
}
_ONE_LETTER = "Reply with one letter, A or B, and nothing else."
_MARKS = 9
"""From the lowest mark to the highest."""
_READERS: dict[str, Callable[[Reply], Verdict]] = {
    "schema": parse.pairwise,
    "json": parse.pairwise,
    "letter": parse.letter,
    "logprobs": parse.probabilities,
}


def template_of(config: LlmJudgeConfig) -> Template:
    """The whole question, how to reply included. Raises ConfigError."""
    base = (
        shipped(config.asks)
        if config.template is None
        else Template(name=f"own-{config.asks}", text=config.template)
    )
    base.check(NEEDS[config.asks])
    if config.answers in ("schema", "json"):
        return worded(base, config.asks)
    return _ending(base, _ONE_LETTER)


def worded(base: Template, form: parse.Form) -> Template:
    """`base`, and that the reply is to be JSON of that form."""
    return _ending(base, _IN_WORDS[form])


def _ending(base: Template, how: str) -> Template:
    return Template(name=base.name, text=f"{base.text}\n\n{how}")


def parameters_of(config: LlmJudgeConfig) -> dict[str, object]:
    """What goes to the server beside model and messages."""
    parameters = in_json(config, config.asks)
    if config.answers in ("letter", "logprobs"):
        parameters["max_tokens"] = min(config.max_tokens, 4)
    if config.answers == "logprobs":
        parameters |= {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}
    return parameters


def in_json(config: LlmJudgeConfig, form: parse.Form) -> dict[str, object]:
    """The same of a reply in JSON of that form, which `answers: schema` has the server hold to."""
    parameters: dict[str, object] = {
        "temperature": config.temperature,
        "max_tokens": config.max_tokens,
    }
    if config.answers == "schema":
        schema = {"name": "verdict", "strict": True, "schema": parse.SCHEMAS[form]}
        parameters["response_format"] = {"type": "json_schema", "json_schema": schema}
    return parameters


def request_of(
    endpoint: EndpointConfig,
    template: Template,
    parameters: dict[str, object],
    texts: dict[str, str],
    repeat: int = 0,
) -> Request:
    """`template`, filled with `texts`, to the model of `endpoint`."""
    return Request(
        base_url=endpoint.base_url,
        model=endpoint.model,
        messages=({"role": "user", "content": template.fill(texts)},),
        parameters=parameters,
        template=template.id,
        repeat=repeat,
    )


async def marked(endpoint: Endpoint, request: Request) -> parse.Mark:
    """The mark that the server gives; none, with the reason, where it can never answer."""
    try:
        return parse.pointwise(await endpoint.ask(request))
    except Unanswerable as error:
        return parse.Mark(None, f"not asked: {error}")


class LlmJudge:
    """Asks the model of `endpoint` as `config` says."""

    def __init__(self, config: LlmJudgeConfig, endpoint: Endpoint) -> None:
        self._config, self._endpoint = config, endpoint
        self.template, self._parameters = template_of(config), parameters_of(config)
        self.id = identify(config)

    async def decide(self, conversation: Sequence[Message], first: str, second: str) -> Outcome:
        """Each repeat in both orders (pairwise), or of both answers (pointwise), all at once."""
        rounds = await asyncio.gather(
            *(
                self._round(conversation, first, second, repeat)
                for repeat in range(self._config.repeats)
            )
        )
        return rounds[0] if len(rounds) == 1 else counted([(outcome, 1) for outcome in rounds])

    async def _round(
        self, conversation: Sequence[Message], first: str, second: str, repeat: int
    ) -> Outcome:
        if self._config.asks == "pointwise":
            marks = await asyncio.gather(
                *(self._mark(conversation, answer, repeat) for answer in (first, second))
            )
            return unordered(self.id, _difference(*marks))
        forward, backward = await asyncio.gather(
            self._compare(conversation, first, second, repeat),
            self._compare(conversation, second, first, repeat),
        )
        return settle(self.id, forward, backward)

    async def _compare(
        self, conversation: Sequence[Message], first: str, second: str, repeat: int
    ) -> Verdict:
        texts = {"conversation": transcript(conversation), "first": first, "second": second}
        request = self._request(texts, repeat)
        try:
            reply = await self._endpoint.ask(request)
        except Unanswerable as error:
            return Verdict(choice="invalid", rationale=f"not asked: {error}", request=request.key)
        verdict = _READERS[self._config.answers](reply)
        return verdict.model_copy(update={"request": request.key})

    async def _mark(self, conversation: Sequence[Message], answer: str, repeat: int) -> parse.Mark:
        texts = {"conversation": transcript(conversation), "answer": answer}
        return await marked(self._endpoint, self._request(texts, repeat))

    def _request(self, texts: dict[str, str], repeat: int) -> Request:
        return request_of(self._endpoint.config, self.template, self._parameters, texts, repeat)


def identify(config: LlmJudgeConfig) -> str:
    """Model, template, and a digest of whatever else changes its verdicts."""
    knobs = config.model_dump(
        mode="json", exclude={"endpoint", "template", "traced", "qualification"}
    )
    return f"llm:{config.endpoint.model}:{template_of(config).id}:{sha256_json(knobs)[:12]}"


def _difference(first: parse.Mark, second: parse.Mark) -> Verdict:
    reasons = "; ".join(reason for reason in (first.reason, second.reason) if reason) or None
    if first.score is None or second.score is None:
        return Verdict(choice="invalid", rationale=reasons)
    margin = (first.score - second.score) / _MARKS
    high, low = max(first.score, second.score), min(first.score, second.score)
    told = f"{high:g} against {low:g}" + (f": {reasons}" if reasons else "")
    if margin == 0:
        return Verdict(choice="tie", margin=0.0, rationale=told)
    return Verdict(choice="first" if margin > 0 else "second", margin=margin, rationale=told)
