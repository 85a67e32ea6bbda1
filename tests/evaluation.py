"""Evaluations for tests: models that say what a test wants, and all that the step takes."""

import itertools
from pathlib import Path
from typing import Any

import torch
from tests.tiny import pair_of, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from dpoflow.contracts import manifest
from dpoflow.contracts.pairs import PreferencePair, Prompt, read_jsonl, write_parquet
from dpoflow.contracts.results import Decision, EvaluateResult
from dpoflow.contracts.spec import EvaluateConfig, SuiteConfig
from dpoflow.evaluate.grading import Graded
from dpoflow.evaluate.measure import Comparison
from dpoflow.evaluate.step import run
from dpoflow.evaluate.suites import Suite, read_suites
from dpoflow.sources.pinned import FILES, DataRole, Pinned, write_pinned
from dpoflow.state.events import read_events
from dpoflow.state.step import StepState

LONG = {"name": "long", "kind": "word_count", "half": "judge", "min": 4, "max": 60, "falloff": 4}
CALM = {"name": "calm", "kind": "max_count", "half": "heldout", "text": "!", "at_most": 0}
RUBRIC = {"rubric": {"checks": [LONG, CALM]}}
SHORT = "the sea is"
WORDY = "the sea is blue and calm today while seven small boats wait"


def says(folder: Path, text: str, seed: int = 0) -> Path:
    """A model that answers `text` to everything: each token leads to one other, whatever was asked.

    Its layers add nothing, so what comes next hangs on the last token alone.
    """
    tokenizer = tiny_tokenizer()
    chain = tokenizer(text, add_special_tokens=False)["input_ids"]
    opening = tokenizer("assistant\n", add_special_tokens=False)["input_ids"][-1]
    path = [opening, *chain, tokenizer.eos_token_id]
    assert len(set(path)) == len(path), "each token must come once"
    torch.manual_seed(seed)
    size = len(tokenizer)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=size,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )
    )
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.zero_()
        for token, then in itertools.pairwise(path):
            model.lm_head.weight[then, token] = 1.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Evaluation:
    """Everything that the step takes, with a number of held-out prompts."""

    def __init__(self, folder: Path, num_prompts: int = 24) -> None:
        self.folder = folder
        self._suites: list[tuple[dict[str, Any], Path, Path | None]] = []
        split = {"pairs": "p" * 64}
        learnt = [pair_of(f"learn {at}", "yes please", "no") for at in range(8)]
        (folder / "pairs").mkdir(parents=True)
        write_parquet(learnt, PreferencePair, folder / "pairs" / "train.parquet")
        self.pairs = self.seal("pairs", split)
        held = [pair_of(f"ask {at}", "yes please", "no") for at in range(num_prompts)]
        (folder / "heldout").mkdir()
        write_parquet(held, PreferencePair, folder / "heldout" / "pairs.parquet")
        prompts = [
            Prompt(prompt=pair.prompt, source=pair.source, slice="even" if at % 2 else "odd")
            for at, pair in enumerate(held)
        ]
        write_parquet(prompts, Prompt, folder / "heldout" / "prompts.parquet")
        self.heldout = self.seal("heldout", split)

    def seal(
        self, name: str, parents: dict[str, str], config: dict[str, Any] | None = None
    ) -> Path:
        folder = self.folder / name
        manifest.seal(folder, "test", parents=parents, config=config or {}, code="")
        return folder

    def model(self, name: str) -> Path:
        """The model in the folder `name`, sealed as trained on the pairs."""
        digest = manifest.read(self.pairs).digest
        return self.seal(name, {"pairs": digest}, {"beta": 0.1, "epochs": 1})

    def learn(self, prompt: str) -> None:
        """This prompt alone is trained on."""
        pair = pair_of(prompt, "a", "b")
        write_parquet([pair], PreferencePair, self.pairs / "train.parquet")
        self.seal("pairs", {"pairs": "p" * 64})

    def suite(self, kind: str, questions: Path, answers: Path | None = None, **knobs: Any) -> None:
        """Put this benchmark, called as its kind is, to every model."""
        self._suites.append(({"name": kind, "kind": kind, **knobs}, questions, answers))

    def read_suites(self) -> dict[str, Suite]:
        """Every suite as the step reads it."""
        suites = [SuiteConfig.model_validate(config) for config, _, _ in self._suites]
        asked = EvaluateConfig.model_construct(suites=tuple(suites))
        return read_suites(asked, self._pin())

    def _pin(self) -> Path:
        """The files of all suites, as snapshot hands them on."""
        data = self.folder / "data"
        (data / FILES).mkdir(parents=True, exist_ok=True)
        entries = []
        for config, questions, answers in self._suites:
            roles: list[tuple[DataRole, Path | None]] = [
                ("evaluation", questions), ("answers", answers)
            ]  # fmt: skip
            for role, path in roles:
                if path is not None:
                    sha256, body = manifest.sha256_file(path), path.read_bytes()
                    (data / FILES / sha256).write_bytes(body)
                    entries.append(
                        Pinned(
                            source=config["name"],
                            name=path.name,
                            format="auto",
                            licence="test",
                            sha256=sha256,
                            num_bytes=len(body),
                            role=role,
                        )
                    )
        write_pinned(entries, data)
        return self.seal("data", {})

    def run(self, name: str = "one", **knobs: Any) -> EvaluateResult:
        """Of the models `candidate`, `base`, and `champion` if there is one."""
        gates = {"equal_length": None, **knobs.pop("gates", {})}
        if self._suites:
            knobs["suites"] = [config for config, _, _ in self._suites]
        config = EvaluateConfig.model_validate(
            {
                "judge": RUBRIC,
                "sampling": {"max_new_tokens": 40, "batch_size": 8},
                "resamples": 400,
                "gates": gates,
                **knobs,
            }
        )
        state = StepState(self.folder / "root" / "state" / name, "evaluate")
        state.start_afresh(["decision"])
        champion = self.folder / "champion"
        return run(
            config,
            model=self.model("base"),
            policy=self.model("candidate"),
            pairs=self.pairs,
            heldout=self.heldout,
            champion=self.model("champion") if champion.exists() else None,
            data=self._pin() if self._suites else None,
            decision=state.output("decision"),
            state=state,
        )

    def decision(self, name: str = "one") -> Decision:
        folder = self.folder / "root" / "state" / name / "outputs" / "decision"
        return Decision.model_validate_json((folder / "decision.json").read_text())

    def comparisons(self, name: str = "one") -> list[Comparison]:
        folder = self.folder / "root" / "state" / name / "outputs" / "decision"
        return list(read_jsonl(folder / "answers.jsonl", Comparison))

    def graded(self, name: str = "one") -> list[Graded]:
        folder = self.folder / "root" / "state" / name / "outputs" / "decision"
        return list(read_jsonl(folder / "suites.jsonl", Graded))

    def generated(self, name: str) -> dict[str, int]:
        """How many answers were made, by whose they are."""
        events, _ = read_events(self.folder / "root" / "state" / name / "events.jsonl")
        told = dict.fromkeys(("candidate", "champion", "base"), 0)
        for event in events:
            if event.phase and event.phase.endswith(" answers"):
                told[event.phase.split()[0]] = event.done or 0
        return told


def missed(decision: Decision) -> set[str]:
    return {gate.name for gate in decision.gates if not gate.passed}
