"""Servers that are busy, broken or strict: what is asked again, what ends a step, what is kept."""

import asyncio
import json
import re
import socket
import sqlite3
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.openai_server import Action, Cut, Garbage, Hang, Refuse, Say, ScriptedServer
from tests.judging import ASKED, asking, config, decide, honest

from dpoflow.contracts.errors import ConfigError, DpoflowError, ServiceUnavailable
from dpoflow.contracts.judges import BudgetConfig, EndpointConfig, LlmJudgeConfig, RubricJudgeConfig
from dpoflow.endpoints import outage
from dpoflow.endpoints.budget import Exhausted
from dpoflow.endpoints.cache import Cache, Reply, Request
from dpoflow.judge.build import Servers, build

GOOD, BAD = "quality=2", "quality=1"


def first(fault: Action) -> Any:
    """A script: this fault at each request's first attempt, then an honest answer."""
    return lambda body, attempt: honest(body) if attempt else fault


@pytest.mark.parametrize(
    "fault",
    [
        Refuse(500, "oops"),
        Refuse(503, "overloaded"),
        Refuse(429, "slow down", headers={"retry-after": "0.2"}),
        Hang(),
        Cut(),
        Garbage(),
        Garbage(b'{"choices": []}'),
        Garbage(b'{"choices": [{"message": null}]}'),
    ],
    ids=lambda fault: f"{type(fault).__name__}{getattr(fault, 'status', '')}",
)
def test_whatever_is_busy_away_or_broken_is_asked_again(fault: Action, tmp_path: Path) -> None:
    with ScriptedServer(first(fault)) as server:
        judge = config(server, endpoint={"timeout_s": 0.5} if fault == Hang() else {})
        (outcome,) = decide(judge, tmp_path / "kept", [(GOOD, BAD)])

    assert (outcome.label, outcome.winner) == ("preferred", "first")
    assert sorted(server.paid.values()) == [1, 1]
    if fault == Hang():  # on a busy machine half a second may be too little once more
        assert min(server.seen.values()) >= 2
    else:
        assert sorted(server.seen.values()) == [2, 2]


def test_an_outage_is_told_once_with_its_end_and_that_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "_GRACE_S", 0.3)
    told: list[str] = []
    times: list[float] = []

    def tell(text: str) -> None:
        told.append(text)
        times.append(time.time())

    def script(body: dict[str, Any], attempt: int) -> Action:
        """It is back when it was told of, and not within its first second."""
        away = not told or time.time() < began + 1
        return Refuse(500, "oops") if away else honest(body)

    async def judged(judge: LlmJudgeConfig) -> None:
        async with Servers(
            tmp_path / "kept", "me", None, lambda *_: None, tell=tell, afterwards="; then X"
        ) as at:
            asked = await build(judge, at)
            couples = ((f"{GOOD}{n}", BAD) for n in range(8))
            await asyncio.gather(*(asked.decide(ASKED, *couple) for couple in couples))

    began = time.time()
    with ScriptedServer(script) as server:
        asyncio.run(judged(config(server, endpoint={"patience_s": 600})))

    away, again = told
    found = re.fullmatch(
        r"judge at http://127\.0\.0\.1:\d+/v1: HTTP 500: oops; trying again until "
        r"(\d\d:\d\d:\d\d) \((\d+) min (\d\d) s\); then X",
        away,
    )
    assert found, away
    spent = int(times[0] - began) + 1  # of its ten minutes, at most, when it was told
    ends = {time.strftime("%H:%M:%S", time.localtime(began + 600 + n)) for n in range(spent + 1)}
    assert found[1] in ends
    assert 600 - spent <= 60 * int(found[2]) + int(found[3]) <= 600
    assert re.fullmatch(r"judge at http://\S+ answers again after (?!0 s)\d.* s", again)


def test_a_server_that_is_not_there_is_told_while_it_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "_GRACE_S", 0.3)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        endpoint = EndpointConfig(
            base_url=f"http://127.0.0.1:{taken.getsockname()[1]}/v1", model="judge", patience_s=2
        )
        told: list[str] = []

        async def asked() -> None:
            judge = LlmJudgeConfig(kind="llm", endpoint=endpoint)
            kept = tmp_path / "kept"
            async with Servers(kept, "me", None, lambda *_: None, tell=told.append) as at:
                await (await build(judge, at)).decide(ASKED, GOOD, BAD)

        pauses, sleep = Counter[object](), asyncio.sleep

        async def pause(seconds: float, result: object = None) -> object:
            pauses[asyncio.current_task()] += seconds  # type: ignore[assignment]
            return await sleep(seconds, result)

        monkeypatch.setattr(asyncio, "sleep", pause)
        with pytest.raises(ServiceUnavailable):
            asyncio.run(asked())

    assert 0 < max(pauses.values()) < 2.2, "what was said is kept to"
    (away,) = told
    assert "no connection" in away
    assert "trying again until" in away


def test_a_single_slip_of_a_server_is_not_worth_a_word(tmp_path: Path) -> None:
    told: list[str] = []

    async def asked(judge: LlmJudgeConfig) -> None:
        kept = tmp_path / "kept"
        async with Servers(kept, "me", None, lambda *_: None, tell=told.append) as at:
            await (await build(judge, at)).decide(ASKED, GOOD, BAD)

    with ScriptedServer(first(Refuse(500))) as server:
        asyncio.run(asked(config(server)))

    assert told == []


def test_retry_after_holds_every_request_back(tmp_path: Path) -> None:
    times: list[float] = []

    def script(body: dict[str, Any], attempt: int) -> Action:
        times.append(time.monotonic())
        if len(times) == 1:
            return Refuse(429, headers={"retry-after": "1"})
        return honest(body)

    with ScriptedServer(script, together=4) as server:
        decide(config(server), tmp_path / "kept", [(GOOD, BAD), (f"{GOOD}!", BAD)])

    # Four at once; the first is refused, and nothing new begins before its time is over.
    assert len(times) == 5
    assert times[4] - times[3] >= 0.99


def test_a_server_that_never_answers_ends_the_step_and_keeps_what_was_paid(tmp_path: Path) -> None:
    def script(body: dict[str, Any], attempt: int) -> Action:
        return Refuse(503) if "hopeless" in str(body) else honest(body)

    couples = [(GOOD, BAD), (f"{GOOD} hopeless", BAD)]
    with ScriptedServer(script) as server:
        judge = config(server, endpoint={"patience_s": 1})
        with pytest.raises(ServiceUnavailable, match=r"did not answer in 1 s of trying: HTTP 503"):
            decide(judge, tmp_path / "kept", couples)
        paid = sum(server.paid.values())
        decide(judge, tmp_path / "kept", couples[:1])

    assert paid == 2
    assert sum(server.paid.values()) == 2, "nothing is paid twice"


@pytest.mark.parametrize(
    ("refused", "kind", "message"),
    [
        (Refuse(400, "unknown field response_format"), ConfigError, "HTTP 400.*response_format"),
        (Refuse(404, "no such model"), ConfigError, "does not know model judge"),
        (Refuse(402, "pay first"), ServiceUnavailable, "has no quota left"),
        (Refuse(403, "not yours"), ConfigError, "refuses a request without a key"),
        (
            Refuse(429, "you exceeded your current quota", "insufficient_quota"),
            ServiceUnavailable,
            "has no quota left",
        ),
    ],
)
def test_what_would_fail_the_same_way_again_ends_the_step_at_once(
    refused: Refuse, kind: type[DpoflowError], message: str, tmp_path: Path
) -> None:
    with (
        ScriptedServer(lambda body, attempt: refused) as server,
        pytest.raises(kind, match=message),
    ):
        decide(config(server), tmp_path / "kept", [(GOOD, BAD)])

    assert max(server.seen.values()) == 1


def test_a_prompt_that_is_too_long_for_the_model_is_no_verdict_and_no_error(tmp_path: Path) -> None:
    said = "This model's maximum context length is 512 tokens."

    def script(body: dict[str, Any], attempt: int) -> Action:
        return (
            Refuse(400, said, "context_length_exceeded") if len(str(body)) > 3000 else honest(body)
        )

    with ScriptedServer(script) as server:
        short, long = decide(
            config(server), tmp_path / "kept", [(GOOD, BAD), (GOOD + "x" * 3000, BAD)]
        )

    assert (short.label, long.label) == ("preferred", "invalid")
    assert "maximum context length" in (long.ballots[0].verdict.rationale or "")


def test_a_request_longer_than_the_context_in_the_spec_is_not_sent(tmp_path: Path) -> None:
    with ScriptedServer(honest) as server:
        judge = config(server, endpoint={"context_tokens": 2000})
        (outcome,) = decide(judge, tmp_path / "kept", [(GOOD + " and so on" * 4000, BAD)])

    assert outcome.label == "invalid"
    assert not server.seen


def test_a_wrong_key_is_refused_and_never_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    with ScriptedServer(honest, key="another") as server:
        judge = config(server, endpoint={"api_key_env": "JUDGE_KEY"})
        with pytest.raises(ConfigError) as error:
            decide(judge, tmp_path / "kept", [(GOOD, BAD)])

    assert "refuses the key in JUDGE_KEY (HTTP 401)" in str(error.value)
    assert "sk-very-secret" not in str(error.value)
    assert b"sk-very-secret" not in b"".join(p.read_bytes() for p in tmp_path.iterdir())


def test_the_right_key_is_sent_and_nothing_where_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    with ScriptedServer(honest, key="sk-very-secret") as server:
        decide(config(server, endpoint={"api_key_env": "JUDGE_KEY"}), tmp_path / "a", [(GOOD, BAD)])
    with ScriptedServer(honest) as server:
        decide(config(server), tmp_path / "b", [(GOOD, BAD)])

    assert all("sk-" not in str(headers) for headers in server.headers)


def test_a_key_that_is_not_set_is_told_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with ScriptedServer(honest) as server:
        judge = config(server, endpoint={"api_key_env": "JUDGE_KEY"})
        with pytest.raises(ConfigError, match=r"JUDGE_KEY is not set.*export JUDGE_KEY="):
            decide(judge, tmp_path / "kept", [(GOOD, BAD)])

    assert not server.seen


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"api_key_env": "sk-very-secret"}, "must name an environment variable"),
        ({"base_url": "http://me:secret@host/v1"}, "must hold no user, password or key"),
        ({"base_url": "http://host/v1?api_key=secret"}, "must hold no user, password or key"),
        ({"base_url": "file:///etc"}, "must be http"),
    ],
)
def test_a_secret_in_a_spec_is_refused_without_being_printed(
    knobs: dict[str, str], message: str, tmp_path: Path
) -> None:
    from dpoflow.contracts.spec_file import load_spec

    endpoint = {"base_url": "http://host/v1", "model": "m"} | knobs
    lines = "".join(f"      {name}: '{value}'\n" for name, value in endpoint.items())
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "name: x\nmodel: ./m\ndata: {sources: [{uri: d.jsonl}]}\n"
        f"evaluate:\n  judge:\n    kind: llm\n    endpoint:\n{lines}"
    )

    with pytest.raises(ConfigError, match=message) as error:
        load_spec(spec)

    assert "secret" not in str(error.value)
    assert "evaluate.judge.endpoint" in str(error.value)


def test_no_more_requests_are_in_flight_than_the_spec_allows(tmp_path: Path) -> None:
    def slow(body: dict[str, Any], attempt: int) -> Action:
        return Say(honest(body).text, after_s=0.05)  # type: ignore[union-attr]

    with ScriptedServer(slow, together=3) as server:
        couples = [(f"{GOOD} {n}", BAD) for n in range(20)]
        decide(config(server, endpoint={"concurrency": 3}), tmp_path / "kept", couples)

    assert server.most_in_flight == 3


def test_requests_a_minute_are_kept_to(tmp_path: Path) -> None:
    """Ten a second, and no more than ten at once: thirty take two seconds. Failures count, too."""

    def script(body: dict[str, Any], attempt: int) -> Action:
        return honest(body) if attempt or "0" not in str(body) else Refuse(500)

    with ScriptedServer(script) as server:
        judge = config(server, endpoint={"requests_per_minute": 600})
        began = time.monotonic()
        decide(judge, tmp_path / "kept", [(f"{GOOD} {n}", BAD) for n in range(15)])
        took, asked = time.monotonic() - began, sum(server.seen.values())

    assert took >= (asked - 10) / 10 - 0.1
    assert asked >= 30


def test_the_same_answers_are_asked_about_once_however_often_at_once(tmp_path: Path) -> None:
    with ScriptedServer(honest) as server:
        decide(config(server), tmp_path / "kept", [(GOOD, BAD)] * 10 + [(BAD, GOOD)] * 10)

    assert sum(server.seen.values()) == 2


@pytest.mark.parametrize(
    ("budget", "bound"),
    [({"requests": 5}, 1), ({"money": 0.1}, 0.016), ({"tokens": 4000}, 1300)],
)
def test_a_budget_ends_the_asking_is_used_up_and_never_overrun(
    budget: dict[str, Any], bound: float, tmp_path: Path
) -> None:
    """A verdict of at most 16 tokens, a thousandth each, on a question of less than 1,100 bytes."""
    with ScriptedServer(honest) as server:
        judge = config(server, endpoint={"price_output": 1000}, max_tokens=16)
        limit = BudgetConfig.model_validate(budget)

        async def run() -> tuple[list[object], Any]:
            async with asking(judge, tmp_path / "kept", limit) as (judged, at):
                told = await asyncio.gather(
                    *(judged.decide(ASKED, f"{GOOD} {n}", BAD) for n in range(10)),
                    return_exceptions=True,
                )
                return list(told), at.spent()["judge"]

        told, spent = asyncio.run(run())

    assert any(isinstance(each, Exhausted) for each in told)
    for name, most in budget.items():
        assert most - bound < getattr(spent, name) <= most
    assert sum(server.paid.values()) == spent.requests


def test_a_budget_counts_what_an_earlier_attempt_spent(tmp_path: Path) -> None:
    with ScriptedServer(honest) as server:
        limit = BudgetConfig(requests=4)
        decide(config(server), tmp_path / "kept", [(GOOD, BAD)], budget=limit)
        decide(config(server), tmp_path / "kept", [(f"{GOOD}!", BAD)], budget=limit)
        with pytest.raises(Exhausted, match="the budget of 4 requests has 0 left"):
            decide(config(server), tmp_path / "kept", [(f"{GOOD}?", BAD)], budget=limit)

    assert sum(server.paid.values()) == 4


@pytest.mark.parametrize("knob", ["requests", "tokens", "money"])
def test_a_budget_of_zero_is_refused(knob: str) -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        BudgetConfig.model_validate({knob: 0})


def test_an_answer_is_on_the_disk_before_anybody_uses_it(tmp_path: Path) -> None:
    """Seen by another connection the moment `keep` returns."""
    request = Request(base_url="u", model="m", messages=(), parameters={}, template="t")
    reply = Reply(text="yes", finish_reason="stop", tokens_read=1, tokens_written=2)

    async def run() -> list[tuple[str]]:
        with Cache(tmp_path / "kept", "me") as cache:
            await cache.keep(request, reply, 0.5)
            with closing(sqlite3.connect(tmp_path / "kept")) as other:
                return other.execute("SELECT reply FROM replies").fetchall()

    assert asyncio.run(run()) == [(reply.model_dump_json(),)]


def test_answers_of_another_layout_are_left_alone(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "kept")) as old:
        old.execute("PRAGMA user_version = 99")
    before = (tmp_path / "kept").read_bytes()

    with pytest.raises(ConfigError, match=r"another version of dpoflow \(layout 99"):
        Cache(tmp_path / "kept", "me").__enter__()

    assert (tmp_path / "kept").read_bytes() == before


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("not a database, " * 100)

    with pytest.raises(ConfigError, match=r"is damaged.*move it away"):
        Cache(tmp_path / "kept", "me").__enter__()


def test_a_full_disk_is_told_and_what_was_paid_is_kept(tmp_path: Path) -> None:
    """SQLite's own limit stands for the disk's: its error is the same."""

    async def run() -> int:
        with Cache(tmp_path / "kept", "me") as cache:
            await cache._call(lambda: cache._database.execute("PRAGMA max_page_count = 20"))  # noqa: SLF001
            for number in range(1000):
                request = Request(
                    base_url="u", model="m", messages=(), parameters={}, template="t", repeat=number
                )
                reply = Reply(text="y" * 900, finish_reason="stop", tokens_read=1, tokens_written=2)
                with suppress(ServiceUnavailable):
                    await cache.keep(request, reply, 0.0)
                    continue
                with pytest.raises(ServiceUnavailable, match="make room"):
                    await cache.keep(request, reply, 0.0)
                return number
        raise AssertionError("the disk was never full")

    kept = asyncio.run(run())
    with closing(sqlite3.connect(tmp_path / "kept")) as database:
        assert database.execute("SELECT COUNT(*) FROM replies").fetchone() == (kept,)


def test_a_clock_that_goes_backwards_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScriptedServer(honest) as server:
        decide(config(server), tmp_path / "kept", [(GOOD, BAD)])
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() - 86_400)
        (outcome,) = decide(config(server), tmp_path / "kept", [(GOOD, BAD)])

    assert outcome.winner == "first"
    assert sum(server.seen.values()) == 2


def test_the_way_to_a_model_is_no_part_of_its_answers() -> None:
    """Another timeout or limit asks nothing again; another model or place does."""
    one = EndpointConfig(base_url="http://a/v1/", model="m")
    assert one.base_url == "http://a/v1"
    asked = Request(base_url="u", model="m", messages=(), parameters={"t": 0}, template="t")
    others = [
        asked.model_copy(update=changed)
        for changed in (
            {"base_url": "v"},
            {"model": "n"},
            {"parameters": {"t": 1}},
            {"template": "u"},
            {"repeat": 1},
            {"messages": ({"role": "user", "content": "hi"},)},
        )
    ]
    assert len({asked.key, *(other.key for other in others)}) == 7


def test_a_server_that_counts_no_tokens_is_taken_to_have_used_the_most(tmp_path: Path) -> None:
    """Else a budget in money would never end."""
    body = {"choices": [{"message": {"content": '{"reason": "", "verdict": "A"}'}}]}

    with ScriptedServer(lambda _, attempt: Garbage(json.dumps(body).encode())) as server:
        judge = config(server, endpoint={"price_output": 1000}, max_tokens=16)

        async def run() -> Any:
            async with asking(judge, tmp_path / "kept") as (judged, at):
                await judged.decide(ASKED, GOOD, BAD)
                return at.spent()["judge"]

        spent = asyncio.run(run())

    assert spent.money == pytest.approx(2 * 0.016)


@pytest.mark.parametrize(
    "refused",
    [
        Refuse(413, "Request Entity Too Large"),
        Refuse(400, "The response was filtered", "content_filter"),
    ],
)
def test_a_request_that_a_server_will_not_read_is_no_reason_to_stop_the_others(
    refused: Refuse, tmp_path: Path
) -> None:
    def script(body: dict[str, Any], attempt: int) -> Action:
        return refused if "awful" in str(body) else honest(body)

    with ScriptedServer(script) as server:
        awful, fine = decide(
            config(server), tmp_path / "kept", [(f"{GOOD} awful", BAD), (GOOD, BAD)]
        )

    assert (awful.label, fine.label) == ("invalid", "preferred")


def test_a_server_that_refuses_all_requests_alike_ends_the_step(tmp_path: Path) -> None:
    said = "max_tokens is too large: the maximum context length is 16"
    with (
        ScriptedServer(lambda body, attempt: Refuse(400, said)) as server,
        pytest.raises(ConfigError, match="the first 20 requests were refused one and all"),
    ):
        decide(config(server), tmp_path / "kept", [(f"{GOOD} {n}", BAD) for n in range(30)])


def test_settings_of_openai_in_the_environment_go_to_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-secret")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Token: token-secret")
    with ScriptedServer(honest) as server:
        decide(config(server), tmp_path / "kept", [(GOOD, BAD)])

    assert all("secret" not in str(headers) for headers in server.headers)
    assert all("authorization" not in headers for headers in server.headers)


def test_a_store_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    with pytest.raises(ServiceUnavailable, match="cannot be kept in"):
        Cache(tmp_path / "kept", "me").__enter__()


def test_an_answer_that_another_run_was_quicker_to_pay_for_is_the_answer(tmp_path: Path) -> None:
    request = Request(base_url="u", model="m", messages=(), parameters={}, template="t")
    said = [
        Reply(text=text, finish_reason="stop", tokens_read=1, tokens_written=1)
        for text in ("first", "second")
    ]

    async def run() -> list[str]:
        with Cache(tmp_path / "kept", "a") as one, Cache(tmp_path / "kept", "b") as two:
            kept = [await one.keep(request, said[0], 0.0), await two.keep(request, said[1], 0.0)]
            return [reply.text for reply in kept]

    assert asyncio.run(run()) == ["first", "first"]


def test_a_judge_that_asks_nobody_opens_no_store(tmp_path: Path) -> None:
    """A rubric must work on a volume that no database likes."""
    rubric = {"checks": [{"kind": "prose", "name": "p", "half": "judge"}]}

    async def run() -> None:
        async with Servers(tmp_path / "kept", "me", None, lambda *_: None) as at:
            judge = await build(RubricJudgeConfig.model_validate({"rubric": rubric}), at)
            await judge.decide(ASKED, GOOD, BAD)
            assert (at.spent(), at.stopped_by) == ({}, None)

    asyncio.run(run())

    assert not (tmp_path / "kept").exists()


def test_requests_too_long_after_a_restart_are_no_reason_to_stop(tmp_path: Path) -> None:
    """What was answered before the restart shows that the server can answer."""

    def script(body: dict[str, Any], attempt: int) -> Action:
        return Refuse(413) if "long" in str(body) else honest(body)

    with ScriptedServer(script) as server:
        decide(config(server), tmp_path / "kept", [(GOOD, BAD)])
        couples = [(GOOD, BAD), *((f"{GOOD} long {n}", BAD) for n in range(30))]
        outcomes = decide(config(server), tmp_path / "kept", couples)

    assert [outcome.label for outcome in outcomes] == ["preferred", *["invalid"] * 30]


def test_a_server_that_is_not_there_is_no_slow_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = {"base_url": f"http://127.0.0.1:{port}/v1", "model": "m", "patience_s": 0.1}
    judge = LlmJudgeConfig.model_validate({"kind": "llm", "endpoint": endpoint})

    with pytest.raises(ServiceUnavailable, match=r"no connection .*Cannot connect to host"):
        decide(judge, tmp_path / "kept", [("quality=1", "quality=2")])
