"""What other processes cost the demo's stages, by how long libgomp's threads spin at a barrier.

    make bench-busy                           everything; build/bench/busy.json
    python -m tests.bench.bench_busy --stages sampling --dtypes bfloat16 --rounds 1

sampling    answers of SmolLM2-135M-Instruct to the demo's questions, as its synthesize samples them
training    updates of the demo's train step; not what it loads and writes
evaluation  log-probabilities of gold answers beside those to another question, and their perplexity

Each measurement is a process of its own, told its threads by the environment before it starts: as
torch and libgomp are by themselves ("untouched"), with other spin counts, with one thread. It runs
by itself and beside one and two processes that do nothing but count. Seconds on the clock, all
settings in turns, medians over rounds. One that takes longer than `--most` is cut off and counts so
many seconds: its ratio is at least what is printed.

Ratios are to the untouched setting with nothing beside it; an asterisk marks what a process of ours
gets where the user says nothing (state/machine.py).
"""

import argparse
import contextlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

from dpoflow.contracts import manifest
from dpoflow.contracts.pairs import Message, PreferencePair, Source, write_parquet
from dpoflow.contracts.spec import Spec, TrainConfig
from dpoflow.contracts.spec_file import load_spec
from dpoflow.state.machine import processors

if TYPE_CHECKING:
    import torch

OUT = Path("build/bench/busy.json")
DEMO = Path("pipelines/configs/demo.yaml")
VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
SETTINGS: dict[str, dict[str, str]] = {
    "untouched": {},
    **{f"spin {spins}": {"GOMP_SPINCOUNT": str(spins)} for spins in (0, 100, 1000, 3000, 10_000)},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
BESIDE = (0, 1, 2)
"""Processes that only count."""
SAMPLED, TRAINED, SCORED = 32, 24, 40
"""Rows of each stage: a few seconds of work on two processors."""
QUIET_TARGET, BUSY_TARGET = 1.05, 2.5
"""At most so many times as long as untouched, and beside one process as by itself."""


# ---------------------------------------------------------------- one measurement, in its process


def questions(spec: Spec) -> list[tuple[tuple[Message, ...], str]]:
    """The demo's questions that have a gold answer, under its system message, and the answer."""
    (source,) = spec.data.sources
    rows = [json.loads(line) for line in Path(source.uri).read_text("utf-8").splitlines()]
    system = Message(role="system", content=source.system or "")
    return [
        ((system, Message(role="user", content=row["prompt"])), row["gold"])
        for row in rows
        if row.get("gold")
    ]


def pairs_of(spec: Spec, many: int) -> list[PreferencePair]:
    """Each gold answer preferred to the one of the next question."""
    asked = questions(spec)[: many + 1]
    return [
        PreferencePair(
            prompt=prompt,
            chosen=Message(role="assistant", content=gold),
            rejected=Message(role="assistant", content=other),
            source=Source(dataset="demo", row=str(row)),
        )
        for row, ((prompt, gold), (_, other)) in enumerate(itertools.pairwise(asked))
    ]


def prepare(folder: Path) -> None:
    """The model and the pairs of training, for every measurement."""
    from dpoflow.policy.load import materialise

    spec = load_spec(DEMO)
    materialise(spec.model, folder / "model", say=print)
    manifest.seal(folder / "model", "bench.model", parents={}, config={}, code="")
    (folder / "pairs").mkdir()
    pairs = pairs_of(spec, TRAINED)
    write_parquet(pairs, PreferencePair, folder / "pairs" / "train.parquet")


def loaded(folder: Path) -> Any:
    """Model and tokenizer, on the processor."""
    import torch

    from dpoflow.policy.load import load

    return load(folder / "model", device=torch.device("cpu"))


def sampling(folder: Path, own: Path, dtype: "torch.dtype") -> Callable[[], float]:
    """One batch of answers, whose rows leave as they end."""
    from dpoflow.policy.generate import generate
    from dpoflow.state.events import Events

    spec = load_spec(DEMO)
    model, tokenizer = loaded(folder)
    prompts = [prompt for prompt, _ in questions(spec)[:SAMPLED]]
    config = spec.synthesize.sampling

    def ask(many: int, tokens: int) -> float:
        began = time.perf_counter()
        generate(
            *(model, tokenizer, prompts[:many]),
            config.model_copy(update={"max_new_tokens": tokens}),
            seed=spec.seed,
            dtype=dtype,
            store=own / f"{many}.jsonl",
            events=Events(own / "events.jsonl", "bench"),
            phase="answers",
        )
        return time.perf_counter() - began

    ask(2, 4)
    return lambda: ask(SAMPLED, config.max_new_tokens)


def training(folder: Path, own: Path, dtype: "torch.dtype") -> Callable[[], float]:
    """The updates of a train step: not what it loads and writes."""
    from dpoflow.policy.dtype import name_of
    from dpoflow.state.step import StepState
    from dpoflow.train.outcome import Job, finished
    from dpoflow.train.work import work

    # The spec's models were named for the pipeline: the step itself is given folders.
    knobs = load_spec(DEMO).train.model_dump(include=set(TrainConfig.model_fields))
    state = StepState(own, "train")
    state.start_afresh([])
    model = folder / "model"
    job = Job(
        config=TrainConfig.model_validate(knobs | {"dtype": name_of(dtype), "device": "cpu"}),
        pairs=folder / "pairs",
        init=model,
        reference=model,
        state=own,
    )

    def train() -> float:
        work(job)
        outcome = finished(job)
        assert outcome is not None
        return outcome.seconds

    return train


def evaluation(folder: Path, own: Path, dtype: "torch.dtype") -> Callable[[], float]:
    """What an evaluation asks of pairs and answers, besides the answers themselves."""
    from dpoflow.policy.logprobs import answer_nll, pair_logps
    from dpoflow.policy.tokenise import EncodedPair, encode_pair
    from dpoflow.state.events import Events

    model, tokenizer = loaded(folder)
    asked = questions(load_spec(DEMO))[:SCORED]
    encoded = [encode_pair(tokenizer, pair, 2048) for pair in pairs_of(load_spec(DEMO), SCORED)]
    pairs = [each for each in encoded if isinstance(each, EncodedPair)]
    prompts, answers = [prompt for prompt, _ in asked], [gold for _, gold in asked]
    how: dict[str, Any] = {
        "batch_size": 8,  # as evaluate/heard.py has it
        "dtype": dtype,
        "events": Events(own / "events.jsonl", "bench"),
        "phase": "pairs",
    }

    def score(many: int) -> float:
        began = time.perf_counter()
        pair_logps(model, pairs[:many], **how)
        answer_nll(model, tokenizer, prompts[:many], answers[:many], **how)
        return time.perf_counter() - began

    score(2)
    return lambda: score(SCORED)


STAGES = {"sampling": sampling, "training": training, "evaluation": evaluation}
DTYPES = ("bfloat16", "float32")


def one(stage: str, dtype: str, folder: Path, own: Path) -> None:
    """Get ready, tell how many threads, wait for a word, work, tell the seconds."""
    import torch

    from dpoflow.policy.dtype import NAMED

    work = STAGES[stage](folder, own, NAMED[dtype])
    print(torch.get_num_threads(), flush=True)
    sys.stdin.readline()
    print(work(), flush=True)


# ---------------------------------------------------------------- all of them


class Point(NamedTuple):
    stage: str
    dtype: str
    beside: int
    setting: str


class Took(NamedTuple):
    seconds: float
    cut: bool
    """Whether it was longer than that."""


@contextlib.contextmanager
def counting(many: int) -> Iterator[None]:
    """So many processes that take all that they get."""
    command = [sys.executable, "-c", "while True: pass"]
    loops = [subprocess.Popen(command) for _ in range(many)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def environment(setting: Mapping[str, str]) -> dict[str, str]:
    """This process's own, but for what tells libgomp anything."""
    return {name: told for name, told in os.environ.items() if name not in VARIABLES} | {**setting}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.bench.bench_busy", *arguments]


def measure(point: Point, folder: Path, most: float) -> Took:
    """One measurement; what it leaves on disk goes, but for what the reference said."""
    own = folder / "state" / "one"
    own.mkdir(parents=True)
    child = subprocess.Popen(
        command("--one", point.stage, point.dtype, str(folder), str(own)),
        env=environment(SETTINGS[point.setting]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        threads = child.stdout.readline().strip()
        if not threads:
            raise SystemExit(f"{point}: the process ended before it was ready")
        if threads == "1" and "OMP_NUM_THREADS" not in SETTINGS[point.setting]:
            raise SystemExit(f"{point}: one thread waits for no other; needs two processors")
        with counting(point.beside):
            told, _ = child.communicate("go\n", timeout=most)
        if child.returncode:
            raise SystemExit(f"{point}: the process ended with {child.returncode}")
        return Took(min(float(told), most), cut=float(told) > most)
    except subprocess.TimeoutExpired:
        return Took(most, cut=True)
    finally:
        child.kill()
        child.communicate()
        shutil.rmtree(own)


def in_force() -> str:
    """The setting that a process of ours has where the user says nothing."""
    code = (
        "import json, os; from dpoflow.state.machine import set_thread_defaults; "
        f"set_thread_defaults(); print(json.dumps([os.environ.get(name) for name in {VARIABLES}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment({}),
        check=True,
        capture_output=True,
        text=True,
    )
    told = dict(zip(VARIABLES, json.loads(done.stdout), strict=True))
    own = {name: value for name, value in told.items() if value is not None}
    if own not in SETTINGS.values():
        SETTINGS[f"ours {own}"] = own
    return next(name for name, each in SETTINGS.items() if each == own)


def rounds_of(points: Sequence[Point], rounds: int, most: float) -> dict[Point, list[Took]]:
    """Every point once, and again."""
    took = defaultdict[Point, list[Took]](list)
    with tempfile.TemporaryDirectory() as name:
        subprocess.run(command("--prepare", name), check=True)
        for turn in range(rounds):
            for point in points:
                took[point].append(found := measure(point, Path(name), most))
                cut = " and was cut off" if found.cut else ""
                print(
                    f"round {turn + 1}: {' '.join(map(str, point))}: {found[0]:.1f} s{cut}",
                    flush=True,
                )
    return took


def rows_of(took: Mapping[Point, Sequence[Took]], ours: str) -> list[dict[str, Any]]:
    """Each point with its median and what that is to the untouched one."""
    median = {point: statistics.median(each.seconds for each in of) for point, of in took.items()}
    return [
        {
            **point._asdict(),
            "in_force": point.setting == ours,
            "seconds": [each.seconds for each in took[point]],
            "cut": any(each.cut for each in took[point]),
            "median_s": seconds,
            "ratio": seconds / median[point._replace(setting="untouched", beside=0)],
            "to_quiet": seconds / median[point._replace(beside=0)],
        }
        for point, seconds in median.items()
    ]


def show(rows: Sequence[Mapping[str, Any]], besides: Sequence[int]) -> None:
    """A line a setting: seconds, and times as long as untouched by itself."""
    heads = [f"{'beside ' + str(many) if many else 'quiet':>17}" for many in besides]
    print(f"{'':22}{'':13}{''.join(heads)}")
    lines = defaultdict[tuple[str, ...], dict[int, str]](dict)
    for row in rows:
        star, least = "*" * row["in_force"], "≥" * row["cut"]
        key = (f"{row['stage']} {row['dtype']}", f"{row['setting']}{star}")
        ratio = f"{least}{row['ratio']:.2f}"
        lines[key][row["beside"]] = f"{row['median_s']:8.1f} s {ratio:>6}"
    for (stage, setting), cells in lines.items():
        print(f"{stage:22}{setting:13}{''.join(cells[many] for many in besides)}")


def worst(rows: Sequence[Mapping[str, Any]], ratio: str, beside: int) -> float | None:
    """Over the stages, of the setting in force."""
    found = [row[ratio] for row in rows if row["in_force"] and row["beside"] == beside]
    return max(found, default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=list(STAGES))
    parser.add_argument("--dtypes", nargs="*", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--settings", nargs="*", choices=SETTINGS)
    parser.add_argument("--beside", nargs="*", type=int, default=list(BESIDE))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=float, default=90, help="seconds; longer is cut off")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.prepare:
        prepare(asked.prepare)
    elif asked.one:
        one(*asked.one[:2], *map(Path, asked.one[2:]))
    else:
        compare(asked)


def compare(asked: argparse.Namespace) -> None:
    """Measure all that is asked for, write it, print it."""
    ours = in_force()
    wanted = {"untouched": None, **dict.fromkeys(asked.settings or SETTINGS)}
    besides = sorted({0, *asked.beside})
    points = [
        Point(*each) for each in itertools.product(asked.stages, asked.dtypes, besides, wanted)
    ]
    rows = rows_of(rounds_of(points, asked.rounds, asked.most), ours)
    found = {
        "quiet_to_untouched": worst(rows, "ratio", 0),
        "beside_one_to_quiet": worst(rows, "to_quiet", 1),
        "in_force": {ours: SETTINGS[ours]},
        "processors": processors(),
        "rounds": asked.rounds,
        "most_s": asked.most,
        "measured": rows,
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=1) + "\n")
    show(rows, besides)
    targets = {"quiet_to_untouched": QUIET_TARGET, "beside_one_to_quiet": BUSY_TARGET}
    for name, target in targets.items():
        if found[name] is not None:
            print(f"{name}, the slowest stage: {found[name]:.2f} (at most {target})")
    print(f"{asked.out} holds the rest")


if __name__ == "__main__":
    main()
