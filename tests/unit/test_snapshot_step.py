"""Snapshot: the digest is of the content alone, and what is pinned is whole or not there."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dpoflow.contracts import manifest
from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.contracts.results import SnapshotResult
from dpoflow.contracts.spec import SnapshotConfig, SourceConfig
from dpoflow.snapshot import data, step
from dpoflow.sources.pinned import read_pinned
from dpoflow.state.step import StepState

ROW = '{"prompt": "q", "chosen": "a", "rejected": "b"}\n'


class Maker:
    """Stands in for the model's conversion, which takes 20 s: writes a folder, counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.weights = b"weights"

    def __call__(self, uri: str, target: Path, *, say: Callable[[str], None]) -> None:
        self.calls += 1
        say(f"making {uri}")
        target.mkdir(parents=True)
        (target / "model.safetensors").write_bytes(self.weights)


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> Maker:
    fake = Maker()
    monkeypatch.setattr("dpoflow.policy.load.materialise", fake)
    return fake


@pytest.fixture
def state(tmp_path: Path) -> StepState:
    folder = tmp_path / "root" / "state" / "key"
    (folder / "work").mkdir(parents=True)
    return StepState(folder, "snapshot")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "in" / "model").mkdir(parents=True)
    (tmp_path / "in" / "model" / "config.json").write_text("{}")
    (tmp_path / "in" / "a.jsonl").write_text(ROW)
    (tmp_path / "in" / "b.jsonl").write_text(ROW.replace("q", "r"))
    return tmp_path / "in"


def pin(state: StepState, *sources: SourceConfig, model: Path) -> SnapshotResult:
    return step.run(SnapshotConfig(sources=sources, model=str(model)), state=state)


def source(path: Path, name: str | None = None, licence: str = "unknown") -> SourceConfig:
    return SourceConfig(uri=str(path), name=name, licence=licence)


def test_what_was_pinned_can_be_read_and_verified(
    state: StepState, files: Path, maker: Maker
) -> None:
    pinned = pin(state, source(files / "a.jsonl", licence="MIT"), model=files / "model")

    folder = Path(pinned.data_uri)
    (entry,) = read_pinned(folder)
    assert manifest.verify(folder).digest == pinned.data_digest == folder.name
    assert manifest.verify(Path(pinned.model_uri)).digest == pinned.model_digest
    assert (manifest.read(folder).kind, entry.name, entry.licence) == (
        *("snapshot.data", "a.jsonl"),
        "MIT",
    )
    assert (folder / "files" / entry.sha256).read_text() == ROW
    assert (pinned.num_files, pinned.num_bytes) == (1, len(ROW))
    assert folder.is_absolute()


def test_the_order_of_sources_does_not_matter(state: StepState, files: Path, maker: Maker) -> None:
    both = [source(files / "a.jsonl"), source(files / "b.jsonl")]

    one = pin(state, *both, model=files / "model")
    other = pin(state, *reversed(both), model=files / "model")

    assert one.data_digest == other.data_digest


def test_where_the_data_lies_does_not_matter_and_stands_nowhere(
    state: StepState, files: Path, maker: Maker
) -> None:
    before = pin(state, source(files / "a.jsonl"), model=files / "model")
    (files / "elsewhere").mkdir()
    (files / "a.jsonl").rename(files / "elsewhere" / "a.jsonl")
    after = pin(state, source(files / "elsewhere" / "a.jsonl"), model=files / "model")

    assert before == after
    for page in ("sources.json", "manifest.json"):
        assert str(files) not in (Path(after.data_uri) / page).read_text()


def test_where_each_file_came_from_is_told_beside_the_content(
    state: StepState, files: Path, maker: Maker, tmp_path: Path
) -> None:
    os.utime(files / "a.jsonl", (0, 86_400))
    sources = (source(files / "a.jsonl", "feedback"), source(files / "b.jsonl"))
    config = SnapshotConfig(sources=sources, model=str(files / "model"))

    found = step.run(config, state=state, origins=tmp_path)

    first, second = json.loads((tmp_path / "origins.json").read_text())
    assert first == {
        "uri": str(files / "a.jsonl"),
        "modified": "1970-01-02T00:00:00+00:00",
        "source": "feedback",
        "name": "a.jsonl",
        "role": "new",
        "num_bytes": len(ROW),
        "sha256": hashlib.sha256(ROW.encode()).hexdigest(),
    }
    assert (Path(found.data_uri) / "files" / second["sha256"]).is_file()


@pytest.mark.parametrize("change", ["byte", "name", "licence", "format", "more"])
def test_anything_that_could_change_a_pair_changes_the_digest(
    state: StepState, files: Path, maker: Maker, change: str
) -> None:
    before = pin(state, source(files / "a.jsonl"), model=files / "model")
    changed = [source(files / "a.jsonl")]
    if change == "byte":
        (files / "a.jsonl").write_text(ROW.replace("b", "c"))
    elif change == "more":
        changed.append(source(files / "b.jsonl"))
    else:
        value = "trl" if change == "format" else "other"
        changed = [changed[0].model_copy(update={change: value})]

    after = pin(state, *changed, model=files / "model")

    assert after.data_digest != before.data_digest
    assert after.model_digest == before.model_digest


def test_editing_a_pinned_file_in_place_leaves_the_pinned_copy_alone(
    state: StepState, files: Path, maker: Maker
) -> None:
    pinned = pin(state, source(files / "a.jsonl"), model=files / "model")
    with (files / "a.jsonl").open("r+") as original:
        original.write("XXXX")

    assert manifest.verify(Path(pinned.data_uri)).digest == pinned.data_digest


@pytest.mark.parametrize("edit", [ROW * 2, ROW.replace("b", "c"), ""], ids=["more", "same", "less"])
def test_a_file_that_changes_while_it_is_copied_is_noticed(
    state: StepState, files: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch, edit: str
) -> None:
    """The owner writes between our two looks at the file."""
    real, looks = os.fstat, []
    os.utime(files / "a.jsonl", (0, 0))  # the clock of a file system may tick every few ms only

    def meddling(number: int) -> os.stat_result:
        seen = real(number)
        if not looks:
            (files / "a.jsonl").write_text(edit)
        looks.append(number)
        return seen

    monkeypatch.setattr(data.os, "fstat", meddling)  # type: ignore[attr-defined]

    with pytest.raises(DataRejected, match=r"a.jsonl of a.jsonl changed while it was being copied"):
        pin(state, source(files / "a.jsonl"), model=files / "model")


def test_two_sources_of_one_name_are_told_to_take_names(
    state: StepState, files: Path, maker: Maker
) -> None:
    (files / "old").mkdir()
    (files / "old" / "a.jsonl").write_text(ROW * 2)
    twice = (files / "a.jsonl", files / "old" / "a.jsonl")

    with pytest.raises(ConfigError, match=r"data.sources\[\].name"):
        pin(state, *map(source, twice), model=files / "model")

    named = pin(state, source(twice[0], "new"), source(twice[1], "old"), model=files / "model")
    assert named.num_files == 2


def test_a_wrong_data_path_is_found_before_the_model_is_touched(
    state: StepState, files: Path, maker: Maker
) -> None:
    with pytest.raises(ConfigError, match=r"nope.jsonl does not exist"):
        pin(state, source(files / "nope.jsonl"), model=files / "model")

    assert maker.calls == 0


def test_files_that_are_left_out_of_a_folder_are_counted_aloud(
    state: StepState, files: Path, maker: Maker
) -> None:
    (files / "README.md").write_text("x")

    pin(state, source(files), model=files / "model")

    events = (state.folder / "events.jsonl").read_text()
    assert "1 files are no data files (README.md" in events


def test_a_model_is_made_once(state: StepState, files: Path, maker: Maker) -> None:
    first = pin(state, source(files / "a.jsonl"), model=files / "model")
    second = pin(state, source(files / "b.jsonl"), model=files / "model")

    assert maker.calls == 1
    assert first.model_uri == second.model_uri


def test_a_model_folder_that_changed_is_made_again(
    state: StepState, files: Path, maker: Maker
) -> None:
    first = pin(state, source(files / "a.jsonl"), model=files / "model")
    (files / "model" / "config.json").write_text('{"more": 1}')
    maker.weights = b"other weights"

    second = pin(state, source(files / "a.jsonl"), model=files / "model")

    assert maker.calls == 2
    assert first.model_digest != second.model_digest


def test_a_branch_of_a_hub_repository_is_looked_at_every_time(
    state: StepState, files: Path, maker: Maker
) -> None:
    for uri in ("hf://org/name@main", "hf://org/name@" + "a" * 40):
        for _ in range(2):
            config = SnapshotConfig(sources=(source(files / "a.jsonl"),), model=uri)
            step.run(config, state=state)

    assert maker.calls == 3  # twice the branch, once the commit


@pytest.mark.parametrize("which", ["data", "model"])
def test_a_stored_copy_that_was_damaged_is_replaced(
    state: StepState, files: Path, maker: Maker, which: str
) -> None:
    before = pin(state, source(files / "a.jsonl"), model=files / "model")
    folder = Path(before.data_uri if which == "data" else before.model_uri)
    victim = min(path for path in folder.rglob("*") if path.is_file() and "json" not in path.name)
    victim.write_bytes(b"damage")

    after = pin(state, source(files / "a.jsonl"), model=files / "model")

    assert after == before
    assert manifest.verify(folder).digest == folder.name


def test_what_a_killed_attempt_left_does_no_harm(
    state: StepState, files: Path, maker: Maker
) -> None:
    for rubbish in ("data", "model"):
        (state.work / rubbish).mkdir()
        (state.work / rubbish / "half").write_text("half a file")
    note = state.root / "content" / "by-uri"
    note.mkdir(parents=True)

    pinned = pin(state, source(files / "a.jsonl"), model=files / "model")

    assert "half" not in manifest.verify(Path(pinned.data_uri)).files
    assert "half" not in manifest.verify(Path(pinned.model_uri)).files
    assert not list(state.work.iterdir())


def test_a_note_about_a_model_that_cannot_be_read_is_no_obstacle(
    state: StepState, files: Path, maker: Maker
) -> None:
    pin(state, source(files / "a.jsonl"), model=files / "model")
    (note,) = (state.root / "content" / "by-uri").iterdir()
    for damage in ("", "[]", json.dumps({"digest": "../../etc"})):
        note.write_text(damage)
        pin(state, source(files / "a.jsonl"), model=files / "model")

    assert maker.calls == 4
