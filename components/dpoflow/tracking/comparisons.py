"""Two answers beside each other, as people see them in MLflow and as they are read back.

Reads   a prompt, two answers, who is asked
Gives   `Comparison`, `Shown` (left and right), `read_shown`
Not     MLflow (labels.py), what people said (feedback.py)

The id of a trace is the hash of what it shows, to whom, in which queue. So the same file twice
makes nothing twice, and a trace whose texts were changed later is known by it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dpoflow.contracts.base import sha256_json
from dpoflow.contracts.pairs import Message

SLICE = "dpoflow.slice"
"""Attribute of the span that holds the comparison."""


@dataclass(frozen=True)
class Comparison:
    """A question to people: which of two answers to `prompt` is better?"""

    prompt: tuple[Message, ...]
    first: str
    second: str
    slice: str = "all"

    def __post_init__(self) -> None:
        """Whatever order the answers came in, it is one comparison: the order says nothing."""
        first, second = sorted((self.first, self.second))
        object.__setattr__(self, "first", first)
        object.__setattr__(self, "second", second)

    @property
    def id(self) -> str:
        """sha256 of prompt and answers."""
        turns = [turn.model_dump() for turn in self.prompt]
        return sha256_json({"prompt": turns, "answers": [self.first, self.second]})

    def shown(self, queue: str, reviewer: str) -> "Shown":
        """As `reviewer` sees it: a hash says which answer stands on the left."""
        turned = int(sha256_json([queue, reviewer, self.id])[:8], 16) % 2 == 1
        left, right = (self.second, self.first) if turned else (self.first, self.second)
        return Shown(self.prompt, left, right, self.slice)


@dataclass(frozen=True)
class Shown:
    """A comparison in the order in which one person sees it."""

    prompt: tuple[Message, ...]
    left: str
    right: str
    slice: str

    @property
    def comparison(self) -> Comparison:
        """The question behind it, without the order."""
        return Comparison(self.prompt, self.left, self.right, self.slice)

    @property
    def turned(self) -> bool:
        """Whether the comparison's second answer stands on the left."""
        return self.left != self.comparison.first

    @property
    def inputs(self) -> dict[str, Any]:
        """Of the trace: what was asked."""
        return {"messages": [turn.model_dump() for turn in self.prompt]}

    @property
    def outputs(self) -> dict[str, Any]:
        """Of the trace: both answers."""
        return {"left": self.left, "right": self.right}

    def trace_id(self, experiment_id: str, queue: str, reviewer: str) -> str:
        """Where it lies in MLflow."""
        content = [self.inputs, self.outputs, self.slice]
        return f"tr-{sha256_json([experiment_id, queue, reviewer, content])[:32]}"


def read_shown(inputs: Any, outputs: Any, attributes: Mapping[str, Any]) -> Shown | None:
    """What a trace shows; None where it is no comparison."""
    try:
        turns = tuple(Message.model_validate(turn) for turn in inputs["messages"])
        left, right, part = outputs["left"], outputs["right"], attributes.get(SLICE, "all")
    except (KeyError, TypeError, ValueError):
        return None
    if not turns or not all(isinstance(text, str) for text in (left, right, part)):
        return None
    return Shown(turns, left, right, part)
