"""A fake OpenAI-compatible server, over real sockets, that misbehaves as it is told.

    with ScriptedServer(script) as server: … server.base_url …
    python -m tests.fakes.openai_server --latency 0.2      prints its address; for benchmarks

Written from OpenAI's published chat completion object. A `script` gets the request's body and how
often the same request was already seen, and says what happens: `Say`, `Refuse`, `Hang`, `Cut`,
`Garbage`. A request whose Idempotency-Key was answered before gets that answer again, free of
charge, as servers do that know the header.

What a real server has and this has not: a model, batching, streaming, TLS.
"""

import argparse
import asyncio
import hashlib
import json
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from tests.waiting import AT_MOST_S


@dataclass(frozen=True)
class Say:
    """A completion."""

    text: str
    after_s: float = 0.0
    logprobs: dict[str, float] | None = None
    """Token to log-probability, at the first place."""
    finish_reason: str = "stop"


@dataclass(frozen=True)
class Refuse:
    """An HTTP error."""

    status: int
    message: str = "no"
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Hang:
    """Nothing, for as long as the client waits."""


@dataclass(frozen=True)
class Cut:
    """Half of a reply, then the connection closes."""


@dataclass(frozen=True)
class Garbage:
    """200 and these bytes."""

    body: bytes = b"<html>busy</html>"


Action = Say | Refuse | Hang | Cut | Garbage
Script = Callable[[dict[str, Any], int], Action]


class ScriptedServer:
    """`paid` counts the answers that were made, by request; `seen` every attempt.

    Nobody is answered before `together` requests were in flight at once.
    """

    def __init__(
        self,
        script: Script,
        *,
        key: str | None = None,
        models: tuple[str, ...] = (),
        port: int = 0,
        together: int = 0,
    ) -> None:
        self.script, self.key, self.models = script, key, models
        self.paid: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.in_flight = self.most_in_flight = 0
        self._answers: dict[str, bytes] = {}
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self.port, self._together = port, together

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(AT_MOST_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(AT_MOST_S)

    def serve(self, said: Callable[[str], None] = lambda url: None) -> None:
        """Until the loop is stopped, in whatever thread calls."""
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._connection, "127.0.0.1", self.port, backlog=2048)
        )
        self.port = server.sockets[0].getsockname()[1]
        said(self.base_url)
        self._ready.set()
        try:
            self._loop.run_forever()
        finally:
            server.close()
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.split("\r\n")
        headers = {
            name.lower(): value
            for name, _, value in (line.partition(": ") for line in lines if line)
        }
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = first.split(" ")
        self.headers.append(headers)
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            # As OpenAI does, the key is quoted back: a client must not print that.
            given = headers.get("authorization", "none").removeprefix("Bearer ")
            return await self._send(
                writer, *_error(Refuse(401, f"Incorrect API key provided: {given}."))
            )
        if (method, path) == ("GET", "/v1/models"):
            listed = {"object": "list", "data": [{"id": m, "object": "model"} for m in self.models]}
            return await self._send(writer, 200, json.dumps(listed).encode(), {})
        if (method, path) != ("POST", "/v1/chat/completions"):
            return await self._send(writer, *_error(Refuse(404, "no such page")))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._complete(writer, json.loads(body), headers)
        finally:
            self.in_flight -= 1

    async def _complete(
        self, writer: asyncio.StreamWriter, body: dict[str, Any], headers: dict[str, str]
    ) -> bool:
        if self.models and body["model"] not in self.models:
            refused = Refuse(404, f"The model `{body['model']}` does not exist.", "model_not_found")
            return await self._send(writer, *_error(refused))
        name = (
            headers.get("idempotency-key") or hashlib.sha256(json.dumps(body).encode()).hexdigest()
        )
        action = self.script(body, self.seen[name])
        self.seen[name] += 1
        while self.most_in_flight < self._together:  # noqa: ASYNC110  # no event: a number
            await asyncio.sleep(0.01)
        if isinstance(action, Say) and name not in self._answers:
            await asyncio.sleep(action.after_s)
        if name in self._answers:  # perhaps since a moment ago: another attempt at the same
            return await self._send(writer, 200, self._answers[name], {})
        if not isinstance(action, Say):
            return await self._misbehave(writer, action)
        answer = json.dumps(_completion(body, action)).encode()
        self.paid[name] += 1
        self._answers[name] = answer
        return await self._send(writer, 200, answer, {})

    async def _misbehave(self, writer: asyncio.StreamWriter, action: Action) -> bool:
        match action:
            case Refuse():
                return await self._send(writer, *_error(action))
            case Garbage():
                return await self._send(writer, 200, action.body, {})
            case Cut():
                writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{"choices": [{')
                await writer.drain()
            case _:
                await asyncio.sleep(3600)
        return False

    @staticmethod
    async def _send(
        writer: asyncio.StreamWriter, status: int, body: bytes, headers: dict[str, str]
    ) -> bool:
        lines = [f"HTTP/1.1 {status} X", "content-type: application/json"]
        lines += [f"content-length: {len(body)}", *(f"{k}: {v}" for k, v in headers.items())]
        writer.write("\r\n".join([*lines, "\r\n"]).encode() + body)
        await writer.drain()
        return True


def _error(refused: Refuse) -> tuple[int, bytes, dict[str, str]]:
    error = {"message": refused.message, "type": "error", "param": None, "code": refused.code}
    return refused.status, json.dumps({"error": error}).encode(), refused.headers


def _completion(body: dict[str, Any], said: Say) -> dict[str, Any]:
    read = sum(len(str(message["content"])) for message in body["messages"]) // 4
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": said.text, "refusal": None},
        "finish_reason": said.finish_reason,
    }
    if said.logprobs is not None and body.get("logprobs"):
        top = [{"token": token, "logprob": value} for token, value in said.logprobs.items()]
        choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
    written = max(1, len(said.text) // 4)
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [choice],
        "usage": {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latency", type=float, default=0.2, help="seconds of each answer")
    asked = parser.parse_args()
    verdict = Say('{"reason": "it answers", "verdict": "A"}', after_s=asked.latency)
    ScriptedServer(lambda body, attempt: verdict).serve(
        lambda url: (sys.stdout.write(url + "\n"), sys.stdout.flush())  # type: ignore[func-returns-value]
    )


if __name__ == "__main__":
    main()
