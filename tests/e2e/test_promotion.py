"""From approval to champion and back, on a live server: the promoter, the commands, pull.

One server for all; each test has a model of its own.
"""

import itertools
import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from tests.e2e.job import SmallJob, summary
from tests.fakes.killing_proxy import KillingProxy, When
from tests.forked import dpoflow_command
from tests.gate import API, GATE, GateServer, Recorded, password_of, record
from tests.promoter import started
from tests.tiny import tiny_folder
from tests.waiting import AT_MOST_S, until

from dpoflow.contracts import manifest
from dpoflow.contracts.errors import ConfigError, DataRejected, GateNotPassed
from dpoflow.registry import promotion
from dpoflow.registry.promotion import Due, Outcome, promote_due
from dpoflow.registry.pull import Pulled, pull
from dpoflow.registry.team import Team, team_server

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GateServer]:
    server = GateServer(tmp_path_factory.mktemp("gate"))
    try:
        yield server.start()
    finally:
        server.kill()


class Bench:
    """Versions of one model, made and judged by the people of tests/gate.py."""

    def __init__(self, server: GateServer, folder: Path, model: str) -> None:
        self.server, self.folder, self.model = server, folder, model
        self._seeds = itertools.count()

    def recorded(self, **more: Any) -> Recorded:
        """By ada, with a submission of hers."""
        ada, seed = self.server.person("ada"), next(self._seeds)
        submission = ada.submit(self.model)
        folder = self.folder / f"version-{seed}"
        return record(ada, folder, self.model, submission=submission, seed=seed, **more)

    def approved(self) -> Recorded:
        """And rita said so."""
        version = self.recorded()
        said = self.server.person("rita").approve(version.subject)
        assert said.ok, said.text
        return version

    def champion(self, monkeypatch: pytest.MonkeyPatch) -> Recorded:
        """And the promoter did it."""
        version = self.approved()
        assert errors(promote_as("prom", self.server, monkeypatch)) == []
        return version

    @property
    def aliases(self) -> dict[str, str]:
        answer = self.server.person("ada").get(f"{API}/registered-models/get", name=self.model)
        told = answer.json()["registered_model"].get("aliases", [])
        return {each["alias"]: each["version"] for each in told}

    def on_disk(self, version: Recorded, protected: bool = False) -> Path:
        """The folder of a version's files in the server's artifact store."""
        root = self.server.folder / "home" / "server" / "artifacts"
        if not protected:
            return root / version.files
        return root / "champions" / self.model / version.version / version.policy_digest


@pytest.fixture
def bench(server: GateServer, tmp_path: Path, request: pytest.FixtureRequest) -> Bench:
    return Bench(server, tmp_path, f"m{crc32(request.node.name.encode())}")


def become(user: str, server: GateServer, monkeypatch: pytest.MonkeyPatch) -> Team:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password_of(user))
    team = team_server()
    assert team is not None
    return team


def promote_as(user: str, server: GateServer, monkeypatch: pytest.MonkeyPatch) -> list[Outcome]:
    return promote_due(become(user, server, monkeypatch), lambda line: None)


def errors(outcomes: list[Outcome]) -> list[str]:
    return [str(each.error) for each in outcomes if each.error]


def identity_of(user: str, url: str) -> dict[str, str]:
    return {
        "MLFLOW_TRACKING_URI": url,
        "MLFLOW_TRACKING_USERNAME": user,
        "MLFLOW_TRACKING_PASSWORD": password_of(user),
        "NO_PROXY": "127.0.0.1",
    }


def environment_of(server: GateServer, user: str) -> dict[str, str]:
    return {**server.environment, **identity_of(user, server.url)}


def dpoflow(server: GateServer, user: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*dpoflow_command(), *arguments],
        env=environment_of(server, user),
        capture_output=True,
        text=True,
        check=False,
    )


def pulled(name: str, folder: Path, server: GateServer, monkeypatch: pytest.MonkeyPatch) -> Pulled:
    """By somebody without any role: who serves a model needs none."""
    return pull(become("norole", server, monkeypatch), name, folder, lambda line: None)


def test_an_approved_version_becomes_champion_and_its_copy_is_what_was_evaluated(
    server: GateServer, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = bench.champion(monkeypatch)

    assert bench.aliases["champion"] == version.version
    copied = bench.on_disk(version, protected=True) / "1" / "model"
    here = {path.name: path.read_bytes() for path in (version.folder / "model").iterdir()}
    here.pop("manifest.json")
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == here


def test_a_round_with_nothing_due_writes_no_row(
    server: GateServer, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.champion(monkeypatch)
    before = len(server.rows())

    assert promote_as("prom", server, monkeypatch) == []
    assert len(server.rows()) == before


def test_who_is_no_promoter_is_told_so_and_it_is_theirs_to_mend(
    server: GateServer, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = bench.approved()

    (outcome,) = [
        each
        for each in promote_as("rita", server, monkeypatch)
        if each.due.subject == version.subject
    ]

    assert isinstance(outcome.error, ConfigError)
    assert "Only the promoter promotes, and rita is none" in str(outcome.error)
    assert "champion" not in bench.aliases
    promote_as("prom", server, monkeypatch)


def test_a_file_that_changed_after_evaluation_is_refused_and_nothing_moves(
    server: GateServer, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = bench.champion(monkeypatch), bench.approved()
    weights = bench.on_disk(second) / "model" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1  # as somebody with the disk in their hands would
    weights.write_bytes(raw)

    (outcome,) = promote_as("prom", server, monkeypatch)

    assert isinstance(outcome.error, DataRejected)
    assert f"is not the file of {second.subject} that was evaluated" in str(outcome.error)
    assert bench.aliases["champion"] == first.version
    assert "previous_champion" not in bench.aliases
    server.person("rita").tag(second.subject, "approval", "reject: its files were changed")
    third = bench.champion(monkeypatch)  # a rejection clears the way for others
    assert bench.aliases["champion"] == third.version
    assert bench.aliases["previous_champion"] == first.version


def test_evidence_that_was_exchanged_is_refused(
    server: GateServer, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, version = bench.recorded(), bench.approved()
    there = bench.on_disk(version) / "evidence.json"
    kept = there.read_bytes()
    there.write_bytes((bench.on_disk(other) / "evidence.json").read_bytes())

    (outcome,) = promote_as("prom", server, monkeypatch)

    assert isinstance(outcome.error, DataRejected)
    assert "was approved" in str(outcome.error)
    there.write_bytes(kept)
    assert errors(promote_as("prom", server, monkeypatch)) == []


def test_an_approval_that_lapses_between_begin_and_verified_moves_nothing(
    server: GateServer, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = bench.approved()
    prom = server.person("prom")
    begun = prom.post(
        f"{GATE}/promotions",
        model=version.name,
        version=version.version,
        kind="promotion",
        reason="x",
    )
    assert begun.json()["state"] == "begun"
    server.person("rob").tag(version.subject, "approval", "reject: too fast")
    team = become("prom", server, monkeypatch)

    with pytest.raises(GateNotPassed, match="rob rejected it: too fast"):
        promotion.promote(
            team, Due(version.name, version.version, "promotion", ""), lambda line: None
        )

    assert "champion" not in bench.aliases
    assert promote_as("prom", server, monkeypatch) == []


def test_a_copy_that_was_left_damaged_stays_and_another_is_made_beside_it(
    server: GateServer, bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    version = bench.approved()
    short = bench.on_disk(version, protected=True) / "1" / "model" / "model.safetensors"
    short.parent.mkdir(parents=True)
    short.write_bytes(b"what a server that was killed had written by then")

    assert errors(promote_as("prom", server, monkeypatch)) == []

    assert short.read_bytes().startswith(b"what a server")
    assert (short.parents[2] / "2" / "model" / "model.safetensors").exists()
    there = pulled(f"{bench.model}@champion", tmp_path / "served", server, monkeypatch)
    assert there.policy_digest == version.policy_digest


def test_rollback_goes_the_same_road_and_does_not_come_back_by_itself(
    server: GateServer, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = bench.champion(monkeypatch), bench.champion(monkeypatch)
    assert bench.aliases["champion"] == second.version

    asked = dpoflow(
        server, "rita", "review", "rollback", first.subject, "--reason", "two wrong refunds"
    )
    assert asked.returncode == 0, asked.stderr
    assert errors(promote_as("prom", server, monkeypatch)) == []

    assert bench.aliases["champion"] == first.version
    assert bench.aliases["previous_champion"] == second.version
    # The second version was approved while the first was champion, as it is again now.
    assert promote_as("prom", server, monkeypatch) == []
    assert bench.aliases["champion"] == first.version


def test_going_back_needs_the_protected_copy_alone(
    server: GateServer, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = bench.champion(monkeypatch), bench.champion(monkeypatch)
    shutil.rmtree(bench.on_disk(first))  # its own files, as a clean-up of the bucket might
    asked = server.person("rita").post(
        f"{GATE}/rollbacks", model=bench.model, version=first.version, reason="worse"
    )
    assert asked.ok, asked.text

    assert errors(promote_as("prom", server, monkeypatch)) == []

    assert bench.aliases["champion"] == first.version


def test_a_refusal_at_the_last_step_leaves_previous_champion_as_it_was(
    server: GateServer, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = bench.champion(monkeypatch), bench.champion(monkeypatch)
    third, prom = bench.approved(), server.person("prom")
    body = {"model": bench.model, "version": third.version, "kind": "promotion", "reason": ""}
    assert prom.post(f"{GATE}/promotions", **body).ok
    # What a promoter had done by the moment at which it was killed.
    assert prom.alias(second.subject, "previous_champion").ok
    assert server.person("rita").tag(third.subject, "approval", "reject: no").ok

    assert promote_as("prom", server, monkeypatch) == []

    assert bench.aliases["champion"] == second.version
    assert bench.aliases["previous_champion"] == first.version


def test_only_a_reviewer_asks_to_go_back_and_only_to_what_was_champion(
    server: GateServer, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bench.champion(monkeypatch)
    never = bench.recorded()

    by_engineer = dpoflow(server, "ada", "review", "rollback", first.subject, "--reason", "x")
    to_never = dpoflow(server, "rita", "review", "rollback", never.subject, "--reason", "x")

    assert (by_engineer.returncode, to_never.returncode) == (2, 4)
    assert "Only reviewers ask to go back, and ada is none" in by_engineer.stderr
    assert "was never champion" in to_never.stderr


def test_the_commands_tell_who_must_act_by_their_exit_codes(
    server: GateServer, bench: Bench
) -> None:
    mine = server.person("rob")
    own = record(
        mine, bench.folder / "own", bench.model + "b", submission=mine.submit(bench.model + "b")
    )
    version, lost = bench.recorded(), bench.recorded(verdict="reject")

    def code(user: str, *arguments: str) -> tuple[int, str]:
        done = dpoflow(server, user, "review", *arguments)
        return done.returncode, done.stderr

    by_engineer = code("ada", "approve", version.subject, "--reason", "mine")
    by_author = code("rob", "approve", own.subject, "--reason", "mine")
    of_rejected = code("rita", "approve", lost.subject, "--reason", "nice")
    empty = code("rita", "approve", version.subject, "--reason", "  ")
    nowhere = code("rita", "approve", f"{bench.model}/99", "--reason", "read it")
    approved = code("rita", "approve", version.subject, "--reason", "read all")

    assert by_engineer[0] == 2
    assert "Only reviewers approve or reject, and ada is none" in by_engineer[1]
    assert by_author[0] == 2
    assert "nobody judges their own work" in by_author[1]
    assert of_rejected[0] == 4
    assert "its verdict is reject" in of_rejected[1]
    assert (empty[0], nowhere[0]) == (2, 2)
    assert approved == (0, "")
    listed = dpoflow(server, "norole", "review", "list", bench.model, "--json")
    states = {each["version"]: each["state"] for each in json.loads(listed.stdout)["reviews"]}
    assert states == {version.version: "approved", lost.version: "waiting"}
    promoted = dpoflow(server, "prom", "review", "promote", version.subject)
    assert promoted.returncode == 0, promoted.stderr
    assert bench.aliases["champion"] == version.version
    told = dpoflow(server, "rita", "review", "history", bench.model)
    assert f"rita approved {version.subject}: read all" in told.stdout
    assert f"ada was refused tag-version on {version.subject}: Only reviewers" in told.stdout
    assert f"prom made {version.subject} champion" in told.stdout
    assert dpoflow(server, "ada", "review", "history", bench.model).returncode == 2
    shown = dpoflow(server, "rita", "review", "show", version.subject)
    assert "promoted, submitted by ada" in shown.stdout


def test_the_log_is_verified_by_the_server_and_without_it(
    server: GateServer, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.champion(monkeypatch)

    online = dpoflow(server, "rita", "review", "verify-log", "--json")
    offline = dpoflow(
        server, "norole", "review", "verify-log", "--database", server.database, "--json"
    )

    assert online.returncode == offline.returncode == 0, offline.stderr
    assert json.loads(online.stdout) == json.loads(offline.stdout)
    assert json.loads(online.stdout)["rows"] == len(server.rows())


def test_pull_hands_over_the_champion_whole_and_once(
    server: GateServer, bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    version = bench.champion(monkeypatch)
    folder = tmp_path / "deep" / "served"

    first = pulled(f"{bench.model}@champion", folder, server, monkeypatch)
    again = pulled(f"{bench.model}/{version.version}", folder, server, monkeypatch)

    assert (first.champion, first.was_there, again.was_there) == (True, False, True)
    assert manifest.verify(folder).digest == version.policy_digest
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder)
    assert list(folder.parent.iterdir()) == [folder]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="holds something else"):
        pulled(f"{bench.model}@champion", tmp_path / "mine", server, monkeypatch)


def test_pull_hands_nothing_over_where_a_file_of_the_copy_was_changed(
    server: GateServer, bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    version = bench.champion(monkeypatch)
    config = bench.on_disk(version, protected=True) / "1" / "model" / "config.json"
    config.write_text(config.read_text().replace("llama", "lIama"))

    with pytest.raises(DataRejected, match="nothing of it is handed over"):
        pulled(f"{bench.model}@champion", tmp_path / "served", server, monkeypatch)
    config.unlink()
    with pytest.raises(DataRejected, match=r"config\.json, of .* is not in the artifact store"):
        pulled(f"{bench.model}@champion", tmp_path / "served", server, monkeypatch)

    assert not (tmp_path / "served").exists()


def test_pull_of_a_version_that_nobody_promoted_says_so(
    server: GateServer, bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    version = bench.recorded()

    there = pulled(version.subject, tmp_path / "it", server, monkeypatch)

    assert (there.was_promoted, there.champion) == (False, False)
    assert manifest.verify(tmp_path / "it").digest == version.policy_digest
    with pytest.raises(ConfigError, match="has no alias 'champion'"):
        pulled(f"{bench.model}@champion", tmp_path / "none", server, monkeypatch)


def test_an_alias_that_was_moved_past_the_server_is_drift_and_is_not_handed_over(
    server: GateServer, bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import sqlite3

    first, other = bench.champion(monkeypatch), bench.recorded()
    path = server.database.removeprefix("sqlite:///")

    def move(version: str) -> None:
        with sqlite3.connect(path, timeout=AT_MOST_S) as database:
            database.execute(
                "UPDATE registered_model_aliases SET version = ? WHERE name = ? AND alias = ?",
                (int(version), bench.model, "champion"),
            )
        database.close()

    move(other.version)
    try:
        told = promotion.drift_of(become("norole", server, monkeypatch))
        (line,) = [line for line in told if line.startswith(f"{bench.model}: ")]
        assert f"the registry says champion is {other.version}" in line
        assert f"the log says {first.version}: somebody went past the server" in line
        with pytest.raises(DataRejected, match="somebody went past the server"):
            pulled(f"{bench.model}@champion", tmp_path / "served", server, monkeypatch)
    finally:
        move(first.version)


def test_promoters_at_once_make_one_champion(server: GateServer, bench: Bench) -> None:
    version = bench.approved()

    many = [started(identity_of("prom", server.url)) for _ in range(6)]
    for each in many:
        each.join()

    assert [each.exitcode for each in many] == [0] * 6
    assert bench.aliases["champion"] == version.version
    assert len(server.rows(action="promotion-begun", subject=version.subject)) == 1
    (promotion_done,) = (
        server.person("ada").get(f"{GATE}/promotions", model=bench.model).json()["promotions"]
    )
    assert promotion_done["state"] == "done"
    drift = server.person("ada").get(f"{GATE}/drift").json()["drift"]
    assert bench.model not in {each["model"] for each in drift}


def test_a_watching_promoter_lives_through_a_server_that_is_killed(
    server: GateServer, bench: Bench, tmp_path: Path
) -> None:
    log = tmp_path / "promoter.log"
    with log.open("w") as out:
        watching = subprocess.Popen(
            [*dpoflow_command(), "review", "promote", "--watch", "--every", "1"],
            env=environment_of(server, "prom"),
            stdout=out,
            stderr=out,
        )
    try:
        first = bench.approved()
        until(lambda: f"{first.subject} is champion" in log.read_text(), "a first champion")
        server.kill()
        server.start(people=False)
        second = bench.approved()
        until(lambda: f"{second.subject} is champion" in log.read_text(), "a second champion")
        assert watching.poll() is None
    finally:
        watching.terminate()
        watching.wait()
    assert "does not answer" in log.read_text()


def test_killed_at_each_of_its_writes_the_promoter_goes_on_to_one_champion(
    server: GateServer, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, version = bench.champion(monkeypatch), bench.approved()
    proxy = KillingProxy(server.port)
    rounds: Iterator[When] = itertools.cycle(("before", "after"))
    with proxy.serving() as url:
        while True:
            proxy.when = next(rounds)
            proxy.victim = started(identity_of("prom", url))
            proxy.victim.join()
            if proxy.victim.exitcode == 0:
                break
            assert proxy.victim.exitcode == -signal.SIGKILL
            assert bench.aliases["champion"] in (first.version, version.version)
            assert server.person("rita").get(f"{GATE}/audit/verify").json()["whole"]

    steps = [label for when, label in proxy.struck if when == "after"]
    files = sum(1 for path in (version.folder / "model").iterdir() if path.name != "manifest.json")
    assert sum(label.startswith("PUT ") for label in steps) == files + 3  # evidence and decision
    assert [label.rpartition("/")[2] for label in steps if label.startswith("POST ")] == [
        "promotions",
        "verified",
        "alias previous_champion",
        "alias champion",
    ]
    assert {label for when, label in proxy.struck if when == "before"} >= set(steps) - {steps[-1]}
    assert bench.aliases["champion"] == version.version
    assert bench.aliases["previous_champion"] == first.version
    assert len(server.rows(action="promotion-begun", subject=version.subject)) == 1
    assert len(server.rows(action="promoted", subject=version.subject)) == 1
    reviews = server.person("rita").get(f"{GATE}/reviews", model=bench.model).json()["reviews"]
    (of_it,) = [each for each in reviews if each["version"] == version.version]
    assert (of_it["state"], of_it["reviewer"]) == ("promoted", "rita")
    assert [path.name for path in bench.on_disk(version, protected=True).iterdir()] == ["1"]


GATES = [
    f"evaluate.gates.{name}"
    for name in (
        "win_rate=0",
        "champion_win_rate=null",
        "equal_length=null",
        "heldout_rubric=null",
        "perplexity_ratio=null",
        "heldout_perplexity=null",
        "finished=null",
        "length_ratio=null",
        "duplicate_answers=null",
        "refusal_drift=null",
        "language_drift=null",
    )
]
"""A model of random weights wins nothing: what is shown here is the road, not the candidate."""


def test_a_run_is_submitted_recorded_approved_and_promoted_and_by_its_own_user(
    server: GateServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_folder(tmp_path / "model")
    asked = {**environment_of(server, "rob"), "DPOFLOW_SIGNING_KEY": str(server.signing_key)}
    job = replace(SmallJob.write(tmp_path), environment=asked)
    signer = f"evaluate.signer={server.signer}"

    # Compared with the base alone: a champion that moved is another opponent, and another decision.
    alone = "evaluate.champion=null"
    short = ("synthesize.enabled=false", "train.epochs=1", alone, signer, *GATES)

    ended = job.run(tmp_path / "home", *short)

    assert ended.code == 0, ended.out + ended.err
    told = summary(tmp_path / "home")
    assert told["evaluation"]["verdict"] == "promote", told["evaluation"]
    subject = f"small/{told['registry']['version']}"
    shown = dpoflow(server, "rita", "review", "show", subject)
    assert "waiting, submitted by rob" in shown.stdout
    assert "To decide: open *Tags*" in shown.stdout.replace("**", "")
    by_author = dpoflow(server, "rob", "review", "approve", subject, "--reason", "mine")
    assert (by_author.returncode, "nobody judges their own work" in by_author.stderr) == (2, True)
    by_another = dpoflow(server, "rita", "review", "approve", subject, "--reason", "read it")
    assert by_another.returncode == 0, by_another.stderr
    assert errors(promote_as("prom", server, monkeypatch)) == []
    there = pulled("small@champion", tmp_path / "served", server, monkeypatch)
    assert there.policy_digest == told["train"]["policy_digest"]
    assert (there.version, there.champion) == (str(told["registry"]["version"]), True)

    # The same run again, as when its end was not told: one version, one submission.
    submissions = len(server.rows(action="submission"))
    (run,) = (tmp_path / "home" / "runs").iterdir()
    noted = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(noted | {"state": "FAILED"}))
    again = job.run(tmp_path / "home", *short)
    assert again.code == 0, again.out + again.err
    assert summary(tmp_path / "home")["registry"]["version"] == told["registry"]["version"]
    assert len(server.rows(action="submission")) == submissions


def test_who_may_not_submit_is_told_before_anything_is_computed(
    server: GateServer, tmp_path: Path
) -> None:
    tiny_folder(tmp_path / "model")
    job = replace(SmallJob.write(tmp_path), environment=environment_of(server, "norole"))

    ended = job.run(tmp_path / "home")

    assert ended.code == 2
    assert "norole is no engineer" in ended.err
    assert not (tmp_path / "home" / "state").exists()
