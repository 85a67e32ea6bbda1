"""The promoter on what a team runs: PostgreSQL, a bucket, and both of them not always there."""

from pathlib import Path

import pytest
from tests.gate import GATE, GateServer, password_of, postgresql, record
from tests.promoter import started
from tests.seaweed import BUCKET, KEY, SECRET, SeaweedFS

from dpoflow.registry.pull import pull
from dpoflow.registry.team import asked_team

pytestmark = pytest.mark.full


def identity_of(user: str, server: GateServer) -> dict[str, str]:
    return {
        "MLFLOW_TRACKING_URI": server.url,
        "MLFLOW_TRACKING_USERNAME": user,
        "MLFLOW_TRACKING_PASSWORD": password_of(user),
        "NO_PROXY": "127.0.0.1",
    }


def test_promoters_at_once_on_a_bucket_that_goes_away_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weed = SeaweedFS(tmp_path / "weed").start()
    with postgresql() as uri:
        server = GateServer(
            tmp_path / "gate",
            MLFLOW_BACKEND_STORE_URI=uri,
            MLFLOW_S3_ENDPOINT_URL=weed.url,
            AWS_ACCESS_KEY_ID=KEY,
            AWS_SECRET_ACCESS_KEY=SECRET,
            AWS_DEFAULT_REGION="us-east-1",
        )
        try:
            server.start("--artifacts", f"s3://{BUCKET}/registry")
            ada, rita = server.person("ada"), server.person("rita")

            def approved(number: int) -> str:
                version = record(
                    ada, tmp_path / f"v{number}", "desk", submission=ada.submit("desk"), seed=number
                )
                assert rita.approve(version.subject).ok
                return version.policy_digest

            def rounds(many: int) -> list[int | None]:
                at_work = [started(identity_of("prom", server)) for _ in range(many)]
                for each in at_work:
                    each.join()
                return [each.exitcode for each in at_work]

            first = approved(1)
            assert rounds(4) == [0] * 4
            second = approved(2)
            weed.kill()
            assert rounds(1) == [1]
            assert rita.get(f"{GATE}/promotions", model="desk").json()["due"] != []
            weed.start()
            assert rounds(4) == [0] * 4

            for key, value in identity_of("norole", server).items():
                monkeypatch.setenv(key, value)
            there = pull(asked_team(), "desk@champion", tmp_path / "served", lambda line: None)
            before = pull(
                asked_team(), "desk@previous_champion", tmp_path / "before", lambda line: None
            )
            assert (there.policy_digest, before.policy_digest) == (second, first)
            assert rita.get(f"{GATE}/drift").json() == {"drift": []}
            assert rita.get(f"{GATE}/audit/verify").json()["whole"] is True
        finally:
            server.kill()
            weed.kill()
