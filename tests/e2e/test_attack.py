"""Some of `make attack`, on a server with sqlite and local files: nothing gets through.

Every third attempt of each role, so that a rule that is gone is noticed here; all of them, and the
same on stock MLflow, are in `make attack`.
"""

import collections
from pathlib import Path

import pytest
from tests.attack.attack import attack, table
from tests.attack.stage import ATTACKERS, Stage
from tests.gate import GATE, GateServer, promote

pytestmark = pytest.mark.full


def test_nothing_that_anybody_tries_gets_through_and_all_of_it_is_in_the_log(
    tmp_path: Path,
) -> None:
    server = GateServer(tmp_path / "gate")
    try:
        stage = Stage(server.start("--workers", "2"), tmp_path / "files").set_up()
        results = attack(stage, ATTACKERS, every=3)

        assert [f"{each.role}: {each.name}: {each.fault}" for each in results if each.fault] == []
        tried = collections.Counter(each.role for each in results)
        assert min(tried.values()) > 40
        assert "succeeded" not in table(results, [])
        assert server.person("rita").get(f"{GATE}/audit/verify").json()["whole"] is True
        assert promote(server, stage.approved).ok  # the road that is allowed is still open
    finally:
        server.kill()
