"""Labels and thumbs from a real MLflow server with users: who said what, and what is new."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.forked import dpoflow_command
from tests.mlflow_server import PASSWORD, MlflowServer, Person
from tests.workshop import Workshop

from dpoflow.contracts import manifest
from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.contracts.pairs import Rating, read_parquet
from dpoflow.contracts.spec import SourceConfig
from dpoflow.registry.lineage import Evidence
from dpoflow.registry.versions import evidence_tag
from dpoflow.snapshot import content, data
from dpoflow.sources.pinned import read_pinned
from dpoflow.state.events import read_events
from dpoflow.tracking.labels import Created, create
from dpoflow_pipelines.labels import read_comparisons, reviewers_of

LABELS, APP = "team/labels", "support app"
OTHER_SIDE = {"left": "right", "right": "left"}


@dataclass
class Team:
    """A server, and who is there."""

    server: MlflowServer
    owner: Person
    ann: Person
    ben: Person
    stranger: Person

    def environment(self, person: Person) -> dict[str, str]:
        return {
            "MLFLOW_TRACKING_URI": self.server.url,
            "MLFLOW_TRACKING_USERNAME": person.name,
            "MLFLOW_TRACKING_PASSWORD": PASSWORD,
        }

    def experiment(self, name: str) -> str:
        asked = {"experiment_name": name}
        found = self.server.admin.get("api/2.0/mlflow/experiments/get-by-name", params=asked)
        return str(found["experiment"]["experiment_id"])


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow")).start()
    try:
        people = [server.add(name) for name in ("owner", "ann", "ben", "stranger")]
        for name in (LABELS, APP):
            people[0].post("api/2.0/mlflow/experiments/create", {"name": name})
        team = Team(server, *people)
        for person in (team.ann, team.ben):
            server.allow(person, team.experiment(LABELS), "EDIT")
        yield team
    finally:
        server.stop()


@pytest.fixture(autouse=True)
def as_owner(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in team.environment(team.owner).items():
        monkeypatch.setenv(name, value)


def rows(prefix: str, count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"{prefix} {n}?", "first": f"good {n}", "second": f"bad {n}"}
        for n in range(count)
    ]


def label(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*dpoflow_command(), "label", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


def written(folder: Path, given: list[dict[str, Any]]) -> Path:
    path = folder / "asked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


def created(folder: Path, name: str, given: list[dict[str, Any]], reviewers: str) -> Created:
    """As the command does it, in this process."""
    read = read_comparisons(written(folder, given))
    return create(read.comparisons, LABELS, name, reviewers_of(reviewers))


def side_of(person: Person, trace_id: str, answer: str) -> str:
    """Where an answer that begins so stands for this person."""
    shown = person.answers(trace_id)
    return next(side for side, text in shown.items() if text.startswith(answer))


def pinned(folder: Path, uri: str, **more: Any) -> Workshop:
    """The source as snapshot pins it, ready for validate."""
    folder.mkdir(parents=True)
    workshop = Workshop(folder)
    located = workshop.find(SourceConfig(uri=uri, **more))
    data.pin(located, workshop.folder("data"), workshop.state.events)
    return workshop


def lines(workshop: Workshop) -> list[dict[str, Any]]:
    (entry,) = read_pinned(workshop.path / "data")
    text = (workshop.path / "data" / "files" / entry.sha256).read_text()
    return [json.loads(line) for line in text.splitlines()]


def said(workshop: Workshop) -> list[str]:
    events, _ = read_events(workshop.state.folder / "events.jsonl")
    return [event.message for event in events]


def answer_all(team: Team, person: Person, queue: str, better: str) -> dict[str, str]:
    """Trace to the side that was chosen: where the answer that begins with `better` stands."""
    experiment = team.experiment(LABELS)
    queue_id, chosen = person.queue(experiment, f"{queue}/{person.name}"), {}
    for trace_id in person.items(queue_id):
        chosen[trace_id] = side_of(person, trace_id, better)
        person.say(trace_id, chosen[trace_id], why=f"{person.name} says so")
        assert person.finish(queue_id, trace_id).status_code == 200
    return chosen


def test_two_peoples_labels_become_pairs_with_both_votes(team: Team, tmp_path: Path) -> None:
    created(tmp_path, "both", rows("q", 8), "ann,Ben")
    anns = answer_all(team, team.ann, "both", "good")
    bens = answer_all(team, team.ben, "both", "good")

    seen = pinned(tmp_path / "w", "mlflow-labels://team/labels/both").run_pinned(min_pairs=1)

    assert len(seen.pairs) == 8
    assert {(p.chosen.content[:4], p.rejected.content[:3]) for p in seen.pairs} == {("good", "bad")}
    assert {p.prompt[0].content for p in seen.pairs} == {f"q {n}?" for n in range(8)}
    for pair in seen.pairs:
        assert [(v.annotator, v.verdict) for v in pair.votes] == [
            ("ann", "chosen"),
            ("ben", "chosen"),
        ]
        assert pair.votes[0].rationale == "ann says so"
        assert (pair.margin, pair.label) == (1.0, "preferred")
    # What each saw on the left, counted on the pages, is what the votes say stood first.
    for at, chosen in enumerate((anns, bens)):
        first = Counter(pair.votes[at].order for pair in seen.pairs)
        assert first["chosen_first"] == Counter(chosen.values())["left"]


def test_the_other_side_of_every_comparison_inverts_every_pair(team: Team, tmp_path: Path) -> None:
    created(tmp_path, "turned", rows("t", 6), "ann")
    queue_id = team.ann.queue(team.experiment(LABELS), "turned/ann")
    for trace_id in team.ann.items(queue_id):
        team.ann.say(trace_id, OTHER_SIDE[side_of(team.ann, trace_id, "good")])
        team.ann.finish(queue_id, trace_id)

    seen = pinned(tmp_path / "w", "mlflow-labels://team/labels/turned").run_pinned(min_pairs=1)

    assert {pair.chosen.content[:3] for pair in seen.pairs} == {"bad"}


def test_the_same_file_again_adds_nothing_and_changes_no_answer(team: Team, tmp_path: Path) -> None:
    ask = ("create", str(written(tmp_path, rows("a", 3))), "--name", "again")
    first = label(*ask, "--experiment", LABELS, "--reviewers", "ann")
    queue_id = team.ann.queue(team.experiment(LABELS), "again/ann")
    items = team.ann.items(queue_id)
    team.ann.say(items[0], "left")
    team.ann.finish(queue_id, items[0])
    more = created(tmp_path, "again", rows("a", 4), "ann")

    told = label("status", "again", "--experiment", LABELS).stdout

    assert "3 new, 0 were there" in first.stdout
    assert (more.num_traces, more.num_known) == (1, 3)
    assert set(items) < set(team.ann.items(queue_id))
    assert [line.split() for line in told.splitlines()[1:]] == [["again/ann", "ann", "1", "0", "3"]]


def test_a_label_that_was_changed_counts_once_with_its_last_value(
    team: Team, tmp_path: Path
) -> None:
    created(tmp_path, "changed", rows("c", 1), "ann")
    queue_id = team.ann.queue(team.experiment(LABELS), "changed/ann")
    (trace_id,) = team.ann.items(queue_id)
    good = side_of(team.ann, trace_id, "good")
    first = team.ann.say(trace_id, good)
    team.ann.finish(queue_id, trace_id)
    team.ann.say(trace_id, OTHER_SIDE[good], instead_of=first)

    (row,) = lines(pinned(tmp_path / "w", "mlflow-labels://team/labels/changed"))

    answers = {"first": row["first"], "second": row["second"]}
    assert [answers[vote["choice"]] for vote in row["votes"]] == ["bad 0"]


def test_who_gave_a_label_is_whom_the_server_saw_and_not_what_a_client_wrote(
    team: Team, tmp_path: Path
) -> None:
    created(tmp_path, "forged", rows("f", 3), "ann")
    queue_id = team.ann.queue(team.experiment(LABELS), "forged/ann")
    honest, forged, good = team.ann.items(queue_id)
    refused = team.ben.finish(queue_id, honest).status_code  # ben is not in this queue
    team.ann.say(honest, "equal")
    team.ann.say(forged, "left", as_="ben")  # MLflow takes any name from a client
    team.ann.say(good, side_of(team.ann, good, "good"))
    for trace_id in (honest, forged, good):
        team.ann.finish(queue_id, trace_id)
    workshop = pinned(tmp_path / "w", "mlflow-labels://team/labels/forged")

    votes = [vote for row in lines(workshop) for vote in row["votes"]]
    seen = workshop.run_pinned(min_pairs=1, max_quarantined=1)

    assert refused == 403
    assert {(vote["annotator"], vote["choice"]) for vote in votes} >= {("ann", "equal")}
    assert [vote.get("why") for vote in votes if vote["annotator"] is None] == [
        "finished by ann, labelled as ben"
    ]
    assert [line["reason"] for line in seen.quarantine] == ["no_annotator"]


def test_a_comparison_that_was_changed_after_it_was_asked_makes_no_pair(
    team: Team, tmp_path: Path
) -> None:
    from mlflow.entities import Span
    from mlflow.tracing.client import TracingClient

    created(tmp_path, "edited", rows("e", 1), "ann")
    experiment = team.experiment(LABELS)
    queue_id = team.ann.queue(experiment, "edited/ann")
    (trace_id,) = team.ann.items(queue_id)
    team.ann.say(trace_id, "left")
    team.ann.finish(queue_id, trace_id)
    (span,) = TracingClient().get_trace(trace_id).data.spans
    told = span.to_dict()
    told["attributes"]["mlflow.spanOutputs"] = json.dumps({"left": "other", "right": "texts"})
    TracingClient().log_spans(experiment, [Span.from_dict(told)])

    (row,) = lines(pinned(tmp_path / "w", "mlflow-labels://team/labels/edited"))

    assert row["votes"] == []
    assert row["unusable"] == "changed"


def test_nothing_finished_yet_is_told_as_such(team: Team, tmp_path: Path) -> None:
    created(tmp_path, "open", rows("o", 2), "ann")

    with pytest.raises(DataRejected, match=r"no label is finished yet; open: 0 declined, 2 open"):
        pinned(tmp_path / "w", "mlflow-labels://team/labels/open")


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("mlflow-labels://team/labels/nowhere", r"no review queue nowhere in .* there are: "),
        ("mlflow-labels://team/absent/q", r"the experiment team/absent is not in MLflow"),
        ("mlflow-feedback://absent?name=thumbs", r"the experiment absent is not in MLflow"),
        ("mlflow-feedback://absent", r"is not mlflow-feedback://EXPERIMENT\?name=NAME"),
        ("mlflow-labels://absent", r"is not mlflow-labels://EXPERIMENT/QUEUE"),
    ],
)
def test_what_is_not_there_is_named(uri: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        pinned(tmp_path / "w", uri)


def test_refusals_say_who_must_act(team: Team, tmp_path: Path) -> None:
    ask = ("create", str(written(tmp_path, rows("x", 1))), "--name", "mine", "--experiment", LABELS)

    hidden = label(*ask, **team.environment(team.stranger))
    nobody = label(*ask, MLFLOW_TRACKING_PASSWORD="wrong")  # noqa: S106  # and must be
    away = label(*ask, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    alone = label(*ask, MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/mlflow.db")

    assert (hidden.returncode, "does not allow it to this user" in hidden.stderr) == (2, True)
    assert (nobody.returncode, "does not know these credentials" in nobody.stderr) == (2, True)
    assert (away.returncode, "check the server" in away.stderr) == (5, True)
    assert (alone.returncode, "asks nobody who they are" in alone.stderr) == (2, True)


def test_what_an_annotator_may_do_is_what_the_page_says(team: Team, tmp_path: Path) -> None:
    created(tmp_path, "rights", rows("r", 1), "ann,stranger")
    experiment = team.experiment(LABELS)
    anns = team.ann.queue(experiment, "rights/ann")
    (trace_id,) = team.ann.items(anns)
    look = {"experiment_id": experiment, "name": "rights/stranger"}
    by_name = "ajax-api/3.0/mlflow/review-queues/get-by-name"

    without = team.stranger.ask("GET", by_name, params=look).status_code
    team.server.allow(team.stranger, experiment, "READ")
    queue_id = team.stranger.queue(experiment, "rights/stranger")
    (own,) = team.stranger.items(queue_id)
    reads_only = team.stranger.finish(queue_id, own).status_code

    assert without == 403  # no permission: nothing is seen
    assert reads_only == 403  # READ: the queue is seen, and cannot be answered
    assert team.ben.finish(anns, trace_id).status_code == 403  # EDIT, and not in the queue
    assert team.ben.say(trace_id, "left", as_="ann")  # EDIT: writes under any name
    assert team.owner.finish(anns, trace_id).status_code == 403  # MANAGE, and not in the queue


# ------------------------------------------------------------------------------- thumbs


APPLICATION = """
import json, sys
from mlflow import MlflowClient, flush_trace_async_logging
experiment, calls = json.loads(sys.argv[1])
client = MlflowClient()
for request, response in calls:
    trace_id = client.start_trace("answer", inputs=request, experiment_id=experiment).trace_id
    client.end_trace(trace_id, outputs=response)
    print(trace_id)
flush_trace_async_logging()
"""


def traced(experiment: str, *calls: tuple[Any, Any]) -> list[str]:
    """An application, in a process of its own, that was asked and answered."""
    told = json.dumps([experiment, calls])
    done = subprocess.run(
        [sys.executable, "-c", APPLICATION, told], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def ratings(workshop: Workshop) -> set[tuple[str, str, bool]]:
    found = set()
    for path in (workshop.path / "pairs").glob("ratings*.parquet"):
        for each in read_parquet(path, Rating):
            found.add((each.prompt[-1].content, each.answer.content, each.desirable))
    return found


def crowned(team: Team, name: str, root: Path, folder: Path, tmp_path: Path) -> None:
    """A version `name`@champion that rests on the data in `folder`."""
    from mlflow import MlflowClient

    client, policy = MlflowClient(), tmp_path / "policy"
    policy.mkdir()
    made_of = {"data": folder.name}
    trained = manifest.seal(policy, "train.policy", parents=made_of, config={}, code="0" * 64)
    roots = {"policy": trained.digest, "decision": "2" * 64}
    evidence = Evidence(
        roots=roots, manifests={trained.digest: trained, folder.name: manifest.read(folder)}
    )
    path = tmp_path / "evidence.json"
    path.write_text(evidence.model_dump_json())
    run = client.create_run(team.experiment(APP)).info
    client.log_artifact(run.run_id, str(path), "model")
    made = client.create_model_version(
        name,
        source=f"{run.artifact_uri}/model",
        run_id=run.run_id,
        tags={"dpoflow.evidence": evidence_tag(roots["policy"], roots["decision"])},
    )
    client.set_registered_model_alias(name, "champion", made.version)


def test_thumbs_come_back_and_later_only_those_that_the_champion_has_not_seen(
    team: Team, tmp_path: Path
) -> None:
    app = team.experiment(APP)
    uri, user = "mlflow-feedback://support%20app?name=thumbs", team.owner
    chat = {"messages": [{"role": "user", "content": "How do I pay?"}]}
    reply = {"choices": [{"message": {"role": "assistant", "content": "By card."}}]}
    one, two, odd, _ = traced(
        app,
        (chat, reply),
        ({"question": "Where?"}, "Here."),
        ({"a": "x", "b": "y"}, "Which?"),
        ("nobody minds", "this one"),
    )
    user.say(one, True, name="thumbs", as_="customer-1")
    before = user.say(two, True, name="thumbs", as_="customer-2")
    user.say(odd, False, name="thumbs", as_="customer-3")
    user.post("api/2.0/mlflow/registered-models/create", {"name": "app"})
    first = pinned(tmp_path / "first", uri, since="models:/app@champion")
    seen = first.run_pinned(min_pairs=1, max_quarantined=1)
    folder = content.keep(first.path / "data", first.state.root, say=print)
    crowned(team, "app", first.state.root, folder, tmp_path)
    root = first.state.root

    def later() -> data.Located:
        source = SourceConfig(uri=uri, since="models:/app@champion")
        (found,) = (each for each in first.find(source) if each.role == "new")
        return found

    with pytest.raises(DataRejected, match=r"nothing is new since the champion's data \(3 were"):
        later()
    user.say(two, False, name="thumbs", as_="customer-2", instead_of=before)
    (new,) = traced(app, ("New?", [{"role": "assistant", "content": "Yes."}]))
    user.say(new, True, name="thumbs", as_="customer-1")
    data.pin([later()], first.folder("data2"), first.state.events)
    (entry,) = read_pinned(first.path / "data2")
    text = (first.path / "data2" / "files" / entry.sha256).read_text()
    changed = [json.loads(line) for line in text.splitlines()]

    assert root.is_dir()
    assert ratings(first) == {("How do I pay?", "By card.", True), ("Where?", "Here.", True)}
    assert [line["reason"] for line in seen.quarantine] == ["ambiguous"]
    assert any("names no version yet, so all of it is new" in told for told in said(first))
    assert {(each["trace"], each["thumb"]) for each in changed} == {(two, False), (new, True)}


def test_the_same_state_of_the_server_is_the_same_file(team: Team, tmp_path: Path) -> None:
    app = team.experiment(APP)
    for trace_id in traced(app, *((f"p {n}", f"a {n}") for n in range(3))):
        team.owner.say(trace_id, value=True, name="same", as_="customer")
    uri = "mlflow-feedback://support%20app?name=same"

    digests = {
        read_pinned(pinned(tmp_path / f"w{n}", uri).path / "data")[0].sha256 for n in range(2)
    }

    assert len(digests) == 1
