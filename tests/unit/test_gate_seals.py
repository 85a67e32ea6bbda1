"""What is sealed when two versions of one model are recorded at once, and one of them fails."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dpoflow.registry.gate import audit
from dpoflow.registry.gate.app import Office, Passed
from dpoflow.registry.gate.facts import Seal, StoreFacts, seal
from dpoflow.registry.gate.identity import BasicAuth
from dpoflow.registry.gate.roles import Roles
from dpoflow.registry.gate.rules import Allowed

SEALS = (Seal("model", "m-1", "ada", ""), Seal("experiment", "7", "ada", ""))


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    log = audit.Log(audit.engine_of(f"sqlite:///{tmp_path}/log.db"), b"k" * 32)
    log.prepare()
    yield Office(
        BasicAuth(),
        Roles({"DPOFLOW_ROLES_YAML": "engineer: [ada]"}),
        log,
        StoreFacts(log.engine),
        frozenset(),
        14,
    )
    log.engine.dispose()


def begun(office: Office) -> Passed:
    """A create call that the gate let through, and that has not ended."""
    with office.log.exclusively() as turn:
        row = turn.append("ada", "version", "support", "allowed", {})
        return Passed(Allowed("version", seals=SEALS), (row,), tuple(seal(turn.connection, SEALS)))


def is_recorded(office: Office, passed: Passed) -> None:
    told = {"model_version": {"name": "support", "version": "2"}}
    office.settle(passed, 200, json.dumps(told).encode())


def fails(office: Office, passed: Passed) -> None:
    office.settle(passed, 500, b"")


def sealed(office: Office) -> set[str]:
    return {each.kind for each in SEALS if office.facts.sealed((each.kind, each.name))}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
@pytest.mark.parametrize(
    "ends",
    [(fails, is_recorded), (is_recorded, fails)],
    ids=["the first fails", "the second fails"],
)
def test_a_version_that_was_recorded_stays_sealed_whatever_became_of_another(
    office: Office,
    order: tuple[int, int],
    ends: tuple[Callable[[Office, Passed], None], ...],
) -> None:
    calls = [begun(office), begun(office)]  # the first of them sealed what both need

    for each in order:
        ends[each](office, calls[each])

    assert sealed(office) == {"model", "experiment"}
    assert office.facts.sealed(("version", "support/2"))


def test_what_nobody_needs_any_more_is_unsealed_and_the_log_says_so(office: Office) -> None:
    fails(office, begun(office))

    assert sealed(office) == set()
    assert [row.detail["row"] for row in office.log.rows(["undone"])] == [1]
