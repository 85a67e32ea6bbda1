"""A whole job, small: a tiny model, preferences of two kinds, a spec, and the command to run it.

Gives   `SmallJob`
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.forked import dpoflow_command
from tests.waiting import AT_MOST_S

from dpoflow.contracts.manifest import sha256_file
from dpoflow.state.events import Event, read_events
from dpoflow.state.step import read_records

SPEC = """\
name: small
model: model
seed: 3
data:
  sources:
    - {uri: pairs.jsonl, licence: CC0-1.0}
    - {uri: prompts.jsonl}
  heldout_fraction: 0.3
synthesize:
  candidates: 3
  sampling: {temperature: 1.0, max_new_tokens: 24, batch_size: 2}
  judge:
    rubric:
      checks:
        - {name: long, kind: word_count, half: judge, min: 6, max: 60, falloff: 6}
        - {name: calm, kind: max_count, half: heldout, text: "!", at_most: 0}
  min_margin: 0.01
train: {learning_rate: 1.0e-3, batch_size: 4, epochs: 3, save_steps: 2, max_tokens: 256}
evaluate:
  judge:
    rubric:
      checks:
        - {name: long, kind: word_count, half: judge, min: 6, max: 60, falloff: 6}
        - {name: calm, kind: max_count, half: heldout, text: "!", at_most: 0}
  sampling: {max_new_tokens: 24, batch_size: 4}
  gates: {min_prompts: 5}
"""
THINGS = ["parcel", "refund", "jacket", "lamp", "kettle", "account", "invoice", "voucher"]
DEEDS = ["late", "broken", "missing", "wrong", "torn", "doubled"]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class SmallJob:
    """A folder with a spec and all it names."""

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    """Besides that of the tests, of which MLflow's and our own variables are left out."""
    patience_s: float = AT_MOST_S
    """A command that takes longer hangs."""
    command: tuple[str, ...] = ()
    """What stands for `dpoflow`; that of tests/forked.py where nothing is said."""

    @classmethod
    def write(cls, folder: Path) -> "SmallJob":
        """Everything but the model."""
        (folder / "align.yaml").write_text(SPEC, encoding="utf-8")
        questions = [f"My {thing} is {deed}, what now?" for thing in THINGS for deed in DEEDS]
        with (folder / "pairs.jsonl").open("w") as out:
            for question in questions[:24]:
                row = {
                    "prompt": question,
                    "chosen": "We are sorry and will send a new one today.",
                    "rejected": "That is not our business!",
                }
                out.write(json.dumps(row) + "\n")
        with (folder / "prompts.jsonl").open("w") as out:
            for number, question in enumerate(questions[24:]):
                row = {"prompt": question, "slice": THINGS[number % 2]}
                if number % 2:
                    row["gold"] = "Please send us a photo and we will mend it this week."
                out.write(json.dumps(row) + "\n")
        return cls(folder)

    @property
    def spec(self) -> str:
        return str(self.folder / "align.yaml")

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start `dpoflow …` and leave it running."""
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("MLFLOW_", "DPOFLOW_"))
        } | dict(self.environment)
        return subprocess.Popen(
            [*(self.command or dpoflow_command()), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=environment,
        )

    def call(self, *arguments: str) -> Ended:
        """Run `dpoflow …` to its end."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=self.patience_s)
        return Ended(process.returncode, out, err)

    def run(self, home: Path, *sets: str) -> Ended:
        """`dpoflow run` with overrides."""
        return self.call("run", self.spec, "--home", str(home), *self._overrides(sets))

    def run_and_kill(
        self, home: Path, task: str, *sets: str, phase: str = "", done: int = 0
    ) -> None:
        """Start a run and SIGKILL its runner once `task` is in `phase` and has done so much."""
        process = self.start("run", self.spec, "--home", str(home), *self._overrides(sets))
        self.wait_for(process, home, task, phase=phase, done=done)
        process.send_signal(signal.SIGKILL)
        process.communicate()

    @staticmethod
    def wait_for(
        process: "subprocess.Popen[str]",
        home: Path,
        task: str,
        *,
        phase: str = "",
        done: int = 0,
    ) -> None:
        """Return once `task` of the running process is in `phase` and has done so much."""
        deadline = time.monotonic() + AT_MOST_S
        while time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            if _reached(home, task, phase, done):
                return
            time.sleep(0.01)
        raise AssertionError(f"{task} never came to {phase} {done}")

    @staticmethod
    def _overrides(sets: Sequence[str]) -> list[str]:
        return [part for text in sets for part in ("--set", text)]


def summary(home: Path) -> dict[str, Any]:
    """The home's summary.json."""
    loaded: dict[str, Any] = json.loads((home / "summary.json").read_text("utf-8"))
    return loaded


def policy_weights(home: Path) -> list[str]:
    """sha256 of the weights that the home's latest run trained."""
    digest = summary(home)["train"]["policy_digest"]
    folder = home / (home / "index" / digest).read_text("utf-8").strip()
    return [sha256_file(path) for path in sorted(folder.glob("*.safetensors"))]


def _reached(home: Path, task: str, phase: str, done: int) -> bool:
    for run in (home / "runs").glob("*"):
        record = read_records(run).get(task)
        if record is None or record.state != "RUNNING" or not record.state_dir:
            continue
        events, _ = read_events(Path(record.state_dir) / "events.jsonl")
        if any(_is_there(event, phase, done) for event in events):
            return True
    return False


def _is_there(event: Event, phase: str, done: int) -> bool:
    return event.phase.startswith(phase) and event.done >= done
