"""Time and memory of the train step as the data grows: linear, and flat.

    make bench-scale                        build/bench/scale.json
    python -m tests.bench.bench_scale --pairs 128 1024

Each size is trained in a process of its own: one epoch, from pairs to the written policy, of a
model of 3 million parameters. CPU seconds of one thread; memory is the most the process ever held.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

SIZES = (128, 512, 1024, 2048, 4096)
OUT = Path("build/bench/scale.json")


def train(number: int) -> tuple[float, float]:
    """(CPU seconds, peak MiB) of one epoch over so many pairs."""
    import torch
    from tests.tiny import WORDS, pair_of, tiny_tokenizer
    from tests.training import Job
    from transformers import LlamaConfig, LlamaForCausalLM

    from dpoflow.contracts.spec import TrainConfig

    torch.set_num_threads(1)
    dice = random.Random(0)  # noqa: S311

    def text(words: int) -> str:
        return " ".join(dice.choice(WORDS) for _ in range(words))

    with tempfile.TemporaryDirectory() as folder:
        pairs = (pair_of(f"{row} {text(30)}", text(20), text(20)) for row in range(number))
        job = Job(Path(folder), pairs)
        torch.manual_seed(0)
        shape = LlamaConfig(
            vocab_size=384,
            hidden_size=256,
            intermediate_size=682,
            num_hidden_layers=4,
            num_attention_heads=4,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )
        LlamaForCausalLM(shape).save_pretrained(job.model)
        tiny_tokenizer().save_pretrained(job.model)
        began = time.process_time()
        job.run(TrainConfig(dtype="float32", heldout_fraction=0, save_steps=100_000))
        spent = time.process_time() - began
    return spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", nargs="*", type=int, default=list(SIZES))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(train(asked.one)))
        return
    rows = []
    print(f"{'pairs':>6} {'CPU s':>8} {'ms a pair':>10} {'peak MiB':>9}")
    for number in asked.pairs:
        command = [sys.executable, "-m", "tests.bench.bench_scale", "--one", str(number)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        spent, peak = json.loads(done.stdout.splitlines()[-1])
        rows.append({"pairs": number, "cpu_s": spent, "peak_mib": peak})
        print(f"{number:6} {spent:8.1f} {1000 * spent / number:10.2f} {peak:9.0f}", flush=True)
    first, last = rows[0], rows[-1]
    grown = last["cpu_s"] / first["cpu_s"] / (last["pairs"] / first["pairs"])
    summary = {
        "sizes": rows,
        "time_over_linear": grown,
        "memory_grown_mib": last["peak_mib"] - first["peak_mib"],
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(summary, indent=1) + "\n")
    print({key: value for key, value in summary.items() if key != "sizes"})


if __name__ == "__main__":
    main()
