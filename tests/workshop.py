"""A folder in which validate can be run on rows that a test writes down."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpoflow.contracts.pairs import PreferencePair, Prompt, read_parquet, write_parquet
from dpoflow.contracts.results import ValidateResult
from dpoflow.contracts.spec import SnapshotConfig, SourceConfig, ValidateConfig
from dpoflow.snapshot import data as snapshot_data
from dpoflow.state.step import StepState
from dpoflow.validate import step

Row = dict[str, Any]


def row(prompt: str, chosen: str = "good", rejected: str = "bad", **more: Any) -> Row:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def rows(count: int) -> list[Row]:
    return [row(f"question {number}", f"good {number}") for number in range(count)]


@dataclass
class Seen:
    """What one run of the step left."""

    result: ValidateResult
    pairs: list[PreferencePair]
    prompts: list[Prompt]
    quarantine: list[Row]
    report: Row

    @property
    def codes(self) -> dict[str, str]:
        """Row id to reason."""
        return {line["row"]: line["reason"] for line in self.quarantine}


class Workshop:
    """A folder in which the step can be run on rows that a test writes down."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "root" / "state" / "key" / "work").mkdir(parents=True)
        self.state = StepState(path / "root" / "state" / "key", "validate")

    def folder(self, name: str) -> Path:
        (self.path / name).mkdir(exist_ok=True)
        return self.path / name

    def write(self, files: dict[str, list[Any]]) -> None:
        """Write rows as JSON lines and pin them: `old…` to be replayed, `eval…` to stay unseen."""
        for name, lines in files.items():
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (self.folder("in") / name).write_text(text)
        self.pin(*(self.folder("in") / name for name in files))

    def pin(self, *paths: Path, form: str = "auto") -> None:
        """Files that are there."""
        sources = [
            SourceConfig.model_validate({"uri": str(path), "format": form}) for path in paths
        ]
        snapshot_data.pin(self.find(*sources), self.folder("data"), self.state.events)

    def of_file(self, path: Path, form: str = "auto", **knobs: Any) -> Seen:
        """On a file that is there."""
        self.pin(path, form=form)
        return self.run_pinned(**knobs)

    def find(self, *sources: SourceConfig) -> list[snapshot_data.Located]:
        named = {
            role: tuple(each for each in sources if Path(each.uri).name.startswith(role))
            for role in ("old", "eval")
        }
        new = tuple(each for each in sources if each not in named["old"] + named["eval"])
        config = SnapshotConfig(
            sources=new, replay=named["old"], evaluation_sets=named["eval"], model=""
        )
        return snapshot_data.find(config, self.state.root, self.state.events)

    def run(self, files: dict[str, list[Any]] | list[Any], **knobs: Any) -> Seen:
        self.write(files if isinstance(files, dict) else {"x.jsonl": files})
        return self.run_pinned(**knobs)

    def run_pinned(self, model: Path | None = None, **knobs: Any) -> Seen:
        """On what `write` left."""
        names = ("data", "pairs", "prompts", "report")
        folders = {name: self.folder(name) for name in names}
        result = step.run(ValidateConfig(**knobs), **folders, state=self.state, model=model)
        return Seen(result, *self._read("pairs/pairs", "prompts/prompts", "report"))

    def merge(self, synthetic: list[PreferencePair], **knobs: Any) -> Seen:
        """After `run`."""
        path = self.folder("synthetic") / "pairs.parquet"
        write_parquet(synthetic, PreferencePair, path)
        names = ("pairs", "prompts", "synthetic", "training", "heldout")
        result = step.merge(
            ValidateConfig(**{"min_pairs": 1, **knobs}),
            **{name: self.folder(name) for name in names},
            report=self.folder("report2"),
            state=self.state,
        )
        return Seen(result, *self._read("training/train", "heldout/prompts", "report2"))

    def heldout_pairs(self) -> list[PreferencePair]:
        return list(read_parquet(self.path / "heldout" / "pairs.parquet", PreferencePair))

    def _read(self, pairs: str, prompts: str, report: str) -> tuple[Any, ...]:
        lines = (self.path / report / "quarantine.jsonl").read_text().splitlines()
        return (
            list(read_parquet(self.path / f"{pairs}.parquet", PreferencePair)),
            list(read_parquet(self.path / f"{prompts}.parquet", Prompt)),
            [json.loads(line) for line in lines],
            json.loads((self.path / report / "report.json").read_text()),
        )
