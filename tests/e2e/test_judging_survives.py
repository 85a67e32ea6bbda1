"""Five thousand judgements on a bad server, by a client that is killed: nothing is paid twice."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.openai_server import Action, Cut, Garbage, Hang, Refuse, Say, ScriptedServer
from tests.judging import config, dice, honest
from tests.waiting import AT_MOST_S, until

COUPLES = 2500
"""Each is judged in both orders."""

CHILD = """
import asyncio, json, sys
from pathlib import Path
from dpoflow.contracts.judges import LlmJudgeConfig
from dpoflow.endpoints.stream import in_order
from tests.e2e.test_judging_survives import couple
from tests.judging import ASKED, asking

async def main(config, kept, out, many):
    told = []
    async with asking(config, kept) as (judge, _):
        async def work(place):
            outcome = await judge.decide(ASKED, *couple(place))
            return [place, outcome.label, outcome.winner,
                    [ballot.verdict.model_dump() for ballot in outcome.ballots]]
        async for one in in_order(range(many), work, ahead=256):
            told.append(one)
    out.write_text("".join(json.dumps(one) + "\\n" for one in told))

config, kept, out, many = sys.argv[1:]
asyncio.run(main(LlmJudgeConfig.model_validate_json(config), Path(kept), Path(out), int(many)))
"""


def mood(place: int) -> str:
    """How the judge speaks of this couple."""
    return {7: "prose", 11: "schema", 13: "nan", 17: "empty"}.get(place % 50, "fine")


def couple(place: int) -> tuple[str, str]:
    first, second = place % 3, place // 3 % 3
    return (
        f"couple {place}, mood={mood(place)}, quality={first}",
        f"its other, {place}, mood={mood(place)}, quality={second}",
    )


def expected(place: int) -> str:
    if mood(place) != "fine":
        return "invalid"
    return "tie" if place % 3 == place // 3 % 3 else "preferred"


def bad_server(body: dict[str, Any], attempt: int) -> Action:
    """At first attempts, some of everything; then a judge that sees quality, in several moods."""
    faults: dict[int, Action] = {
        **dict.fromkeys(range(20), Refuse(500)),
        **dict.fromkeys(range(20, 40), Refuse(429, headers={"retry-after": "0.05"})),
        **dict.fromkeys(range(40, 50), Cut()),
        **dict.fromkeys(range(50, 60), Garbage()),
        60: Hang(),
    }
    fault = None if attempt else faults.get(dice(body) % 1000)
    text = str(body["messages"])
    if fault is not None:
        return fault
    if "mood=prose" in text:
        return Say("I would say that the first is better, so A.")
    if "mood=schema" in text:
        return Say('{"winner": "A"}')
    if "mood=nan" in text:
        return Say('{"reason": "r", "verdict": NaN}')
    if "mood=empty" in text:
        return Say("")
    said = honest(body)
    assert isinstance(said, Say)
    return Say(said.text, after_s=0.01 * (dice(body) % 5))


def judge(server: ScriptedServer, kept: Path, out: Path, many: int) -> "subprocess.Popen[bytes]":
    asked = config(server, endpoint={"concurrency": 64, "timeout_s": 5})
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), *sys.path]))
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, asked.model_dump_json(), str(kept), str(out), str(many)],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
    )


def kept_keys(kept: Path) -> set[str]:
    if not kept.exists():
        return set()
    with closing(sqlite3.connect(kept)) as database:
        try:
            return {key for (key,) in database.execute("SELECT key FROM replies")}
        except sqlite3.OperationalError:  # killed before there was a table
            return set()


def finished(process: "subprocess.Popen[bytes]") -> None:
    _, said = process.communicate(timeout=AT_MOST_S)
    assert process.returncode == 0, said.decode()


@pytest.mark.parametrize(
    "many", [400, pytest.param(COUPLES, marks=pytest.mark.full)], ids=["800", "5000"]
)
def test_judgements_complete_with_the_right_counts_and_killed_three_times_cost_the_same(
    tmp_path: Path, many: int
) -> None:
    with ScriptedServer(bad_server) as server:
        finished(judge(server, tmp_path / "kept", tmp_path / "whole", many))
        assert sum(server.paid.values()) == len(server.paid) == 2 * many
    labels = Counter(line.split('"')[1] for line in (tmp_path / "whole").read_text().splitlines())
    assert labels == Counter(map(expected, range(many)))

    most = 0.0

    def script(body: dict[str, Any], attempt: int) -> Action:
        """No answer more, until somebody is killed."""
        return bad_server(body, attempt) if len(server.paid) < most else Hang()

    with ScriptedServer(script, port=server.port) as server:
        kept, out = tmp_path / "again", tmp_path / "out"
        before: dict[str, int] = {}
        for share in (0.2, 0.5, 0.8):
            most = share * 2 * many
            process = judge(server, kept, out, many)
            until(lambda: len(server.paid) >= most or process.poll() is not None, "answers enough")  # noqa: B023
            process.send_signal(signal.SIGKILL)
            _, said = process.communicate()
            assert process.returncode == -signal.SIGKILL, said
            assert not out.exists()
            before |= {key: server.seen[key] for key in kept_keys(kept) - before.keys()}
        most = float("inf")
        finished(judge(server, kept, out, many))
        assert set(server.paid.values()) == {1}, "no answer was made twice"
        assert len(server.paid) == 2 * many
        asked_again = [key for key, times in before.items() if server.seen[key] != times]
        assert asked_again == [], "what was kept was not even asked again"

    assert out.read_bytes() == (tmp_path / "whole").read_bytes()
