"""The same road on PostgreSQL, with two workers that share the log; killed in the middle of it."""

from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from tests.gate import API, GATE, GateServer, copy_files, postgresql, promote, record, sentence

from dpoflow.registry.gate import audit

pytestmark = pytest.mark.full


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


def test_a_write_is_judged_all_the_same_once_the_database_has_dropped_its_connections(
    tmp_path: Path,
) -> None:
    with postgresql() as uri:
        server = GateServer(tmp_path / "gate", MLFLOW_BACKEND_STORE_URI=uri)
        try:
            ada = server.start().person("ada")
            version = record(ada, tmp_path / "v", "pg")
            made = ada.post(f"{API}/runs/create", experiment_id=version.experiment_id).json()
            ours, sealed = made["run"]["info"]["run_id"], version.run_id

            def tagged() -> list[int]:
                """What is answered to a write to either, often enough to meet both workers."""
                path, more = f"{API}/runs/set-tag", {"key": "note", "value": "x"}
                runs = [ours, sealed] * 8
                return [ada.post(path, run_id=run, **more).status_code for run in runs]

            before = tagged()

            with closing(psycopg.connect(uri, autocommit=True)) as admin:
                admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )

            assert before == tagged() == [200, 403] * 8
        finally:
            server.kill()
