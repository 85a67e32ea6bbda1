"""Our training step beside TRL 1.16's, on one thread, in one process, on the same batches.

    make bench-train                      every workload; build/bench/train.json
    python -m tests.bench.bench_train --only hh hh-lora --ways ours compact_cached

Four ways through the same pairs, alternating; each a forward and backward pass and an AdamW step:

    ours            reference log-probabilities known, as after the pass that finds them
    compact_cached  TRL, its reference precomputed, its head on answer rows only (one line changed:
                    what it does on a GPU)
    compact_live    the same, the reference asked in every step
    stock_live      TRL as it ships

CPU seconds (time.process_time) of one thread; medians; memory in processes of their own. With
DPOFLOW_GPU_CHECK=1 both run on the GPU, and it is seconds on the clock.
"""

import argparse
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

import torch
from tests.parity.oracle import DEVICE, Ours, Theirs
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from dpoflow.contracts.spec import TrainConfig
from dpoflow.policy.attention import attending
from dpoflow.policy.head import Expectation
from dpoflow.policy.layout import Group, group_of, lay_out
from dpoflow.policy.logprobs import Scorer
from dpoflow.policy.tokenise import EncodedPair

Way = Literal["ours", "compact_cached", "compact_live", "stock_live"]
WAYS: tuple[Way, ...] = ("ours", "compact_cached", "compact_live", "stock_live")
OUT = Path("build/bench/train.json")


@dataclass(frozen=True)
class Workload:
    """A model's shape, and pairs of about these lengths: each a half shorter to a half longer."""

    name: str
    prompt: int
    answer: int
    vocabulary: int = 32_000
    hidden: int = 256
    layers: int = 6
    pairs: int = 4
    lora: bool = False


SHAPES = {"tldr": (400, 36), "hh": (120, 60), "ultra": (120, 285), "chat": (600, 128)}
SHAPES["even"] = (256, 256)
# As deep as llama2.c's models with this vocabulary: 288 wide has 6 layers, 512 has 8.
WORKLOADS = [
    *(Workload(name, *shape) for name, shape in SHAPES.items()),
    *(Workload(f"{name}-512", *shape, hidden=512, layers=8) for name, shape in SHAPES.items()),
    Workload("hh-lora", *SHAPES["hh"], hidden=512, layers=8, lora=True),
    Workload("hh-150k", *SHAPES["hh"], vocabulary=150_000),
    Workload("hh-smollm2", *SHAPES["hh"], vocabulary=49_152, hidden=576, layers=30, pairs=2),
]


def model_of(load: Workload, seed: int) -> Any:
    torch.manual_seed(seed)
    heads = load.hidden // 64
    config = LlamaConfig(
        vocab_size=load.vocabulary,
        hidden_size=load.hidden,
        intermediate_size=load.hidden * 8 // 3,
        num_hidden_layers=load.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 3),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model: Any = LlamaForCausalLM(config)
    if load.lora:
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
    return model


def pairs_of(load: Workload, number: int) -> list[EncodedPair]:
    generator = torch.Generator().manual_seed(7)

    def tokens(about: int) -> tuple[int, ...]:
        size = int(torch.randint(about // 2, about + about // 2 + 1, (), generator=generator))
        return tuple(torch.randint(3, load.vocabulary, (size,), generator=generator).tolist())

    return [
        EncodedPair(str(n), tokens(load.prompt), tokens(load.answer), tokens(load.answer))
        for n in range(number)
    ]


@contextmanager
def head_on_answer_rows_only() -> Iterator[None]:
    """TRL with `compact = True`: the line that asks for a GPU says yes."""
    import inspect

    from trl.trainer import dpo_trainer, utils

    before = utils.add_fused_lm_head
    source, asks = inspect.getsource(before), "compact = _use_triton(hidden_states.device)"
    assert source.count(asks) == 1, "TRL is another one than was measured"
    exec(source.replace(asks, "compact = True"), vars(utils))  # noqa: S102  # its text, a word changed
    dpo_trainer.add_fused_lm_head = utils.add_fused_lm_head
    try:
        yield
    finally:
        utils.add_fused_lm_head = dpo_trainer.add_fused_lm_head = before


class Racer:
    """One way through the pairs; `step` gives loss and CPU seconds."""

    def __init__(
        self, way: Way, load: Workload, pairs: list[EncodedPair], known: list[list[Tensor]]
    ) -> None:
        self.way, self._pairs, self._known, self.rows = way, pairs, known, 0
        folder, config = Path(tempfile.mkdtemp()), TrainConfig(beta=0.1)
        self.model = model_of(load, seed=0)
        live = way.endswith("live")
        reference = model_of(load, seed=1) if live and not load.lora else None
        if way == "ours":
            mine = Ours(self.model, folder, config, pairs, known, layout="packed")
            self._update: Callable[[list[int]], float] = lambda at: mine.update([tuple(at)])[0]
        else:
            with head_on_answer_rows_only() if way.startswith("compact") else _nothing():
                theirs = Theirs(self.model, folder, reference=reference)
            theirs.trainer.precompute_ref_logps = not live
            self._update = lambda at: theirs.update(
                "sigmoid", config, [pairs[n] for n in at], [known[n] for n in at]
            )[0]
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def step(self, places: list[int]) -> tuple[float, float]:
        began = now()
        loss = self._update(places)
        self._optimizer.step()
        return loss, now() - began


def now() -> float:
    """Seconds of this thread on a processor; on the clock, once it has caught up, of a GPU."""
    if DEVICE == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@torch.no_grad()
def reference_of(model: Any, groups: list[Group]) -> tuple[list[list[Tensor]], float]:
    """Log-probabilities of each answer's tokens by our reference pass, and its CPU seconds."""
    began = now()
    batch = lay_out(groups, "packed").to(torch.device(DEVICE))
    with attending(model, "packed"):
        asked = Expectation(batch.lengths, 2, figures=False)  # as train/reference.py asks
        parts = list(Scorer(model).eval()(batch, asked).logps_N.cpu().split(list(batch.lengths)))
    found = [parts[2 * place : 2 * place + 2] for place in range(len(groups))]
    return found, now() - began


def measure(load: Workload, steps: int, ways: Sequence[Way]) -> dict[str, Any]:
    """Every way through the same batches, alternating; the first batch is not timed."""
    pairs = pairs_of(load, load.pairs * (steps + 1))
    batches = [[*range(n, n + load.pairs)] for n in range(0, len(pairs), load.pairs)]
    asked = model_of(load, seed=0 if load.lora else 1).to(DEVICE)
    known, reference_seconds = [], []
    for places in batches:
        logps, spent = reference_of(asked, [group_of(pairs[n]) for n in places])
        known += logps
        reference_seconds.append(spent)
    racers = [Racer(way, load, pairs, known) for way in ways]
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    gap = 0.0
    for number, places in enumerate(batches):
        losses = {}
        for racer in racers:
            losses[racer.way], spent = racer.step(places)
            if number:
                seconds[racer.way].append(spent)
        if not number:
            gap = max(abs(loss - losses["ours"]) for loss in losses.values())
    median = {way: statistics.median(values) for way, values in seconds.items()}
    asking = statistics.median(reference_seconds[1:])
    return {
        "name": load.name,
        **{way: load.pairs / value for way, value in median.items()},
        "ours_with_reference_pass": load.pairs / (median["ours"] + asking),
        "loss_difference": gap,
        **tokens_and_rows([pairs[n] for n in batches[-1]]),
        "shape": {key: value for key, value in asdict(load).items() if key != "name"},
    }


def tokens_and_rows(pairs: list[EncodedPair]) -> dict[str, Any]:
    """What each way feeds through the trunk and the head for these pairs, padding included."""
    packed = lay_out([group_of(pair) for pair in pairs], "packed")
    answers = [len(answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]
    width = max(len(p.prompt) + max(len(p.chosen), len(p.rejected)) for p in pairs)
    whole = 2 * len(pairs) * width
    return {
        "trunk_tokens": {"ours": packed.input_ids_RT.numel(), "trl": whole},
        "head_rows": {
            "ours": len(packed.rows_N),
            "compact": sum(answers),
            "stock": whole - len(answers),
        },
    }


def peak_of(way: Way, load: Workload) -> float:
    """MiB that two steps add at their peak to a process that holds model and optimiser."""
    pairs = pairs_of(load, load.pairs)
    asked = model_of(load, seed=1).to(DEVICE)
    known, _ = reference_of(asked, [group_of(pair) for pair in pairs])
    del asked
    racer = Racer(way, load, pairs, known)
    places = [*range(load.pairs)]
    racer.step(places)  # the optimiser's state and the gradients are there from now on
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        racer.step(places)
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    racer.step(places)
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak_in_a_process(way: Way, load: Workload) -> float:
    command = [sys.executable, "-m", "tests.bench.bench_train", "--peak", way, "--only", load.name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def ratio(loads: list[dict[str, Any]], ours: str, other: str) -> list[float]:
    """How many times as many pairs a second; empty where the other way was not asked for."""
    return [load[ours] / load[other] for load in loads if ours in load and other in load]


def summary(workloads: list[dict[str, Any]], peaks: dict[str, float]) -> dict[str, Any]:
    """The figures that are held against targets."""
    compact = ratio(workloads, "ours", "compact_cached")
    stock = ratio(workloads, "ours", "stock_live")
    live = ratio(workloads, "ours_with_reference_pass", "compact_live")
    return {
        "workloads": workloads,
        "geomean_vs_compact": statistics.geometric_mean(compact) if compact else None,
        "min_vs_compact": min(compact, default=None),
        "min_vs_stock": min(stock, default=None),
        "min_epoch_vs_compact_live": min(live, default=None),
        "peak_vs_compact": peaks,
        "max_loss_difference": max(load["loss_difference"] for load in workloads),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="workloads by name")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of each way")
    parser.add_argument("--peak", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    loads = [load for load in WORKLOADS if not asked.only or load.name in asked.only]
    if asked.peak:
        print(peak_of(asked.peak, loads[0]))
        return
    measured = []
    heads = " ".join(f"{head:>8}" for head in ("ours", "compact", "live", "stock"))
    print(f"{'pairs/s':12} {heads}   ours vs compact, with reference pass vs live, vs stock")
    for load in loads:
        found = measure(load, asked.steps, asked.ways)
        measured.append(found)
        rates = " ".join(f"{found.get(way, math.nan):8.2f}" for way in WAYS)
        one = [
            *ratio([found], "ours", "compact_cached"),
            *ratio([found], "ours_with_reference_pass", "compact_live"),
            *ratio([found], "ours", "stock_live"),
        ]
        print(
            f"{load.name:12} {rates}   {' '.join(f'{value:.2f}x' for value in one)}  "
            f"trunk {found['trunk_tokens']} head {found['head_rows']} "
            f"loss {found['loss_difference']:.1e}",
            flush=True,
        )
        gc.collect()
    peaks = {}
    for name in ("hh", "ultra"):
        load = next((load for load in loads if load.name == name), None)
        if load is not None:
            peaks[name] = peak_in_a_process("ours", load) / peak_in_a_process(
                "compact_cached", load
            )
            print(f"peak memory, {name}: {peaks[name]:.2f} of compact")
    result = summary(measured, peaks)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(result, indent=1) + "\n")
    print({key: value for key, value in result.items() if key != "workloads"})


if __name__ == "__main__":
    main()
