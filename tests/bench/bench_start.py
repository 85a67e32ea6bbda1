"""What a run pays before and between its tasks: ours beside kfp.local's own way of starting them.

    make bench-start                          build/bench/start.json
    python -m tests.bench.bench_start --rounds 5

A tiny job (a model of a few thousand parameters, 48 questions) runs from a spec to a registered
version by the command, in a home of its own, then once more in the same home, where every task
finds its work done. Ours forks tasks from a process that has imported what they need; kfp.local
starts a Python for each. Turn about; medians.

tiny_run_s                  the first run, with the start of the command
again_s                     the second
seconds_per_task_overhead   a task that finds its work done: start, imports, its MLflow run
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.e2e.job import SmallJob, summary
from tests.tiny import tiny_folder

OUT = Path("build/bench/start.json")
WAYS = {
    "ours": "",
    # Where there are no pidfds, as on macOS, the laptop's backend leaves tasks to kfp.local.
    "kfp.local": "import os; del os.pidfd_open\n",
}
_COMMAND = "from dpoflow_pipelines.cli import main; main()"


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    seen: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(given.rounds):
        for way in sorted(WAYS, reverse=bool(number % 2)):
            seen[way].append(_round(WAYS[way]))
            print(f"round {number + 1} of {given.rounds}, {way}: {seen[way][-1]}", flush=True)
    told = _told(seen)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    _print(told)


def _round(before: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_folder(folder / "model")
        job, home = SmallJob.write(folder), folder / "home"
        first = _seconds(before, job, home)
        again = _seconds(before, job, home)
        tasks = [each["seconds"] for each in summary(home)["tasks"]]
    return {
        "tiny_run_s": round(first, 2),
        "again_s": round(again, 2),
        "seconds_per_task_overhead": round(statistics.median(tasks), 2),
    }


def _seconds(before: str, job: SmallJob, home: Path) -> float:
    ours = ("MLFLOW_", "DPOFLOW_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    command = [sys.executable, "-c", before + _COMMAND, "run", job.spec, "--home", str(home)]
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=job.folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return time.perf_counter() - began


def _told(seen: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    medians = {
        way: {what: statistics.median(each[what] for each in rounds) for what in rounds[0]}
        for way, rounds in seen.items()
    }
    theirs = medians["kfp.local"]
    ratios = {what: value / theirs[what] for what, value in medians["ours"].items()}
    return {**medians["ours"], "kfp.local": theirs, "to_kfp_local": ratios, "rounds": seen}


def _print(told: dict[str, Any]) -> None:
    print(f"{'':28} {'ours':>8} {'kfp.local':>10} {'ratio':>6}")
    for what, ratio in told["to_kfp_local"].items():
        print(f"{what:28} {told[what]:8.2f} {told['kfp.local'][what]:10.2f} {ratio:6.2f}")


if __name__ == "__main__":
    main()
