"""One train step on the tiny model, in a folder of its own."""

from collections.abc import Iterable
from pathlib import Path

from tests.tiny import Family, pairs_folder, tiny_folder

from dpoflow.contracts.pairs import PreferencePair, Rating
from dpoflow.contracts.results import TrainResult
from dpoflow.contracts.spec import TrainConfig
from dpoflow.state.events import Event, read_events
from dpoflow.state.step import StepState
from dpoflow.train.step import run

FAST = TrainConfig(
    learning_rate=1e-3,
    epochs=2,
    batch_size=8,
    dtype="float32",
    save_steps=3,
    heldout_fraction=0.0,
)


class Job:
    """One train step in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        pairs: Iterable[PreferencePair],
        ratings: Iterable[Rating] = (),
        *,
        family: Family = "llama",
    ) -> None:
        self.folder = folder
        self.model = tiny_folder(folder / "model", family)
        self.pairs = pairs_folder(folder / "pairs", pairs, ratings)

    def state(self, name: str) -> StepState:
        state = StepState(self.folder / "state" / name, "train")
        state.start_afresh(["policy", "report"])
        return state

    def run(
        self, config: TrainConfig, name: str = "one", *, reference: Path | None = None
    ) -> TrainResult:
        state = self.state(name)
        return run(
            config,
            pairs=self.pairs,
            init=self.model,
            reference=reference or self.model,
            policy=state.output("policy"),
            report=state.output("report"),
            state=state,
        )

    def policy(self, name: str = "one") -> Path:
        return self.folder / "state" / name / "outputs" / "policy"

    def events(self, name: str = "one") -> list[Event]:
        return read_events(self.folder / "state" / name / "events.jsonl")[0]
