"""A model's answers to held-out prompts: made once, kept by content, used by later evaluations.

    ROOT/answers/KEY.jsonl    of one model, prompts, sampling, seed and dtype

Reads   a model, prompts
Gives   `answered`; `identity`, what names a model whatever lies beside it
Not     generating (policy/generate.py)

The base is asked once however many candidates it meets, and a candidate not again once it is what
others are compared with.
"""

import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dpoflow.contracts import manifest
from dpoflow.contracts.base import sha256_json
from dpoflow.contracts.pairs import Message, prompt_digest
from dpoflow.contracts.spec import EvaluateConfig
from dpoflow.policy.dtype import name_of
from dpoflow.policy.generate import Answer, generate
from dpoflow.policy.load import NEEDED
from dpoflow.state.files import replace
from dpoflow.state.step import StepState

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def identity(folder: Path) -> str:
    """Of the files that make a sealed model: a candidate keeps its name once it is the champion."""
    files = manifest.read(folder).files
    kept = {name: each for name, each in files.items() if any(fnmatch(name, of) for of in NEEDED)}
    return manifest.files_digest(kept)


def answered(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[tuple[Message, ...]],
    config: EvaluateConfig,
    *,
    digest: str,
    dtype: torch.dtype,
    state: StepState,
    name: str,
) -> list[Answer]:
    """One answer a prompt, in their order. `digest` is the model's `identity`."""
    key = sha256_json(
        {
            "model": digest,
            "prompts": [prompt_digest(prompt) for prompt in prompts],
            "sampling": config.sampling.model_dump(mode="json"),
            "seed": config.seed,
            "dtype": name_of(dtype),
        }
    )
    kept, here = state.root / "answers" / f"{key}.jsonl", state.work / f"{name}.jsonl"
    if kept.exists() and not here.exists():
        replace(here, lambda draft: shutil.copyfile(kept, draft))
    answers = generate(
        model,
        tokenizer,
        prompts,
        config.sampling,
        seed=config.seed,
        dtype=dtype,
        store=here,
        events=state.events,
        phase=f"{name} answers",
    )
    if not kept.exists():  # whole by now, and whole for whoever looks
        replace(kept, lambda draft: shutil.copyfile(here, draft))
    return answers
