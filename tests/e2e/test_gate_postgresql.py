"""The same road on PostgreSQL, with two workers that share the log; killed in the middle of it."""

from pathlib import Path

import pytest
from tests.gate import GATE, GateServer, copy_files, postgresql, promote, record, sentence

from dpoflow.registry.gate import audit

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]


def test_a_killed_server_on_postgresql_goes_on_where_it_was(tmp_path: Path) -> None:
    with postgresql() as uri:
        server = GateServer(tmp_path / "gate", MLFLOW_BACKEND_STORE_URI=uri)
        try:
            server.start()
            ada, promoter = server.person("ada"), server.person("prom")
            version = record(ada, tmp_path / "v", "pg", submission=ada.submit("pg"))
            assert "Only reviewers" in sentence(ada.approve(version.subject))
            assert server.person("rita").approve(version.subject).ok
            begun = promoter.post(
                f"{GATE}/promotions", model="pg", version="1", kind="promotion", reason="x"
            ).json()
            copy_files(promoter, version, begun["target"])

            server.kill()
            server.start(people=False)

            assert promote(server, version).ok
            rita = server.person("rita")
            assert rita.get(f"{GATE}/audit/verify").json()["whole"] is True
            assert rita.get(f"{GATE}/drift").json() == {"drift": []}
            assert len(server.rows(action="promoted")) == 1
        finally:
            server.kill()
        engine = audit.engine_of(uri)
        assert audit.verify(engine, server.audit_key.read_bytes().strip()).rows > 10
        engine.dispose()
