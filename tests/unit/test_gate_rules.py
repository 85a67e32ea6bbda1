"""The gate's rules by themselves, and its table of routes beside the installed MLflow's."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.registry.gate import actions as act
from dpoflow.registry.gate import audit, rules
from dpoflow.registry.gate.book import Book
from dpoflow.registry.gate.case import Case, trusted_signers
from dpoflow.registry.gate.facts import LoggedModelFacts, RunFacts, Seal, SealedKind, VersionFacts
from dpoflow.registry.gate.roles import Role, Roles, read_roles
from dpoflow.registry.gate.rules import Allowed, Denied, Who, World

MODEL_ID = f"m-{'1' * 32}"
POLICY, DECISION, SIGNER, EVALUATE = "a" * 64, "b" * 64, "c" * 64, "e" * 64
SUBMISSION = "5" * 32


@dataclass
class Registry:
    """Facts that a test writes down."""

    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    """NAME/VERSION to tags."""
    named: dict[str, dict[str, str]] = field(default_factory=dict)
    """Model to its aliases."""
    seals: list[Seal] = field(default_factory=list)
    runs: dict[str, str] = field(default_factory=dict)
    """Run to its status."""
    files: set[str] = field(default_factory=set)

    def version(self, name: str, version: str) -> VersionFacts | None:
        tags = self.versions.get(f"{name}/{version}")
        source = f"models:/{MODEL_ID}"
        return (
            None
            if tags is None
            else VersionFacts(name, version, tags, MODEL_ID, "run", source, "words")
        )

    def aliases(self, name: str) -> dict[str, str]:
        return self.named.get(name, {})

    def sealed(self, *asked: tuple[SealedKind, str]) -> tuple[Seal, ...]:
        return tuple(each for each in self.seals if (each.kind, each.name) in asked)

    def run(self, run_id: str) -> RunFacts | None:
        status = self.runs.get(run_id)
        uri = f"mlflow-artifacts:/1/{run_id}/artifacts"
        return RunFacts(run_id, "1", uri, status) if status else None

    def logged_model(self, model_id: str) -> LoggedModelFacts | None:
        if model_id != MODEL_ID:
            return None
        return LoggedModelFacts(
            model_id, "1", f"mlflow-artifacts:/1/models/{model_id}/artifacts", "run"
        )

    def has_file(self, path: str) -> bool:
        return path in self.files


class People:
    """Everybody may edit experiment 1; rita and rob review."""

    def is_reviewer(self, user: str) -> bool:
        return user in ("rita", "rob")

    def may_edit(self, user: str, experiment_id: str) -> bool:
        return user != "eve"


CASE = Case("promote", "It won.", POLICY, DECISION, EVALUATE, SIGNER)
TAGS = {
    "dpoflow.evidence": "x",
    "dpoflow.policy_digest": POLICY,
    "dpoflow.decision_digest": DECISION,
    "gate.submission": SUBMISSION,
}


@dataclass
class Court:
    """A registry with one version with a case, and a log in which ada submitted it."""

    log: audit.Log
    facts: Registry
    case: Case | DataRejected | None = CASE
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def judge(self, user: str, roles: str, action: act.Action) -> rules.Verdict:
        held: list[Role] = [role for role in roles.split() if role]  # type: ignore[misc]
        world = World(
            self.facts, Book(self.log.rows), People(), self.now, 14, frozenset({SIGNER}), self.case
        )
        assert rules.is_guarded(action, self.facts), action
        return rules.judge(action, Who(user, frozenset(held)), world)

    def denied(self, user: str, roles: str, action: act.Action) -> str:
        verdict = self.judge(user, roles, action)
        assert isinstance(verdict, Denied), verdict
        assert verdict.sentence.endswith(".")
        return verdict.sentence

    def allowed(self, user: str, roles: str, action: act.Action) -> Allowed:
        verdict = self.judge(user, roles, action)
        assert isinstance(verdict, Allowed), verdict
        return verdict

    def approve(self, user: str = "rita", version: str = "1") -> None:
        """Judged, and in the log."""
        said = self.allowed(user, "reviewer", opinion("approve: good", version))
        self.log.append(user, said.row, f"m/{version}", "allowed", said.detail)

    def submit(self, user: str = "ada", owner: str = "ada", model: str = "m") -> None:
        detail = {
            "model": model,
            "spec_digest": "0" * 64,
            "sections": {"evaluate": EVALUATE},
            "schedule": None,
            "owner": owner,
            "body": {},
        }
        self.log.append(user, "submission", SUBMISSION, "allowed", detail)

    def begin(self, version: str = "1", state: str = "begun", come_from: str | None = None) -> None:
        detail = {
            "promotion": "9" * 32,
            "model": "m",
            "version": version,
            "kind": "promotion",
            "reason": "x",
            "policy_digest": POLICY,
            "target": f"mlflow-artifacts:/champions/m/{version}/{POLICY}",
            "from": come_from,
            "basis": 2,
        }
        self.log.append("prom", "promotion-begun", f"m/{version}", "allowed", detail)
        if state == "verified":
            self.log.append("prom", "promotion-verified", f"m/{version}", "allowed", detail)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[audit.Log]:
    """An empty one."""
    made = audit.Log(audit.engine_of(f"sqlite:///{tmp_path}/log.db"), b"k" * 32)
    made.prepare()
    yield made
    made.engine.dispose()


@pytest.fixture
def court(log: audit.Log) -> Court:
    facts = Registry(
        versions={"m/1": dict(TAGS)},
        named={"m": {}},
        seals=[Seal("model", MODEL_ID, "ada", "")],
        runs={"run": "FINISHED"},
    )
    made = Court(log, facts)
    made.submit()
    return made


def opinion(value: str, version: str = "1") -> act.TagVersion:
    return act.TagVersion("m", version, "approval", value)


# ---------------------------------------------------------------- approving


def test_a_reviewer_who_is_neither_submitter_nor_owner_approves(court: Court) -> None:
    said = court.allowed("rita", "reviewer", opinion("approve: it reads well"))

    assert said.row == "approval"
    assert said.by_gate
    assert said.detail == {
        "reason": "it reads well",
        "submission": SUBMISSION,
        "champion": None,
        "policy_digest": POLICY,
        "decision_digest": DECISION,
    }


@pytest.mark.parametrize("roles", ["", "engineer", "pipeline", "promoter", "admin"])
def test_no_other_role_approves(court: Court, roles: str) -> None:
    assert "Only reviewers" in court.denied("u", roles, opinion("approve: x"))


def test_admins_who_submitted_are_bound_like_everybody(court: Court) -> None:
    told = court.denied("ada", "admin reviewer engineer promoter pipeline", opinion("approve: x"))
    assert "nobody judges their own work" in told


def test_owners_of_schedules_do_not_approve_what_the_pipeline_submitted(log: audit.Log) -> None:
    owned = Court(log, Registry({"m/1": dict(TAGS)}, {"m": {}}, [Seal("model", MODEL_ID, "", "")]))
    owned.submit(user="pia", owner="rob")

    assert "rob owns the schedule" in owned.denied("rob", "reviewer", opinion("approve: x"))
    told = owned.denied("pia", "pipeline reviewer", opinion("approve: x"))
    assert "pia submitted m/1" in told
    owned.allowed("rita", "reviewer", opinion("approve: x"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"signer": None}, "unsigned"),
        ({"signer": "d" * 64}, "whom this server does not trust"),
        ({"verdict": "reject"}, "its verdict is reject"),
        ({"verdict": "inconclusive"}, "its verdict is inconclusive"),
        ({"evaluate_digest": "f" * 64}, "by other rules than its submission names"),
    ],
)
def test_what_speaks_against_a_version_is_said(
    court: Court, change: dict[str, str | None], words: str
) -> None:
    court.case = Case(**{**vars(CASE), **change})  # type: ignore[arg-type]

    assert words in court.denied("rita", "reviewer", opinion("approve: x"))
    assert court.allowed("rita", "reviewer", opinion("reject: x")).row == "rejection"


def test_a_version_whose_files_do_not_fit_is_rejected_but_never_approved(court: Court) -> None:
    court.case = DataRejected("its decision.json is damaged")

    assert "is damaged" in court.denied("rita", "reviewer", opinion("approve: x"))
    court.allowed("rita", "reviewer", opinion("reject: x"))


def test_files_that_are_not_sealed_are_not_approved(court: Court) -> None:
    court.facts.seals.clear()

    assert "not sealed" in court.denied("rita", "reviewer", opinion("approve: x"))


def test_the_champion_is_not_approved_again(court: Court) -> None:
    court.facts.named["m"]["champion"] = "1"

    assert "champion already" in court.denied("rita", "reviewer", opinion("approve: x"))


@pytest.mark.parametrize("value", ["approve", "approve:", "approve: \n", "ok", "", "approve good"])
def test_an_opinion_has_a_form_and_a_reason(court: Court, value: str) -> None:
    assert "approve: REASON or reject: REASON" in court.denied("rita", "reviewer", opinion(value))


def test_an_approval_is_not_deleted(court: Court) -> None:
    gone = act.TagVersion("m", "1", "approval", None)

    assert "not taken away by deleting" in court.denied("rita", "reviewer", gone)


# ---------------------------------------------------------------- becoming champion


CROWN = act.SetAlias("m", "champion", "1")


def test_a_verified_promotion_with_a_standing_approval_makes_a_champion(court: Court) -> None:
    court.approve()
    court.begin(state="verified")

    assert court.allowed("prom", "promoter", CROWN).row == "promoted"


@pytest.mark.parametrize("roles", ["", "engineer", "reviewer", "pipeline", "admin"])
def test_nobody_but_the_promoter_moves_champion(court: Court, roles: str) -> None:
    court.approve()
    court.begin(state="verified")

    assert "by approval alone" in court.denied("u", roles, CROWN)


def test_no_step_is_left_out(court: Court) -> None:
    assert "has begun" in court.denied("prom", "promoter", CROWN)
    court.begin()
    assert "not verified yet" in court.denied("prom", "promoter", CROWN)


def test_without_an_approval_a_verified_promotion_is_nothing(court: Court) -> None:
    court.begin(state="verified")

    assert "nobody has approved it" in court.denied("prom", "promoter", CROWN)


def test_an_approval_lapses_with_time(court: Court) -> None:
    court.approve()
    court.begin(state="verified")

    court.now += timedelta(days=13.9)
    court.allowed("prom", "promoter", CROWN)
    court.now += timedelta(days=0.2)
    assert "older than 14 days" in court.denied("prom", "promoter", CROWN)


def test_an_approval_lapses_when_champion_is_another(court: Court) -> None:
    court.approve()
    court.begin(state="verified")
    court.facts.named["m"]["champion"] = "7"

    assert "champion has changed" in court.denied("prom", "promoter", CROWN)


def test_an_approval_beside_another_champion_lapses_though_the_promotion_began_later(
    court: Court,
) -> None:
    court.approve()
    court.facts.named["m"]["champion"] = "7"
    court.begin(state="verified", come_from="7")

    told = court.denied("prom", "promoter", CROWN)
    assert "champion was none when it was given, and is version 7 now" in told


def test_an_approval_lapses_with_other_digests(court: Court) -> None:
    """A version that was deleted and made again under the same number, say."""
    court.approve()
    court.begin(state="verified")
    court.facts.versions["m/1"]["dpoflow.policy_digest"] = "9" * 64

    assert "other files" in court.denied("prom", "promoter", CROWN)


def test_an_approval_by_somebody_who_lost_the_role_is_none(court: Court) -> None:
    court.log.append(
        "former",
        "approval",
        "m/1",
        "allowed",
        {
            "reason": "x",
            "champion": None,
            "policy_digest": POLICY,
            "decision_digest": DECISION,
        },
    )
    court.begin(state="verified")

    assert "former is no reviewer any more" in court.denied("prom", "promoter", CROWN)


def test_a_later_rejection_takes_it_back_and_another_approval_renews_it(court: Court) -> None:
    court.approve()
    court.begin(state="verified")
    no = court.allowed("rob", "reviewer", opinion("reject: it swears"))
    court.log.append("rob", no.row, "m/1", "allowed", no.detail)

    assert "rob rejected it: it swears" in court.denied("prom", "promoter", CROWN)
    court.approve()
    court.allowed("prom", "promoter", CROWN)


def test_an_approval_that_was_undone_never_was(court: Court) -> None:
    court.approve()
    court.log.append("rita", "undone", "m/1", "allowed", {"row": 2})
    court.begin(state="verified")

    assert "nobody has approved it" in court.denied("prom", "promoter", CROWN)


def test_champion_is_put_back_where_the_log_has_it(court: Court) -> None:
    """The server was killed between the row and the alias."""
    court.approve()
    court.begin(state="verified")
    made = court.allowed("prom", "promoter", CROWN)
    court.log.append("prom", made.row, "m/1", "allowed", made.detail)

    assert court.allowed("prom", "promoter", CROWN).row == "champion-again"
    assert "has begun" in court.denied("prom", "promoter", act.SetAlias("m", "champion", "2"))


def test_of_two_promoters_at_once_the_one_whose_write_mlflow_took_made_the_champion(
    court: Court,
) -> None:
    court.approve()
    court.begin(state="verified")
    first = court.allowed("prom", "promoter", CROWN)
    row = court.log.append("prom", first.row, "m/1", "allowed", first.detail)
    second = court.allowed("prom", "promoter", CROWN)
    court.log.append("prom", second.row, "m/1", "allowed", second.detail)
    court.log.append("prom", "undone", "m/1", "allowed", {"row": row.seq, "model": "m"})
    court.facts.named["m"]["champion"] = "1"

    champion = Book(court.log.rows).champion("m")
    assert champion is not None
    assert (champion.version, champion.state) == ("1", "done")
    assert Book(court.log.rows).open_promotion("m") is None


def test_an_approval_makes_one_champion_also_when_champion_is_what_it_was_again(
    court: Court,
) -> None:
    court.approve()
    court.begin(state="verified")
    made = court.allowed("prom", "promoter", CROWN)
    court.log.append("prom", made.row, "m/1", "allowed", made.detail)

    world = World(
        court.facts, Book(court.log.rows), People(), court.now, 14, frozenset({SIGNER}), CASE
    )
    assert "approve it anew" in str(rules.approval_of("m/1", world))
    court.approve()
    assert isinstance(rules.approval_of("m/1", world), tuple)


def test_previous_champion_is_where_a_promotion_came_from(court: Court) -> None:
    court.facts.named["m"]["champion"] = "4"
    court.begin(come_from="4")

    court.allowed("prom", "promoter", act.SetAlias("m", "previous_champion", "4"))
    court.denied("prom", "promoter", act.SetAlias("m", "previous_champion", "1"))
    court.denied("root", "admin", act.SetAlias("m", "previous_champion", "4"))


@pytest.mark.parametrize("alias", ["champion", "previous_champion"])
@pytest.mark.parametrize("roles", ["promoter", "admin", "reviewer"])
def test_nobody_deletes_a_protected_alias(court: Court, alias: str, roles: str) -> None:
    court.denied("u", roles, act.DeleteAlias("m", alias))


# ---------------------------------------------------------------- names that look alike


@pytest.mark.parametrize(
    "alias",
    [
        *("Champion", "CHAMPION", "cham-pion", "champ_ion", "ｃｈａｍｐｉｏｎ", "сhampion"),
        *("chаmpion", "champiоn", "cha\u200bmpion", "cha\u00admpion", "champion\u2060"),
        *("𝐜𝐡𝐚𝐦𝐩𝐢𝐨𝐧", "chámpion", "champıon", "ⓒhampion", "Previous_Champion", "previouschampion"),
        *("previous-champion", "prevіous_champion"),
    ],
)
def test_a_look_alike_of_champion_is_refused_to_everybody(court: Court, alias: str) -> None:
    for roles in ("promoter", "admin", "engineer"):
        told = court.denied("u", roles, act.SetAlias("m", alias, "1"))
        assert "looks like" in told


@pytest.mark.parametrize("alias", ["challenger", "champion2", "champ", "mychampion", "latest"])
def test_other_aliases_are_nobodys_business(court: Court, alias: str) -> None:
    assert not rules.is_guarded(act.SetAlias("m", alias, "1"), court.facts)


@pytest.mark.parametrize(
    "key",
    [
        *("Approval", "APPROVAL", " approval", "approval ", "аpproval", "ap\u200bproval"),
        *("Approval.by", "approval․by", "GATE.submission", "gate．state", "gаte.state"),
        *("dpoflow．verdict", "DPOflow.verdict", "ａpproval", "appro-val"),
    ],
)
def test_a_look_alike_of_a_reserved_tag_is_refused_to_everybody(court: Court, key: str) -> None:
    for roles in ("promoter pipeline reviewer admin engineer",):
        told = court.denied("u", roles, act.TagVersion("m", "1", key, "approve: x"))
        assert "looks like" in told
        create = act.CreateVersion("m", "s3://b/x", "", "", ((key, "x"),))
        court.denied("u", roles, create)


@pytest.mark.parametrize("key", ["note", "approved", "approvals", "gateway", "dpo", "my.approval"])
def test_other_tags_are_nobodys_business(court: Court, key: str) -> None:
    assert not rules.is_guarded(act.TagVersion("m", "1", key, "x"), court.facts)


@pytest.mark.parametrize("roles", ["engineer", "reviewer", "pipeline", "promoter", "admin"])
@pytest.mark.parametrize("value", ["x", None])
def test_what_was_evaluated_is_nobodys_to_change(
    court: Court, roles: str, value: str | None
) -> None:
    court.denied("u", roles, act.TagVersion("m", "1", "dpoflow.verdict", value))


# ---------------------------------------------------------------- new versions


def evidenced(**change: object) -> act.CreateVersion:
    tags = tuple(TAGS.items())
    return act.CreateVersion(
        **{
            "name": "m",
            "source": f"models:/{MODEL_ID}",
            "run_id": "run",
            "model_id": MODEL_ID,
            "tags": tags,
            **change,
        }
    )  # type: ignore[arg-type]


def test_a_version_with_evidence_seals_what_it_rests_on(court: Court) -> None:
    seals = court.allowed("ada", "engineer", evidenced()).seals

    files = f"1/models/{MODEL_ID}/artifacts"
    assert {(each.kind, each.name) for each in seals} == {
        ("model", MODEL_ID),
        ("run", "run"),
        ("experiment", "1"),
        ("files", files),
        ("files", "1/run/artifacts"),
        ("above", "1"),
        ("above", "1/models"),
        ("above", f"1/models/{MODEL_ID}"),
        ("above", "1/run"),
    }


@pytest.mark.parametrize(
    ("user", "roles", "change"),
    [
        ("ada", "", {}),
        ("ada", "reviewer", {}),
        ("bob", "engineer", {}),
        ("eve", "pipeline", {}),
        ("ada", "engineer", {"source": "models:/m/1"}),
        ("ada", "engineer", {"source": f"MODELS:/{MODEL_ID}"}),
        ("ada", "engineer", {"source": f"mlflow-artifacts:/1/models/{MODEL_ID}/artifacts"}),
        ("ada", "engineer", {"source": "s3://elsewhere/model"}),
        ("ada", "engineer", {"model_id": ""}),
        ("ada", "engineer", {"model_id": f"m-{'2' * 32}"}),
        ("ada", "engineer", {"run_id": "other"}),
        ("ada", "engineer", {"name": "other"}),
        ("ada", "engineer", {"tags": (*TAGS.items(), ("approval", "approve: x"))}),
        ("ada", "engineer", {"tags": (*TAGS.items(), ("approval.by", "rita"))}),
        ("ada", "engineer", {"tags": (*TAGS.items(), ("gate.state", "x"))}),
        (
            "ada",
            "engineer",
            {"tags": (*TAGS.items(), ("dpoflow.verdict", "a"), ("dpoflow.verdict", "b"))},
        ),
    ],
)
def test_a_version_that_brings_what_is_not_its_own_is_refused(
    court: Court, user: str, roles: str, change: dict[str, object]
) -> None:
    court.denied(user, roles, evidenced(**change))


def test_a_version_without_reserved_tags_is_nobodys_business(court: Court) -> None:
    plain = act.CreateVersion("m", "models:/other/3", "", "", (("note", "x"),))

    assert not rules.is_guarded(plain, court.facts)


# ---------------------------------------------------------------- files


def test_a_folder_over_sealed_files_is_not_deleted(court: Court) -> None:
    court.facts.seals += court.allowed("ada", "engineer", evidenced()).seals
    for path in ("1", "1/models", f"1/models/{MODEL_ID}"):
        court.denied("ada", "admin", act.WriteArtifact(path, "delete"))
    for path in (f"1/models/{MODEL_ID}/artifacts", f"1/models/{MODEL_ID}/artifacts/a/b"):
        for how in ("put", "delete", "begin by parts", "end by parts", "drop parts"):
            court.denied("ada", "admin promoter pipeline", act.WriteArtifact(path, how))
    assert not rules.is_guarded(act.WriteArtifact("1/other/artifacts/x", "put"), court.facts)


def test_the_artifact_root_is_not_deleted(court: Court) -> None:
    court.denied("root", "admin", act.WriteArtifact("", "delete"))


@pytest.mark.parametrize("how", ["put", "begin by parts", "end by parts"])
def test_the_promoter_writes_each_file_of_a_begun_promotion_once(court: Court, how: str) -> None:
    path = f"champions/m/1/{POLICY}/config.json"
    put = act.WriteArtifact(path, how)

    court.denied("prom", "promoter", put)
    court.begin()
    court.allowed("prom", "promoter", put)
    court.denied("root", "admin engineer reviewer pipeline", put)
    court.denied("prom", "promoter", act.WriteArtifact(f"champions/m/2/{POLICY}/config.json", how))
    court.denied("prom", "promoter", act.WriteArtifact(f"champions/m/1/{POLICY}", how))
    court.facts.files.add(path)
    court.denied("prom", "promoter", put)
    court.denied("prom", "promoter", act.WriteArtifact(path, "delete"))


def test_what_was_verified_is_not_added_to(court: Court) -> None:
    court.begin(state="verified")

    court.denied("prom", "promoter", act.WriteArtifact(f"champions/m/1/{POLICY}/new", "put"))


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ("1/run/artifacts/x", "1/run/artifacts/x"),
        ("1//run/./artifacts/x/", "1/run/artifacts/x"),
        ("1%2Frun/artifacts/x", "1/run/artifacts/x"),
        ("1%252Frun/artifacts/x", "1/run/artifacts/x"),
        ("./champions/x", "champions/x"),
        ("%63hampions/x", "champions/x"),
    ],
)
def test_a_path_is_read_as_the_store_reads_it(given: str, seen: str) -> None:
    assert act.safe_path(given) == seen


@pytest.mark.parametrize(
    "path",
    [
        *("../x", "1/../champions/x", "1/%2e%2e/x", "/etc/passwd", "a#b"),
        *("1\\x", "1/run/artifacts\\x", "1%5Cx", "1%255cx"),
        "a/" * 513,
    ],
)
def test_a_path_out_of_the_root_or_longer_than_any_is_refused(path: str) -> None:
    with pytest.raises(act.Unreadable):
        act.safe_path(path)


@pytest.mark.parametrize(
    "action",
    [
        act.SetAlias("support\0", "champion", "3"),
        act.SetAlias("support", "champion\0", "3"),
        act.WriteArtifact("1/x\0", "put"),
        act.WriteRun(("a", "b\0"), "tag"),
        act.CreateVersion("support", "s3://b/x", "", "", (("gate.submission", "\0"),)),
    ],
)
def test_a_null_letter_is_refused_before_a_database_sees_it(action: act.Action) -> None:
    with pytest.raises(act.Unreadable, match="null letter"):
        act.refuse_nulls([act.SetAlias("support", "champion", "3"), action])


# ---------------------------------------------------------------- roles


def test_roles_are_read_again_when_their_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "roles.yaml"
    path.write_text("reviewer: [rita]\n")
    roles = Roles({"DPOFLOW_ROLES": str(path)})
    assert roles.of("rita") == {"reviewer"}

    path.write_text("reviewer: [rob]\nadmin: [rita, rob]\n")
    assert roles.of("rita") == {"admin"}
    assert roles.of("rob") == {"reviewer", "admin"}

    path.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        roles.of("rob")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no roles"),
        ("boss: [rita]", "has the role 'boss'"),
        ("reviewer: rita", "must be a list of user names"),
        ("reviewer: [1]", "must be a list of user names"),
        ("reviewer: [rita", "is no YAML"),
        ("reviewer: !!python/object/apply:os.system [id]", "is no YAML"),
    ],
)
def test_a_file_of_roles_that_is_none_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_roles(text, "roles.yaml")


def test_without_roles_the_gate_does_not_open() -> None:
    with pytest.raises(ConfigError, match="no roles"):
        Roles({})


def test_a_trusted_signer_is_a_key() -> None:
    assert trusted_signers({"DPOFLOW_TRUSTED_SIGNERS": f" {SIGNER.upper()} ,"}) == {SIGNER}
    with pytest.raises(ConfigError, match="no Ed25519 key"):
        trusted_signers({"DPOFLOW_TRUSTED_SIGNERS": "rita"})


# ---------------------------------------------------------------- the routes of MLflow

ROUTES = """
import json, os
from mlflow.server import app as flask_app, auth
from mlflow.server.graphql.graphql_schema_extensions import schema
from dpoflow.registry.gate.actions import _leaves
app = auth.create_app(flask_app)
reads = {"GET", "HEAD", "OPTIONS"}
found = {rule.endpoint for rule in flask_app.url_map.iter_rules() if rule.methods - reads}
native = {route.name for route in _leaves(app.routes) if set(route.methods) - reads}
mutations = sorted(schema.graphql_schema.mutation_type.fields)
print(json.dumps({"writes": sorted(found | native), "native": len(native), "mutations": mutations}))
"""


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Of the app that MLflow makes under uvicorn, in a process of its own."""
    folder = tmp_path_factory.mktemp("mlflow")
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/a.db\n"
        "admin_username = root\nadmin_password = password-of-the-test\n"
    )
    environment = {
        **os.environ,
        "_MLFLOW_SGI_NAME": "uvicorn",
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "k" * 32,
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    done = subprocess.run(
        [sys.executable, "-c", ROUTES],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    told: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_every_write_route_of_the_installed_mlflow_is_known(routes: dict[str, list[str]]) -> None:
    known = act.ORDINARY | set(act.GUARDED)

    assert set(routes["writes"]) - known == set()
    assert known - set(routes["writes"]) == set(), "routes that this MLflow does not have"
    assert not act.ORDINARY & set(act.GUARDED)


def test_graphql_has_no_mutation_that_writes(routes: dict[str, list[str]]) -> None:
    assert routes["mutations"] == ["mlflowSearchDatasets", "mlflowSearchRuns", "testMutation"]


def test_a_route_that_nobody_knows_is_refused() -> None:
    guard = act.guard_of(act.Route("crown_model", native=False, values={}))

    assert guard is not None
    [closed] = guard.read(act.Request({}, "", b""))
    assert isinstance(closed, act.Closed)
    assert "crown_model" in closed.sentence


def test_what_a_body_brings_is_judged_once_it_is_there() -> None:
    """What is judged at the headers alone brings nothing, or streams and is judged again."""
    early = {name for name, guard in act.GUARDED.items() if not (guard.needs_body or guard.streams)}
    asked = act.Request({"model_id": "m", "tag_key": "k", "artifact_path": "x"}, "", b"")
    closed = {
        name
        for name in early
        if all(isinstance(each, act.Closed) for each in act.GUARDED[name].read(asked))
    }

    assert early - closed == {"_delete_logged_model_tag", "_delete_artifact_mlflow_artifacts"}


def test_a_batch_of_more_models_than_a_batch_has_metrics_is_refused() -> None:
    metrics = [{"model_id": f"m-{each}"} for each in range(1001)]
    body = json.dumps({"run_id": "r", "metrics": metrics}).encode()

    with pytest.raises(act.Unreadable, match="more than 1,000 logged models"):
        act.GUARDED["_log_batch"].read(act.Request({}, "", body))
