"""What the answers of an evaluation cost: ours beside plain `generate`, and those that were kept.

    make bench-evaluate                       build/bench/evaluate.json
    python -m tests.bench.bench_evaluate --prompts 16 --threads 1

models      SmolLM2-135M-Instruct as the base; as the candidate its weights plus 2% of seeded noise
prompts     the demo's questions under its system message, in seeded order: half by themselves, half
            after one or two exchanges with the shop, made of other questions and their gold answers
peer        transformers' `generate` as its documentation has it: batches in the order in which the
            prompts come, padded on the left, the cache and the attention that it takes by itself
ours        `answered`, as the evaluate step calls it, each time with nothing kept

Greedy, limit and batch size as an evaluation has them by default, the same dtype on both sides, in
one process, in turns (peer, ours, peer, ours); the ratio is the median over models and rounds.
Answers are counted in the model: rows of a forward pass that begins with nothing cached.

Seconds on the clock; with `--threads 1`, for a machine that is busy, CPU seconds of that thread.
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import random
import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

import torch
from transformers import PreTrainedTokenizerBase

from dpoflow.contracts.manifest import digest_of
from dpoflow.contracts.pairs import Message
from dpoflow.contracts.spec import EvaluateConfig
from dpoflow.contracts.spec_file import load_spec
from dpoflow.evaluate.answered import answered
from dpoflow.policy.dtype import choose, name_of
from dpoflow.policy.load import load, materialise
from dpoflow.policy.tokenise import prompt_tokens, turn_end
from dpoflow.state.step import StepState

OUT = Path("build/bench/evaluate.json")
DEMO = Path("pipelines/configs/demo.yaml")
NOISE = 0.02
"""Of the standard deviation of each weight matrix: as far off as a short training."""
EXCHANGES = (0, 0, 0, 0, 1, 1, 2, 2)
"""How many come before a question, each as likely as the next."""

Turns = tuple[Message, ...]


def prompts_of(many: int) -> list[Turns]:
    """So many of the demo's questions, each once, from short to long in no order."""
    (source,) = load_spec(DEMO).data.sources
    rows = [json.loads(line) for line in Path(source.uri).read_text("utf-8").splitlines()]
    if many > len(rows):
        raise SystemExit(f"--prompts must be at most {len(rows)}, got {many}: the demo has no more")
    exchanges = [(row["prompt"], row["gold"]) for row in rows if row.get("gold")]
    dice = random.Random(0)  # noqa: S311
    prompts = []
    for place, row in enumerate(dice.sample(rows, many)):
        turns = [("system", source.system or "You are a helpful agent.")]
        for asked, told in dice.sample(exchanges, EXCHANGES[place % len(EXCHANGES)]):
            turns += [("user", asked), ("assistant", told)]
        turns.append(("user", row["prompt"]))
        prompts.append(tuple(Message(role=role, content=text) for role, text in turns))
    dice.shuffle(prompts)
    return prompts


def make_models(folder: Path) -> dict[str, Path]:
    """Base and candidate, each as the folder that a step hands on."""
    paths = {name: folder / name for name in ("base", "candidate")}
    materialise(load_spec(DEMO).model, paths["base"], say=print)
    model, tokenizer = load(paths["base"], device=torch.device("cpu"))
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                noise = torch.randn(weight.shape, generator=dice)
                weight.add_(noise, alpha=NOISE * float(weight.std()))
    model.save_pretrained(paths["candidate"])
    tokenizer.save_pretrained(paths["candidate"])
    return paths


@contextlib.contextmanager
def begun(model: Any) -> Iterator[list[int]]:
    """Rows that each forward pass began inside; nothing where the model was not asked."""
    rows: list[int] = []

    def look(_: object, given: tuple[torch.Tensor, ...], named: dict[str, Any]) -> None:
        cache = named.get("past_key_values")
        if cache is None or cache.get_seq_length() == 0:
            rows.append(len(given[0] if given else named["input_ids"]))

    hook = model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield rows
    finally:
        hook.remove()


@dataclass
class Asked:
    """What one side gave for one model."""

    texts: list[str]
    num_tokens: list[int]
    """Of each answer, without the token that ends it."""
    num_generated: int
    seconds: float


@dataclass
class Asker:
    """A model in memory, and both ways to ask it."""

    name: str
    digest: str
    model: Any
    tokenizer: PreTrainedTokenizerBase
    prompts: list[Turns]
    config: EvaluateConfig
    dtype: torch.dtype

    def ours(self, root: Path, evaluation: str) -> Asked:
        """In an evaluation of its own, beside what `root` keeps of others."""
        state = StepState(root / "state" / evaluation, "evaluate")
        state.folder.mkdir(parents=True, exist_ok=True)
        state.start_afresh([])
        with begun(self.model) as rows:
            began = now()
            answers = answered(
                *(self.model, self.tokenizer, self.prompts, self.config),
                digest=self.digest,
                dtype=self.dtype,
                state=state,
                name=self.name,
            )
            seconds = now() - began
        tokens = [answer.num_tokens for answer in answers]
        return Asked([answer.text for answer in answers], tokens, sum(rows), seconds)

    def theirs(self) -> Asked:
        """The prompts as they come, so many at a time."""
        sampling, ends = self.config.sampling, self._ends()
        texts, tokens = list[str](), list[list[int]]()
        with begun(self.model) as rows, torch.inference_mode():
            began = now()
            for start in range(0, len(self.prompts), sampling.batch_size):
                batch = self._batch(self.prompts[start : start + sampling.batch_size])
                out = self.model.generate(
                    **batch,
                    do_sample=False,
                    max_new_tokens=sampling.max_new_tokens,
                    eos_token_id=ends,
                    pad_token_id=self.tokenizer.pad_token_id,
                )
                said = out[:, batch["input_ids"].shape[1] :]
                texts += self.tokenizer.batch_decode(said, skip_special_tokens=True)
                tokens += said.tolist()
            seconds = now() - began
        said_by_each = [itertools.takewhile(lambda t: t not in ends, row) for row in tokens]
        return Asked(texts, [len(list(said)) for said in said_by_each], sum(rows), seconds)

    def lengths(self) -> list[int]:
        """Tokens of each prompt."""
        return [len(prompt_tokens(self.tokenizer, prompt)) for prompt in self.prompts]

    def _batch(self, prompts: Sequence[Turns]) -> Any:
        turns = [[message.model_dump() for message in prompt] for prompt in prompts]
        batch: Any = self.tokenizer.apply_chat_template(
            turns,
            add_generation_prompt=True,
            padding=True,
            padding_side="left",
            return_dict=True,
            return_tensors="pt",
        )
        return batch.to(self.model.device)

    def _ends(self) -> list[int]:
        eos = self.tokenizer.eos_token_id
        assert isinstance(eos, int)
        return sorted({eos, turn_end(self.tokenizer)})


def now() -> float:
    """Seconds on the clock; of one thread by itself, those that it had a processor."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def measure(many: int, repeats: int) -> dict[str, Any]:
    """Base and candidate asked by both sides, then a third evaluation that names known models."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        askers = make_askers(folder, prompts_of(many))
        warm_up(askers[0], folder / "warm")
        rounds = [race(askers, folder / f"round {turn}") for turn in range(repeats)]
        # Under the last round's root each was answered, under an evaluation of its own.
        known = [asker.ours(folder / f"round {repeats - 1}", "third") for asker in askers]
    raced = [pair for each in rounds for pair in each]
    equal = [
        mine == theirs
        for peer, ours in raced
        for mine, theirs in zip(ours.texts, peer.texts, strict=True)
    ]
    last = [ours for _, ours in rounds[-1]]
    alike = [base == other for base, other in zip(*(one.texts for one in last), strict=True)]
    return {
        "generation_ratio": statistics.median(peer.seconds / ours.seconds for peer, ours in raced),
        "known_champion_generations": most(known),
        "new_champion_generations": most([ours for _, ours in raced]),
        "peer_generations": most([peer for peer, _ in raced]),
        "equal_answers": statistics.mean(map(float, equal)),
        "num_prompts": many,
        "seconds": {
            asker.name: {
                "peer": [each[place][0].seconds for each in rounds],
                "ours": [each[place][1].seconds for each in rounds],
                "known": known[place].seconds,
            }
            for place, asker in enumerate(askers)
        },
        "known_answers_are_those_made": all(
            one.texts == made.texts for one, made in zip(known, last, strict=True)
        ),
        "candidate_says_what_base_says": statistics.mean(map(float, alike)),
        "prompt_tokens": spread(askers[0].lengths()),
        "answer_tokens": spread([tokens for one in last for tokens in one.num_tokens]),
        "max_new_tokens": askers[0].config.sampling.max_new_tokens,
        "batch_size": askers[0].config.sampling.batch_size,
        "dtype": name_of(askers[0].dtype),
        "processor": processor(),
        "threads": torch.get_num_threads(),
    }


def make_askers(folder: Path, prompts: list[Turns]) -> list[Asker]:
    """Base and candidate, both in the dtype that an evaluation would choose here."""
    paths, config = make_models(folder), EvaluateConfig()
    loaded = {name: load(path) for name, path in paths.items()}
    dtype = choose("auto", loaded["base"][0])
    askers = []
    for name, (model, words) in loaded.items():
        cast: Any = model
        digest = digest_of(paths[name])
        askers.append(Asker(name, digest, cast.to(dtype), words, prompts, config, dtype))
    lengths = askers[0].lengths()
    print(
        f"{len(prompts)} prompts of {min(lengths)} to {max(lengths)} tokens, {name_of(dtype)}, "
        f"threads: {torch.get_num_threads()}",
        flush=True,
    )
    return askers


def warm_up(asker: Asker, root: Path) -> None:
    """The first passes of a process find memory and kernels; they are not counted."""
    few = replace(asker, prompts=asker.prompts[:2])
    few.theirs()
    few.ours(root, asker.name)


def race(askers: list[Asker], root: Path) -> list[tuple[Asked, Asked]]:
    """Peer and ours on each model, in turns; each model is new to `root`."""
    found = []
    for asker in askers:
        peer = asker.theirs()
        print(f"{asker.name}, peer: {peer.seconds:.1f} s", flush=True)
        ours = asker.ours(root, asker.name)
        ratio = peer.seconds / ours.seconds
        print(f"{asker.name}, ours: {ours.seconds:.1f} s, {ratio:.2f} times as fast", flush=True)
        found.append((peer, ours))
    return found


def most(asked: list[Asked]) -> int:
    """Answers generated at one asking, where that was the most."""
    return max(one.num_generated for one in asked)


def spread(values: list[int]) -> dict[str, float]:
    return {"least": min(values), "mean": statistics.mean(values), "most": max(values)}


def processor() -> str:
    """As the system names it, or the GPU's name where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    about = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.+)", about.read_text()) if about.exists() else None
    return named[1] if named else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=1, help="rounds over both models")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--threads", type=int, help="those of torch; 1 counts CPU seconds")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    found = measure(asked.prompts, asked.repeats)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"generation_ratio: {found['generation_ratio']:.2f}")
    print(f"equal_answers: {found['equal_answers']:.3f}")
    print(f"a known champion: {found['known_champion_generations']} answers generated")
    print(f"a new champion: {found['new_champion_generations']} answers generated")
    print(f"{asked.out} holds the rest")


if __name__ == "__main__":
    main()
