"""One OpenAI-compatible server, asked politely: bounded, patient, and never twice for one answer.

Reads   an `EndpointConfig`, requests, the cache of answers, the budget
Gives   `Endpoint`: `ask` gives a `Reply`, or raises what ends the step; `Unanswerable`, `key_of`
Not     what is asked (judge/, synthesize/), what an answer means

Whatever is busy, away or broken is tried again with growing, jittered pauses, and a Retry-After
holds every request back. Whatever would fail the same way again ends the step at once.
"""

import asyncio
import email.utils
import json
import math
import os
import re
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self

from aiolimiter import AsyncLimiter
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay
from tenacity.wait import wait_random_exponential

from dpoflow.contracts.errors import ConfigError, DpoflowError, ServiceUnavailable
from dpoflow.contracts.judges import EndpointConfig
from dpoflow.endpoints.budget import Budget
from dpoflow.endpoints.cache import Cache, Reply, Request, Spent
from dpoflow.endpoints.outage import Outage

if TYPE_CHECKING:
    import openai  # half a second, and only who asks a server needs it

BYTES_A_TOKEN = 4
"""Of usual text; an estimate, for limits a minute and for what is told beforehand."""

_FRAME = 64
"""Tokens that a chat template may add to a message."""

_HOPELESS = 20
"""So many requests that the server can never answer, and none that it can, are no accident."""

_BUSY = {408, 409, 425, 429}
_FILTERED = re.compile(r"content.{0,10}(filter|policy|management)|invalid_prompt|safety")
_TOO_LONG = re.compile(r"context.{0,20}(length|window)|too (long|many tokens)|maximum.{0,20}tokens")
_LONGEST_PAUSE_S = 60.0


class Unanswerable(Exception):  # of one request; the others go on
    """The server can never answer this request, such as one that is too long for its model."""


class _Busy(Exception):  # the way to tell tenacity
    def __init__(self, why: str, wait_s: float | None = None) -> None:
        super().__init__(why)
        self.wait_s = wait_s


class Endpoint:
    """The server of `config`, for as long as the context lasts."""

    def __init__(
        self,
        config: EndpointConfig,
        cache: Cache,
        budget: Budget,
        *,
        answered: Callable[[Request, Reply, float], None] = lambda request, reply, seconds: None,
        tell: Callable[[str], None] = lambda sentence: None,
        afterwards: str = "",
    ) -> None:
        """`answered` hears of every answer that was paid for just now, and how long it took.

        `tell` is told when the server goes away and when it is back; `afterwards`: see `Outage`.
        """
        self.config, self._cache, self._budget, self._answered = config, cache, budget, answered
        import openai

        self._key = key_of(config)
        # openai wants to be told that no key is meant.
        self._no_key: dict[str, Any] = {} if self._key else {"Authorization": openai.Omit()}
        self._room = asyncio.Semaphore(config.concurrency)
        self._requests = _pacer(config.requests_per_minute, 1.0)
        self._tokens = _pacer(config.tokens_per_minute, 10.0)
        self._quiet_until, self._num_hopeless, self._any_answered = 0.0, 0, False
        self._outage = Outage(self._name, tell, afterwards)
        self._under_way: dict[str, asyncio.Future[Reply]] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        import openai

        self._client = await self._stack.enter_async_context(
            openai.AsyncOpenAI(
                api_key=self._key or "none",
                base_url=self.config.base_url,
                timeout=self.config.timeout_s,
                max_retries=0,  # tried again here, where the pauses can be shared
                http_client=openai.DefaultAioHttpClient(),
            )
        )
        # The environment's settings are for OpenAI, and this may be anybody.
        self._client.organization = self._client.project = None
        self._client._custom_headers = {}  # noqa: SLF001  # no other way to be rid of them
        return self

    async def __aexit__(self, *_: object) -> None:
        # What is under way may be paid for: it is kept before the door closes.
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)
        await self._stack.aclose()

    def bound(self, request: Request) -> Spent:
        """What the request can cost at most: a text has no more tokens than bytes."""
        read, written = _most(request)
        return Spent(1, read + written, self._money(read, written))

    def _money(self, read: int, written: int) -> float:
        return (read * self.config.price_input + written * self.config.price_output) / 1e6

    async def ask(self, request: Request) -> Reply:
        """The answer: the one that was paid for, or a new one, on disk before it is given.

        Raises Unanswerable for this request alone; Exhausted; ConfigError and ServiceUnavailable,
        which end the step.
        """
        asked = self._under_way.get(request.key)
        if asked is None:
            asked = asyncio.ensure_future(self._find_or_ask(request))
            self._under_way[request.key] = asked
            asked.add_done_callback(lambda _: self._under_way.pop(request.key))
        return await asyncio.shield(asked)

    async def _find_or_ask(self, request: Request) -> Reply:
        kept = await self._cache.find(request)
        if kept is not None:
            self._any_answered = True
            return kept
        if self.config.context_tokens and _estimate(request) > self.config.context_tokens:
            raise Unanswerable(f"longer than the {self.config.context_tokens} tokens of the model")
        async with self._budget.hold(self.bound(request)) as settle:
            try:
                reply, seconds = await self._answer(request)
                # There is room for the next one while this one goes to the disk.
                money = self._money(reply.tokens_read, reply.tokens_written)
                settle(Spent(1, reply.tokens_read + reply.tokens_written, money))
                reply = await self._cache.keep(request, reply, money)
            except Unanswerable as error:
                self._count_hopeless(error)
                raise
            except BaseException as error:  # nothing more is paid for that may be lost
                self._cache.closed_by = self._cache.closed_by or _ending(error)
                raise
            self._any_answered = True
            self._answered(request, reply, seconds)
            return reply

    async def _answer(self, request: Request) -> tuple[Reply, float]:
        """The server's answer and how long it took, once there is room for one more request."""
        async with self._room:
            if (reason := self._cache.closed_by) is not None:
                # Of the same kind: whichever of many requests is heard first, it says who must act.
                raise type(reason)(f"not asked any more, since {reason}")
            began = time.monotonic()
            return await self._until_answered(request), time.monotonic() - began

    def _count_hopeless(self, error: Unanswerable) -> None:
        self._num_hopeless += 1
        if self._num_hopeless >= _HOPELESS and not self._any_answered:
            said = f"the first {_HOPELESS} requests were refused one and all: {error}"
            self._cache.closed_by = ServiceUnavailable(said)
            raise ConfigError(f"{self._name}: {said}; look at max_tokens and the prompts' lengths")

    async def _until_answered(self, request: Request) -> Reply:
        growing = wait_random_exponential(multiplier=0.5, max=_LONGEST_PAUSE_S)
        until = time.monotonic() + self.config.patience_s

        def pause(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.wait_s if isinstance(error, _Busy) else None
            if asked is None:  # the last attempt is when patience ends, as was said
                return min(growing(state), max(0.05, until - time.monotonic()))
            self._quiet_until = max(self._quiet_until, time.monotonic() + asked)
            return 0.0

        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(_Busy),
                wait=pause,
                stop=stop_after_delay(self.config.patience_s),
                reraise=True,
            ):
                with attempt:
                    await self._quiet()
                    await self._in_turn(request)
                    return await self._watched(request, until)
        except _Busy as busy:
            raise ServiceUnavailable(
                f"{self._name} did not answer in {self.config.patience_s:g} s of trying: {busy}; "
                "the same command goes on from the answers that are there"
            ) from None
        raise AssertionError("tenacity either answers or raises")

    async def _watched(self, request: Request, until: float) -> Reply:
        began = time.monotonic()
        try:
            reply = await self._attempt(request)
        except _Busy as busy:
            self._outage.failed(str(busy), began=began, until=until)
            raise
        self._outage.answered()
        return reply

    async def _in_turn(self, request: Request) -> None:
        """Until the limits a minute let one more attempt go."""
        if self._requests is not None:
            await self._requests.acquire()
        if self._tokens is not None:
            await self._tokens.acquire(min(self._tokens.max_rate, _estimate(request)))

    async def _quiet(self) -> None:
        """Until no Retry-After holds any more; another request's may have come meanwhile."""
        while (left := self._quiet_until - time.monotonic()) > 0:  # noqa: ASYNC110  # a time, no event
            await asyncio.sleep(left)

    async def _attempt(self, request: Request) -> Reply:
        import openai

        try:
            # Of the whole attempt: the client's own is between two bytes.
            async with asyncio.timeout(self.config.timeout_s):
                # Not by `chat.completions`: typing what goes out and comes in takes half the time,
                # and copying a body that is not bytes yet another tenth.
                body = await self._client.post(
                    "/chat/completions",
                    cast_to=str,
                    content=request.body,
                    # Servers that know the header charge a request that was cut off only once.
                    options={"headers": {"Idempotency-Key": request.key} | self._no_key},
                )
            return _reply(body, request)
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        except (openai.APITimeoutError, TimeoutError) as error:
            # Its transport calls a refused connection a timeout, too.
            refused = getattr(error.__cause__, "__cause__", None)
            if isinstance(refused, OSError) and not isinstance(refused, TimeoutError):
                raise _Busy(f"no connection ({self._public(refused)})") from None
            raise _Busy(f"no answer within {self.config.timeout_s:g} s") from None
        except openai.APIConnectionError as error:
            raise _Busy(f"no connection ({self._public(error.__cause__ or error)})") from None

    def _refusal(self, error: "openai.APIStatusError") -> Exception:
        """What an HTTP error means, without what a server may quote of the key."""
        status, said = error.status_code, self._public(error.body or error.message)
        if status in (401, 403):
            variable = self.config.api_key_env
            given = f"the key in {variable}" if variable else "a request without a key"
            return ConfigError(
                f"{self._name} refuses {given} (HTTP {status}); "
                + (f"set {variable} to a key it knows" if variable else "name one in api_key_env")
            )
        if error.code == "insufficient_quota" or status == 402:  # Payment Required
            return ServiceUnavailable(f"{self._name}: the account has no quota left; {said}")
        if status in _BUSY or status >= 500:  # server errors
            return _Busy(f"HTTP {status}: {said}", _retry_after(error.response.headers))
        if status == 413 or (  # Content Too Large
            status in (400, 422)
            and (_TOO_LONG.search(said.lower()) or _FILTERED.search(f"{error.code} {said}".lower()))
        ):
            return Unanswerable(said)
        if status == 404:
            return ConfigError(
                f"{self._name} does not know model {self.config.model} (HTTP 404: {said}); "
                f"GET {self.config.base_url}/models lists what it serves"
            )
        return ConfigError(f"{self._name} refuses the request (HTTP {status}): {said}")

    def _public(self, said: object) -> str:
        """At most a line of what was said, never the key."""
        if isinstance(said, dict):
            said = said.get("message", said)
        text = " ".join(str(said).split())
        text = text.replace(" ssl:default", "")  # aiohttp says it of plain http, too
        return (text.replace(self._key, "[key]") if self._key else text)[:300]

    @property
    def _name(self) -> str:
        return f"{self.config.model} at {self.config.base_url}"


def _ending(error: BaseException) -> DpoflowError:
    """Why nobody is asked any more."""
    if isinstance(error, DpoflowError):
        return error
    return ServiceUnavailable(f"{type(error).__name__}: {error}")


def key_of(config: EndpointConfig) -> str | None:
    """The key that the environment holds. Raises ConfigError where it should and does not."""
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise ConfigError(
            f"{config.api_key_env} is not set, and the endpoint {config.base_url} takes its key "
            f"from it; export {config.api_key_env}=…, or leave api_key_env out"
        )
    return key


def _retry_after(headers: Any) -> float | None:
    """Seconds, or a date (RFC 9110, 10.2.3); nothing that makes no sense."""
    given = headers.get("retry-after")
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        date = email.utils.parsedate_tz(given)
        seconds = email.utils.mktime_tz(date) - time.time() if date else math.nan
    return min(max(seconds, 0.0), 600.0) if math.isfinite(seconds) else None


def _pacer(per_minute: float | None, worth_s: float) -> AsyncLimiter | None:
    """A bucket that holds so many seconds' worth: a minute's limit is kept in every moment."""
    if per_minute is None:
        return None
    holds = max(1.0, per_minute / 60 * worth_s)
    return AsyncLimiter(holds, holds * 60 / per_minute)


def _most(request: Request) -> tuple[int, int]:
    """Tokens that are read and written, at most; a schema is read, too."""
    schema = request.parameters.get("response_format")
    read = _bytes(request) + (len(json.dumps(schema)) if schema else 0)
    return read + _FRAME * (1 + len(request.messages)), int(request.parameters["max_tokens"])


def _bytes(request: Request) -> int:
    return sum(len(message["content"].encode()) for message in request.messages)


def _estimate(request: Request) -> int:
    """Tokens of usual text, read and written."""
    return _bytes(request) // BYTES_A_TOKEN + int(request.parameters["max_tokens"])


def sound(text: str) -> str:
    """`text` as it can be written down: a lone surrogate in a reply is nobody's letter."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _reply(body: str, request: Request) -> Reply:
    """The parts of a completion that count. A body that is none is the server's trouble.

    Tokens that the server does not count are taken to be the most there can be.
    """
    try:
        told = json.loads(body)
        choice, usage = told["choices"][0], told.get("usage") or {}
        first = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs")
        likely = {
            sound(one["token"]): float(one["logprob"])
            for one in first or ()
            if math.isfinite(one["logprob"])
        }
        read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
        return Reply(
            text=sound(choice["message"].get("content") or ""),
            finish_reason=choice.get("finish_reason") or "stop",
            tokens_read=_most(request)[0] if read is None else read,
            tokens_written=_most(request)[1] if written is None else written,
            first_token=likely or None,
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise _Busy("a reply that is no completion") from None
