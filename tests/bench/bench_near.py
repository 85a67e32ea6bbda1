"""Time and memory of finding every near pair, among prompts that make it easy and hard.

    python -m tests.bench.bench_near                  build/bench/near.json
    python -m tests.bench.bench_near --rows 1000000 --only random-0.8

random      12 to 40 words, each drawn from 270; the number is `data.near_similarity`
template    one text of 40 words in front of ten others of one's own: most are just less than near
short-ends  the same in front of one word to twelve: some hundred clusters, and much around them
one-cluster the same in front of a few words out of twenty: nearly all hang together
few-words   8 to 14 words, each drawn from twelve
long        300 to 500 words, each drawn from 270

Seconds are of one processor, in a process of its own for each.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tests.bench.bench_data import _WORDS as WORDS

OUT = Path("build/bench/near.json")


def words(dice: random.Random, least: int, most: int, num_known: int = len(WORDS)) -> str:
    return " ".join(dice.choices(WORDS[:num_known], k=dice.randint(least, most)))


TEMPLATE = words(random.Random("template"), 40, 40)  # noqa: S311 no secret
KINDS: dict[str, tuple[float, Callable[[random.Random], str]]] = {
    **{f"random-{near}": (near, lambda dice: words(dice, 12, 40)) for near in (0.5, 0.8, 0.95)},
    "template": (0.8, lambda dice: f"{TEMPLATE} {words(dice, 10, 10)}"),
    "short-ends": (0.8, lambda dice: f"{TEMPLATE} {words(dice, 1, 12)}"),
    "one-cluster": (0.8, lambda dice: f"{TEMPLATE} {words(dice, 6, 12, 20)}"),
    "few-words": (0.8, lambda dice: words(dice, 8, 14, 12)),
    "long": (0.8, lambda dice: words(dice, 300, 500)),
}


def measure(kind: str, num_rows: int) -> dict[str, Any]:
    """One of the sets, in this process."""
    from dpoflow.validate.near import clusters

    dice = random.Random(kind)  # noqa: S311
    near, make = KINDS[kind]
    texts = sorted({make(dice) for _ in range(num_rows)}, key=len)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        nothing = np.arange(len(texts))
        found = clusters(lambda: texts, texts.__getitem__, near, nothing, Path(folder, "near"))
    seconds = time.process_time() - began
    return {
        "prompts": len(texts),
        "characters": sum(map(len, texts)) // len(texts),
        "seconds": round(seconds, 1),
        "clusters": len(np.unique(found)),
        "more_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--only", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.only[0], asked.rows)))
        return
    told = {}
    for kind in asked.only:
        command = [sys.executable, "-m", "tests.bench.bench_near", "--one", "--only", kind]
        done = subprocess.run(
            [*command, "--rows", str(asked.rows)], check=True, stdout=subprocess.PIPE, text=True
        )
        told[kind] = json.loads(done.stdout)
        print(kind, told[kind], flush=True)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
