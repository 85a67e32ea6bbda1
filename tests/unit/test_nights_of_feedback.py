"""What a schedule knows from night to night: feedback it has heard, prompts it must not learn.

The registry and the traces are MLflow's own, over sqlite.
"""

import itertools
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from tests.tiny import pair_of

from dpoflow.contracts import manifest
from dpoflow.contracts.base import Contract
from dpoflow.contracts.errors import DataRejected
from dpoflow.contracts.pairs import PreferencePair, Prompt, write_parquet
from dpoflow.contracts.spec import DecideConfig, SnapshotConfig, SourceConfig, Spec
from dpoflow.decide.champion import look_up
from dpoflow.decide.news import News, news_of
from dpoflow.registry.lineage import ancestry
from dpoflow.registry.versions import evidence_tag
from dpoflow.snapshot import content, data
from dpoflow.sources.pinned import DataRole, read_pinned
from dpoflow.state.events import read_events
from dpoflow.state.step import StepState, index

# A hint of MLflow's on its own decorator, said when a trace is begun.
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType")

NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One for all tests, since its tables take long to make; each has its own names there."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


class Desk:
    """An application whose users give thumbs, a model of its own, and a root with its artifacts."""

    def __init__(self, folder: Path) -> None:
        from mlflow import MlflowClient

        self.folder, self.client = folder, MlflowClient()
        self.name = f"desk-{next(NUMBERS)}"
        self.experiment = self.client.create_experiment(
            self.name, artifact_location=str(folder / "mlflow")
        )
        self.client.create_registered_model(self.name)
        (folder / "root" / "state" / "key" / "work").mkdir(parents=True)
        self.state = StepState(folder / "root" / "state" / "key", "snapshot")
        self._drafts = itertools.count()
        self.traces: dict[str, str] = {}

    @property
    def champion(self) -> str:
        return f"models:/{self.name}@champion"

    @property
    def source(self) -> SourceConfig:
        uri = f"mlflow-feedback://{self.name}?name=thumbs"
        return SourceConfig(uri=uri, since=self.champion, name="thumbs")

    # ------------------------------------------------------------ what people do

    def thumb(self, question: str, *, at: int, up: bool = True) -> None:
        from mlflow import flush_trace_async_logging
        from mlflow.entities import AssessmentSource, Feedback
        from mlflow.tracing.client import TracingClient

        if question not in self.traces:
            span = self.client.start_trace("answer", inputs=question, experiment_id=self.experiment)
            self.client.end_trace(span.trace_id, outputs=f"an answer to {question}")
            flush_trace_async_logging()
            self.traces[question] = span.trace_id
        given = Feedback(
            name="thumbs", value=up, source=AssessmentSource("HUMAN", "customer"),
            create_time_ms=at, last_update_time_ms=at,
        )  # fmt: skip
        TracingClient().log_assessment(self.traces[question], given)

    def purge(self) -> None:
        self.client.delete_traces(self.experiment, trace_ids=list(self.traces.values()))

    def file(self, name: str, *questions: str) -> SourceConfig:
        rows = [{"prompt": each, "chosen": "yes", "rejected": "no"} for each in questions]
        path = self.folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return SourceConfig(uri=str(path))

    # ------------------------------------------------------------ what a night does

    def night(self, *more: SourceConfig, unattended: bool = True) -> Path:
        """The data that snapshot pins."""
        return self.pinned(sources=(self.source, *more), model="", unattended=unattended)

    def pinned(self, **asked: object) -> Path:
        config = SnapshotConfig.model_validate(asked)
        located = data.find(config, self.state.root, self.state.events)
        draft = self.state.work / "data"
        data.pin(located, draft, self.state.events)
        return content.keep(draft, self.state.root, say=self.state.events.say)

    def news(self, pinned: Path, before: Path) -> News:
        config = DecideConfig(champion=self.champion)
        return news_of(pinned, before, config, self.state.work / "seen", self.state.events)

    def crown(self, pinned: Path, **artifacts: Path) -> None:
        """A version that rests on this data, and is champion from now on."""
        digests = {name: manifest.read(each).digest for name, each in artifacts.items()}
        digests["data"] = manifest.read(pinned).digest
        roots = {
            name: manifest.read(self.artifact(kind, {"x.json": self._unlike()}, **digests)).digest
            for name, kind in (("policy", "train.policy"), ("decision", "evaluate.decision"))
        }
        evidence = self.folder / "evidence.json"
        evidence.write_text(ancestry(self.state.root, roots).model_dump_json())
        run = self.client.create_run(self.experiment).info
        self.client.log_artifact(run.run_id, str(evidence), "model")
        tags = {"dpoflow.evidence": evidence_tag(roots["policy"], roots["decision"])}
        made = self.client.create_model_version(
            self.name, source=f"{run.artifact_uri}/model", run_id=run.run_id, tags=tags
        )
        self.client.set_registered_model_alias(self.name, "champion", made.version)

    def _unlike(self) -> str:
        """What is in no other file: an artifact is named for its content."""
        return json.dumps(next(self._drafts))

    def artifact(self, kind: str, files: dict[str, str], **parents: str) -> Path:
        folder = self.state.root / "made" / f"{kind}-{next(self._drafts)}"
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / name).write_text(text)
        return self.sealed(kind, folder, parents)

    def rows(self, kind: str, name: str, rows: Iterable[Contract], form: type[Contract]) -> Path:
        folder = self.state.root / "made" / f"{kind}-{next(self._drafts)}"
        folder.mkdir(parents=True)
        write_parquet(rows, form, folder / name)  # type: ignore[type-var]
        return self.sealed(kind, folder, {})

    def sealed(self, kind: str, folder: Path, parents: dict[str, str]) -> Path:
        made = manifest.seal(folder, kind, parents=parents, config={}, code="0" * 64)
        index(self.state.root, made.digest, folder)
        return folder

    # ------------------------------------------------------------ what came of it

    @property
    def said(self) -> list[str]:
        events, _ = read_events(self.state.folder / "events.jsonl")
        return [event.message for event in events]


@pytest.fixture
def desk(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    return Desk(tmp_path)


def heard(pinned: Path, *roles: DataRole) -> set[str]:
    """Questions whose thumbs are in the data, as files of these roles."""
    found = set[str]()
    for each in read_pinned(pinned):
        if each.source == "thumbs" and each.role in roles:
            text = (pinned / "files" / each.sha256).read_text()
            found |= {json.loads(line)["request"] for line in text.splitlines()}
    return found


# ------------------------------------------------------------ feedback


def test_after_a_quiet_night_only_what_came_since_the_last_feedback_is_new(desk: Desk) -> None:
    desk.thumb("one", at=1000)
    desk.thumb("two", at=2000, up=False)
    first = desk.night()
    desk.crown(first)
    quiet = desk.night(desk.file("pairs.jsonl", "a", "b"))  # others had news
    again = desk.night(desk.file("pairs.jsonl", "a", "b"))
    desk.crown(quiet)
    after = desk.night(desk.file("pairs.jsonl", "a", "b"))  # nobody has any
    desk.crown(after)
    desk.thumb("three", at=3000, up=False)

    later = desk.night(desk.file("pairs.jsonl", "a", "b"))

    assert heard(first, "new") == {"one", "two"}
    assert heard(quiet, "new") == heard(after, "new") == set()
    assert heard(later, "new") == {"three"}
    assert quiet == again == after
    assert desk.news(after, quiet) == News()
    found = desk.news(later, after)
    assert (found.ratings, found.pairs) == (1, 0)
    assert (found.thumbs.down, found.thumbs.of) == (1, 1)
    assert (found.before.down, found.before.of) == (1, 2)  # the share of down has its before


def test_an_older_row_that_changed_makes_no_newer_one_new_again(desk: Desk) -> None:
    """Somebody thought better of 'one' by a clock that was behind."""
    for at, question in enumerate(("one", "two", "three"), start=1):
        desk.thumb(question, at=1000 * at)
    first = desk.night()
    desk.crown(first)
    desk.thumb("one", at=1001, up=False)
    second = desk.night()
    desk.crown(second)
    desk.thumb("four", at=4000)

    third = desk.night()

    assert heard(second, "new") == {"one"}
    assert heard(third, "new") == {"four"}
    found = desk.news(third, second)
    assert found.ratings == 1
    assert (found.before.down, found.before.of) == (1, 1)  # of what the champion's night brought


def test_a_schedule_goes_on_where_nobody_has_said_anything_and_a_person_is_told(
    desk: Desk,
) -> None:
    pairs = desk.file("pairs.jsonl", "a")

    pinned = desk.night(pairs)

    assert [each.source for each in read_pinned(pinned)] == ["pairs.jsonl"]
    assert any("no feedback called thumbs was given yet" in told for told in desk.said)
    with pytest.raises(DataRejected, match="no feedback called thumbs was given yet"):
        desk.night(pairs, unattended=False)


def test_a_schedule_goes_on_where_all_that_it_heard_was_deleted(desk: Desk) -> None:
    desk.thumb("one", at=1000)
    desk.crown(desk.night())
    desk.purge()
    pairs = desk.file("pairs.jsonl", "a")

    pinned = desk.night(pairs)

    assert heard(pinned, "new") == set()
    assert any("none that the champion's data hold is there any more" in told for told in desk.said)
    with pytest.raises(DataRejected, match="is there any more"):
        desk.night(pairs, unattended=False)


# ------------------------------------------------------------ prompts


def crowned_with_sides(desk: Desk) -> SourceConfig:
    """A champion that was tested with one prompt and learnt another, and a source for the next."""
    test, learnt = (pair_of(each, "yes", "no") for each in ("tested?", "learnt?"))
    asked = Prompt(prompt=test.prompt, source=test.source)
    pairs = desk.file("pairs.jsonl", "a")
    desk.crown(
        desk.pinned(sources=(pairs,), model=""),
        heldout=desk.rows("merge.heldout", "prompts.parquet", [asked], Prompt),
        training=desk.rows("merge.training", "train.parquet", [learnt], PreferencePair),
    )
    return pairs


@pytest.mark.parametrize("lost", ["snapshot.data", "merge.heldout", "merge.training"])
def test_what_goes_on_from_a_champion_needs_to_know_what_that_was_tested_with(
    desk: Desk, lost: str
) -> None:
    pairs = crowned_with_sides(desk)
    asked = {"sources": (pairs,), "model": "", "unattended": True, "lineage": (desk.champion,)}
    known = desk.pinned(**asked, init=desk.champion)
    for note in (desk.state.root / "index").iterdir():
        folder = desk.state.root / note.read_text().strip()
        if manifest.read(folder).kind == lost and "lineage" not in str(read_sources(folder)):
            note.unlink()  # as in another home

    assert {each.role for each in read_pinned(known)} == {"new", "heldout", "learnt"}
    with pytest.raises(DataRejected) as refused:
        desk.pinned(**asked, init=desk.champion)
    told = str(refused.value)
    assert told.startswith(f"train.init starts from {desk.champion}")
    assert "name the home or volume that it was made in, or start from the base" in told
    from_base = desk.pinned(**asked, init="base")
    assert {each.role for each in read_pinned(from_base)} == {"new"}
    assert any(f"which prompts {desk.champion} was tested with" in each for each in desk.said)


def test_to_begin_to_go_on_from_the_champion_is_no_changed_spec_and_to_begin_anew_is_one(
    desk: Desk,
) -> None:
    base, before = (desk.artifact("snapshot.model", {"weights": each}) for each in ("base", "old"))
    digest = manifest.read(base).digest

    def changed(init: str, now: str) -> set[str]:
        asked = {
            "name": desk.name,
            "model": "m",
            "data": {"sources": [{"uri": "a"}]},
            "train": {"init": init, "reference": "base"},
        }
        pinned = {"model": digest, "init": now, "reference": digest}
        config = Spec.model_validate(asked).decide.model_copy(update={"digests": pinned})
        found, _ = look_up(config, desk.state.root)
        assert found is not None
        assert found.unknown is None
        return set(found.changed)

    pinned = desk.pinned(sources=(desk.file("pairs.jsonl", "a"),), model="")
    desk.crown(pinned, init=base, reference=base, model=base)
    begun = changed("base", digest), changed("champion", "digest of the champion")
    desk.crown(pinned, init=before, reference=base, model=base)

    assert begun == (set(), set())
    assert changed("champion", "digest of the champion") == set()
    assert changed("base", digest) == {"train.init"}


def read_sources(folder: Path) -> set[str]:
    there = (folder / "sources.json").is_file()
    return {each.source for each in read_pinned(folder)} if there else set()
